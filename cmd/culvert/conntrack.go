package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/url"
	"os/signal"
	"strings"
	"syscall"

	"github.com/urfave/cli/v2"

	"culvert.dev/culvert/internal/control"
	"culvert.dev/culvert/node"
)

func conntrackCommand() *cli.Command {
	return &cli.Command{
		Name:  "conntrack",
		Usage: "list (-L), follow (-E), count (-C) or flush (-F) the flows that the running node tracks",
		Description: "Lines look as those of conntrack(8), with the peer's name. Filters are those of conntrack(8) too and compare the\n" +
			"original direction: what the peer that opened the flow sent.\n\n" +
			"With --json there is one document a line, one for each flow or event, as jq reads it.\n" +
			"-E goes on until interrupted; what it is too slow for is reported on stderr.\n" +
			"-F asks nothing: it resets the connections that the filters choose, without filters all.",
		Flags: []cli.Flag{
			modeFlag("list", "L", "list flows; the default"),
			modeFlag("event", "E", "follow flows as they come, change and go"),
			modeFlag("flush", "F", "end flows, and print how many"),
			modeFlag("count", "C", "print how many flows there are"),
			filterFlag("proto", "only `PROTO`: tcp, udp, icmp (of both families), icmpv6, or a number", "p", "protonum"),
			filterFlag("src", "only from this `ADDRESS` or prefix", "s", "orig-src"),
			filterFlag("dst", "only to this `ADDRESS` or prefix", "d", "orig-dst"),
			filterFlag("sport", "only from this `PORT`", "orig-port-src"),
			filterFlag("dport", "only to this `PORT`", "orig-port-dst"),
			tcpStateFlag(),
			filterFlag("peer", "only flows that this peer, by `NAME`, opened or gets"),
			filterFlag("family", "only `FAMILY`: ipv4 or ipv6", "f"),
			filterFlag("event-mask", "only these events: a `LIST` of NEW, UPDATE, DESTROY", "e"),
			&cli.StringFlag{
				Name: "output", Aliases: []string{"o"}, EnvVars: []string{"CULVERT_OUTPUT"},
				Usage: "`LIST` of extended (begin lines with the family) and timestamp (begin events with the time)",
			},
			jsonFlag(), socketFlag(), configFlag(),
		},
		CustomHelpTemplate: cli.CommandHelpTemplate + example(
			"culvert conntrack -L -p tcp --peer laptop",
			"culvert conntrack -E -o timestamp -d 192.0.2.0/24",
			"culvert conntrack -F --peer laptop --dport 443",
			`culvert conntrack -L --json | jq -r 'select(.original.bytes > 1000000) | .original.dst'`),
		Action: runConntrack,
	}
}

// modeFlag says what to do.
func modeFlag(name, short, usage string) cli.Flag {
	return &cli.BoolFlag{Name: name, Aliases: []string{short}, EnvVars: []string{"CULVERT_" + strings.ToUpper(name)}, Usage: usage, DisableDefaultText: true}
}

func filterFlag(name, usage string, aliases ...string) cli.Flag {
	env := "CULVERT_" + strings.ToUpper(strings.ReplaceAll(name, "-", "_"))
	return &cli.StringFlag{Name: name, Aliases: aliases, EnvVars: []string{env}, Usage: usage}
}

// stateOption is the option --state, which here has the meanings of conntrack(8) and of all other commands. No folder has the name
// of a TCP state, or else it can be given as ./ESTABLISHED.
type stateOption struct{ dir, tcp string }

// Set implements flag.Value.
func (s *stateOption) Set(v string) error {
	if _, err := node.ParseFlowQuery(url.Values{"state": {v}}); err == nil && v != "" {
		s.tcp = v
	} else {
		s.dir = v
	}
	return nil
}

// String implements flag.Value: it is the folder, which is what the commands' common code asks for.
func (s *stateOption) String() string { return s.dir }

func tcpStateFlag() cli.Flag {
	return &cli.GenericFlag{
		Name: "state", EnvVars: []string{"CULVERT_STATE"}, TakesFile: true, Value: &stateOption{},
		Usage: "only TCP in this `STATE`, such as ESTABLISHED; anything else is the node's state DIR, as for other commands",
	}
}

func runConntrack(c *cli.Context) error {
	mode, err := conntrackMode(c)
	if err != nil {
		return err
	}
	query, err := flowQuery(c)
	if err != nil {
		return err
	}
	style, err := flowStyle(c.String("output"))
	if err != nil {
		return err
	}
	client, err := nodeClient(c)
	if err != nil {
		return err
	}
	v := flowView{client: client, query: query, style: style, json: c.Bool("json"), out: c.App.Writer, errOut: c.App.ErrWriter}
	ctx, stop := signal.NotifyContext(c.Context, syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	switch mode {
	case "event":
		return v.follow(ctx)
	case "flush":
		return v.number(ctx, client.FlushFlows, "ended")
	case "count":
		return v.number(ctx, client.CountFlows, "flows")
	default:
		return v.list(ctx)
	}
}

func conntrackMode(c *cli.Context) (string, error) {
	var modes []string
	for _, m := range []string{"list", "event", "flush", "count"} {
		if c.Bool(m) {
			modes = append(modes, m)
		}
	}
	switch {
	case len(modes) > 1:
		return "", usagef("--%s and --%s exclude each other; see %s --help", modes[0], modes[1], c.Command.HelpName)
	case len(modes) == 0:
		return "list", nil
	}
	if c.IsSet("event-mask") && modes[0] != "event" {
		return "", usagef("--event-mask is for -E; see %s --help", c.Command.HelpName)
	}
	return modes[0], nil
}

// flowQuery makes the query of the filters on the command line.
func flowQuery(c *cli.Context) (url.Values, error) {
	query := url.Values{}
	for _, name := range []string{"proto", "src", "dst", "sport", "dport", "peer", "family", "event-mask"} {
		if !c.IsSet(name) {
			continue
		}
		if c.String(name) == "" {
			return nil, usagef("--%s: the value is empty; see %s --help", name, c.Command.HelpName)
		}
		query.Set(name, c.String(name))
	}
	if s, ok := c.Generic("state").(*stateOption); ok && s.tcp != "" {
		query.Set("state", s.tcp)
	}
	if _, err := node.ParseFlowQuery(query); err != nil {
		return nil, usagef("--%v", err)
	}
	return query, nil
}

func flowStyle(list string) (s node.FlowStyle, err error) {
	for word := range strings.SplitSeq(list, ",") {
		switch word {
		case "":
		case "extended":
			s.Extended = true
		case "timestamp":
			s.Timestamp = true
		default:
			return s, usagef("--output: %q is neither extended nor timestamp", word)
		}
	}
	return s, nil
}

// flowView shows the flows of one node.
type flowView struct {
	client      *control.Client
	query       url.Values
	style       node.FlowStyle
	json        bool
	out, errOut io.Writer
}

func (v flowView) list(ctx context.Context) error {
	w := bufio.NewWriterSize(v.out, 64<<10)
	var line []byte
	err := v.client.Flows(ctx, v.query, func(document json.RawMessage) error {
		line = append(append(line[:0], document...), '\n')
		if !v.json {
			var f node.FlowEntry
			if err := json.Unmarshal(document, &f); err != nil {
				return fmt.Errorf("a flow is not what this version of culvert expects: %w", err)
			}
			line = f.AppendText(line[:0], v.style)
		}
		_, err := w.Write(line)
		return err
	})
	if ctx.Err() != nil {
		return nil
	}
	if err != nil {
		return err
	}
	return w.Flush()
}

// follow writes events as they come, until ctx ends.
func (v flowView) follow(ctx context.Context) error {
	var line []byte
	err := v.client.FlowEvents(ctx, v.query, func(document json.RawMessage) error {
		line = append(append(line[:0], document...), '\n')
		if !v.json {
			var e node.FlowNotice
			if err := json.Unmarshal(document, &e); err != nil {
				return fmt.Errorf("an event is not what this version of culvert expects: %w", err)
			}
			if e.Lost > 0 {
				_, err := fmt.Fprintf(v.errOut, "culvert: too slow for the node: %d events are not shown here\n", e.Lost)
				return err
			}
			line = e.AppendText(line[:0], v.style)
		}
		_, err := v.out.Write(line)
		return err
	})
	if err == nil && ctx.Err() == nil {
		return fmt.Errorf("the node has stopped")
	}
	return err
}

// number prints what one of the client's counting calls returns.
func (v flowView) number(ctx context.Context, call func(context.Context, url.Values) (int, error), what string) error {
	n, err := call(ctx, v.query)
	switch {
	case err != nil:
		return err
	case v.json:
		return printJSON(v.out, map[string]int{"flows": n})
	case what == "ended":
		_, err = fmt.Fprintf(v.out, "flows ended: %d\n", n)
	default:
		_, err = fmt.Fprintln(v.out, n)
	}
	return err
}
