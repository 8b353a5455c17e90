package node

import (
	"net"
	"net/netip"
	"time"

	"culvert.dev/culvert/filter"
	"culvert.dev/culvert/nat"
	"culvert.dev/culvert/netstack"
)

// exitEnd is a destination of an association. The association's lock guards its counts.
type exitEnd struct {
	exitRequest
	exitWay
	conn           net.Conn // behind the upstream; else nil
	started, last  time.Time
	sent, received netstack.FlowCount
}

// end finds a destination, or begins it. One whose way has changed begins anew.
func (c *exitPacketConn) end(r *exitRequest, way exitWay) (e *exitEnd, isNew bool, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e = c.ends[r.to]
	switch {
	case c.closed:
		return nil, false, net.ErrClosed
	case e != nil && e.exitWay == way:
		return e, false, nil
	case e != nil:
		c.endLocked(e, nat.Withdrawn)
	case !c.d.attempts.take(c.peer):
		return nil, false, errAttempts
	}
	now := time.Now()
	e = &exitEnd{exitRequest: *r, exitWay: way, started: now, last: now}
	if len(c.ends) >= maxExitEnds {
		c.forgetOldestLocked(func(*exitEnd) bool { return true })
	}
	if way.via == filter.ViaUpstream {
		if err := c.openUpLocked(e); err != nil {
			return nil, false, err
		}
	} else {
		h := c.hosts[way.real.Addr()]
		h.as, h.ends = r.to.Addr(), h.ends+1
		c.hosts[way.real.Addr()] = h
	}
	c.ends[r.to] = e
	return e, true, nil
}

// openUpLocked opens a way through the upstream, whose connections have one far end each.
func (c *exitPacketConn) openUpLocked(e *exitEnd) (err error) {
	if e.up == nil {
		return errNoUpstream
	}
	behind := func(e *exitEnd) bool { return e.conn != nil }
	if c.up >= maxExitUp {
		c.forgetOldestLocked(behind)
	}
	if !c.d.tunnels.take(c.peer) {
		if c.up > 0 {
			c.forgetOldestLocked(behind)
		}
		if !c.d.tunnels.take(c.peer) {
			return errAttempts
		}
	}
	conn, err := e.up.net.Dial(c.ctx, "udp", e.real.String())
	if err != nil {
		c.d.tunnels.giveBack(c.peer)
		return err
	}
	e.conn = conn
	c.up++
	c.wg.Go(func() { c.readUp(e) })
	return nil
}

// readUp receives from a destination behind the upstream.
func (c *exitPacketConn) readUp(e *exitEnd) {
	defer c.d.tunnels.giveBack(c.peer)
	buf := make([]byte, maxUDPPayload)
	for {
		e.conn.SetReadDeadline(time.Now().Add(exitNameTime))
		n, err := e.conn.Read(buf)
		if err != nil {
			break
		}
		c.received(buf[:n], e.to, e.exitWay)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ends[e.to] == e {
		c.endLocked(e, nat.Expired)
	}
}

// forgetOldestLocked forgets the destination that idles longest.
func (c *exitPacketConn) forgetOldestLocked(of func(*exitEnd) bool) {
	var oldest *exitEnd
	for _, e := range c.ends {
		if of(e) && (oldest == nil || e.last.Before(oldest.last)) {
			oldest = e
		}
	}
	if oldest != nil {
		c.endLocked(oldest, nat.Evicted)
	}
}

func (c *exitPacketConn) endLocked(e *exitEnd, why nat.End) {
	delete(c.ends, e.to)
	if e.conn != nil {
		c.up--
		e.conn.Close()
	} else {
		a := e.real.Addr()
		h := c.hosts[a]
		if h.ends--; h.ends > 0 {
			c.hosts[a] = h
		} else {
			delete(c.hosts, a)
		}
	}
	e.logEnd(c.d.n, why)
}

// hasRoute reports whether the host has a route to an address; nothing is sent.
func hasRoute(a netip.AddrPort) bool {
	c, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(a))
	if err != nil {
		return false
	}
	c.Close()
	return true
}
