package agent

import (
	"net/netip"
	"sync/atomic"
	"time"

	"culvert.dev/culvert/internal/wgkey"
	"culvert.dev/culvert/traversal/check"
	"culvert.dev/culvert/traversal/exchange"
)

const (
	checkQueue  = 1024 // authenticated checks that wait for the engine
	checkShare  = 256  // of these, of one peer
	sealedQueue = 256  // sealed messages
	sealedShare = 32   // of these, of one peer by relay, and as many by UDP
)

// inbox counts what waits of one peer, so that one that floods the queues is the only one to suffer. What claims to be a peer's and
// comes by UDP has its own share: anybody could have sent it.
type inbox struct{ checks, relayed, direct atomic.Int32 }

// claim takes a place in a share; false if it is used up.
func claim(share *atomic.Int32, limit int32) bool {
	if share.Add(1) > limit {
		share.Add(-1)
		return false
	}
	return true
}

// checked is an authenticated check that has arrived.
type checked struct {
	peer uint32
	kind check.Kind
	id   check.ID
	from way
	size int // of the datagram

	mapped netip.AddrPort // in a response: where the peer has seen the request come from
	at     time.Time
	share  *atomic.Int32 // to be given back
}

// sealed is a copy of a sealed message that has arrived, not opened yet.
type sealed struct {
	packet []byte
	from   wgkey.Public
	byUDP  bool          // so that from is a guess
	share  *atomic.Int32 // to be given back
}

// HandleSide takes a datagram that has come by UDP and is none of WireGuard's: a check, or a sealed message on a direct path. It
// may be called from any goroutine, never blocks, and does not keep msg. What is not of a peer costs a parse and a lookup; what
// names a peer's session costs one HMAC, which one source may waste 16 times a second, and 1,024 times where it is, or claims to be, a
// peer on its path: else a few forged ones would keep out the peer's own.
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
	now, at := time.Now(), way{socket, from}
	if n := a.strangers.failures(from.Addr(), now); n >= strangerTries && (n >= claimTries || x.routes[at] == nil) {
		a.count(ForgedLimited)
		return
	}
	if !check.Verify(msg, &e.receive) {
		a.strangers.failed(from.Addr(), now)
		a.count(Forged)
		return
	}
	c := checked{peer: e.number, kind: m.Kind, id: m.ID, from: at, size: len(msg), mapped: m.Mapped, at: now, share: &e.inbox.checks}
	if !claim(c.share, checkShare) {
		a.count(ChecksOverflowed)
		return
	}
	select {
	case a.checks <- c:
	default:
		c.share.Add(-1)
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
	a.queueSealed(packet, sealed{from: e.key, byUDP: true, share: &e.inbox.direct})
}

// HandleSealed takes a sealed message that a relay has brought, from the peer that the relay names. It may be called from any
// goroutine, never blocks, and does not keep packet.
func (a *Agent) HandleSealed(packet []byte, from wgkey.Public) {
	e := a.index.Load().keys[from]
	if e == nil {
		a.count(SealedUnknown)
		return
	}
	a.queueSealed(packet, sealed{from: from, share: &e.inbox.relayed})
}

func (a *Agent) queueSealed(packet []byte, s sealed) {
	if !exchange.Is(packet) || len(packet) > exchange.MaxLen {
		a.count(SealedMalformed)
		return
	}
	if !claim(s.share, sealedShare) {
		a.count(SealedOverflowed)
		return
	}
	s.packet = append([]byte(nil), packet...)
	select {
	case a.sealed <- s:
	default:
		s.share.Add(-1)
		a.count(SealedOverflowed)
	}
}
