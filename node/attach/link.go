package attach

import (
	"net/netip"
	"time"

	"culvert.dev/culvert/internal/wgkey"
	"culvert.dev/culvert/internal/wguapi"
	"culvert.dev/culvert/traversal/agent"
	"culvert.dev/culvert/traversal/path"
)

// link is what is known of one peer of the device, and what its endpoint ought to be. It has no goroutine and no clock; the
// transport guards it.
//
// WireGuard moves an endpoint by itself to where an authenticated datagram came from. That is a help when the peer is seen at
// another address than it was expected at, and a hindrance when a datagram that was still on the relay moves the peer back
// there. So the endpoint is set once for each order, and again only when it is a port of the relay's against the order, or has
// stopped to answer.
type link struct {
	key    wgkey.Public
	port   *port
	before netip.AddrPort // the endpoint as it was found; invalid: none, or one that an earlier run has left
	own    bool           // the keepalive is of our making

	mode    path.Mode
	wg      netip.AddrPort // where WireGuard is to send, unless by relay
	orders  uint           // how many there were
	pending bool           // the last one has not been carried out
	moved   time.Time      // when the last one was carried out

	// As of the last look at the device.
	at       wguapi.Peer
	looked   time.Time
	relayed  uint64         // of port.rxBytes
	debt     uint64         // bytes that the relay has brought and WireGuard had not counted
	set      bool           // the endpoint was set since
	proven   netip.AddrPort // from where an authenticated datagram came directly, the last time
	sent     time.Time
	unheard  time.Time // of the first growth of what was sent, after the peer was heard; zero: none
	silent   time.Time // of the first growth of what was sent directly, after the peer was heard directly; zero: none
	reapplyN int       // in a row, for ever longer pauses
	reapply  time.Time // not before

	traffic agent.Traffic
}

const (
	// deadTime is how long an endpoint that is none of ours may be sent to without an answer.
	deadTime = 3 * time.Second
	// doubtTime is how long a direct path may be silent and still be preferred to the relay by which the peer speaks.
	doubtTime = time.Second
	// sessionTime is REJECT_AFTER_TIME: WireGuard uses no session that is older.
	sessionTime = 180 * time.Second
	// rekeyTime is REKEY_AFTER_TIME and REKEY_TIMEOUT: who sends has a younger session, or a peer that does not answer.
	rekeyTime = 125 * time.Second
	// failTime is how long WireGuard's initiations are unanswered when a peer counts as failing.
	failTime = 5 * time.Second
	// datagramBytes is what a datagram is taken to have where only bytes are known.
	datagramBytes = 1400
	// directKeepalive is set while a path is direct and there is none: WireGuard's mapping in the NAT would be forgotten.
	directKeepalive = 25 * time.Second
	// reapplyMin and reapplyMax are the pauses between setting an endpoint again that the relay has moved.
	reapplyMin, reapplyMax = 50 * time.Millisecond, time.Second
)

// trialTime is how long a device is looked at often after an order for a direct path.
const trialTime = 3 * time.Second

// onTrial reports whether it is not known yet whether a direct path carries anything.
func (l *link) onTrial(now time.Time) bool {
	return l.mode != path.ModeRelay && now.Sub(l.moved) < trialTime
}

// order says which way datagrams are to go from now on.
func (l *link) order(mode path.Mode, wg netip.AddrPort) {
	if mode == l.mode && (mode == path.ModeRelay || wg == l.wg) {
		return // a trial that was a success changes nothing: there is one way only in either case
	}
	direct := l.mode != path.ModeRelay && mode != path.ModeRelay && wg == l.wg
	l.mode, l.wg = mode, wg
	if direct {
		return
	}
	l.orders++
	l.pending, l.reapplyN, l.reapply = true, 0, time.Time{}
}

// observe takes in the device's view of the peer. It is called for the first time when the peer is added.
func (l *link) observe(p wguapi.Peer, now time.Time) {
	first := l.looked.IsZero()
	was := l.at
	l.at, l.looked = p, now
	l.own = l.own && p.Keepalive == directKeepalive // another value is the operator's
	relayed := l.port.rxBytes.Load()
	byRelay := relayed - l.relayed
	l.relayed = relayed
	set := l.set
	l.set = false
	if first {
		l.proven = netip.AddrPort{}
		l.sent = now
		if l.isDirect(p.Endpoint) && now.Sub(p.LastHandshake) < sessionTime {
			l.proven = p.Endpoint
		}
		return
	}
	if p.RxBytes < was.RxBytes || p.TxBytes < was.TxBytes { // the peer was removed and added again
		l.debt = 0
		return
	}
	l.count(p.RxBytes-was.RxBytes, p.TxBytes-was.TxBytes, byRelay, !set && p.Endpoint == was.Endpoint, now)
	l.traffic.LastHandshake = p.LastHandshake
	l.traffic.Failing = l.failing(now)
	l.traffic.RxRelay = l.port.rxPackets.Load()
	l.traffic.Roamed = netip.AddrPort{}
	if l.proven.IsValid() && l.proven == p.Endpoint && !l.proven.Addr().IsLoopback() && (l.mode == path.ModeRelay || p.Endpoint != l.wg) {
		l.traffic.Roamed = p.Endpoint
	}
}

// count takes in growth of the counters. still says that the endpoint has not been changed by anybody meanwhile, so that a
// datagram which was authenticated came from there; without that, more bytes than the relay has brought must have come directly.
func (l *link) count(rx, tx, byRelay uint64, still bool, now time.Time) {
	if tx > 0 {
		l.traffic.Tx += datagrams(tx)
		l.sent = now
		if l.unheard.IsZero() {
			l.unheard = now
		}
	}
	if tx > 0 && l.silent.IsZero() && l.isDirect(l.at.Endpoint) {
		l.silent = now
	}
	if rx > 0 {
		l.unheard = time.Time{}
	}
	more := uint64(0) // than the relay's
	expected := byRelay + l.debt
	l.debt = 0
	if rx >= expected {
		more = rx - expected
	} else {
		l.debt = min(expected-rx, byRelay) // counted by the next look, or dropped by WireGuard as known
	}
	switch {
	case rx == 0:
	case still && l.isDirect(l.at.Endpoint):
		l.traffic.RxRoute += datagrams(max(more, 1))
		l.silent, l.proven = time.Time{}, l.at.Endpoint
	case more > 0:
		l.traffic.RxRoute += datagrams(more)
		l.silent = time.Time{}
	}
}

func datagrams(bytes uint64) uint64 { return (bytes + datagramBytes - 1) / datagramBytes }

// failing guesses whether initiations are unanswered, which a device does not tell.
func (l *link) failing(now time.Time) bool {
	waiting := !l.unheard.IsZero() && now.Sub(l.unheard) >= failTime && now.Sub(l.sent) <= 2*failTime
	return waiting && now.Sub(l.at.LastHandshake) > rekeyTime
}

// isDirect reports whether an endpoint is one that does not lead to the relay.
func (l *link) isDirect(e netip.AddrPort) bool { return e.IsValid() && !l.isPort(e) }

func (l *link) isPort(e netip.AddrPort) bool { return e == l.port.addr }

// target returns where the endpoint is to be moved to; false: it is well where it is. An endpoint that the device has from elsewhere
// is given up for the relay only if it does not answer and the peer has been heard there: it may be one that knows no relay.
func (l *link) target(now time.Time) (netip.AddrPort, bool) {
	e := l.at.Endpoint
	if l.mode == path.ModeRelay {
		switch {
		case l.isPort(e):
			return e, false
		case l.pending, !e.IsValid(), l.port.here.Load() && !l.answers(now):
			return l.port.addr, true
		}
		return e, false
	}
	switch {
	case e == l.wg, !l.wg.IsValid():
		return e, false
	case l.pending:
		return l.wg, true
	case l.isDirect(e):
		return e, false // it has roamed to where the peer is in truth
	case now.Before(l.reapply):
		return e, false
	case !l.silent.IsZero() && now.Sub(l.silent) >= doubtTime:
		return e, false // the direct path is silent, and the peer speaks by relay: it is answered there
	}
	return l.wg, true
}

// answers reports whether the endpoint that the device has from elsewhere is good for anything.
func (l *link) answers(now time.Time) bool {
	if now.Sub(l.at.LastHandshake) >= sessionTime {
		return false
	}
	return l.unheard.IsZero() || now.Sub(l.unheard) < deadTime
}

// change returns what to do to the peer, false for nothing.
func (l *link) change(now time.Time) (wguapi.PeerChange, bool) {
	c := wguapi.PeerChange{PublicKey: l.key, UpdateOnly: true}
	to, move := l.target(now)
	if move {
		c.Endpoint = to
	}
	direct := l.mode == path.ModeRoute
	switch {
	case direct && l.at.Keepalive == 0 && !l.own:
		c.SetKeepalive, c.Keepalive = true, directKeepalive
	case !direct && l.own:
		c.SetKeepalive = true
	}
	return c, move || c.SetKeepalive
}

// done takes in that the change was made which the order of that number asked for. There may be another one by now.
func (l *link) done(c wguapi.PeerChange, order uint, now time.Time) {
	if c.SetKeepalive {
		l.own, l.at.Keepalive = c.Keepalive != 0, c.Keepalive
	}
	if c.Endpoint.IsValid() {
		l.at.Endpoint, l.set = c.Endpoint, true
		l.unheard = time.Time{}
	}
	if order != l.orders {
		return
	}
	switch {
	case l.pending:
		l.pending, l.moved, l.silent = false, now, time.Time{}
	case c.Endpoint.IsValid() && l.mode != path.ModeRelay:
		l.reapply = now.Add(min(reapplyMin<<min(l.reapplyN, 10), reapplyMax))
		l.reapplyN++
	}
}

// leave returns what to do to the peer when nobody looks after it any more: what works stays, a port of ours does not.
func (l *link) leave() (wguapi.PeerChange, bool) {
	c := wguapi.PeerChange{PublicKey: l.key, UpdateOnly: true}
	if l.isPort(l.at.Endpoint) && l.before.IsValid() {
		c.Endpoint = l.before
	}
	if l.own && !l.isDirect(l.at.Endpoint) {
		c.SetKeepalive = true
	}
	return c, c.Endpoint.IsValid() || c.SetKeepalive
}
