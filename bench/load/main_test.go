//go:build linux

package load

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"io"
	"strings"
	"testing"
)

// running is a command that waits.
type running struct {
	lines *bufio.Scanner
	stop  context.CancelFunc
	err   chan error
}

func start(t *testing.T, args ...string) *running {
	t.Helper()
	ctx, stop := context.WithCancel(context.Background())
	in, out := io.Pipe()
	r := &running{lines: bufio.NewScanner(in), stop: stop, err: make(chan error, 1)}
	go func() {
		err := Run(ctx, args, out)
		out.Close()
		r.err <- err
	}()
	t.Cleanup(func() {
		stop()
		io.Copy(io.Discard, in)
	})
	return r
}

// next decodes the next line of output.
func (r *running) next(t *testing.T) map[string]any {
	t.Helper()
	if !r.lines.Scan() {
		t.Fatalf("the command ends: %v", <-r.err)
	}
	var v map[string]any
	if err := json.Unmarshal(r.lines.Bytes(), &v); err != nil {
		t.Fatalf("%q: %v", r.lines.Text(), err)
	}
	return v
}

func TestCommands(t *testing.T) {
	server := start(t, "serve", "-listen", "127.0.0.1:0")
	first := server.next(t)
	to, _ := first["listen"].(string)
	if first["ready"] != true || to == "" {
		t.Fatalf("got %v", first)
	}
	for name, args := range map[string][]string{
		"received_pps": {"flood", "-to", to, "-rate", "2000", "-length", "50ms", "-segments", "1"},
		"sent_pps":     {"flood", "-to", to, "-rate", "2000", "-length", "50ms", "-direction", "down", "-size", "100", "-warmup", "10ms"},
		"per_second":   {"connrate", "-to", to, "-workers", "2", "-length", "50ms", "-timeout", "5s"},
		"p50_ms":       {"rtt", "-to", to, "-length", "50ms", "-network", "tcp", "-every", "5ms", "-size", "8", "-wait", "5s"},
	} {
		var out strings.Builder
		if err := Run(context.Background(), args, &out); err != nil {
			t.Errorf("%v: %v", args, err)
			continue
		}
		var v map[string]any
		if err := json.Unmarshal([]byte(out.String()), &v); err != nil || strings.Count(out.String(), "\n") != 1 {
			t.Errorf("%v: %v: %q", args, err, out.String())
		}
		if n, ok := v[name].(float64); !ok || n <= 0 {
			t.Errorf("%v: got %v", args, v)
		}
	}
	hold := start(t, "hold", "-to", to, "-network", "udp", "-flows", "5", "-timeout", "5s")
	if v := hold.next(t); v["ready"] != true || v["held"] != 5.0 {
		t.Errorf("got %v", v)
	}
	hold.stop()
	if v := hold.next(t); v["held"] != 5.0 || v["alive"] != 5.0 || v["error"] != nil {
		t.Errorf("got %v", v)
	}
	line := start(t, "line", "-listen", "127.0.0.1:0", "-to", to, "-delay", "5ms", "-queue", "100000")
	via := line.next(t)["listen"].(string)
	if err := Run(context.Background(), []string{"rtt", "-to", via, "-length", "50ms"}, io.Discard); err != nil {
		t.Error(err)
	}
	line.stop()
	if v := line.next(t); v["dropped"] != 0.0 || v["up"].(map[string]any)["packets"] != 10.0 {
		t.Errorf("got %v", v)
	}
	server.stop()
	for _, r := range []*running{server, hold, line} {
		if err := <-r.err; err != nil {
			t.Errorf("a command that was told to stop fails: %v", err)
		}
	}
}

func TestCommandsRefuseWhatTheyDoNotKnow(t *testing.T) {
	for want, args := range map[string][]string{
		"is needed":       {},
		"one of serve":    {"dance"},
		"one too many":    {"rtt", "-to", "127.0.0.1:1", "x"},
		"ParseAddr":       {"serve", "-listen", "localhost:1"},
		"port is needed:": {"line", "-listen", "127.0.0.1:0"},
	} {
		if err := Run(context.Background(), args, io.Discard); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got error %v, want %q", args, err, want)
		}
	}
	if err := Run(context.Background(), []string{"flood", "-h"}, io.Discard); !errors.Is(err, flag.ErrHelp) {
		t.Errorf("got error %v", err)
	}
}
