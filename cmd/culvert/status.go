package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/urfave/cli/v2"

	"culvert.dev/culvert/internal/control"
	"culvert.dev/culvert/node"
)

const watchInterval = time.Second

func statusCommand() *cli.Command {
	return &cli.Command{
		Name:  "status",
		Usage: "show the running node: peers, the path to each and why, relays, flows, drops",
		Description: "With --watch it goes on every second until interrupted: in place on a terminal, else block after block,\n" +
			"with --json one document a line.",
		Flags: []cli.Flag{
			watchFlag(), jsonFlag(), socketFlag(), configFlag(), stateFlag(),
		},
		CustomHelpTemplate: cli.CommandHelpTemplate + example(
			"culvert status --watch",
			`culvert status --json | jq -r '.peers[] | "\(.name) \(.path.kind)"'`),
		Action: runStatus,
	}
}

func runStatus(c *cli.Context) error {
	client, err := nodeClient(c)
	if err != nil {
		return err
	}
	v := statusView{client: client, json: c.Bool("json"), document: nodeStatus}
	return v.run(c)
}

func watchFlag() cli.Flag {
	return &cli.BoolFlag{Name: "watch", Usage: "show it again every second", EnvVars: []string{"CULVERT_WATCH"}}
}

// run shows the status once, or with --watch until it is interrupted.
func (v statusView) run(c *cli.Context) error {
	if !c.Bool("watch") {
		b, err := v.render(c.Context, true)
		if err != nil {
			return err
		}
		_, err = c.App.Writer.Write(b)
		return err
	}
	ctx, stop := signal.NotifyContext(c.Context, syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	return v.watch(ctx, c.App.Writer, isTerminal(c.App.Writer))
}

// nodeClient returns a client of the node that the command line means. It takes no operands.
func nodeClient(c *cli.Context) (*control.Client, error) {
	if _, err := arguments(c); err != nil {
		return nil, err
	}
	socket, err := clientSocket(c)
	if err != nil {
		return nil, err
	}
	return control.NewClient(socket), nil
}

// statusView shows the status of one node or relay.
type statusView struct {
	client   *control.Client
	json     bool
	document func() statusDocument // returns a new one to fill; not needed for json
}

// statusDocument is what a node or a relay tells of itself.
type statusDocument interface {
	WriteText(w io.Writer, now time.Time) error
}

func nodeStatus() statusDocument { return new(node.Status) }

// render returns the status as text, or the document exactly as the node sent it.
func (v statusView) render(ctx context.Context, indent bool) ([]byte, error) {
	var b bytes.Buffer
	if v.json {
		var document json.RawMessage
		if err := v.client.Status(ctx, &document); err != nil {
			return nil, err
		}
		if !indent {
			return append(document, '\n'), nil
		}
		err := printJSON(&b, document)
		return b.Bytes(), err
	}
	s := v.document()
	if err := v.client.Status(ctx, s); err != nil {
		return nil, err
	}
	err := s.WriteText(&b, time.Now())
	return b.Bytes(), err
}

// watch shows the status until ctx ends. What cannot be asked at first is an error; later it may come back.
func (v statusView) watch(ctx context.Context, w io.Writer, terminal bool) error {
	tick := time.NewTicker(watchInterval)
	defer tick.Stop()
	for n := 0; ; n++ {
		b, err := v.render(ctx, false)
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil && (n == 0 || v.json):
			return err
		case err != nil:
			b = fmt.Appendf(nil, "%v\n", err)
		}
		switch {
		case v.json:
		case terminal:
			b = repaint(b)
		case n > 0:
			b = append([]byte("\n"), b...)
		}
		if _, err := w.Write(b); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// repaint puts text over what a terminal shows, clearing only what it does not cover, so that nothing flickers.
func repaint(text []byte) []byte {
	const home, restOfLine, restOfScreen = "\x1b[H", "\x1b[K", "\x1b[J"
	return []byte(home + strings.ReplaceAll(string(text), "\n", restOfLine+"\n") + restOfScreen)
}
