package path

import (
	"fmt"
	"log/slog"
	"net/netip"

	"culvert.dev/culvert/traversal/exchange"
	"culvert.dev/culvert/traversal/punch"
)

// Route is a way to a peer that needs no relay. It is comparable.
type Route struct {
	// Socket it leaves by. 0 is WireGuard's own, or for a WireGuard that is not embedded the socket for checks.
	Socket uint32

	Check netip.AddrPort // where checks go
	WG    netip.AddrPort // where WireGuard sends. The same if checks go to the peer's WireGuard socket itself
}

// IsValid reports whether the route leads anywhere.
func (r Route) IsValid() bool { return r.Check.IsValid() && r.WG.IsValid() }

// String is for logs: where WireGuard sends, and by which socket if not by the usual one.
func (r Route) String() string {
	switch {
	case r.Socket != 0:
		return fmt.Sprintf("%v by socket %d", r.WG, r.Socket)
	case r.Check != r.WG:
		return fmt.Sprintf("%v (checks %v)", r.WG, r.Check)
	}
	return r.WG.String()
}

// Mode is which way datagrams for the peer go.
type Mode uint8

// Modes.
const (
	ModeRelay Mode = iota
	ModeBoth       // by relay and by the route: on trial, or in doubt
	ModeRoute
)

// String names the mode.
func (m Mode) String() string {
	switch m {
	case ModeRelay:
		return "relay"
	case ModeBoth:
		return "both"
	case ModeRoute:
		return "route"
	}
	return fmt.Sprintf("mode %d", uint8(m))
}

// Action is what the caller is to do: one of the types below. Accept and Use come first among the actions of a step, in this order.
type Action interface{ action() }

// Send seals a message and sends it: by relay, and also by a proven route where that helps.
type Send struct{ Message exchange.Message }

// Check sends a check request. TTL 0 is the host's default; Size is what the datagram is padded to, 0 for no padding.
type Check struct {
	Route Route
	TTL   uint8
	Size  int
}

// Use says which way datagrams for the peer go from now on. Route is meant unless Mode is ModeRelay, and is then one of those of
// the last Accept. Vanilla machines use no ModeBoth.
type Use struct {
	Mode  Mode
	Route Route
}

// Accept is the full set of routes on which the peer's datagrams are taken as its own, at most MaxAccept. It is the receiver's to
// keep.
type Accept struct{ Routes []Route }

// Echo sends an echo inside the tunnel to the peer; Echoed is its result, by 1 s later at most. A new one replaces one under way.
type Echo struct{}

// Punch runs a technique until PunchDone. A new one ends one under way. Lead: this node says when.
//
// The starts of a technique are sealed, sent and heard by who runs it; the machine only looks at the one that asks it to follow.
type Punch struct {
	Technique punch.Technique
	Lead      bool
}

// Regather asks for new candidates and hints: Gathered, if they differ.
type Regather struct{}

// Report is worth a line in the log: Info for a change of the path, Debug for attempts.
type Report struct {
	Level slog.Level
	Text  string
	Attrs []slog.Attr
}

func (Send) action()     {}
func (Check) action()    {}
func (Use) action()      {}
func (Accept) action()   {}
func (Echo) action()     {}
func (Punch) action()    {}
func (Regather) action() {}
func (Report) action()   {}
