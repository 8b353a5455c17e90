package netstack

import (
	"sync/atomic"

	"culvert.dev/culvert/internal/packet"
	"culvert.dev/culvert/nat"
)

// opening bounds how fast each peer opens flows to others than the node itself, so that what one peer starts does not take the
// processor from the rest: a flow costs a socket, a goroutine or a dial, a hundred times what a packet costs, and a byte rate does
// not bound that. What the flood looks like (SYNs to open, closed or silent ports, ever new UDP sources or echo identifiers,
// scans) does not matter; that nobody answers is common to all of them. Hence a flow takes a token when it is opened and gives it
// back when it is answered: for TCP, when both handshakes are complete. A peer that opens thousands of connections a second to
// hosts that take them runs into no limit. Echo is different: everybody answers, and a new identifier or target every few milliseconds
// is nothing but a scan or a flood.
//
// How many flows hang at the same time is not decided here, but by quotas on sockets and flows, at which the peer's own oldest
// unanswered flow makes room.
type opening struct {
	paid   [1 << 16]atomic.Int64 // per peer: table time at which all its tokens are back
	echoes [1 << 16]atomic.Int64 // likewise, for takeEcho
	quotas atomic.Pointer[map[uint16]int]

	active atomic.Uint32 // the peer whose packets came last
	shared atomic.Int64  // table time at which packets of another came
}

const (
	// Unanswered flows of this rate cost a few hundredths of one core.
	openingRate = 200 // per second
	// A peer that nobody else is there to suffer from may open so many times more.
	openingAlone = 10
	aloneAfter   = second
	// What may be saved, in nanoseconds of the rate: a page that is loaded, or a peer-to-peer program that starts, opens some
	// hundred flows at once.
	openingSaved = 2 * second

	echoRate = 1000 // echo requests per second of a peer that is not alone
)

// seen notes that packets of peer have come.
func (o *opening) seen(peer uint16, now int64) {
	if o.active.Load() != uint32(peer) {
		o.active.Store(uint32(peer))
		o.shared.Store(now)
	}
}

// setQuotas replaces the peers' own quotas and returns the former ones. A peer that may hold n flows may also try no more than n a
// second.
func (o *opening) setQuotas(quotas map[uint16]int) (old map[uint16]int) {
	if p := o.quotas.Swap(&quotas); p != nil {
		old = *p
	}
	for peer := range old {
		if quotas[peer] != old[peer] {
			o.paid[peer].Store(0) // counted in tokens of the former size
		}
	}
	return old
}

// token is how long it takes a peer to regain one, in nanoseconds.
func (o *opening) token(peer uint16, now int64) int64 {
	rate := openingRate
	if now-o.shared.Load() > aloneAfter {
		rate *= openingAlone
	}
	if p := o.quotas.Load(); p != nil {
		if q := (*p)[peer]; q > 0 {
			rate = min(rate, q)
		}
	}
	return second / int64(rate)
}

// take reports whether peer may open a flow at table time now.
func (o *opening) take(peer uint16, now int64) bool {
	return takeToken(&o.paid[peer], o.token(peer, now), openingSaved, now)
}

// takeEcho reports whether peer may send one more echo request on a flow that it has. One to each of many identifiers costs a system
// call for each packet of each direction, where UDP and TCP have batches, and whoever floods with them gets nothing out of it.
func (o *opening) takeEcho(peer uint16, now int64) bool {
	return now-o.shared.Load() > aloneAfter || takeToken(&o.echoes[peer], second/echoRate, second, now)
}

// takeToken takes a token from a bucket that holds as many as are worth saved nanoseconds.
func takeToken(paid *atomic.Int64, token, saved, now int64) bool {
	for {
		old := paid.Load()
		next := max(old, now) + token
		if next > now+saved {
			return false
		}
		if paid.CompareAndSwap(old, next) {
			return true
		}
	}
}

// observe gives back the token of a flow that was answered.
func (o *opening) observe(e nat.Event) {
	f := e.Flow
	if _, self := f.Owner.(*selfFlow); self || f.Key.Peer == nat.PeerSelf || f.Key.Proto == packet.ProtoICMPv4 || f.Key.Proto == packet.ProtoICMPv6 {
		return // it took none; or it is an echo
	}
	if e.Kind == nat.EventUpdate && f.State() == nat.StateAssured && (f.TCP() == nat.TCPNone || f.TCP() == nat.TCPEstablished) {
		peer := f.Key.Peer
		o.paid[peer].Add(-o.token(peer, e.Now))
	}
}
