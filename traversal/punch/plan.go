package punch

import (
	"math/rand/v2"
	"net/netip"

	"culvert.dev/culvert/traversal/exchange"
)

// Limits of every technique.
const (
	MaxSockets = 256
	MaxPackets = 3100 // that one side sends, whatever the peer expects
)

const (
	firstPort, lastPort = 1024, 65535
	lowFirst, lowLast   = 600, 1023 // where sockets are bound, and what Linux draws from for them
	lowTier             = 512       // Cisco draws from 512 to 1023
	lowWidth            = lowLast - lowFirst + 1

	maxSweep     = 3072 // combinations of socket and port, of a sweep
	maxGuesses   = 2048 // of the easy side of a birthday attack
	window       = 64   // ports that a counting NAT is expected to give next
	wideWindow   = 2048 // likewise when others use it much
	predictors   = 32   // sockets of a counting side whose peer hits one port
	openers      = 4    // sockets of a counting side whose peer covers the window
	keepers      = 3    // sockets of a keeping side; one of them for its address
	runSockets   = 256  // sockets of a keeping side on consecutive ports
	runPeers     = 12   // sockets of its peer
	countSockets = 2    // sockets of a counting side that sweeps
	manySockets  = 256
	wideSockets  = 64 // sockets of a counting side in a birthday attack
)

// role is what a side does in an attempt.
type role uint8

const (
	idle      role = iota // nothing: the technique is not for it
	fixed                 // one socket, seen at one port; sends to all that the peer expects
	fresh                 // sockets that send to one port each, before any other
	following             // sockets that each get the next port
	swept                 // sockets that get any port of a range
	low                   // the same, on low ports
	many                  // many sockets that get any port at all; the peer guesses
	run                   // sockets on consecutive ports that send to one port each
)

// Plan is what one side has to prepare for an attempt. The zero value is for none.
type Plan struct {
	Technique Technique

	// Own: the node's own socket (socket 0) takes part and no other; Sockets is 1 then. It has been asked about already, or may be
	// asked again.
	Own bool

	// Sockets is how many helper sockets to open, fewer if not all can be had. They are numbered from 0 on, in Seen and Shot.
	Sockets int

	// Ask is how many of them, from the first on, are to be asked where STUN servers see them, with two destinations at least, one
	// socket after the other. The others must not send anything before the shots.
	Ask int

	// LowPorts: they are bound to the ports of Locals, which needs a privilege in places.
	LowPorts bool

	role role
	peer class
}

// Prepare returns the plan of this side. Choose, or the peer that leads, has chosen the technique; a plan without sockets means
// that it is not for this pair by what this side knows. lead decides who guesses where hints do not.
func Prepare(t Technique, own, peer exchange.Hints, lead bool) Plan {
	a, b := classOf(own), classOf(peer)
	p := Plan{Technique: t, peer: b}
	switch t {
	case Prediction:
		p.predict(a, b)
	case LowPort, Sweep:
		p.sweep(t, a, b)
	case Birthday:
		p.birthday(a, b, lead)
	}
	if p.role == fixed {
		p.Own, p.Sockets, p.Ask = true, 1, 1
	}
	return p
}

func (p *Plan) predict(a, b class) {
	switch a.kind {
	case steady, unknown:
		p.role = fixed
	case keeping:
		p.role, p.Sockets, p.Ask = fresh, keepers, 1
	case counting:
		p.role, p.Sockets, p.Ask = following, predictors, 2
		if b.kind == steady {
			p.Sockets = openers
		}
	}
}

func (p *Plan) sweep(t Technique, a, b class) {
	ownWidth := lowWidth
	if a.kind == ranged {
		ownWidth = a.width
	}
	width := 1 // of the range that the peer is expected in
	switch {
	case t == LowPort && lowRole(b), b.kind == wild:
		width = lowWidth
	case b.kind == ranged:
		width = b.width
	case b.kind == counting:
		width = countSockets*ownWidth + window
	}
	sockets := sweepSockets(ownWidth, width)
	if t == Sweep && b.kind == keeping {
		sockets = runPeers
	}
	switch {
	case a.kind == steady:
		p.role = fixed
	case t == LowPort && lowRole(a), t == Sweep && a.kind == wild:
		p.role, p.LowPorts = low, true
		p.Sockets, p.Ask = sockets, min(sockets, 4)
	case t == Sweep && a.kind == keeping:
		p.role, p.Sockets, p.Ask = run, runSockets, 1
	case a.kind == counting:
		p.role, p.Sockets, p.Ask = following, countSockets, countSockets
	case a.kind == ranged:
		p.role, p.Sockets, p.Ask = swept, sockets, sockets
	}
}

func (p *Plan) birthday(a, b class, lead bool) {
	switch {
	case a.kind == steady, a.kind == unknown && (b.hard() || b.kind == unknown && !lead):
		p.role = fixed
	case a.kind == counting:
		p.role, p.Sockets, p.Ask = following, wideSockets, 2
	default:
		p.role, p.Sockets, p.Ask = many, manySockets, 8
	}
}

// Locals returns the ports to bind the helper sockets to, in the order in which to try them until there are enough; nil if any
// will do.
func (p Plan) Locals(seed uint64) []uint16 {
	rng := rand.New(rand.NewPCG(seed, uint64(p.Technique)))
	switch {
	case p.LowPorts:
		list := make([]uint16, lowWidth)
		for i, at := range rng.Perm(lowWidth) {
			list[i] = uint16(lowFirst + at)
		}
		return list
	case p.role == run: // some more than needed, as a few will be in use
		list := make([]uint16, p.Sockets+32)
		first := 20000 + rng.IntN(40000)
		for i := range list {
			list[i] = uint16(first + i)
		}
		return list
	}
	return nil
}

// Seen is what became of one socket of a plan.
type Seen struct {
	Local  uint16           // where it is bound
	Mapped []netip.AddrPort // where STUN servers see it, in the order they were asked, one for each destination; none if it was not asked
}
