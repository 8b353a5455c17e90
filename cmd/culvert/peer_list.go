package main

import (
	"fmt"
	"net/netip"
	"strings"
	"text/tabwriter"

	"github.com/urfave/cli/v2"

	"culvert.dev/culvert/internal/config"
	"culvert.dev/culvert/internal/wgkey"
)

func peerListCommand() *cli.Command {
	return &cli.Command{
		Name:               "list",
		Usage:              "list the peers of the configuration and of the state folder",
		Flags:              []cli.Flag{jsonFlag(), configFlag(), stateFlag()},
		CustomHelpTemplate: cli.CommandHelpTemplate + example("culvert peer list --json"),
		Action:             runPeerList,
	}
}

// listedPeer is one element of peer list --json.
type listedPeer struct {
	Name       string         `json:"name"`
	PublicKey  wgkey.Public   `json:"public_key"`
	Addresses  []netip.Prefix `json:"addresses"`
	Endpoint   string         `json:"endpoint,omitempty"`
	Allow      config.Allow   `json:"allow"`
	AllowPeers []string       `json:"allow_peers,omitempty"`
	File       string         `json:"file"`
	Line       int            `json:"line"`
}

func runPeerList(c *cli.Context) error {
	if _, err := arguments(c); err != nil {
		return err
	}
	cfg, _, err := loadConfig(c)
	if err != nil {
		return err
	}
	if c.Bool("json") {
		list := make([]listedPeer, len(cfg.Peers))
		for i, p := range cfg.Peers {
			addresses := append([]netip.Prefix{}, p.AllowedIPs...) // null would surprise readers of the JSON
			list[i] = listedPeer{p.Name, p.PublicKey, addresses, p.Endpoint, p.Allow, p.AllowPeers, p.File, p.Line}
		}
		return printJSON(c.App.Writer, list)
	}
	w := tabwriter.NewWriter(c.App.Writer, 0, 8, 2, ' ', 0)
	fmt.Fprintln(w, "NAME\tPUBLIC KEY\tADDRESSES\tALLOW\tFILE")
	for _, p := range cfg.Peers {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", p.Name, p.PublicKey, joinPrefixes(p.AllowedIPs), allowText(p.Allow), config.Position(p.File, p.Line))
	}
	return w.Flush()
}

// allowText is the value --allow takes.
func allowText(a config.Allow) string {
	var words []string
	if a.Inbound {
		words = append(words, "inbound")
	}
	if a.Routing {
		words = append(words, "routing")
	}
	if a.LAN {
		words = append(words, "lan")
	}
	if len(words) == 0 {
		return "none"
	}
	return strings.Join(words, ",")
}

func joinPrefixes(list []netip.Prefix) string {
	text := make([]string, len(list))
	for i, p := range list {
		text[i] = p.String()
	}
	return strings.Join(text, ",")
}
