package tunnel

import (
	"sync/atomic"
	"time"

	"culvert.dev/culvert/internal/wgkey"
)

// HastyRelay is a Relay that can do without waiting. One line is slow, or full, more often than all ways at once: as packets in
// flight are bounded for all peers together, those of a peer that waits for its relay would be the most of them by and by, and
// hold back what others could be sent by UDP.
type HastyRelay interface {
	Relay

	// SendNow is Send that never waits: where there is no room the oldest data is lost.
	SendNow(to wgkey.Public, datagrams [][]byte) error
}

// hasteTime is for how long a relay is not waited for once others have been about to.
const hasteTime = time.Second

// haste decides whether the relay may be waited for with a peer's data: yes, as long as only peers that are relayed wait. Who sends
// more than a relay takes is told so by being held back; but where that would hold back others it loses packets, as on any line.
type haste struct {
	seen  atomic.Int64 // wire.byUDP when the relay was last given data
	until atomic.Int64 // no waiting before, since flight.epoch
}

// wanted reports whether data must not wait, given what has been sent by UDP up to now.
func (h *haste) wanted(out *flight, byUDP int64) bool {
	others := byUDP > h.seen.Swap(byUDP)
	now := int64(time.Since(out.epoch))
	if others && out.n.Load() >= out.limit/2 {
		h.until.Store(now + int64(hasteTime))
		return true
	}
	return now < h.until.Load()
}

// relayed hands datagrams to the relay.
func (w *wire) relayed(bufs [][]byte, to *relayEndpoint) (taken bool) {
	if l := w.link; l.hasty != nil && w.out != nil && isData(bufs) && to.haste.wanted(w.out, w.byUDP.Load()) {
		return l.hasty.SendNow(to.key, bufs) == nil
	}
	return w.link.send(to, bufs)
}
