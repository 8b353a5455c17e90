package agent

import (
	"net/netip"
	"time"

	"culvert.dev/culvert/internal/wgkey"
	"culvert.dev/culvert/traversal/check"
	"culvert.dev/culvert/traversal/exchange"
)

const (
	checkQueue  = 1024 // authenticated checks that wait for the engine
	sealedQueue = 256  // sealed messages
)

// checked is an authenticated check that has arrived.
type checked struct {
	peer uint32
	kind check.Kind
	id   check.ID
	from way
	size int // of the datagram

	mapped netip.AddrPort // in a response: where the peer has seen the request come from
	at     time.Time
}

// sealed is a copy of a sealed message that has arrived, not opened yet.
type sealed struct {
	packet []byte
	from   wgkey.Public
}

// HandleSide takes a datagram that has come by UDP and is none of WireGuard's: a check, or a sealed message on a direct path. It
// may be called from any goroutine, never blocks, and does not keep msg. What is not of a peer costs a parse and a lookup; what
// names a peer's session costs one HMAC, which one source may waste 16 times a second.
func (a *Agent) HandleSide(msg []byte, socket uint32, from netip.AddrPort) {
	from = plain(from)
	if exchange.Is(msg) {
		a.handleSealedByUDP(msg, way{socket, from})
		return
	}
	m, ok := check.Parse(msg)
	if !ok {
		a.count(NotChecks)
		return
	}
	x := a.index.Load()
	e := x.lookup(a.ids, &m)
	if e == nil {
		a.count(UnknownSessions)
		return
	}
	now := time.Now()
	if !a.strangers.allow(from.Addr(), now) {
		a.count(ForgedLimited)
		return
	}
	if !check.Verify(msg, &e.receive) {
		a.strangers.failed(from.Addr(), now)
		a.count(Forged)
		return
	}
	c := checked{peer: e.number, kind: m.Kind, id: m.ID, from: way{socket, from}, size: len(msg), mapped: m.Mapped, at: now}
	select {
	case a.checks <- c:
	default:
		a.count(ChecksOverflowed)
	}
}

// handleSealedByUDP takes a sealed message that did not come by relay: from addresses that have been proven to be a peer's only,
// and as that peer's.
func (a *Agent) handleSealedByUDP(packet []byte, from way) {
	e := a.index.Load().routes[from]
	if e == nil {
		a.count(SealedElsewhere)
		return
	}
	a.queueSealed(packet, e.key)
}

// HandleSealed takes a sealed message that a relay has brought, from the peer that the relay names. It may be called from any
// goroutine, never blocks, and does not keep packet.
func (a *Agent) HandleSealed(packet []byte, from wgkey.Public) {
	if _, ok := a.index.Load().keys[from]; !ok {
		a.count(SealedUnknown)
		return
	}
	a.queueSealed(packet, from)
}

func (a *Agent) queueSealed(packet []byte, from wgkey.Public) {
	if !exchange.Is(packet) || len(packet) > exchange.MaxLen {
		a.count(SealedMalformed)
		return
	}
	if len(a.sealed) == cap(a.sealed) { // before there is a copy; whoever comes between is dropped below
		a.count(SealedOverflowed)
		return
	}
	select {
	case a.sealed <- sealed{append([]byte(nil), packet...), from}:
	default:
		a.count(SealedOverflowed)
	}
}
