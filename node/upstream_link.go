package node

import (
	"time"

	"culvert.dev/culvert/tunnel"
)

// linkState is whether a tunnel leads anywhere.
//
//	        packets wait           for longer than linkPatience
//	idle ----------------> trying ------------------------------> down
//	  ^  \___ handshake ___/  \____________ handshake ____________/
//	  |           v
//	  +--------- up      (no handshake for as long as a session lasts)
type linkState uint8

const (
	linkIdle   linkState = iota // no session, and nobody wants one
	linkTrying                  // packets wait for a session
	linkUp                      // there is a session
	linkDown                    // packets have waited in vain
)

func (s linkState) String() string { return [...]string{"idle", "connecting", "up", "down"}[s] }

// linkPatience is how long packets wait before the tunnel counts as down: two handshakes, which WireGuard repeats every 5 s.
const linkPatience = 10 * time.Second

// linkWatch follows one tunnel.
type linkWatch struct {
	sent    uint64    // packets given to the tunnel, when somebody looked while nobody waited
	waiting time.Time // since when packets wait; zero: none do
}

// step judges by the time of the last handshake, zero for none, and by how many packets the tunnel has been given so far.
func (w *linkWatch) step(handshake time.Time, sent uint64, now time.Time) linkState {
	if !handshake.IsZero() && now.Sub(handshake) < rejectAfter {
		w.sent, w.waiting = sent, time.Time{}
		return linkUp
	}
	if w.waiting.IsZero() {
		if sent == w.sent {
			return linkIdle
		}
		w.waiting = now
	}
	if now.Sub(w.waiting) < linkPatience {
		return linkTrying
	}
	return linkDown
}

// lastHandshake is the latest of any peer's.
func lastHandshake(stats []tunnel.PeerStats) (last time.Time) {
	for _, s := range stats {
		if s.LastHandshake.After(last) {
			last = s.LastHandshake
		}
	}
	return last
}
