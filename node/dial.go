package node

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"syscall"

	"culvert.dev/culvert/internal/proxy"
	"culvert.dev/culvert/node/egress"
)

// Dial connects to a host in the mesh, or beyond a peer. network is "tcp", "tcp4", "tcp6", "udp", "udp4" or "udp6"; the host may be a peer's name
// ("db", "db.mesh"), an address that some peer's AllowedIPs hold, or another name, which is resolved beyond the tunnel and not by
// this host. The connection has net.Conn's semantics, and for TCP CloseWrite too; a UDP connection takes datagrams of its far end only.
//
// The errors of a target that cannot be reached are those of the net package: errors.Is finds syscall.ECONNREFUSED and the like.
func (n *Node) Dial(ctx context.Context, network, address string) (net.Conn, error) {
	op := func(err error) error {
		if errno, ok := kindErrnos[proxy.KindOf(err)]; ok && !errors.Is(err, errno) {
			err = &dialError{err, errno}
		}
		return &net.OpError{Op: "dial", Net: network, Addr: meshAddr(address), Err: err}
	}
	kind, v, err := splitNetwork(network)
	if err != nil {
		return nil, op(err)
	}
	target, err := proxy.ParseTarget(address)
	if err != nil {
		return nil, op(err)
	}
	c, err := n.dialTarget(ctx, kind, v, target)
	if err != nil {
		return nil, op(err)
	}
	return c, nil
}

// kindErrnos are what errors of a kind are to programs that know package net.
var kindErrnos = map[proxy.Kind]syscall.Errno{
	proxy.NetworkUnreachable: syscall.ENETUNREACH, proxy.HostUnreachable: syscall.EHOSTUNREACH, proxy.Refused: syscall.ECONNREFUSED,
	proxy.NotAllowed: syscall.EACCES,
}

// dialError has the text of one error and is another one too.
type dialError struct {
	error
	errno syscall.Errno
}

// Unwrap implements errors.Is and errors.As.
func (e *dialError) Unwrap() []error { return []error{e.error, e.errno} }

// dialTarget is Dial for a target that is understood; v is the family that is asked for, 0 for any.
func (n *Node) dialTarget(ctx context.Context, kind string, v int, t proxy.Target) (c net.Conn, err error) {
	if v != 0 {
		addrs, err := n.lookup(ctx, t)
		if err != nil {
			return nil, err
		}
		i := slices.IndexFunc(addrs, func(a netip.Addr) bool { return a.Is4() == (v == 4) })
		if i < 0 {
			return nil, fmt.Errorf("%s has no IPv%d address: %w", t.Host(), v, syscall.EADDRNOTAVAIL)
		}
		t = proxy.Target{Addr: addrs[i], Port: t.Port}
	}
	r := &proxy.Request{Protocol: "dial", Target: t}
	if kind == "udp" {
		return n.dialDatagrams(ctx, n.plain, r)
	}
	return n.plain.Dial(ctx, r)
}

// lookup finds the addresses of a target in the mesh, or beyond it. It asks no more than a connection would.
func (n *Node) lookup(ctx context.Context, t proxy.Target) ([]netip.Addr, error) {
	d := n.egress.Decide(egress.Rules{}, "", t)
	switch {
	case d.Err() != nil:
		return nil, d.Err()
	case len(d.Addrs) > 0:
		return d.Addrs, nil
	}
	addrs, err := n.resolveBeyond(ctx, strings.ToLower(t.Name))
	if err != nil {
		return nil, err
	}
	for i, a := range addrs {
		addrs[i] = a.Unmap()
		if slices.Contains(n.id.addresses, a.Unmap()) {
			return nil, proxy.Fail(proxy.NotAllowed, "resolve %s: %s is this node itself, which a name from outside must not lead to", t.Name, a)
		}
	}
	return addrs, nil
}

// dialDatagrams opens a way for the datagrams of one client to one target. To a peer it is a socket of the mesh; elsewhere it is an
// association with one destination, which resolves names where they leave.
func (n *Node) dialDatagrams(ctx context.Context, out proxy.Dialer, r *proxy.Request) (net.Conn, error) {
	if a := n.meshTarget(r.Target); a.IsValid() {
		return n.dialMesh(ctx, "udp", a.String())
	}
	pc, err := out.ListenPacket(ctx, r)
	if err != nil {
		return nil, err
	}
	return &association{PacketConn: pc, to: r.Target}, nil
}

// meshTarget is the address of a target that a peer has itself; the zero value for others.
func (n *Node) meshTarget(t proxy.Target) netip.AddrPort {
	p := n.present.Load()
	a := t.Addr
	if t.Name != "" {
		h, _ := p.names.lookup(t.Name)
		i := slices.IndexFunc(h.addrs, func(a netip.Addr) bool { return n.ownAddress(a.Is4()).IsValid() })
		if h.peer == "" || i < 0 {
			return netip.AddrPort{}
		}
		a = h.addrs[i]
	}
	if peer, _, ok := p.routeTo(a); !ok || !slices.ContainsFunc(p.names.hosts[peer].addrs, func(o netip.Addr) bool { return o == a }) {
		return netip.AddrPort{}
	}
	return netip.AddrPortFrom(a, t.Port)
}

// meshAddr is an address as it was asked for.
type meshAddr string

func (a meshAddr) Network() string { return "culvert" }
func (a meshAddr) String() string  { return string(a) }

// splitNetwork takes "tcp6" apart into "tcp" and 6; the family is 0 where none is asked for.
func splitNetwork(network string) (kind string, v int, err error) {
	kind = strings.TrimRight(network, "46")
	switch strings.TrimPrefix(network, kind) {
	case "4":
		v = 4
	case "6":
		v = 6
	case "":
	default:
		kind = ""
	}
	if kind != "tcp" && kind != "udp" {
		return "", 0, net.UnknownNetworkError(network)
	}
	return kind, v, nil
}
