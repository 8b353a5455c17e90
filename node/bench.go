package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"culvert.dev/culvert/bench/iperf3"
	"culvert.dev/culvert/bench/probe"
)

// BenchOrder is what "culvert bench" has a node do inside its mesh: one of Client and Server.
type BenchOrder struct {
	Client *probe.Order       `json:"client,omitempty"` // the target is complete, "host:port"
	Server *probe.ServerOrder `json:"server,omitempty"`
	Family int                `json:"family,omitempty"` // 4 or 6; 0 for any
}

// Kinds of events besides those of package probe.
const (
	BenchBegin   = "begin"   // the first; says where the measurement takes place
	BenchOutside = "outside" // instead of it: the node has no way to the target, for the reason in Text
	BenchError   = "error"   // the last, if it has not ended well
)

// BenchEvent is one line of the answer to a BenchOrder: an event of package probe with what only a node knows.
type BenchEvent struct {
	probe.Event
	Run         uint64 `json:"run,omitempty"` // of BenchBegin: the number by which it can be stopped
	Node        string `json:"node,omitempty"`
	Interrupted bool   `json:"interrupted,omitempty"` // of BenchError: it was stopped
}

// BenchMaxTime is how long a test may last that a peer asks this node's server for: it makes the server send as fast as it can.
const BenchMaxTime = time.Hour

// benches are the measurements that are under way: one as client and one as server, as more would measure each other.
type benches struct {
	mu             sync.Mutex // guards the following
	last           uint64
	client, server *benchRun
}

type benchRun struct {
	number uint64
	what   string
	stop   context.CancelFunc
}

// begin takes the place at *place for a run.
func (b *benches) begin(place **benchRun, what string, stop context.CancelFunc) (r *benchRun, end func(), err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if *place != nil {
		return nil, nil, fmt.Errorf("the node is busy with %s; wait for its end, or end it", (*place).what)
	}
	b.last++
	r = &benchRun{b.last, what, stop}
	*place = r
	return r, func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		*place = nil
	}, nil
}

// StopBench implements control.Bencher.
func (s source) StopBench(run uint64) {
	b := &s.n.benches
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, r := range []*benchRun{b.client, b.server} {
		if r != nil && r.number == run {
			r.stop()
		}
	}
}

// Bench implements control.Bencher: it measures in the mesh as an order says, until that is done, it is stopped, or ctx ends.
func (s source) Bench(ctx context.Context, order json.RawMessage, emit func(event any) error) error {
	var o BenchOrder
	if err := json.Unmarshal(order, &o); err != nil {
		return fmt.Errorf("the order is not what this version of culvert expects: %w", err)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(s.n.ctx, cancel)()
	tell := func(e BenchEvent) error { return emit(e) }
	switch {
	case o.Client != nil && o.Server == nil:
		return s.n.benchClient(ctx, o, tell)
	case o.Server != nil && o.Client == nil:
		return s.n.benchServer(ctx, o, tell)
	}
	return errors.New("an order is for a client or a server")
}

// benchServer serves at the node's mesh addresses. Policy decides which peers get through, as for any service.
func (n *Node) benchServer(ctx context.Context, o BenchOrder, emit func(BenchEvent) error) error {
	run, stop := context.WithCancel(ctx)
	defer stop()
	r, end, err := n.benches.begin(&n.benches.server, "a bench server", stop)
	if err != nil {
		return err
	}
	defer end()
	own := slices.DeleteFunc(slices.Clone(n.id.addresses), func(a netip.Addr) bool { return o.Family != 0 && a.Is4() != (o.Family == 4) })
	if host, _, err := net.SplitHostPort(o.Server.Address); err == nil && host != "" {
		own = slices.DeleteFunc(own, func(a netip.Addr) bool { return a.String() != host })
	}
	if len(own) == 0 {
		return emit(BenchEvent{Event: probe.Event{Event: BenchOutside, Text: "the node has no such mesh address"}, Node: n.id.name})
	}
	way := probe.Way{Network: benchNetwork{n}}
	for _, a := range own {
		way.Hosts = append(way.Hosts, a.String())
	}
	o.Server.MaxTime = BenchMaxTime
	where := fmt.Sprintf("through the mesh by node %s: at %s, for peers with AllowInbound\n", n.id.name, strings.Join(way.Hosts, ", "))
	if err := emit(BenchEvent{Event: probe.Event{Event: BenchBegin, Text: where}, Run: r.number, Node: n.id.name}); err != nil {
		return err
	}
	err = probe.Serve(run, *o.Server, way, n.log, func(e probe.Event) error {
		if e.Document != nil {
			e.Document.Culvert.Way, e.Document.Culvert.Node = "mesh", n.id.name
		}
		return emit(BenchEvent{Event: e})
	})
	return benchEnd(err, emit)
}

// benchEnd tells of an error, which cannot be the answer's status any more.
func benchEnd(err error, emit func(BenchEvent) error) error {
	if err == nil {
		return nil
	}
	return emit(BenchEvent{Event: probe.Event{Event: BenchError, Text: err.Error()}, Interrupted: errors.Is(err, iperf3.ErrInterrupted)})
}

// benchNetwork is the mesh for package iperf3.
type benchNetwork struct{ n *Node }

// DialContext implements iperf3.Network.
func (b benchNetwork) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	return b.n.Dial(ctx, network, address)
}

// Listen implements iperf3.Network.
func (b benchNetwork) Listen(_ context.Context, network, address string) (net.Listener, error) {
	return b.n.Listen(network, address)
}

// ListenPacket implements iperf3.Network.
func (b benchNetwork) ListenPacket(_ context.Context, network, address string) (net.PacketConn, error) {
	return b.n.ListenPacket(network, address)
}
