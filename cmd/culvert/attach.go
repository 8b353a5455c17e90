package main

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"syscall"

	"github.com/urfave/cli/v2"

	"culvert.dev/culvert/internal/config"
	"culvert.dev/culvert/internal/control"
	"culvert.dev/culvert/node/attach"
)

const (
	attachFile      = "attach.conf"
	attachSocketDir = "culvert-attach" // below $XDG_RUNTIME_DIR; apart from nodes' sockets, which are found by looking
)

func attachCommand() *cli.Command {
	return &cli.Command{
		Name:      "attach",
		Usage:     "find direct paths for a WireGuard that culvert does not run, such as wireguard-go, until SIGTERM, SIGINT or SIGHUP",
		ArgsUsage: " ",
		Description: "Peers of the device are found by the relays and moved to direct paths where NATs let them. Of the device only\n" +
			"endpoints of peers are set, and the WG-STUN server is added while culvert runs; addresses and routes are never touched.\n" +
			"The configuration has the sections [Relay], [STUN], [WGSTUN] and [Traversal] of a node's; others are not used. Their keys\n" +
			"are variables too, as culvert check --env-list prints them.\n" +
			"When it ends, direct endpoints stay, and others are put back to what they were.",
		Subcommands: []*cli.Command{attachStatusCommand()},
		Flags: []cli.Flag{
			interfaceFlag(), attachConfigFlag(), stateFlag(), attachSocketFlag(),
			&cli.StringFlag{
				Name: "uapi", EnvVars: []string{"CULVERT_UAPI"}, TakesFile: true,
				Usage: "configuration `SOCKET` of the device (default: /var/run/wireguard/NAME.sock)",
			},
			&cli.StringSliceFlag{Name: "relay", EnvVars: []string{"CULVERT_RELAY"}, Usage: "`URL` of a relay, besides those of the configuration"},
			&cli.StringSliceFlag{Name: "pin", EnvVars: []string{"CULVERT_PIN"}, Usage: "`HASH` of the certificate of the relays that --relay names, as culvert relay config prints it"},
			&cli.StringSliceFlag{Name: "stun", EnvVars: []string{"CULVERT_STUN"}, Usage: "STUN `SERVER`[:PORT], besides those of the configuration"},
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
			"culvert attach --interface wg0 --relay https://relay.example --stun relay.example",
			"culvert attach status --interface wg0"),
		Action: runAttach,
	}
}

func interfaceFlag() cli.Flag {
	return &cli.StringFlag{Name: "interface", Aliases: []string{"i"}, EnvVars: []string{"CULVERT_INTERFACE"}, Usage: "`NAME` of the WireGuard interface"}
}

func attachConfigFlag() cli.Flag {
	return &cli.StringFlag{
		Name: "config", Aliases: []string{"c"}, EnvVars: []string{"CULVERT_CONFIG"}, TakesFile: true,
		Usage: "configuration `FILE` (default: $XDG_CONFIG_HOME/culvert/attach.conf, then /etc/culvert/attach.conf, else none)",
	}
}

func attachSocketFlag() cli.Flag {
	return &cli.StringFlag{
		Name: "socket", EnvVars: []string{"CULVERT_SOCKET"}, TakesFile: true,
		Usage: "control `SOCKET` of culvert attach (default: one for each interface)",
	}
}

func runAttach(c *cli.Context) error {
	if c.Args().Present() {
		return unknownCommand(c)
	}
	log, err := newLogger(c.App.ErrWriter, c.String("log-level"), c.String("log-format"))
	if err != nil {
		return err
	}
	name := c.String("interface")
	if name == "" {
		return usagef("--interface is missing: it names the WireGuard to attach to; see %s --help", c.Command.HelpName)
	}
	if name != filepath.Base(name) {
		return usagef("--interface: %q is no name of an interface; --uapi names a socket", name)
	}
	cfg, err := attachConfig(c)
	if err != nil {
		return err
	}
	for _, w := range cfg.Warnings {
		log.Warn(w.String())
	}
	socket, err := newAttachSocket(hostPlaces(), cmp.Or(c.String("socket"), cfg.Control.Socket), c.String("state"), name)
	if err != nil {
		return err
	}
	if err := noNewPrivileges(); err != nil {
		log.Warn("cannot give up the right to gain privileges", "err", err)
	}
	// A terminal that is closed must not leave endpoints at ports that nobody serves.
	ctx, stop := signal.NotifyContext(c.Context, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	a, err := attach.Start(ctx, attach.Config{
		Interface: name, UAPI: c.String("uapi"), Relays: cfg.Relays, STUN: cfg.STUN, WGSTUN: cfg.WGSTUN, Traversal: cfg.Traversal,
		Socket: socket, HTTP: cfg.Control.HTTP, Version: readVersion().Version, Logger: log,
	})
	if err != nil {
		return err
	}
	defer a.Close()
	log.Info("attached", "interface", name, "public_key", a.PublicKey(), "socket", socket)
	<-a.Done()
	if err := a.Err(); err != nil {
		return err
	}
	log.Info("detached", "interface", name)
	return nil
}

// attachConfig reads the configuration, and adds what the command line names.
func attachConfig(c *cli.Context) (*config.AttachConfig, error) {
	cfg, err := config.LoadAttach(hostPlaces().attachConfig(c.String("config"), c.String("state")), config.Options{
		Sources: config.Sources{Environ: withoutOptions(os.Environ())},
	})
	if err != nil {
		return nil, err
	}
	if len(c.StringSlice("pin")) > 0 && len(c.StringSlice("relay")) == 0 {
		return nil, usagef("--pin: is for a relay that --relay names")
	}
	for _, url := range c.StringSlice("relay") {
		cfg.Relays = append(cfg.Relays, config.Relay{URL: url, Pins: c.StringSlice("pin"), WebSocket: config.WebSocketAuto})
	}
	for _, text := range c.StringSlice("stun") {
		e, err := config.ParseEndpoint(text)
		if err != nil {
			return nil, usagef("--stun: %v", err)
		}
		if e.Port == 0 {
			e.Port = stunPort
		}
		if server := e.String(); !slices.Contains(cfg.STUN, server) {
			cfg.STUN = append(cfg.STUN, server)
		}
	}
	return cfg, nil
}

const stunPort = 3478 // RFC 8489 section 18.6

// attachConfig returns the configuration to read: the one named, else the first that exists, else "".
func (p places) attachConfig(named, state string) string {
	if named != "" {
		return named
	}
	for _, file := range p.configs(state) {
		file = filepath.Join(filepath.Dir(file), attachFile)
		if _, err := os.Stat(file); err == nil || errors.Is(err, fs.ErrPermission) { // what cannot be read is reported by reading it
			return file
		}
	}
	return ""
}

// newAttachSocket returns where culvert attach listens for commands.
func newAttachSocket(p places, named, state, name string) (string, error) {
	if named != "" {
		return named, nil
	}
	if dir := p.getenv("XDG_RUNTIME_DIR"); filepath.IsAbs(dir) {
		return filepath.Join(dir, attachSocketDir, name+".sock"), nil
	}
	state, err := p.state(state)
	if err != nil {
		return "", err
	}
	return filepath.Join(state, "attach-"+name+".sock"), nil
}

func attachStatusCommand() *cli.Command {
	return &cli.Command{
		Name:  "status",
		Usage: "show the running culvert attach: the peers of its device, the path to each and why, relays",
		Description: "--interface can be left out where one only is attached. With --watch it goes on every second until interrupted: in\n" +
			"place on a terminal, else block after block, with --json one document a line.",
		Flags: []cli.Flag{watchFlag(), jsonFlag(), interfaceFlag(), attachSocketFlag(), stateFlag()},
		CustomHelpTemplate: cli.CommandHelpTemplate + example(
			"culvert attach status --interface wg0 --watch",
			`culvert attach status --json | jq -r '.peers[] | "\(.public_key) \(.path.kind)"'`),
		Action: runAttachStatus,
	}
}

func runAttachStatus(c *cli.Context) error {
	if _, err := arguments(c); err != nil {
		return err
	}
	socket, err := attachSocket(hostPlaces(), c.String("socket"), c.String("state"), c.String("interface"))
	if err != nil {
		return err
	}
	v := statusView{client: control.NewClient(socket), json: c.Bool("json"), document: func() statusDocument { return new(attach.Status) }}
	err = v.run(c)
	var none *control.NotRunningError
	if errors.As(err, &none) {
		return fmt.Errorf("culvert attach does not run for %s: culvert attach --interface NAME starts it, --socket names one", socket)
	}
	return err
}

// attachSocket finds the socket of the running culvert attach that is meant: by --socket, by the interface, else the only one.
func attachSocket(p places, named, state, name string) (string, error) {
	if named != "" || name != "" {
		return newAttachSocket(p, named, state, name)
	}
	pattern, err := newAttachSocket(p, "", state, "*")
	if err != nil {
		return "", err
	}
	list, _ := filepath.Glob(pattern) // folders with characters of patterns in their names find nothing
	list = slices.DeleteFunc(list, func(file string) bool { return !isSocket(file) })
	switch len(list) {
	case 0:
		return "", errors.New("culvert attach does not run here: culvert attach --interface NAME starts it, --socket names one")
	case 1:
		return list[0], nil
	}
	return "", fmt.Errorf("several interfaces are attached, name one with --interface: %v", list)
}
