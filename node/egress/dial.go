package egress

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"time"

	"culvert.dev/culvert/internal/proxy"
)

// dialer serves one listener.
type dialer struct {
	e     *Egress
	rules func() Rules
}

// Dial implements proxy.Dialer.
func (d *dialer) Dial(ctx context.Context, r *proxy.Request) (net.Conn, error) {
	e, start := d.e, time.Now()
	dec := decide(&e.cfg, d.rules(), r.Exit, r.Target)
	c, err := e.connect(ctx, dec)
	e.outcomes.count(dec.Way, err)
	if e.log.Enabled(ctx, slog.LevelDebug) {
		e.log.Debug("connect", "target", r.Target.String(), "way", dec.Way.String(), "why", dec.Why, "took", time.Since(start), "err", err)
	}
	return c, err
}

// connect makes the connection of a decision. The kind of an error is what the client is told.
func (e *Egress) connect(ctx context.Context, d Decision) (c net.Conn, err error) {
	switch d.Way {
	case Self:
		c, err = e.cfg.DialSelf(ctx, "tcp", d.to.port)
	case Peer:
		c, err = Race(ctx, at(d.Addrs, d.to.port), e.dialMesh)
	case Exit:
		t := d.to.target()
		c, err = through(ctx, e.fleet, d.Exits, func(ctx context.Context, x *exit) (net.Conn, error) { return x.connect(ctx, t) })
	case Default:
		var addrs []netip.Addr
		if addrs, err = e.behind(ctx, d); err == nil {
			c, err = Race(ctx, at(addrs, d.to.port), e.dialMesh)
		}
	case Direct:
		var addrs []netip.Addr
		if addrs, err = e.cfg.Direct.resolve(ctx, d); err == nil {
			c, err = Race(ctx, at(addrs, d.to.port), e.dialHost)
		}
	default:
		return nil, d.Err()
	}
	if err != nil {
		return nil, fmt.Errorf("connect to %s (%s): %w", d.to.target(), d.Why, err)
	}
	return c, nil
}

// dialMesh connects through the tunnel.
func (e *Egress) dialMesh(ctx context.Context, to netip.AddrPort) (net.Conn, error) {
	if _, _, ok := e.cfg.Routes(to.Addr()); !ok {
		return nil, proxy.Fail(proxy.HostUnreachable, "%s is in no peer's AllowedIPs", to.Addr())
	}
	return e.cfg.Mesh.DialTCP(ctx, to)
}

// dialHost connects by the host's own network.
func (e *Egress) dialHost(ctx context.Context, to netip.AddrPort) (net.Conn, error) {
	return e.cfg.Direct.DialContext(ctx, "tcp", to.String())
}

// behind returns the addresses of a destination that is reached by AllowedIPs. A name is asked behind the tunnel, and of its addresses
// those count that a peer has a route for. They may be in the mesh, or in a network behind another peer: the resolver of an office answers so.
func (e *Egress) behind(ctx context.Context, d Decision) (list []netip.Addr, err error) {
	if len(d.Addrs) > 0 {
		return d.Addrs, nil
	}
	addrs, err := e.cfg.Resolve(ctx, d.to.name)
	if err != nil {
		return nil, err
	}
	if addrs, err = foreign(d.to.name, addrs, e.cfg.Self); err != nil {
		return nil, err
	}
	for _, a := range addrs {
		if _, _, ok := e.cfg.Routes(a); ok {
			list = append(list, a)
		}
	}
	if len(list) == 0 {
		return nil, proxy.Fail(proxy.NetworkUnreachable, "none of the addresses of %s is in a peer's AllowedIPs, %s for one", d.to.name, addrs[0])
	}
	return list, nil
}
