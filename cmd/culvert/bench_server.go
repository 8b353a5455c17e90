package main

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"strconv"

	"github.com/urfave/cli/v2"

	"culvert.dev/culvert/bench/iperf3"
	"culvert.dev/culvert/bench/probe"
	"culvert.dev/culvert/internal/control"
	"culvert.dev/culvert/node"
)

func benchServerCommand() *cli.Command {
	return &cli.Command{
		Name:  "server",
		Usage: "serve tests of iperf3 and culvert bench, one at a time",
		Description: "Beside a running node the server is at the node's mesh addresses, for peers with AllowInbound, until the command ends.\n" +
			"Without a node, with --plain, or with the address of this host in --bind it is on this host's network.\n" +
			"The first line says which. No test may last longer than an hour.\n\n" +
			"What --rtt and --connections of our client use best is at a port of its own, UDP and TCP, 20000 above the other.",
		Flags: append([]cli.Flag{
			&cli.UintFlag{Name: "port", Aliases: []string{"p"}, EnvVars: []string{"CULVERT_PORT"}, Value: iperf3.DefaultPort, Usage: "`PORT` to listen on, TCP and UDP"},
			&cli.StringFlag{Name: "bind", Aliases: []string{"B"}, EnvVars: []string{"CULVERT_BIND"}, Usage: "listen on this `ADDRESS` only, of the mesh or of this host"},
			benchBool("one-off", "1", "end after one test"),
		}, benchWayFlags()...),
		CustomHelpTemplate: cli.CommandHelpTemplate + example(
			"culvert bench server",
			"culvert bench server --plain -p 5202 --one-off --json"),
		Action: runBenchServer,
	}
}

func runBenchServer(c *cli.Context) error {
	if _, err := arguments(c); err != nil {
		return err
	}
	family, err := benchFamily(c)
	if err != nil {
		return err
	}
	port := c.Uint("port")
	if port > 65535 {
		return usagef("--port: %d is not a port; see %s --help", port, c.Command.HelpName)
	}
	if c.IsSet("bind") && net.ParseIP(c.String("bind")) == nil {
		return usagef("--bind: %q is not an address; see %s --help", c.String("bind"), c.Command.HelpName)
	}
	v := &benchView{json: c.Bool("json"), out: c.App.Writer, errOut: c.App.ErrWriter}
	client, reason, err := benchWay(c)
	if err != nil {
		return v.end(err)
	}
	order := probe.ServerOrder{Address: net.JoinHostPort(c.String("bind"), strconv.Itoa(int(port))), OneOff: c.Bool("one-off")}
	ctx, stop := benchInterrupts(c)
	defer stop()
	if client != nil {
		reason, err = benchServerMesh(ctx, client, v, node.BenchOrder{Server: &order, Family: family})
		if reason == "" || err != nil {
			return v.end(err)
		}
		if c.Bool("mesh") {
			return v.end(errors.New(reason))
		}
	}
	if c.String("bind") == "" {
		order.Address = net.JoinHostPort(map[int]string{4: "0.0.0.0", 6: "::"}[family], strconv.Itoa(int(port)))
	}
	return v.end(benchServerPlain(ctx, v, order, reason))
}

// benchServerMesh serves in the mesh. outside is why the node does not.
func benchServerMesh(ctx context.Context, client *control.Client, v *benchView, order node.BenchOrder) (outside string, err error) {
	outside, err = v.throughNode(ctx, client, order)
	if err != nil && ctx.Err() != nil && errors.Is(err, iperf3.ErrInterrupted) {
		err = nil // that is how servers end
	}
	return outside, err
}

func benchServerPlain(ctx context.Context, v *benchView, order probe.ServerOrder, reason string) error {
	if err := v.plain(reason); err != nil {
		return err
	}
	order.MaxTime = node.BenchMaxTime
	return probe.Serve(ctx, order, probe.Way{Network: iperf3.Host{}}, slog.New(slog.DiscardHandler), v.showPlain)
}
