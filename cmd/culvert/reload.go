package main

import (
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"culvert.dev/culvert/internal/wgkey"
	"culvert.dev/culvert/node"
)

func reloadCommand() *cli.Command {
	return &cli.Command{
		Name:  "reload",
		Usage: "have the running node read its configuration again",
		Description: "A configuration with an error changes nothing. Tunnels and flows that are still permitted go on; flows whose\n" +
			"permission is gone are cut. SIGHUP to the node does the same.",
		Flags:              []cli.Flag{socketFlag(), configFlag(), stateFlag()},
		CustomHelpTemplate: cli.CommandHelpTemplate + example("culvert check && culvert reload"),
		Action:             runReload,
	}
}

func runReload(c *cli.Context) error {
	client, err := nodeClient(c)
	if err != nil {
		return err
	}
	var before, after node.Status
	if err := client.Status(c.Context, &before); err != nil {
		return err
	}
	if err := client.Reload(c.Context); err != nil {
		return err
	}
	if err := client.Status(c.Context, &after); err != nil {
		return fmt.Errorf("reloaded, but then: %w", err)
	}
	return printReload(c.App.Writer, before, after)
}

// printReload tells what became of the peers and services.
func printReload(w io.Writer, before, after node.Status) error {
	old := make(map[wgkey.Public]node.PeerStatus)
	for _, p := range before.Peers {
		old[p.PublicKey] = p
	}
	text := fmt.Sprintf("reloaded %s, peers: %d\n", after.Name, len(after.Peers))
	for _, p := range after.Peers {
		was, known := old[p.PublicKey]
		delete(old, p.PublicKey)
		switch {
		case !known:
			text += fmt.Sprintf("added %s, allowed: %s\n", p.Label(), p.Allow)
		case was.Allow != p.Allow:
			text += fmt.Sprintf("changed %s, allowed: %s (was %s)\n", p.Label(), p.Allow, was.Allow)
		}
	}
	for _, p := range before.Peers {
		if _, gone := old[p.PublicKey]; gone {
			text += fmt.Sprintf("removed %s\n", p.Label())
		}
	}
	text += reloadedServices(before.Services, after.Services)
	_, err := io.WriteString(w, text)
	return err
}

// reloadedServices tells which are new, and which are gone.
func reloadedServices(before, after []node.ServiceStatus) (text string) {
	name := func(s node.ServiceStatus) string {
		text := s.Kind + " " + strings.Join(s.Listen, " ")
		if s.To != "" {
			text += " to " + s.To
		}
		return text
	}
	tell := func(verb string, list, others []node.ServiceStatus) {
		for _, s := range list {
			if !slices.ContainsFunc(others, func(o node.ServiceStatus) bool { return name(o) == name(s) }) {
				text += verb + " " + name(s) + "\n"
			}
		}
	}
	tell("added", after, before)
	tell("removed", before, after)
	return text
}
