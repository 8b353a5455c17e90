package main

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/url"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/urfave/cli/v2"

	"culvert.dev/culvert/internal/control"
	"culvert.dev/culvert/node"
)

func pingCommand() *cli.Command {
	config := configFlag().(*cli.StringFlag)
	config.Aliases = nil // -c is that of ping(8)
	return &cli.Command{
		Name:      "ping",
		Usage:     "send echo requests through the tunnel to a peer, and show by which path the answers come",
		ArgsUsage: "PEER|ADDRESS",
		Description: "The running node asks; a peer that is a stock WireGuard answers like any other.\n\n" +
			"A line \"path:\" tells when the path changes, from relay to direct for instance. --until-direct ends then,\n" +
			"with status 0. Interrupt prints the summary. The status is 1 when nothing was answered.\n\n" +
			"With --json there is one document a line; the last is the summary.",
		Flags: []cli.Flag{
			&cli.IntFlag{Name: "count", Aliases: []string{"c"}, EnvVars: []string{"CULVERT_COUNT"}, Usage: "end after `N` requests", DefaultText: "go on until interrupted"},
			secondsFlag("interval", "i", "`TIME` between requests: seconds, or with a unit such as 200ms", "1"),
			secondsFlag("timeout", "W", "`TIME` to wait for each answer; with --until-direct, for the direct path", "5, with --until-direct 60"),
			boolFlag("until-direct", "end as soon as the peer is reached directly"),
			jsonFlag(), socketFlag(), config, stateFlag(),
		},
		CustomHelpTemplate: cli.CommandHelpTemplate + example(
			"culvert ping exit-fra",
			"culvert ping --until-direct -W 30 exit-fra    # wait for the direct path",
			"culvert ping -c 20 -i 200ms --json 100.64.0.1 | jq .rtt_ms"),
		Action: runPing,
	}
}

func secondsFlag(name, short, usage, def string) cli.Flag {
	env := "CULVERT_" + strings.ToUpper(name)
	return &cli.StringFlag{Name: name, Aliases: []string{short}, EnvVars: []string{env}, Usage: usage, DefaultText: def}
}

// seconds reads a time that is written as seconds, as for ping(8), or with a unit. It is 0 if the option is not given.
func seconds(c *cli.Context, option string) (time.Duration, error) {
	s := c.String(option)
	if !c.IsSet(option) {
		return 0, nil
	}
	d, err := time.ParseDuration(s)
	if f, bad := strconv.ParseFloat(s, 64); bad == nil {
		d, err = time.Duration(f*float64(time.Second)), nil
	}
	if err != nil || d < 10*time.Millisecond || d > time.Hour {
		return 0, usagef("--%s: %q is no time from 10ms to 1h; see %s --help", option, s, c.Command.HelpName)
	}
	return d, nil
}

// untilDirectTime is how long --until-direct waits by default: several rounds of attempts.
const untilDirectTime = time.Minute

func runPing(c *cli.Context) error {
	args, err := arguments(c, "PEER")
	if err != nil {
		return err
	}
	interval, err := seconds(c, "interval")
	if err != nil {
		return err
	}
	timeout, err := seconds(c, "timeout")
	if err != nil {
		return err
	}
	if c.IsSet("count") && c.Int("count") < 1 {
		return usagef("--count: %d is not above 0; see %s --help", c.Int("count"), c.Command.HelpName)
	}
	query := url.Values{"to": {args[0]}}
	set := func(name string, d time.Duration) {
		if d > 0 {
			query.Set(name, d.String())
		}
	}
	set("interval", interval)
	if n := c.Int("count"); n > 0 {
		query.Set("count", strconv.Itoa(n))
	}
	socket, err := clientSocket(c)
	if err != nil {
		return err
	}
	client := control.NewClient(socket)
	ctx, stop := signal.NotifyContext(c.Context, syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	v := &pingView{client: client, query: query, count: c.Int("count"), json: c.Bool("json"), out: c.App.Writer, errOut: c.App.ErrWriter}
	if c.Bool("until-direct") {
		query.Set("until-direct", "true")
		v.untilDirect = cmp.Or(timeout, untilDirectTime)
	} else {
		set("timeout", timeout)
	}
	return v.run(ctx)
}

// pingView shows one run of echo requests.
type pingView struct {
	client      *control.Client
	query       url.Values
	count       int           // 0: no end
	untilDirect time.Duration // 0: no matter
	json        bool
	out, errOut io.Writer

	last  node.PingEvent // newest of any kind
	sums  pingSums
	begun bool
}

func (v *pingView) run(ctx context.Context) error {
	within := ctx
	if v.untilDirect > 0 {
		var cancel context.CancelFunc
		within, cancel = context.WithTimeout(ctx, v.untilDirect)
		defer cancel()
	}
	err := v.client.Ping(within, v.query, v.show)
	if err != nil && !v.begun {
		return err
	}
	if err := v.summary(); err != nil {
		return err
	}
	direct := v.last.Path == node.PathDirect
	switch {
	case err != nil:
		return err
	case v.untilDirect > 0 && direct:
		return nil
	case v.untilDirect > 0 && ctx.Err() == nil && within.Err() != nil:
		return fmt.Errorf("not direct after %v; culvert status tells why", v.untilDirect)
	case ctx.Err() == nil && (v.count == 0 || v.sums.sent() < v.count):
		return fmt.Errorf("the node has ended it: it stops, or has removed the peer")
	case v.sums.answered() == 0 || v.untilDirect > 0:
		return errReported
	}
	return nil
}

// show prints one event.
func (v *pingView) show(document json.RawMessage) error {
	var e node.PingEvent
	if err := json.Unmarshal(document, &e); err != nil {
		return fmt.Errorf("an answer is not what this version of culvert expects: %w", err)
	}
	v.begun, v.last = true, e
	switch e.Event {
	case "reply":
		v.sums.add(time.Duration(e.RTT))
	case "lost":
		v.sums.lost++
	}
	if v.json {
		_, err := fmt.Fprintf(v.out, "%s\n", document)
		return err
	}
	_, err := io.WriteString(v.out, pingLine(&e))
	return err
}

// pingLine is an event for people.
func pingLine(e *node.PingEvent) string {
	switch e.Event {
	case "start":
		return fmt.Sprintf("PING %s: 56 data bytes, by %s\n", pingName(e), pathText(e.Path, e.Endpoint))
	case "reply":
		return fmt.Sprintf("%d bytes from %s: seq=%d time=%s ms by %s\n", e.Bytes, pingName(e), e.Seq, pingMillis(time.Duration(e.RTT)), pathText(e.Path, e.Endpoint))
	case "lost":
		return fmt.Sprintf("seq=%d: %s\n", e.Seq, e.Err)
	case "path":
		return fmt.Sprintf("path: %s -> %s\n", pathText(e.Was.Path, e.Was.Endpoint), pathText(e.Path, e.Endpoint))
	}
	return "" // of a newer node
}

func pingName(e *node.PingEvent) string {
	if e.Peer == "" {
		return e.Address.String()
	}
	return fmt.Sprintf("%s (%s)", e.Peer, e.Address)
}

func pathText(kind, endpoint string) string {
	if endpoint == "" {
		return "no path"
	}
	return kind + " " + endpoint
}

// summary prints what came of all, if anything was begun.
func (v *pingView) summary() error {
	if !v.begun {
		return nil
	}
	if v.json {
		b, err := json.Marshal(v.sums.document(&v.last))
		if err == nil {
			_, err = fmt.Fprintf(v.out, "%s\n", b)
		}
		return err
	}
	_, err := fmt.Fprintf(v.out, "\n--- %s: summary ---\n%s", pingName(&v.last), v.sums.text())
	return err
}
