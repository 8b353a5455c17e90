package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/urfave/cli/v2"

	"culvert.dev/culvert/internal/wgkey"
)

func genkeyCommand() *cli.Command {
	return &cli.Command{
		Name:               "genkey",
		Usage:              "print a new private key, as wg genkey does",
		CustomHelpTemplate: cli.CommandHelpTemplate + example("(umask 077; culvert genkey > private.key)"),
		Action: func(c *cli.Context) error {
			key, err := wgkey.NewPrivate()
			if err != nil {
				return err
			}
			return printSecret(c, key.Reveal())
		},
	}
}

func genpskCommand() *cli.Command {
	return &cli.Command{
		Name:               "genpsk",
		Usage:              "print a new preshared key, as wg genpsk does",
		CustomHelpTemplate: cli.CommandHelpTemplate + example("(umask 077; culvert genpsk > laptop.psk)"),
		Action: func(c *cli.Context) error {
			key, err := wgkey.NewPreshared()
			if err != nil {
				return err
			}
			return printSecret(c, key.Reveal())
		},
	}
}

func pubkeyCommand() *cli.Command {
	return &cli.Command{
		Name:               "pubkey",
		Usage:              "read a private key from standard input and print its public key, as wg pubkey does",
		CustomHelpTemplate: cli.CommandHelpTemplate + example("culvert pubkey < private.key"),
		Action: func(c *cli.Context) error {
			if _, err := arguments(c); err != nil {
				return err
			}
			const enough = 4 << 10 // a key and generous white space
			text, err := io.ReadAll(io.LimitReader(c.App.Reader, enough))
			if err != nil {
				return fmt.Errorf("read private key: %w", err)
			}
			key, err := wgkey.ParsePrivate(strings.TrimSpace(string(text)))
			if err != nil {
				return fmt.Errorf("standard input: %w", err)
			}
			if key.IsZero() {
				return errors.New("standard input: the key is all zero")
			}
			_, err = fmt.Fprintln(c.App.Writer, key.Public())
			return err
		},
	}
}

// printSecret prints a key and says so where everyone can read the file it goes to.
func printSecret(c *cli.Context, text string) error {
	if _, err := arguments(c); err != nil {
		return err
	}
	if f, ok := c.App.Writer.(*os.File); ok {
		const others = 0o007
		if info, err := f.Stat(); err == nil && info.Mode().IsRegular() && info.Mode()&others != 0 {
			fmt.Fprintln(c.App.ErrWriter, "culvert: warning: writing a secret to a file that everyone may access; umask 077 prevents that")
		}
	}
	_, err := fmt.Fprintln(c.App.Writer, text)
	return err
}
