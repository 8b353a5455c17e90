package node

import (
	"net"
	"net/netip"
	"time"

	"culvert.dev/culvert/filter"
	"culvert.dev/culvert/internal/proxy"
)

// exitName is a name that datagrams of an association are for.
type exitName struct {
	addr    netip.Addr // once resolved
	until   time.Time
	waiting []waitingDatagram
	pending bool
}

type waitingDatagram struct {
	b    []byte
	port uint16
}

const (
	maxExitNames     = 64 // of one association
	maxExitResolving = 16 // of them at one time
	maxExitWaiting   = 16 // datagrams for a name that is being resolved
	exitNameTime     = 5 * time.Minute
	exitNoNameTime   = 10 * time.Second
)

// addressOf returns the address of a name. Without one, and without an error, the datagram waits for it.
func (c *exitPacketConn) addressOf(b []byte, to proxy.Target) (netip.Addr, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	name := c.names[to.Name]
	switch {
	case c.closed:
		return netip.Addr{}, net.ErrClosed
	case name != nil && (name.pending || time.Now().Before(name.until)):
	case c.resolving >= maxExitResolving:
		return netip.Addr{}, proxy.Fail(proxy.Exhausted, "too many names are being resolved")
	case !c.d.attempts.take(c.peer):
		return netip.Addr{}, errAttempts
	default:
		c.makeRoomForNameLocked()
		name = &exitName{pending: true}
		c.names[to.Name] = name
		c.resolving++
		c.wg.Go(func() { c.resolve(name, to) })
	}
	switch {
	case name.pending && len(name.waiting) < maxExitWaiting:
		name.waiting = append(name.waiting, waitingDatagram{append([]byte(nil), b...), to.Port})
		return netip.Addr{}, nil
	case name.pending:
		return netip.Addr{}, proxy.Fail(proxy.Exhausted, "too many datagrams wait for the address of %s", to.Name)
	case !name.addr.IsValid():
		return netip.Addr{}, proxy.Fail(proxy.NameNotFound, "%s cannot be resolved", to.Name)
	}
	return name.addr, nil
}

// makeRoomForNameLocked forgets the name that was resolved first. There are more of them than are being resolved.
func (c *exitPacketConn) makeRoomForNameLocked() {
	if len(c.names) < maxExitNames {
		return
	}
	oldest := ""
	for text, name := range c.names {
		if !name.pending && (oldest == "" || name.until.Before(c.names[oldest].until)) {
			oldest = text
		}
	}
	delete(c.names, oldest)
}

// resolve finds a name's address. A name that has none is not asked for again at once.
func (c *exitPacketConn) resolve(name *exitName, to proxy.Target) {
	addrs, err := c.d.n.resolveFor(c.ctx, c.client.Addr(), to)
	var addr netip.Addr
	if err == nil {
		addr = c.choose(addrs, to.Port)
		c.d.attempts.giveBack(c.peer, 1)
	}
	c.mu.Lock()
	waiting := name.waiting
	name.pending, name.waiting, name.addr = false, nil, addr
	name.until = time.Now().Add(exitNoNameTime)
	if addr.IsValid() {
		name.until = time.Now().Add(exitNameTime)
	}
	c.resolving--
	c.mu.Unlock()
	for _, w := range waiting {
		if addr.IsValid() {
			c.send(w.b, netip.AddrPortFrom(addr, w.port))
		}
	}
}

// choose returns the first address that policy permits and that this host has a route to; without a route the first that is permitted.
// A datagram has one try, unlike connections, which race.
func (c *exitPacketConn) choose(addrs []netip.Addr, port uint16) (first netip.Addr) {
	for _, a := range addrs {
		a = plainAddr(a)
		r := c.as(netip.AddrPortFrom(a, port))
		way, _, err := c.d.n.judge(&r)
		if err != nil {
			continue
		}
		if way.via == filter.ViaUpstream || len(addrs) == 1 || hasRoute(way.real) {
			return a
		}
		if !first.IsValid() {
			first = a
		}
	}
	return first
}
