package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"runtime"
	"syscall"
	"time"

	"github.com/urfave/cli/v2"

	"culvert.dev/culvert/internal/config"
	"culvert.dev/culvert/node/relayd"
)

func relayCommand() *cli.Command {
	return &cli.Command{
		Name:      "relay",
		Usage:     "run a relay, STUN and WG-STUN for a mesh in the foreground until SIGTERM or SIGINT; SIGHUP reloads",
		ArgsUsage: " ",
		Description: "Needs no configuration and no privilege: keys and a certificate are made in the state folder, and the lines that\n" +
			"nodes need are printed. Nobody is admitted until culvert relay allow has their key. SIGTERM tells the clients\n" +
			"to connect again and ends within 5 seconds; a second one ends at once.\n\n" +
			"Every key of the configuration is a variable too, such as CULVERT_RELAYD_URL, CULVERT_RELAYD_STUN_LISTEN or\n" +
			"CULVERT_RELAYD_PRIVATE_KEY_FILE: culvert relay check --env-list prints all of them.",
		Subcommands: []*cli.Command{
			relayStatusCommand(), relayAllowCommand(), relayDenyCommand(), relayListCommand(), relayCheckCommand(), relayConfigCommand(),
		},
		Flags: []cli.Flag{
			relayConfigFlag(), stateFlag(), relaySocketFlag(),
			&cli.StringSliceFlag{
				Name: "listen", EnvVars: []string{"CULVERT_LISTEN"},
				Usage: "`ADDRESS`:PORT to listen on, instead of what the configuration says (default: :443, or :8443 where that is refused)",
			},
			boolFlag("open", "admit every key, each within a rate"),
			&cli.StringFlag{
				Name: "log-level", EnvVars: []string{"CULVERT_LOG_LEVEL"}, Value: "info",
				Usage: "log from `LEVEL` on: debug, info, warn or error",
			},
			&cli.StringFlag{
				Name: "log-format", EnvVars: []string{"CULVERT_LOG_FORMAT"}, Value: "text",
				Usage: "`FORMAT` of the log on stderr: text or json",
			},
		},
		CustomHelpTemplate: cli.SubcommandHelpTemplate + example(
			"culvert relay                     # first run: makes keys and a certificate, and prints what nodes need",
			"culvert relay allow xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg= laptop",
			"culvert relay status"),
		Action: runRelay,
	}
}

func runRelay(c *cli.Context) error {
	if c.Args().Present() {
		return unknownCommand(c)
	}
	log, err := newLogger(c.App.ErrWriter, c.String("log-level"), c.String("log-format"))
	if err != nil {
		return err
	}
	listen, err := parseListenFlags(c.StringSlice("listen"))
	if err != nil {
		return err
	}
	if err := noNewPrivileges(); err != nil {
		log.Warn("cannot give up the right to gain privileges", "err", err)
	}
	at, err := findRelay(c)
	if err != nil {
		return err
	}
	socket, err := at.newSocket(c.String("socket"))
	if err != nil {
		return err
	}

	useTwoThreads()
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	defer signal.Stop(signals)
	r, err := relayd.Start(c.Context, relayd.Config{
		File: at.conf.File, State: at.state, Socket: socket, Listen: listen, Open: c.Bool("open"), Version: readVersion().Version, Logger: log,
		Environ: os.Environ(),
	})
	if err != nil {
		return err
	}
	if err := printRelayStart(c.App.Writer, r); err != nil {
		r.Close()
		return err
	}
	log.Info("relay is up", "name", at.conf.Server.Name, "url", r.Offer().URL, "socket", socket)
	err = attendRelay(c, r, signals, at.reload(c, r, log))
	if err == nil {
		log.Info("relay is down")
	}
	return err
}

// useTwoThreads keeps one client that sends without pause from delaying the others on a machine with one core: with a single
// thread that is never idle, the Go runtime looks for what has arrived on other connections every 10 ms only.
func useTwoThreads() {
	if runtime.GOMAXPROCS(0) == 1 {
		runtime.GOMAXPROCS(2)
	}
}

func parseListenFlags(texts []string) ([]config.ListenAddr, error) {
	var list []config.ListenAddr
	for _, text := range texts {
		a, err := config.ParseListenAddr(text)
		if err != nil {
			return nil, usagef("--listen: %v", err)
		}
		list = append(list, a)
	}
	return list, nil
}

// stuckTime is how long a relay may take that was told to end at once. Only a file system that does not answer holds it up.
const stuckTime = 3 * time.Second

// attendRelay does what signals ask for until the relay has ended. No signal waits for another.
func attendRelay(c *cli.Context, r *relayd.Relay, signals <-chan os.Signal, reload func()) error {
	ctx, stopAtOnce := context.WithCancel(c.Context)
	defer stopAtOnce()
	draining := false
	var stuck <-chan time.Time
	for {
		select {
		case s := <-signals:
			switch {
			case s == syscall.SIGHUP:
				go reload()
			case draining:
				stopAtOnce()
				if stuck == nil {
					stuck = time.After(stuckTime)
				}
			default:
				draining = true
				go r.Drain(ctx)
			}
		case <-r.Done():
			if !draining {
				return errors.New("the relay has stopped by itself; the log says why")
			}
			return nil
		case <-stuck:
			return errors.New("the relay was told to end and did not: is there a file or folder of its that does not answer?")
		}
	}
}

// reload returns what SIGHUP asks for.
func (at relayPlace) reload(c *cli.Context, r *relayd.Relay, log *slog.Logger) func() {
	return func() {
		if err := r.Reload(); err != nil {
			log.Error("the configuration was not reloaded", "err", err)
		}
		if file := at.places.relayConfig(c.String("config"), at.state); at.conf.File == "" && file != "" {
			log.Warn("a configuration is there that was not when the relay started: restart it to have that used", "file", file)
		}
	}
}

// printRelayStart tells what clients need, and what to do for them to be admitted.
func printRelayStart(w io.Writer, r *relayd.Relay) error {
	o := r.Offer()
	if r.FellBack() {
		fmt.Fprint(w, "# port 443 is refused to this user: the relay listens on 8443. To change that:\n"+
			"#   sudo sysctl -w net.ipv4.ip_unprivileged_port_start=443\n")
	}
	fmt.Fprint(w, "# what nodes need in their configuration; culvert relay config prints it again\n")
	printGuess(w, o)
	fmt.Fprintln(w, o)
	switch keys, open := r.Allowed(); {
	case open:
		fmt.Fprintln(w, "# every key is admitted")
	case keys == 0:
		fmt.Fprintln(w, "# no key is allowed yet, so that nobody is admitted; to allow a node: culvert relay allow KEY [NAME]")
	default:
		fmt.Fprintf(w, "# keys allowed: %d\n", keys)
	}
	return nil
}

func printGuess(w io.Writer, o relayd.Offer) {
	if o.Guessed {
		fmt.Fprintf(w, "# the address is a guess%s: where nodes cannot reach it, set URL in the relay's configuration\n", o.Doubt())
	}
}
