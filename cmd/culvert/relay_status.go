package main

import (
	"fmt"
	"net/netip"

	"github.com/urfave/cli/v2"

	"culvert.dev/culvert/internal/wgkey"
	"culvert.dev/culvert/node/relayd"
)

func relayStatusCommand() *cli.Command {
	return &cli.Command{
		Name:  "status",
		Usage: "show the running relay: its clients, its certificate, what it refused and dropped",
		Description: "The text shows the clients with the most traffic, --json all of them. With --watch it goes on every second until\n" +
			"interrupted: in place on a terminal, else block after block, with --json one document a line.",
		Flags: []cli.Flag{watchFlag(), jsonFlag(), relaySocketFlag(), relayConfigFlag(), stateFlag()},
		CustomHelpTemplate: cli.CommandHelpTemplate + example(
			"culvert relay status --watch",
			`culvert relay status --json | jq '.clients[] | .name'`),
		Action: runRelayStatus,
	}
}

func runRelayStatus(c *cli.Context) error {
	if _, err := arguments(c); err != nil {
		return err
	}
	client, err := relayClient(c)
	if err != nil {
		return err
	}
	v := statusView{client: client, json: c.Bool("json"), document: func() statusDocument { return new(relayd.Status) }}
	return aboutRelay(v.run(c))
}

func relayConfigCommand() *cli.Command {
	return &cli.Command{
		Name:  "config",
		Usage: "print what nodes need in their configuration to use the running relay",
		Description: "With --for it adds what a stock WireGuard client with that key needs to ask the WG-STUN server for its own outer\n" +
			"address.",
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "for", EnvVars: []string{"CULVERT_FOR"}, Usage: "public `KEY` of a stock WireGuard client"},
			jsonFlag(), relaySocketFlag(), relayConfigFlag(), stateFlag(),
		},
		CustomHelpTemplate: cli.CommandHelpTemplate + example("culvert relay config --for xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg="),
		Action:             runRelayConfig,
	}
}

// offerFor is what relay config --json prints.
type offerFor struct {
	relayd.Offer
	For *clientOffer `json:"for,omitempty"`
}

// clientOffer is about one stock client of the WG-STUN server.
type clientOffer struct {
	PublicKey wgkey.Public `json:"public_key"`
	Addresses []netip.Addr `json:"addresses"` // that the client has to have inside the tunnel
}

func runRelayConfig(c *cli.Context) error {
	if _, err := arguments(c); err != nil {
		return err
	}
	var key wgkey.Public
	if text := c.String("for"); text != "" {
		var err error
		if key, err = parseKey(text); err != nil {
			return usagef("--for: %v", err)
		}
	}
	client, err := relayClient(c)
	if err != nil {
		return err
	}
	var s relayd.Status
	if err := client.Status(c.Context, &s); err != nil {
		return aboutRelay(err)
	}
	if !key.IsZero() && s.Offer.WGSTUN == nil {
		return fmt.Errorf("--for: the relay's WG-STUN server is off")
	}
	if c.Bool("json") {
		o := offerFor{Offer: s.Offer}
		if !key.IsZero() {
			o.For = &clientOffer{key, s.WGSTUN.AddressesOf(key)}
		}
		return printJSON(c.App.Writer, o)
	}
	printGuess(c.App.Writer, s.Offer)
	fmt.Fprint(c.App.Writer, s.Offer)
	if !key.IsZero() {
		fmt.Fprintf(c.App.Writer, "\n%s", s.Offer.WGSTUN.PeerFor(key, s.WGSTUN.AddressesOf(key)))
	}
	return nil
}
