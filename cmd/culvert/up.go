package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/urfave/cli/v2"

	"culvert.dev/culvert/internal/thrift"
	"culvert.dev/culvert/internal/wgkey"
	"culvert.dev/culvert/node"
	"culvert.dev/culvert/tunnel"
)

func upCommand() *cli.Command {
	return &cli.Command{
		Name:  "up",
		Usage: "run a node in the foreground until SIGTERM or SIGINT; SIGHUP reloads",
		Description: "Peers with AllowRouting reach the internet through this host, those with AllowLAN its local networks too.\n" +
			"No privilege is needed. Where no configuration exists, one is made, with a WireGuard file for a first device.\n" +
			"Variables such as CULVERT_INTERFACE_PRIVATE_KEY are part of the configuration, or all of it: culvert check\n" +
			"--env-list prints them. -L, -R and -D are as those of ssh, and hold until the node stops, reloads included.",
		Flags: append([]cli.Flag{
			configFlag(), stateFlag(), socketFlag(),
			endpointFlag(", for the device file of a first run"),
			&cli.StringFlag{
				Name: "log-level", EnvVars: []string{"CULVERT_LOG_LEVEL"}, Value: "info",
				Usage: "log from `LEVEL` on: debug, info, warn or error",
			},
			&cli.StringFlag{
				Name: "log-format", EnvVars: []string{"CULVERT_LOG_FORMAT"}, Value: "text",
				Usage: "`FORMAT` of the log on stderr: text or json",
			},
		}, shorthandFlags()...),
		CustomHelpTemplate: cli.CommandHelpTemplate + example(
			"culvert up -c exit.conf --log-format json",
			"culvert up -D 1080 -E fra,ams -L 5432:db:5432 -R 8443:127.0.0.1:443"),
		Action: runUp,
	}
}

func runUp(c *cli.Context) error {
	if _, err := arguments(c); err != nil {
		return err
	}
	log, err := newLogger(c.App.ErrWriter, c.String("log-level"), c.String("log-format"))
	if err != nil {
		return err
	}
	if err := noNewPrivileges(); err != nil {
		log.Warn("cannot give up the right to gain privileges", "err", err)
	}
	cfg, state, created, err := ensureConfig(c)
	if err != nil {
		return err
	}
	if created != nil {
		if err := printCreated(c.App.Writer, created); err != nil {
			return err
		}
	}
	at, err := findConfig(c) // which a first run has changed
	if err != nil {
		return err
	}
	socket, err := hostPlaces().socket(c.String("socket"), cfg, state)
	if err != nil {
		return err
	}

	ctx, stop := signal.NotifyContext(c.Context, syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	thrift.Begin(ctx)
	hangup := make(chan os.Signal, 1)
	signal.Notify(hangup, syscall.SIGHUP)
	defer signal.Stop(hangup)
	n, err := node.Start(c.Context, node.Config{
		File: at.file, State: at.state, Sources: at.sources, Socket: socket, Version: readVersion().Version, Logger: log,
	})
	if err != nil {
		return err
	}
	defer n.Close()
	log.Info("node is up", "name", cfg.Interface.Name, "port", n.ListenPort(), "public_key", n.PublicKey(), "socket", socket, "file", at.file, "variables", len(cfg.Environment))
	for {
		select {
		case <-hangup:
			if err := n.Reload(); err != nil {
				log.Error("the configuration was not reloaded", "err", err)
			}
		case <-n.Done():
			return fmt.Errorf("the node has stopped by itself; the log says why")
		case <-ctx.Done():
			stop() // another signal ends the process at once
			shutdown(n)
			log.Info("node is down", "name", cfg.Interface.Name)
			return nil
		}
	}
}

// drainTime is what open connections get to end by themselves.
const drainTime = 5 * time.Second

func shutdown(n *node.Node) {
	ctx, cancel := context.WithTimeout(context.Background(), drainTime)
	defer cancel()
	n.Shutdown(ctx)
}

// newLogger makes the log that the options ask for.
func newLogger(w io.Writer, level, format string) (*slog.Logger, error) {
	var o slog.HandlerOptions
	var l slog.Level
	if err := l.UnmarshalText([]byte(level)); err != nil {
		return nil, usagef("--log-level: %q is none of debug, info, warn, error", level)
	}
	o.Level = l
	switch format {
	case "text":
		return slog.New(slog.NewTextHandler(w, &o)), nil
	case "json":
		return slog.New(slog.NewJSONHandler(w, &o)), nil
	}
	return nil, usagef("--log-format: %q is neither text nor json", format)
}

func portOf(k wgkey.Public) uint16 { return tunnel.PortOf(k) }
