package main

import (
	"errors"
	"fmt"

	"github.com/urfave/cli/v2"

	"culvert.dev/culvert/internal/control"
	"culvert.dev/culvert/node"
)

// exitDenied is the exit status of explain for a flow that would not pass, so that scripts can tell it from a mistake.
const exitDenied = 3

var errDenied = fmt.Errorf("denied: %w", errReported)

func explainCommand() *cli.Command {
	return &cli.Command{
		Name:  "explain",
		Usage: "tell whether a peer reaches a destination, what decides, and what to change",
		Description: "Asks the running node, by its policy and networks as they are now. Where none runs, or with --offline, it judges by the\n" +
			"configuration and this host's networks, and says so. Nothing is sent to the destination.\n\n" +
			"The destination is ADDRESS[:PORT[/PROTO]], an IPv6 address with a port in brackets, or in the place of ADDRESS the name\n" +
			"of a peer, or self for this node. PROTO is tcp or udp, tcp if not given; without a port the flow is a ping. DNS names are\n" +
			"not resolved.\n\n" +
			"--from new asks about a peer that does not exist yet; with --allow the permissions are those given there.\n\n" +
			"Exit status: 0 when the flow would pass, 3 when it would not, 1 on an error, 2 on a wrong command line.",
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "from", EnvVars: []string{"CULVERT_FROM"}, Usage: "`PEER` by name, an address, or new"},
			&cli.StringFlag{Name: "to", EnvVars: []string{"CULVERT_TO"}, Usage: "`DESTINATION`, as above"},
			&cli.StringFlag{
				Name: "allow", EnvVars: []string{"CULVERT_ALLOW"},
				Usage: "suppose these permissions, a `LIST` of inbound,routing,lan, or none",
			},
			&cli.StringFlag{Name: "icmp", EnvVars: []string{"CULVERT_ICMP"}, Usage: "a ping, by its ICMP `TYPE`: echo-request, 8 or 128"},
			boolFlag("offline", "judge by the configuration even where a node runs"),
			jsonFlag(), socketFlag(), configFlag(), stateFlag(),
		},
		CustomHelpTemplate: cli.CommandHelpTemplate + example(
			"culvert explain --from laptop --to 192.168.1.10:22",
			"culvert explain --from new --allow routing --to [2001:db8::1]:443/udp",
			"culvert explain --from 10.9.9.9 --allow routing,lan --to 10.0.0.5 && echo reachable"),
		Action: runExplain,
	}
}

func runExplain(c *cli.Context) error {
	if _, err := arguments(c); err != nil {
		return err
	}
	q := node.Question{From: c.String("from"), To: c.String("to"), ICMP: c.String("icmp")}
	switch {
	case q.From == "":
		return usagef("--from PEER is missing; see %s --help", c.Command.HelpName)
	case q.To == "":
		return usagef("--to DESTINATION is missing; see %s --help", c.Command.HelpName)
	}
	if c.IsSet("allow") {
		allow, err := parseAllow(c.String("allow"))
		if err != nil {
			return err
		}
		q.Allow = allowText(allow)
	}
	e, err := explain(c, q)
	if err != nil {
		return err
	}
	if c.Bool("json") {
		err = printJSON(c.App.Writer, e)
	} else {
		err = e.WriteText(c.App.Writer)
	}
	if err == nil && !e.Accepted() {
		err = errDenied
	}
	return err
}

// explain has the question answered by the running node, else from the configuration. A node that is named must run.
func explain(c *cli.Context, q node.Question) (e node.Explanation, err error) {
	if !c.Bool("offline") {
		e, err = explainOnline(c, q)
		var notRunning *control.NotRunningError
		if !errors.Is(err, errNoNode) && !errors.As(err, &notRunning) || c.String("socket") != "" {
			return e, err
		}
	}
	cfg, _, err := loadConfig(c)
	if err != nil {
		return e, err
	}
	return node.ExplainConfig(cfg, q)
}

func explainOnline(c *cli.Context, q node.Question) (e node.Explanation, err error) {
	socket, err := clientSocket(c)
	if err != nil {
		return e, err
	}
	err = control.NewClient(socket).Explain(c.Context, q.Values(), &e)
	return e, err
}
