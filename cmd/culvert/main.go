// Command culvert runs a WireGuard node in user space, without privileges, and looks after its configuration.
//
// One file holds one command. What they share: paths.go finds files, args.go lets options stand anywhere on the line,
// output.go has the forms of output. Errors go to stderr as "culvert: message" with exit status 1; a wrong command line
// has exit status 2. The scripts in testdata/script are the specification.
package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/urfave/cli/v2"

	"culvert.dev/culvert/internal/config"
)

func main() {
	endProfile := beginProfile()
	status := run(os.Args, os.Stdin, os.Stdout, os.Stderr)
	endProfile()
	os.Exit(status)
}

// run executes one command line and returns its exit status.
func run(args []string, in io.Reader, out, errOut io.Writer) int {
	app := newApp()
	app.Reader, app.Writer, app.ErrWriter = in, out, errOut
	err := app.Run(reorder(app.Commands, separate(app.Commands, args)))
	if err == nil {
		return 0
	}
	if !errors.Is(err, errReported) {
		for line := range strings.SplitSeq(err.Error(), "\n") {
			fmt.Fprintf(errOut, "culvert: %s\n", line)
		}
	}
	var usage *usageError
	var notFound cli.ExitCoder // from the built-in help command
	if errors.As(err, &usage) || errors.As(err, &notFound) {
		return 2
	}
	if errors.Is(err, errDenied) {
		return exitDenied
	}
	return 1
}

func newApp() *cli.App {
	app := &cli.App{
		Name:      "culvert",
		Usage:     "a WireGuard node without privileges: exit node and mesh in one binary",
		UsageText: "culvert COMMAND [OPTIONS] [ARGUMENTS]",
		Version:   readVersion().String(),
		Commands: []*cli.Command{
			upCommand(),
			initCommand(),
			checkCommand(),
			peerCommand(),
			statusCommand(),
			healthCommand(),
			reloadCommand(),
			conntrackCommand(),
			explainCommand(),
			pingCommand(),
			benchCommand(),
			netcheckCommand(),
			relayCommand(),
			attachCommand(),
			genkeyCommand(),
			pubkeyCommand(),
			genpskCommand(),
			completionCommand(),
			versionCommand(),
		},
		CustomAppHelpTemplate: cli.AppHelpTemplate + example(
			"culvert up                        # first run: makes a configuration and prints one for your device",
			"culvert peer add laptop --output laptop.conf",
			"culvert status"),
		Action:               unknownCommand,
		OnUsageError:         onUsageError,
		EnableBashCompletion: true,
		ExitErrHandler:       func(*cli.Context, error) {}, // run decides
	}
	harden(app.Commands)
	return app
}

// harden gives every command what the library leaves to each: errors as values, and no "help" below it that would take the
// place of an argument of that name.
func harden(commands []*cli.Command) {
	for _, c := range commands {
		c.OnUsageError = onUsageError
		c.HideHelpCommand = true
		if c.Action == nil {
			c.Action = unknownCommand
		}
		harden(c.Subcommands)
	}
}

// errReported ends a command that has told its errors already.
var errReported = errors.New("reported")

// usageError is a mistake on the command line.
type usageError struct{ message string }

func (e *usageError) Error() string { return e.message }

func usagef(format string, args ...any) error { return &usageError{fmt.Sprintf(format, args...)} }

func onUsageError(c *cli.Context, err error, _ bool) error {
	return usagef("%v; see %s --help", err, c.Command.HelpName)
}

// unknownCommand is what a command that only has subcommands does when none of them is named.
func unknownCommand(c *cli.Context) error {
	var names []string
	for _, sub := range c.Command.Subcommands {
		names = append(names, sub.Name)
	}
	word := c.Args().First()
	switch near := config.Nearest(word, names); {
	case word == "":
		return usagef("a command is missing; see %s --help", c.Command.HelpName)
	case near != "":
		return usagef("unknown command %q; did you mean %q?", word, near)
	default:
		return usagef("unknown command %q; see %s --help", word, c.Command.HelpName)
	}
}

// arguments returns the operands of a command, which must be as many as it has names for; those in brackets are optional
// and come last.
func arguments(c *cli.Context, names ...string) ([]string, error) {
	given := c.Args().Slice()
	if len(given) > len(names) {
		return nil, usagef("unexpected argument %q; see %s --help", given[len(names)], c.Command.HelpName)
	}
	for _, name := range names[len(given):] {
		if name[0] != '[' {
			return nil, usagef("%s is missing; see %s --help", name, c.Command.HelpName)
		}
		given = append(given, "")
	}
	return given, nil
}
