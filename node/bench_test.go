package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"culvert.dev/culvert/bench/iperf3"
	"culvert.dev/culvert/bench/probe"
	"culvert.dev/culvert/internal/control"
)

// benchLog collects what a node tells of one measurement.
type benchLog struct {
	mu     sync.Mutex // guards the following
	events []BenchEvent
}

func (l *benchLog) take(document json.RawMessage) error {
	var e BenchEvent
	if err := json.Unmarshal(document, &e); err != nil {
		return fmt.Errorf("%s: %w", document, err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.events = append(l.events, e)
	return nil
}

// first returns the first event of a kind.
func (l *benchLog) first(kind string) (BenchEvent, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	i := slices.IndexFunc(l.events, func(e BenchEvent) bool { return e.Event.Event == kind })
	if i < 0 {
		return BenchEvent{}, false
	}
	return l.events[i], true
}

func (l *benchLog) text() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	var b strings.Builder
	for _, e := range l.events {
		fmt.Fprintf(&b, "%s: %s\n", e.Event.Event, strings.TrimSuffix(e.Text, "\n"))
	}
	return b.String()
}

// benchPair is alice, who measures, and bob, who serves and lets her in.
type benchPair struct {
	alice, bob *control.Client
	nodes      [2]*Node
}

func newBenchPair(t *testing.T) *benchPair {
	t.Helper()
	a, b := newSide(t, "100.70.31.1"), newSide(t, "100.70.31.2")
	sockets := [2]string{filepath.Join(t.TempDir(), "a.sock"), filepath.Join(t.TempDir(), "b.sock")}
	p := &benchPair{alice: control.NewClient(sockets[0]), bob: control.NewClient(sockets[1])}
	p.nodes[1] = start(t, b.write(t, a.asPeer("alice", "AllowInbound = yes")), sockets[1])
	p.nodes[0] = start(t, a.write(t, b.asPeer("bob", "")), sockets[0])
	return p
}

// serve runs a server in a node until the test ends, or stop is called.
func serveBench(t *testing.T, c *control.Client, o probe.ServerOrder) (log *benchLog, stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	log = &benchLog{}
	ended := make(chan error, 1)
	listening := make(chan struct{})
	go func() {
		ended <- c.Bench(ctx, BenchOrder{Server: &o}, func(document json.RawMessage) error {
			err := log.take(document)
			if log.events[len(log.events)-1].Event.Event == probe.EventListening {
				close(listening)
			}
			return err
		})
	}()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("the server: %v", err)
		}
	})
	t.Cleanup(stop)
	select {
	case <-listening:
	case err := <-ended:
		ended <- err
		t.Fatalf("the server: %v\n%s", err, log.text())
	case <-time.After(20 * time.Second):
		t.Fatalf("the server does not listen:\n%s", log.text())
	}
	return log, stop
}

func measureBench(t *testing.T, c *control.Client, o BenchOrder) (*benchLog, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	log := &benchLog{}
	err := c.Bench(ctx, o, log.take)
	if ctx.Err() != nil {
		t.Fatalf("no end:\n%s", log.text())
	}
	return log, err
}

// TestBenchBetweenNodes has two nodes measure through the tunnel, as their control sockets are told.
func TestBenchBetweenNodes(t *testing.T) {
	p := newBenchPair(t)
	served, stop := serveBench(t, p.bob, probe.ServerOrder{Address: ":5201"})
	one := iperf3.Params{Target: "bob:5201", Time: time.Second, Interval: 500 * time.Millisecond}
	for name, change := range map[string]func(*probe.Order){
		"upload":        func(*probe.Order) {},
		"download, RTT": func(o *probe.Order) { o.Reverse, o.RTT = true, true },
		"UDP, both":     func(o *probe.Order) { o.Protocol, o.Rate, o.Bidir, o.Streams = "udp", 5e6, true, 2 },
	} {
		t.Run(name, func(t *testing.T) {
			o := probe.Order{Params: one}
			change(&o)
			log, err := measureBench(t, p.alice, BenchOrder{Client: &o})
			if err != nil {
				t.Fatal(err)
			}
			begin, _ := log.first(BenchBegin)
			if begin.Node != "node" || begin.Run == 0 || !strings.HasPrefix(begin.Text, "through the mesh by node node: to bob:5201 (100.70.31.2), peer bob by direct 127.0.0.1:") {
				t.Errorf("begin: %+v", begin)
			}
			e, ok := log.first(probe.EventResult)
			if !ok || e.Document == nil || e.Document.Result == nil {
				t.Fatalf("no result:\n%s", log.text())
			}
			d := e.Document
			if d.End.SumReceived.Bytes == 0 || d.Culvert.Way != "mesh" || d.Culvert.Peer != "bob" || d.Culvert.Path != PathDirect {
				t.Errorf("received %d bytes, %+v", d.End.SumReceived.Bytes, d.Culvert)
			}
			if _, ok := log.first(probe.EventInterval); !ok {
				t.Errorf("no interval:\n%s", log.text())
			}
			if r := d.Culvert.RTT; o.RTT && (r == nil || r.Method != "udp echo" || r.Idle.Answered < 20 || r.Loaded.Answered < 5 || r.Idle.P50 <= 0) {
				t.Errorf("RTT %+v", r)
			}
		})
	}
	t.Run("connections", func(t *testing.T) {
		o := probe.Order{Params: one, Connections: true}
		o.Streams = 4
		log, err := measureBench(t, p.alice, BenchOrder{Client: &o})
		if err != nil {
			t.Fatal(err)
		}
		e, ok := log.first(probe.EventResult)
		if !ok || e.Document.Culvert.Connections.Total.Connections < 20 || e.Document.Culvert.Connections.Total.Failed > 0 {
			t.Errorf("%s", log.text())
		}
	})
	t.Run("one after the other", func(t *testing.T) { // each comes while the server is at the end of the one before
		for range 5 {
			o := probe.Order{Params: iperf3.Params{Target: "bob:5201", Blocks: 10}}
			if log, err := measureBench(t, p.alice, BenchOrder{Client: &o}); err != nil {
				t.Fatal(err)
			} else if e, ok := log.first(BenchError); ok {
				t.Fatalf("%s", e.Text)
			}
		}
	})
	t.Run("one at a time", func(t *testing.T) {
		if _, err := measureBench(t, p.bob, BenchOrder{Server: &probe.ServerOrder{Address: ":5202"}}); err == nil || !strings.Contains(err.Error(), "busy with a bench server") {
			t.Errorf("got %v", err)
		}
	})
	t.Run("stopped", func(t *testing.T) { testBenchStopped(t, p) })
	t.Run("the client goes", func(t *testing.T) { testBenchAbandoned(t, p) })
	if _, ok := served.first(probe.EventResult); !ok {
		t.Errorf("the server tells no result:\n%s", served.text())
	}
	stop()
	o := probe.Order{Params: one}
	log, err := measureBench(t, p.alice, BenchOrder{Client: &o})
	if e, ok := log.first(BenchError); err != nil || !ok || !strings.Contains(e.Text, "refused") || !strings.Contains(e.Text, "AllowInbound") {
		t.Errorf("without a server: %v\n%s", err, log.text())
	}
}

// testBenchStopped ends a long test by its number: the results so far are told.
func testBenchStopped(t *testing.T, p *benchPair) {
	o := probe.Order{Params: iperf3.Params{Target: "bob:5201", Time: time.Hour / 2, Interval: 100 * time.Millisecond}}
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	log := &benchLog{}
	stopped := false
	err := p.alice.Bench(ctx, BenchOrder{Client: &o}, func(document json.RawMessage) error {
		err := log.take(document)
		begin, _ := log.first(BenchBegin)
		if _, ok := log.first(probe.EventInterval); ok && !stopped {
			stopped = true
			err = errors.Join(err, p.alice.StopBench(ctx, begin.Run+7), p.alice.StopBench(ctx, begin.Run)) // the first is nobody's
		}
		return err
	})
	e, ok := log.first(BenchError)
	r, have := log.first(probe.EventResult)
	if err != nil || !ok || !e.Interrupted || !have || r.Document.Error == "" || len(r.Document.Intervals) == 0 {
		t.Errorf("%v\n%s", err, log.text())
	}
}

// testBenchAbandoned has the client of the control socket go: the node is free for the next one soon.
func testBenchAbandoned(t *testing.T, p *benchPair) {
	o := probe.Order{Params: iperf3.Params{Target: "bob:5201", Time: time.Hour / 2, Interval: 100 * time.Millisecond}}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	if err := p.alice.Bench(ctx, BenchOrder{Client: &o}, func(json.RawMessage) error { cancel(); return nil }); err != nil {
		t.Error(err)
	}
	eventually(t, "the node has ended the run", func() bool {
		b := &p.nodes[0].benches
		b.mu.Lock()
		defer b.mu.Unlock()
		return b.client == nil
	})
}

// TestBenchEndsWithItsNode at both ends: neither keeps a node from closing.
func TestBenchEndsWithItsNode(t *testing.T) {
	p := newBenchPair(t)
	served := &benchLog{}
	ended := make(chan error, 1)
	go func() {
		ended <- p.bob.Bench(t.Context(), BenchOrder{Server: &probe.ServerOrder{Address: ":5201"}}, served.take)
	}()
	eventually(t, "the server listens", func() bool { _, ok := served.first(probe.EventListening); return ok })
	var closing sync.WaitGroup
	closed := make(chan struct{})
	once := sync.OnceFunc(func() {
		for _, n := range p.nodes {
			closing.Go(func() { n.Close() })
		}
		go func() { closing.Wait(); close(closed) }()
	})
	log := &benchLog{}
	o := probe.Order{Params: iperf3.Params{Target: "bob:5201", Time: time.Hour / 2, Interval: 100 * time.Millisecond}}
	p.alice.Bench(t.Context(), BenchOrder{Client: &o}, func(document json.RawMessage) error {
		err := log.take(document)
		if _, ok := log.first(probe.EventInterval); ok {
			once()
		}
		return err
	})
	if _, ok := log.first(probe.EventInterval); !ok {
		t.Fatalf("no interval:\n%s", log.text())
	}
	select {
	case <-closed:
	case <-time.After(30 * time.Second):
		t.Fatalf("the nodes do not close:\n%s%s", log.text(), served.text())
	}
	<-ended
}

// TestBenchTargets has a node judge targets, of which only some are its own to reach.
func TestBenchTargets(t *testing.T) {
	p := newBenchPair(t)
	for _, c := range []struct{ target, kind, text string }{
		{"bobb:5201", BenchOutside, "did you mean bob?"},
		{"192.0.2.1:5201", BenchOutside, "connect to 192.0.2.1"},
		{"127.0.0.1:5201", BenchOutside, "loopback"},
		{"100.70.31.1:5201", "", "100.70.31.1 is this node itself; measure to it from a peer"},
		{"node:5201", "", "node is this node itself"},
		{"nobody.mesh:5201", "", "no peer has this name"},
		{"bob", "", "target"},
	} {
		log, err := measureBench(t, p.alice, BenchOrder{Client: &probe.Order{Params: iperf3.Params{Target: c.target}}})
		if c.kind == "" {
			if err == nil || !strings.Contains(err.Error(), c.text) {
				t.Errorf("%s: got %v, want %s", c.target, err, c.text)
			}
			continue
		}
		if e, ok := log.first(c.kind); err != nil || !ok || !strings.Contains(e.Text, c.text) {
			t.Errorf("%s: %v, want %s with %q:\n%s", c.target, err, c.kind, c.text, log.text())
		}
	}
	if _, err := measureBench(t, p.alice, BenchOrder{Family: 6, Client: &probe.Order{Params: iperf3.Params{Target: "bob:5201"}}}); err == nil || !strings.Contains(err.Error(), "no address of a family") {
		t.Errorf("IPv6 in a mesh without: %v", err)
	}
	if _, err := measureBench(t, p.alice, BenchOrder{}); err == nil || err.Error() != "an order is for a client or a server" {
		t.Errorf("neither: %v", err)
	}
	if log, err := measureBench(t, p.bob, BenchOrder{Server: &probe.ServerOrder{Address: "127.0.0.1:5201"}}); err != nil || len(log.events) != 1 || log.events[0].Event.Event != BenchOutside {
		t.Errorf("a server at the host's address: %v\n%s", err, log.text())
	}
}
