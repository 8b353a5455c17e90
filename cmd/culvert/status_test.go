package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net/netip"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"culvert.dev/culvert/internal/control"
	"culvert.dev/culvert/internal/wgkey"
	"culvert.dev/culvert/node"
)

// fakeNode is what the client commands talk to here.
type fakeNode struct {
	mu     sync.Mutex // guards the following
	status any
	health error
	reload func() error
}

func (n *fakeNode) Status() any     { n.mu.Lock(); defer n.mu.Unlock(); return n.status }
func (n *fakeNode) Health() error   { return n.health }
func (n *fakeNode) Reload() error   { return n.reload() }
func (n *fakeNode) Version() string { return "test" }

func (n *fakeNode) set(status any) { n.mu.Lock(); defer n.mu.Unlock(); n.status = status }

func serveFake(t *testing.T, n control.Source) (socket string) {
	t.Helper()
	socket = filepath.Join(t.TempDir(), "control.sock")
	l, err := control.Listen(socket)
	if err != nil {
		t.Fatal(err)
	}
	s := control.Serve(l, n, nil)
	t.Cleanup(func() { s.Shutdown(context.Background()) })
	return socket
}

func runLine(args ...string) (code int, out, errOut string) {
	var o, e bytes.Buffer
	code = run(append([]string{"culvert"}, args...), strings.NewReader(""), &o, &e)
	return code, o.String(), e.String()
}

func peer(name string, key byte, allow node.AllowStatus) node.PeerStatus {
	return node.PeerStatus{
		Name: name, PublicKey: wgkey.Public{key}, Allow: allow, Path: node.PathStatus{Kind: "none", Reason: "waiting"},
		Addresses: node.Ranges{netip.MustParsePrefix("100.64.0.2/32")},
	}
}

func TestStatusCommand(t *testing.T) {
	n := &fakeNode{status: node.Status{Name: "exit-fra", Peers: []node.PeerStatus{peer("laptop", 1, node.AllowStatus{Routing: true})}}}
	socket := serveFake(t, n)

	code, out, errOut := runLine("status", "--socket", socket)
	if code != 0 || errOut != "" || !strings.Contains(out, "exit-fra") || !strings.Contains(out, "none: waiting") {
		t.Errorf("status: %d\n%s\n%s", code, out, errOut)
	}
	code, out, _ = runLine("status", "--json", "--socket", socket)
	var s node.Status
	if err := json.Unmarshal([]byte(out), &s); code != 0 || err != nil || s.Name != "exit-fra" || !strings.Contains(out, "\n  \"name\"") {
		t.Errorf("status --json: %d, %v\n%s", code, err, out)
	}
	n.set(map[string]string{"field": "of a later version"})
	if _, out, _ = runLine("status", "--json", "--socket", socket); !strings.Contains(out, "of a later version") {
		t.Errorf("status --json hides fields it does not know:\n%s", out)
	}
}

func TestHealthCommand(t *testing.T) {
	n := &fakeNode{}
	socket := serveFake(t, n)
	if code, out, errOut := runLine("health", "--socket", socket); code != 0 || out != "ready\n" || errOut != "" {
		t.Errorf("ready: %d %q %q", code, out, errOut)
	}
	n.health = errors.New("the tunnel is not up")
	if code, out, errOut := runLine("health", "--socket", socket); code != 1 || out != "" || errOut != "culvert: not ready: the tunnel is not up\n" {
		t.Errorf("not ready: %d %q %q", code, out, errOut)
	}
}

func TestReloadCommand(t *testing.T) {
	routing := node.AllowStatus{Routing: true}
	n := &fakeNode{status: node.Status{Name: "exit-fra", Peers: []node.PeerStatus{peer("old", 1, routing), peer("kept", 2, routing), peer("same", 3, routing)}}}
	n.reload = func() error {
		n.set(node.Status{Name: "exit-fra", Peers: []node.PeerStatus{peer("kept", 2, node.AllowStatus{}), peer("same", 3, routing), peer("new", 4, routing)}})
		return nil
	}
	socket := serveFake(t, n)
	code, out, errOut := runLine("reload", "--socket", socket)
	want := "reloaded exit-fra, peers: 3\nchanged kept, allowed: - (was routing)\nadded new, allowed: routing\nremoved old\n"
	if code != 0 || out != want || errOut != "" {
		t.Errorf("%d\n%s\n%s\nwant\n%s", code, out, errOut, want)
	}
	n.reload = func() error { return errors.New("culvert.conf:3: unknown key Foo\nculvert.conf:9: bad address") }
	code, out, errOut = runLine("reload", "--socket", socket)
	want = "culvert: culvert.conf:3: unknown key Foo\nculvert: culvert.conf:9: bad address\n"
	if code != 1 || out != "" || errOut != want {
		t.Errorf("%d\n%s\n%s\nwant\n%s", code, out, errOut, want)
	}
}

func TestClientCommandsWithoutNode(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "none.sock")
	for _, command := range []string{"status", "health", "reload"} {
		code, out, errOut := runLine(command, "--socket", socket)
		if code != 1 || out != "" || errOut != "culvert: no culvert is running for "+socket+"; start it with: culvert up\n" {
			t.Errorf("%s: %d %q %q", command, code, out, errOut)
		}
		if code, _, errOut = runLine(command, "--socket", socket, "extra"); code != 2 || !strings.Contains(errOut, "extra") {
			t.Errorf("%s with an operand: %d %q", command, code, errOut)
		}
		if code, _, _ = runLine(command, "--no-such-option"); code != 2 {
			t.Errorf("%s with a wrong option: %d, want 2", command, code)
		}
		if _, out, _ = runLine(command, "--help"); !strings.Contains(out, "\nEXAMPLE:\n   culvert ") {
			t.Errorf("%s --help has no example:\n%s", command, out)
		}
	}
}

// blocks is a writer that ends the watch after some writes.
type blocks struct {
	left   int
	cancel func()
	list   []string
}

func (b *blocks) Write(p []byte) (int, error) {
	b.list = append(b.list, string(p))
	if b.left--; b.left == 0 {
		b.cancel()
	}
	return len(p), nil
}

func TestWatch(t *testing.T) {
	socket := serveFake(t, &fakeNode{status: node.Status{Name: "exit-fra"}})
	for _, c := range []struct {
		name           string
		json, terminal bool
		check          func(first, second string) bool
	}{
		{"plain", false, false, func(a, b string) bool { return strings.HasPrefix(a, "node") && strings.HasPrefix(b, "\nnode") }},
		{"terminal", false, true, func(a, b string) bool {
			return strings.HasPrefix(a, "\x1b[Hnode") && strings.HasSuffix(a, "\x1b[K\n\x1b[J") && a == b
		}},
		{"json", true, false, func(a, b string) bool { return strings.Count(a, "\n") == 1 && json.Valid([]byte(a)) && a == b }},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
			defer cancel()
			w := &blocks{left: 2, cancel: cancel}
			v := statusView{client: control.NewClient(socket), json: c.json, document: nodeStatus}
			if err := v.watch(ctx, w, c.terminal); err != nil {
				t.Fatal(err)
			}
			if len(w.list) != 2 || !c.check(w.list[0], w.list[1]) {
				t.Errorf("got %q", w.list)
			}
		})
	}
}

func TestWatchOutlivesTheNode(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "control.sock")
	l, err := control.Listen(socket)
	if err != nil {
		t.Fatal(err)
	}
	s := control.Serve(l, &fakeNode{status: node.Status{Name: "exit-fra"}}, nil)
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	w := &blocks{left: 2, cancel: cancel}
	down := writerFunc(func(p []byte) (int, error) {
		s.Shutdown(context.Background())
		return w.Write(p)
	})
	v := statusView{client: control.NewClient(socket), document: nodeStatus}
	if err := v.watch(ctx, down, false); err != nil {
		t.Fatal(err)
	}
	if len(w.list) != 2 || !strings.Contains(w.list[1], "no culvert is running") {
		t.Errorf("got %q", w.list)
	}
	if err := v.watch(context.Background(), down, false); err == nil {
		t.Error("watching a node that is not there is no error")
	}
}

type writerFunc func(p []byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }
