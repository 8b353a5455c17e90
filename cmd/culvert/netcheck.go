package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"github.com/urfave/cli/v2"

	"culvert.dev/culvert/internal/control"
	"culvert.dev/culvert/internal/wgkey"
	"culvert.dev/culvert/node"
	"culvert.dev/culvert/traversal/netcheck"
	"culvert.dev/culvert/traversal/relay"
)

func netcheckCommand() *cli.Command {
	return &cli.Command{
		Name:  "netcheck",
		Usage: "find out what NATs and firewalls do to UDP here, and how peers will be reached from behind each kind of NAT",
		Description: "Needs no running node and no privilege. Servers are those of the configuration, if there is one, or those of the\n" +
			"options, which then replace them. Where only relays are known, a STUN server is looked for at port 3478 of each.\n" +
			"A port mapping that is made for the test is deleted again.\n\n" +
			"--lifetime also finds out how long an idle mapping lives, which takes that long: minutes. Interrupt ends it, and\n" +
			"prints what is known by then.",
		Flags: []cli.Flag{
			&cli.StringSliceFlag{Name: "stun", EnvVars: []string{"CULVERT_STUN"}, Usage: "ask the STUN server at `HOST:PORT`; repeatable"},
			&cli.StringSliceFlag{Name: "relay", EnvVars: []string{"CULVERT_RELAY"}, Usage: "try the relay at `URL`; repeatable"},
			&cli.StringSliceFlag{Name: "pin", EnvVars: []string{"CULVERT_PIN"}, Usage: "`PIN` of the certificate of relays named by --relay; repeatable"},
			boolFlag("lifetime", "find out how long an idle mapping lives"),
			boolFlag("no-port-mapping", "do not ask the gateway for a port mapping"),
			jsonFlag(), configFlag(), stateFlag(), socketFlag(),
		},
		CustomHelpTemplate: cli.CommandHelpTemplate + example(
			"culvert netcheck",
			"culvert netcheck --stun relay.example:3478 --relay https://relay.example",
			"culvert netcheck --json | jq -r '.ipv4.kind'"),
		Action: runNetcheck,
	}
}

func runNetcheck(c *cli.Context) error {
	if _, err := arguments(c); err != nil {
		return err
	}
	cfg, configured, err := netcheckConfig(c)
	if err != nil {
		return err
	}
	cfg.Lifetime = c.Bool("lifetime")
	cfg.NoPortMapping = cfg.NoPortMapping || c.Bool("no-port-mapping")
	ctx, stop := signal.NotifyContext(c.Context, syscall.SIGINT, syscall.SIGTERM)
	defer stop()

	var running *node.Status
	if configured {
		if running = runningNode(ctx, c); running != nil && running.PublicKey == cfg.Key.Public() {
			cfg.OtherRelays = len(cfg.Relays) > 0
			cfg.Relays, cfg.Key = nil, wgkey.Private{}
		} else {
			running = nil
		}
	}
	p := progressOn(c.App.ErrWriter)
	cfg.Progress = p.show
	rep, err := netcheck.Run(ctx, cfg)
	p.clear()
	if err != nil {
		if errors.Is(err, context.Canceled) {
			return errReported // who interrupts knows
		}
		return err
	}
	if running != nil {
		rep.Besides(running.NetcheckRelays(), running.ListenPort)
	}
	if c.Bool("json") {
		return printJSON(c.App.Writer, rep)
	}
	_, err = c.App.Writer.Write(rep.AppendText(nil))
	return err
}

// netcheckConfig takes servers from the options, or from the configuration if there are none; configured tells which.
func netcheckConfig(c *cli.Context) (cfg netcheck.Config, configured bool, err error) {
	var urls []string
	named := len(c.StringSlice("stun"))+len(c.StringSlice("relay")) > 0
	if len(c.StringSlice("pin")) > 0 && len(c.StringSlice("relay")) == 0 {
		return cfg, false, usagef("--pin is for relays named by --relay; see %s --help", c.Command.HelpName)
	}
	if !named || c.String("config") != "" {
		conf, _, err := loadConfig(c)
		var missing *noConfigError
		switch {
		case err == nil:
			configured = true
			if cfg, err = node.NetcheckConfig(conf); err != nil {
				return cfg, false, err
			}
			for _, r := range cfg.Relays {
				urls = append(urls, r.URL)
			}
		case !errors.As(err, &missing):
			return cfg, false, err
		}
	}
	if named {
		cfg.STUN = c.StringSlice("stun")
		if cfg.Relays, err = relayFlags(c); err != nil {
			return cfg, false, err
		}
		urls = c.StringSlice("relay")
	}
	if len(cfg.STUN) == 0 {
		cfg.STUN = node.STUNBeside(urls)
	}
	return cfg, configured && !named, nil
}

func relayFlags(c *cli.Context) (list []relay.Server, err error) {
	var pins []relay.Pin
	for _, text := range c.StringSlice("pin") {
		pin, err := relay.ParsePin(text)
		if err != nil {
			return nil, usagef("--pin: %v", err)
		}
		pins = append(pins, pin)
	}
	for _, url := range c.StringSlice("relay") {
		s := relay.Server{URL: url, Pins: pins}
		if err := s.Check(); err != nil {
			return nil, usagef("--relay: %v", err)
		}
		list = append(list, s)
	}
	return list, nil
}

// runningNode is the status of the node that runs with the same configuration, nil if there is none.
func runningNode(ctx context.Context, c *cli.Context) *node.Status {
	socket, err := clientSocket(c)
	if err != nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	s := new(node.Status)
	if control.NewClient(socket).Status(ctx, s) != nil {
		return nil
	}
	return s
}

// progress is one line on a terminal that says what is being done.
type progress struct {
	mu  sync.Mutex // guards the following
	out io.Writer  // nil: nobody looks
	any bool
}

func progressOn(w io.Writer) *progress {
	if !isTerminal(w) {
		w = nil
	}
	return &progress{out: w}
}

const eraseLine = "\r\x1b[K"

func (p *progress) show(what string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.out != nil {
		p.any = true
		fmt.Fprintf(p.out, "%s%s …", eraseLine, what)
	}
}

func (p *progress) clear() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.any {
		fmt.Fprint(p.out, eraseLine)
	}
	p.out = nil
}
