package path

import (
	"net/netip"
	"time"

	"culvert.dev/culvert/traversal/exchange"
	"culvert.dev/culvert/traversal/punch"
)

// Event is what may happen to a Machine: one of the types below.
type Event interface{ event() }

// Tick is the passing of time: due when Next says so. It does no harm at other times.
type Tick struct{}

// Wanted lets the machine begin by itself, or not: who runs many limits how many begin at once. A machine that is not On still
// answers the peer, takes proposals, and looks after the path it has.
type Wanted struct {
	On     bool
	Active bool // there is traffic for the peer
}

// Gathered brings this node's candidates, which replace those before, and what is known of its NATs.
type Gathered struct {
	Candidates     []exchange.Candidate
	Hints4, Hints6 exchange.Hints

	// Network says that the host's network has changed: bans end, and everything is checked anew.
	Network bool

	// Blocked says that servers were asked where this node is seen from outside, and that none has answered.
	Blocked bool
}

// Relay says how the peer is reached without a direct path.
type Relay struct {
	Connected bool // this node is connected to a relay
	NotHere   bool // every connected relay says that the peer is not there
}

// Heard is a message of the peer, opened. Its candidates have passed the filter.
type Heard struct{ Message exchange.Message }

// Hello says that the peer would understand us, or we it, after a message from here: exchange.Rejection.Hello.
type Hello struct{}

// Asked is a check request that the peer is known to have sent, and that has been answered already. Route.WG may be missing:
// then it is guessed.
type Asked struct{ Route Route }

// Answered is the response to a check: the round trip, where the peer saw the request come from, and the size of the request.
type Answered struct {
	Route  Route
	RTT    time.Duration
	Mapped netip.AddrPort
	Size   int
}

// Traffic counts WireGuard's datagrams since the last such event. It is due every 250 ms while anything flows, and every few seconds
// else.
type Traffic struct {
	Tx      uint64 // for the peer, by whatever way
	RxRoute uint64 // from the peer, by accepted routes
	RxRelay uint64 // from the peer, by relay
}

// Handshake is what WireGuard says of the tunnel itself.
type Handshake struct {
	Failing bool      // initiations have been without answer for 5 s
	At      time.Time // of the last one that was completed; zero: none
}

// Echoed is the result of the last Echo.
type Echoed struct {
	OK  bool
	RTT time.Duration
}

// Roamed says that WireGuard has moved the peer to an endpoint that is no accepted route, because of an authenticated packet.
type Roamed struct{ Remote netip.AddrPort }

// PunchDone ends a Punch. If something was found, the route has been told by Asked or Answered before.
type PunchDone struct {
	Technique punch.Technique
	Found     bool
	Err       string // why it could not be tried, "" if it could
}

// Unsent says that the host has refused to send on a route.
type Unsent struct {
	Route Route
	Err   error
}

func (Tick) event()      {}
func (Wanted) event()    {}
func (Gathered) event()  {}
func (Relay) event()     {}
func (Heard) event()     {}
func (Hello) event()     {}
func (Asked) event()     {}
func (Answered) event()  {}
func (Traffic) event()   {}
func (Handshake) event() {}
func (Echoed) event()    {}
func (Roamed) event()    {}
func (PunchDone) event() {}
func (Unsent) event()    {}
