package node

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"culvert.dev/culvert/bench/probe"
	"culvert.dev/culvert/internal/config"
	"culvert.dev/culvert/internal/proxy"
	"culvert.dev/culvert/node/egress"
)

// benchTarget is what a client measures against.
type benchTarget struct {
	at   netip.AddrPort
	name string     // as it was asked for
	peer pingTarget // that the address belongs to, or that leads on
}

// outsideError says why a target is not in the mesh and not beyond it.
type outsideError struct{ reason string }

func (e *outsideError) Error() string { return e.reason }

// benchClient measures the way to a target that the node reaches through its tunnel.
func (n *Node) benchClient(ctx context.Context, o BenchOrder, emit func(BenchEvent) error) error {
	run, stop := context.WithCancel(ctx)
	defer stop()
	r, end, err := n.benches.begin(&n.benches.client, "a bench of "+o.Client.Target, stop)
	if err != nil {
		return err
	}
	defer end()
	t, err := n.benchTarget(run, o)
	var outside *outsideError
	if errors.As(err, &outside) {
		return emit(BenchEvent{Event: probe.Event{Event: BenchOutside, Text: outside.reason}, Node: n.id.name})
	}
	if err != nil {
		return err
	}
	path := n.awaitPath(run, t.peer)
	begin := BenchEvent{Event: probe.Event{Event: BenchBegin, Text: n.benchWay(t, path)}, Run: r.number, Node: n.id.name}
	if err := emit(begin); err != nil {
		return err
	}
	o.Client.Target = t.at.String()
	err = probe.Run(run, *o.Client, probe.Way{Network: benchNetwork{n}, Echo: n.net.Ping}, func(e probe.Event) error {
		if e.Document != nil {
			e.Text += n.describe(e.Document, t, path)
		}
		return emit(BenchEvent{Event: e})
	})
	return benchEnd(err, emit)
}

// benchTarget finds the address that all connections of a measurement go to. It asks no more than a connection would.
func (n *Node) benchTarget(ctx context.Context, o BenchOrder) (t benchTarget, err error) {
	target, err := proxy.ParseTarget(o.Client.Target)
	if err != nil {
		return t, err
	}
	t.name = target.Host()
	switch d := n.egress.Decide(egress.Rules{}, "", target); {
	case d.Way == egress.Self:
		return t, fmt.Errorf("%s is this node itself; measure to it from a peer", t.name)
	case d.Way == egress.Refused && (d.Kind == proxy.HostUnreachable || strings.HasSuffix(t.name, ".mesh")):
		return t, d.Err()
	case d.Way == egress.Refused:
		return t, &outsideError{d.Why + n.nearPeer(t.name)}
	}
	addrs, err := n.lookup(ctx, target)
	if err != nil {
		return t, err
	}
	i := slices.IndexFunc(addrs, func(a netip.Addr) bool {
		return n.ownAddress(a.Is4()).IsValid() && (o.Family == 0 || a.Is4() == (o.Family == 4))
	})
	if i < 0 {
		return t, fmt.Errorf("%s has no address of a family that this node has and that may be used", t.name)
	}
	t.at = netip.AddrPortFrom(addrs[i], target.Port)
	t.peer, err = n.pingTarget(addrs[i].String())
	return t, err
}

// nearPeer is a hint for who has mistyped a peer's name.
func (n *Node) nearPeer(name string) string {
	n.mu.Lock()
	defer n.mu.Unlock()
	var names []string
	for _, p := range n.conf.Peers {
		names = append(names, p.Name)
	}
	if near := config.Nearest(name, names); near != "" {
		return fmt.Sprintf("; did you mean %s?", near)
	}
	return ""
}

const (
	pathTime = 3 * time.Second // for a handshake, which must not become part of what is measured
	pathLook = 20 * time.Millisecond
)

// awaitPath returns the path to a peer, once there is one or time is up. An echo request gets the handshake going.
func (n *Node) awaitPath(ctx context.Context, t pingTarget) pathState {
	ctx, cancel := context.WithTimeout(ctx, pathTime)
	defer cancel()
	answered := make(chan struct{})
	go func() {
		defer close(answered)
		n.net.Ping(ctx, t.addr)
	}()
	defer func() {
		cancel()
		<-answered
	}()
	tick := time.NewTicker(pathLook)
	defer tick.Stop()
	for {
		path, err := n.pathNow(t)
		if err != nil || path.kind != PathNone {
			return path
		}
		select {
		case <-ctx.Done():
			return path
		case <-tick.C:
		}
	}
}

// benchWay is the first line.
func (n *Node) benchWay(t benchTarget, path pathState) string {
	to := t.at.String()
	if t.name != t.at.Addr().String() {
		to = fmt.Sprintf("%s (%s)", net.JoinHostPort(t.name, fmt.Sprint(t.at.Port())), t.at.Addr())
	}
	by := "no path yet"
	if path.outer() != "" {
		by = path.kind + " " + path.outer()
	}
	return fmt.Sprintf("through the mesh by node %s: to %s, peer %s by %s\n", n.id.name, to, cmp.Or(t.peer.name, t.peer.key.Short()), by)
}

// describe adds to a document what the node knows, and returns a line if the path has changed meanwhile.
func (n *Node) describe(d *probe.Document, t benchTarget, was pathState) string {
	c := &d.Culvert
	c.Way, c.Node, c.Peer = "mesh", n.id.name, cmp.Or(t.peer.name, t.peer.key.Short())
	path, err := n.pathNow(t.peer)
	if err != nil {
		return ""
	}
	c.Path, c.Endpoint = path.kind, path.outer()
	if path.outer() == was.outer() {
		return ""
	}
	return fmt.Sprintf("The path has changed meanwhile: it is %s %s now\n", path.kind, path.outer())
}
