package netstack

import (
	"sync/atomic"
	"time"
)

// PeerLimits bound what one peer gets and takes; zero values mean no limit of its own.
type PeerLimits struct {
	Rate  Rate // of what it is sent, and separately of what it sends
	Flows int  // that it may have open; instead of Limits.FlowsPerPeer
}

// SetPeerLimits replaces the limits of all peers: one that is absent has none from now on. Flows stay as they are.
//
// Towards a peer packets wait for its rate (shape.go). From a peer they are dropped: by then they have crossed the network, and to
// hold them would hold up the goroutine and the buffers that WireGuard has for all of them.
func (n *Net) SetPeerLimits(limits map[uint16]PeerLimits) {
	rates, flows := make(map[uint16]Rate), make(map[uint16]int)
	for peer, l := range limits {
		if l.Rate > 0 {
			rates[peer] = l.Rate
		}
		if l.Flows > 0 {
			flows[peer] = l.Flows
		}
	}
	n.out.setRates(rates)
	n.police.set(rates)
	for peer := range n.opening.setQuotas(flows) {
		if flows[peer] == 0 {
			n.table.SetQuota(peer, 0)
		}
	}
	for peer, quota := range flows {
		n.table.SetQuota(peer, quota)
	}
}

// policing has the limits of what comes from the peers.
type policing struct{ table atomic.Pointer[policers] }

// policers are never changed, only replaced.
type policers map[uint16]*policer

func (p *policing) load() policers {
	if t := p.table.Load(); t != nil {
		return *t
	}
	return nil
}

// set replaces the limits; one that stays the same keeps its state.
func (p *policing) set(rates map[uint16]Rate) {
	old, t := p.load(), policers{}
	for peer, r := range rates {
		if t[peer] = old[peer]; t[peer] == nil || t[peer].of != r {
			t[peer] = newPolicer(r)
		}
	}
	p.table.Store(&t)
}

// policer is a token bucket that is never overdrawn: what does not fit is dropped. Several goroutines may use it.
type policer struct {
	of          Rate
	rate, burst int64 // as in bucket
	paid        atomic.Int64
	_           [4]uint64 // a cache line of its own: peers are served on different cores
}

const (
	// policeBurst is what a peer may save up. Where the round trip is short, a TCP sender cannot slow down to the rate: its smallest
	// window is already too much. It fills the bucket, loses the rest, and is silent for a retransmission timeout, 200 ms or twice
	// that. What it may send in that time is saved, or it comes nowhere near its rate.
	policeBurst = 400 * time.Millisecond
	policeLeast = 64 << 10 // one batch of a sender with segmentation offload
)

func newPolicer(r Rate) *policer {
	p := &policer{of: r, rate: max(1, int64(r)/bitsPerByte)}
	p.burst = max(int64(policeBurst), policeLeast*second/p.rate)
	p.paid.Store(longAgo)
	return p
}

// take reports whether n bytes may pass at now.
func (p *policer) take(n int, now int64) bool {
	cost := int64(n) * second / p.rate
	for {
		old := p.paid.Load()
		next := max(old, now-p.burst) + cost
		if next > now {
			return false
		}
		if p.paid.CompareAndSwap(old, next) {
			return true
		}
	}
}
