package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/urfave/cli/v2"

	"culvert.dev/culvert/bench/iperf3"
	"culvert.dev/culvert/bench/probe"
	"culvert.dev/culvert/node"
)

func benchClientCommand() *cli.Command {
	return &cli.Command{
		Name:      "client",
		Usage:     "measure to a server of iperf3 or culvert bench",
		ArgsUsage: "TARGET",
		Description: "Beside a running node a peer's name or mesh address, and what the node reaches by a default route, is measured inside\n" +
			"the node, through the mesh; other targets, and all without a node or with --plain, by this host's network. The first\n" +
			"line says which. Options mean what they mean to iperf3. Interrupt ends the test with what was measured so far.\n\n" +
			"--rtt needs nothing at the other end: the echo of culvert bench server is taken, else ICMP echo, else the set-up of\n" +
			"connections to the server's port. --connections works with both servers too.",
		Flags: slices.Concat([]cli.Flag{
			boolFlag("rtt", "measure round trips too, first idle for 2 s and then under the load of the test"),
			boolFlag("connections", "measure new TCP connections a second, -P at a time, instead of throughput"),
			&cli.UintFlag{Name: "port", Aliases: []string{"p"}, EnvVars: []string{"CULVERT_PORT"}, Value: iperf3.DefaultPort, Usage: "the server's `PORT`"},
		}, benchParamFlags(), benchWayFlags()),
		CustomHelpTemplate: cli.CommandHelpTemplate + example(
			"culvert bench client exit-fra",
			"culvert bench client exit-fra -R -P 4 -t 30 --rtt        # four streams from there, and what they do to round trips",
			"culvert bench client exit-fra -u -b 200M -l 1200",
			"culvert bench client 192.0.2.7 --plain --connections -P 16",
			"culvert bench client exit-fra --json | jq .end.sum_received.bits_per_second"),
		Action: runBenchClient,
	}
}

func runBenchClient(c *cli.Context) error {
	args, err := arguments(c, "TARGET")
	if err != nil {
		return err
	}
	family, err := benchFamily(c)
	if err != nil {
		return err
	}
	port := c.Uint("port")
	if port == 0 || port > 65535 {
		return usagef("--port: %d is not a port; see %s --help", port, c.Command.HelpName)
	}
	order := probe.Order{RTT: c.Bool("rtt"), Connections: c.Bool("connections")}
	if order.Params, err = benchParams(c); err != nil {
		return err
	}
	if order.RTT && order.Connections {
		return usagef("--rtt and --connections exclude each other; see %s --help", c.Command.HelpName)
	}
	order.Target = probe.Complete(args[0], uint16(port))
	v := &benchView{json: c.Bool("json"), out: c.App.Writer, errOut: c.App.ErrWriter}
	client, reason, err := benchWay(c)
	if err != nil {
		return v.end(err)
	}
	ctx, stop := benchInterrupts(c)
	defer stop()
	if client != nil {
		reason, err = v.throughNode(ctx, client, node.BenchOrder{Client: &order, Family: family})
		if reason == "" || err != nil {
			return v.end(err)
		}
		if c.Bool("mesh") {
			return v.end(fmt.Errorf("bench %s: the node has no way there: %s", order.Target, reason))
		}
		reason = "the node has no way there: " + reason
	}
	return v.end(benchClientPlain(ctx, v, order, family, reason))
}

// benchClientPlain measures by the host's network.
func benchClientPlain(ctx context.Context, v *benchView, order probe.Order, family int, reason string) error {
	if err := v.plain(reason); err != nil {
		return err
	}
	if family != 0 {
		target, err := benchResolve(ctx, order.Target, family)
		if err != nil {
			return err
		}
		order.Target = target
	}
	return probe.Run(ctx, order, probe.Way{Network: iperf3.Host{}, Echo: probe.HostEcho}, v.showPlain)
}

// benchResolve puts an address of one family in the place of a target's name.
func benchResolve(ctx context.Context, target string, family int) (string, error) {
	host, port, err := net.SplitHostPort(target)
	if err != nil {
		return "", fmt.Errorf("bench %s: %w", target, err)
	}
	addrs, err := net.DefaultResolver.LookupNetIP(ctx, fmt.Sprintf("ip%d", family), host)
	if err == nil && len(addrs) == 0 {
		err = errors.New("no address of that family")
	}
	if err != nil {
		return "", fmt.Errorf("bench %s with -%d: %w", target, family, err)
	}
	i := max(slices.IndexFunc(addrs, netip.Addr.IsValid), 0)
	return net.JoinHostPort(addrs[i].Unmap().String(), port), nil
}
