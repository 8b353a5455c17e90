package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/signal"
	"syscall"
	"time"

	"github.com/urfave/cli/v2"

	"culvert.dev/culvert/bench/iperf3"
	"culvert.dev/culvert/bench/probe"
	"culvert.dev/culvert/internal/control"
	"culvert.dev/culvert/node"
)

func benchCommand() *cli.Command {
	return &cli.Command{
		Name:        "bench",
		Usage:       "measure throughput, round trips and connection rate, with iperf3 or culvert at the other end",
		Subcommands: []*cli.Command{benchServerCommand(), benchClientCommand()},
		CustomHelpTemplate: cli.SubcommandHelpTemplate + example(
			"culvert bench server                  # at one node",
			"culvert bench client exit-fra --rtt   # at another"),
	}
}

// benchWayFlags choose where a measurement takes place, for server and client alike.
func benchWayFlags() []cli.Flag {
	config := configFlag().(*cli.StringFlag)
	config.Aliases = nil // -c is iperf3's for something else
	return []cli.Flag{
		boolFlag("plain", "use this host's network, even beside a node"),
		boolFlag("mesh", "fail where the running node has no way, instead of using this host's network"),
		benchBool("version4", "4", "IPv4 only"),
		benchBool("version6", "6", "IPv6 only; a plain server takes IPv4 as well"),
		benchBool("json", "J", "print JSON, as iperf3 -J does"),
		socketFlag(), config, stateFlag(),
	}
}

// benchWay finds the node that measures; nil means plain, for the reason given.
func benchWay(c *cli.Context) (client *control.Client, reason string, err error) {
	if c.Bool("plain") && c.Bool("mesh") {
		return nil, "", usagef("--plain and --mesh exclude each other; see %s --help", c.Command.HelpName)
	}
	if c.Bool("plain") {
		return nil, "as --plain says", nil
	}
	socket, err := clientSocket(c)
	if errors.Is(err, errNoNode) && !c.Bool("mesh") {
		return nil, "no node is running here", nil
	}
	if err != nil {
		return nil, "", fmt.Errorf("%w (--plain measures without a node)", err)
	}
	client = control.NewClient(socket)
	_, err = client.Version(c.Context)
	var gone *control.NotRunningError
	named := c.Bool("mesh") || c.IsSet("socket") || c.IsSet("config")
	switch {
	case errors.As(err, &gone) && !named:
		return nil, "no node is running here", nil
	case err != nil:
		return nil, "", fmt.Errorf("%w (--plain measures without a node)", err)
	}
	return client, "", nil
}

// benchFamily is 4, 6, or 0 for any.
func benchFamily(c *cli.Context) (int, error) {
	switch v4, v6 := c.Bool("version4"), c.Bool("version6"); {
	case v4 && v6:
		return 0, usagef("-4 and -6 exclude each other; see %s --help", c.Command.HelpName)
	case v4:
		return 4, nil
	case v6:
		return 6, nil
	}
	return 0, nil
}

// benchEvent is an event of a node, or of package probe without one.
type benchEvent struct {
	Event       string          `json:"event"`
	Text        string          `json:"text"`
	Document    json.RawMessage `json:"document"`
	Run         uint64          `json:"run"`
	Interrupted bool            `json:"interrupted"`
}

// benchView shows what a measurement tells.
type benchView struct {
	json        bool
	out, errOut io.Writer
	documents   int
}

func (v *benchView) show(e benchEvent) error {
	switch {
	case v.json && e.Document != nil:
		v.documents++
		var b bytes.Buffer
		if err := json.Indent(&b, e.Document, "", "\t"); err != nil {
			return err
		}
		b.WriteByte('\n')
		_, err := b.WriteTo(v.out)
		return err
	case v.json && (e.Event == probe.EventFailure || e.Event == probe.EventListening):
		_, err := io.WriteString(v.errOut, e.Text)
		return err
	case v.json:
		return nil
	}
	_, err := io.WriteString(v.out, e.Text)
	return err
}

// end tells an error once, in JSON too, as iperf3 does.
func (v *benchView) end(err error) error {
	if err == nil {
		return nil
	}
	if errors.Is(err, iperf3.ErrInterrupted) {
		fmt.Fprintln(v.errOut, "culvert: interrupted; there may be results so far")
		err = errReported
	}
	if v.json && v.documents == 0 && err != errReported {
		printJSON(v.out, map[string]string{"error": err.Error()})
	}
	return err
}

// plain says where a measurement without a node takes place.
func (v *benchView) plain(reason string) error {
	return v.show(benchEvent{Event: node.BenchBegin, Text: fmt.Sprintf("plain, by this host's network: %s\n", reason)})
}

// showPlain is show for events of package probe.
func (v *benchView) showPlain(e probe.Event) error {
	line := benchEvent{Event: e.Event, Text: e.Text}
	if e.Document != nil {
		e.Document.Culvert.Way = "plain"
		b, err := json.Marshal(e.Document)
		if err != nil {
			return err
		}
		line.Document = b
	}
	return v.show(line)
}

// benchInterrupts returns a context that ends with the first signal to end; a second one ends the program at once.
func benchInterrupts(c *cli.Context) (context.Context, func()) {
	ctx, stop := signal.NotifyContext(c.Context, syscall.SIGINT, syscall.SIGTERM)
	context.AfterFunc(ctx, stop)
	return ctx, stop
}

// benchGrace is how long a node may take to end a run that was interrupted.
const benchGrace = 10 * time.Second

var errBenchCut = errors.New("the node has ended it: it stops, or the control socket is closed")

// throughNode has a node measure. outside is why it has no way, "" if it has. An interrupt has the node tell its results first.
func (v *benchView) throughNode(ctx context.Context, client *control.Client, order node.BenchOrder) (outside string, err error) {
	talk, hangUp := context.WithCancel(context.WithoutCancel(ctx))
	defer hangUp()
	var ended error // as the node says
	var over bool
	begun := make(chan uint64, 1)
	defer context.AfterFunc(ctx, func() {
		select {
		case run := <-begun:
			time.AfterFunc(benchGrace, hangUp)
			client.StopBench(talk, run) // if that fails, the time is up soon
		default:
			hangUp()
		}
	})()
	err = client.Bench(talk, order, func(document json.RawMessage) error {
		var e benchEvent
		if err := json.Unmarshal(document, &e); err != nil {
			return fmt.Errorf("an answer is not what this version of culvert expects: %w", err)
		}
		switch e.Event {
		case node.BenchBegin:
			begun <- e.Run
		case node.BenchOutside:
			outside = e.Text
			return nil
		case node.BenchError:
			over, ended = true, errors.New(e.Text)
			if e.Interrupted {
				ended = iperf3.ErrInterrupted
			}
			return nil
		case probe.EventResult:
			over = true
		}
		return v.show(e)
	})
	switch {
	case err != nil:
		return "", err
	case outside != "":
		return outside, nil
	case ended != nil:
		return "", ended
	case ctx.Err() != nil:
		return "", iperf3.ErrInterrupted
	case !over || order.Server != nil && !order.Server.OneOff:
		return "", errBenchCut
	}
	return "", nil
}
