package main

import (
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/urfave/cli/v2"

	"culvert.dev/culvert/internal/config"
	"culvert.dev/culvert/internal/wgkey"
)

func peerCommand() *cli.Command {
	return &cli.Command{
		Name:               "peer",
		Usage:              "add, remove and list peers",
		Subcommands:        []*cli.Command{peerAddCommand(), peerRemoveCommand(), peerListCommand()},
		CustomHelpTemplate: cli.SubcommandHelpTemplate + example("culvert peer add phone --qr"),
	}
}

func peerAddCommand() *cli.Command {
	return &cli.Command{
		Name:      "add",
		Usage:     "give a device or node access to this node",
		ArgsUsage: "NAME",
		Description: "Writes the peer to peers.d in the state folder. Without --key a key pair is made here, and the device's own\n" +
			"WireGuard file is printed: it is kept nowhere else.",
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "key", EnvVars: []string{"CULVERT_KEY"}, Usage: "the peer's public `KEY`, made by the peer itself"},
			&cli.StringFlag{
				Name: "allow", EnvVars: []string{"CULVERT_ALLOW"},
				Usage: "what it may reach: `LIST` of inbound, routing, lan; or none (default: inbound,routing; with --key: none)",
			},
			boolFlag("export", "print the peer's own WireGuard file"),
			boolFlag("qr", "show that file as a QR code instead"),
			&cli.StringFlag{
				Name: "output", Aliases: []string{"o"}, EnvVars: []string{"CULVERT_OUTPUT"}, TakesFile: true,
				Usage: "write that file to `FILE`, readable by its owner alone",
			},
			endpointFlag(""),
			configFlag(),
			stateFlag(),
		},
		CustomHelpTemplate: cli.CommandHelpTemplate + example(
			"culvert peer add laptop --allow inbound,routing,lan --output laptop.conf"),
		Action: runPeerAdd,
	}
}

func peerRemoveCommand() *cli.Command {
	return &cli.Command{
		Name:               "remove",
		Usage:              "take a peer out of the file it stands in",
		ArgsUsage:          "NAME",
		Flags:              []cli.Flag{configFlag(), stateFlag()},
		CustomHelpTemplate: cli.CommandHelpTemplate + example("culvert peer remove laptop"),
		Action:             runPeerRemove,
	}
}

// readPeerOptions turns the command line of peer add into a request.
func readPeerOptions(c *cli.Context) (config.NewPeer, error) {
	args, err := arguments(c, "NAME")
	if err != nil {
		return config.NewPeer{}, err
	}
	peer := config.NewPeer{Name: args[0], Allow: config.Allow{Inbound: true, Routing: true}}
	if text := c.String("key"); text != "" {
		if peer.PublicKey, err = wgkey.ParsePublic(text); err != nil || peer.PublicKey.IsZero() {
			return peer, usagef("--key: not a WireGuard public key")
		}
		if c.Bool("qr") {
			return peer, usagef("--qr needs a key made here: with --key the file lacks the private key, which only the peer has")
		}
		peer.Allow = config.Allow{}
	}
	if c.IsSet("allow") {
		peer.Allow, err = parseAllow(c.String("allow"))
	}
	return peer, err
}

func parseAllow(list string) (config.Allow, error) {
	a, err := config.ParseAllow(list)
	if err != nil {
		return a, usagef("--allow: %v", err)
	}
	if a.LAN && !a.Routing {
		return a, usagef("--allow: lan needs routing too")
	}
	return a, nil
}

func runPeerAdd(c *cli.Context) error {
	request, err := readPeerOptions(c)
	if err != nil {
		return err
	}
	state, err := hostPlaces().state(c.String("state"))
	if err != nil {
		return err
	}
	cfg, _, err := loadConfig(c)
	if err != nil {
		return err
	}
	at, err := nodeEndpoint(c.String("endpoint"), cfg.Interface.Endpoint)
	if err != nil {
		return err
	}
	plan, err := cfg.PlanPeer(request)
	if err != nil {
		return err
	}
	if at.Port == 0 {
		if at.Port = cfg.Interface.ListenPort; at.Port == 0 {
			at.Port = portOf(cfg.Interface.PrivateKey.Public())
		}
	}
	device := cfg.Export(plan.Peer, plan.PrivateKey, at)
	// The device's file goes first: without it the peer would be of no use, as its private key is kept nowhere else.
	output := c.String("output")
	if output != "" {
		if err := config.WriteSecret(output, device.Text()); err != nil {
			return err
		}
	}
	file, err := plan.Save(state)
	if err != nil {
		if output != "" {
			err = errors.Join(err, os.Remove(output))
		}
		return err
	}
	fmt.Fprintf(c.App.ErrWriter, "culvert: peer %s (%s) is in %s; culvert reload makes a running node take it\n",
		plan.Peer.Name, joinPrefixes(plan.Peer.AllowedIPs), file)
	return exportPeer(c, device)
}

// exportPeer prints the device's file as the options ask.
func exportPeer(c *cli.Context, device config.Export) error {
	out := c.App.Writer
	wanted := c.Bool("export") || c.Bool("qr") || c.String("output") != "" || !device.PrivateKey.IsZero()
	if wanted && device.Endpoint.Guessed {
		fmt.Fprintf(c.App.ErrWriter, "culvert: endpoint %s%s\n", device.Endpoint, guessNote(device.Endpoint))
	}
	switch {
	case c.Bool("qr"):
		return writeQR(out, device.QRText(), isTerminal(out))
	case wanted && c.String("output") == "":
		_, err := io.WriteString(out, device.Text())
		return err
	}
	return nil
}

func runPeerRemove(c *cli.Context) error {
	args, err := arguments(c, "NAME")
	if err != nil {
		return err
	}
	cfg, _, err := loadConfig(c)
	if err != nil {
		return err
	}
	file, err := cfg.RemovePeer(args[0])
	if err != nil {
		return err
	}
	fmt.Fprintf(c.App.ErrWriter, "culvert: peer %s is out of %s; culvert reload makes a running node drop it\n", args[0], file)
	return nil
}
