package path

import (
	"fmt"
	"slices"
	"time"

	"culvert.dev/culvert/traversal/exchange"
	"culvert.dev/culvert/traversal/punch"
)

// Phase is where a machine stands; see the diagram of the package.
type Phase uint8

// Phases.
const (
	Off      Phase = iota // nothing is wanted yet
	Waiting               // for the relay, own candidates, or the peer's
	Checking              // pairs are checked
	Trial                 // a pair is being tried by WireGuard
	Direct                // WireGuard uses a pair
	Relayed               // until the next attempt
	Punching              // a technique for hard NATs runs
)

// String names the phase.
func (p Phase) String() string {
	switch p {
	case Off:
		return "off"
	case Waiting:
		return "waiting"
	case Checking:
		return "checking"
	case Trial:
		return "trial"
	case Direct:
		return "direct"
	case Relayed:
		return "relayed"
	case Punching:
		return "punching"
	}
	return fmt.Sprintf("phase %d", uint8(p))
}

// State is what there is to tell of a machine.
type State struct {
	Phase Phase
	Mode  Mode
	Route Route         // in use or on trial; zero with ModeRelay
	RTT   time.Duration // of Route, by checks; zero: not known

	Local, Remote exchange.CandidateKind // of Route; 0: unknown
	Technique     string                 // that found Route: "plain", or one of package punch; "" with ModeRelay

	Since       time.Time     // of Phase
	DirectAfter time.Duration // from the first candidates of this machine to its first direct path; 0: none yet

	Pairs, Valid        int // pairs known, of these answered
	Upgrades, Fallbacks int
	Checks              uint64 // sent
	Bans                []Ban  // in force

	Reason Reason // why the path is not direct; Why has it in full

	Own4, Own6, Peer4, Peer6 exchange.Hints // of both nodes

	Tried       []punch.Technique // without success, since something last changed
	NextTry     time.Time         // zero: none is planned, or the path is direct
	Called      bool              // the peer has begun: if the machine is not On, letting it begin helps both
	Controlling bool              // this node has the lower public key
	RelayRTT    time.Duration     // to the peer by relay; 0: not known
	PeerSession exchange.Session  // 0: the peer has not been heard
	LastLife    time.Time         // of the route in use
	Keepalive   time.Duration     // between checks of an idle path, as learned
}

// Ban is a route that failed under WireGuard.
type Ban struct {
	Route  Route
	Until  time.Time
	Count  int // how often in a row
	Reason string
}

// State returns what there is to tell as of the last step.
func (m *Machine) State() State {
	s := State{
		Phase: m.phaseNow(), Mode: m.mode, Since: m.outside(m.since), DirectAfter: m.directAfter,
		Pairs: len(m.pairs), Upgrades: m.upgrades, Fallbacks: m.fallbacks, Checks: m.checks,
		Reason: m.reason(), Own4: m.own.hints4, Own6: m.own.hints6, Peer4: m.peer.hints4, Peer6: m.peer.hints6,
		Tried: slices.Clone(m.tried), Called: m.called, Controlling: m.controlling,
		RelayRTT: m.roundTrip, PeerSession: m.peer.session, Keepalive: m.keepalive,
	}
	for _, p := range m.pairs {
		if p.valid {
			s.Valid++
		}
	}
	for _, b := range m.bans {
		if b.until.After(m.now) {
			s.Bans = append(s.Bans, Ban{Route: b.route, Until: m.outside(b.until), Count: b.count, Reason: b.why})
		}
	}
	if p := m.using; p != nil {
		s.Route, s.RTT, s.Remote, s.Technique = p.route, p.rtts.median(), p.kind, p.technique.String()
		s.Local, s.LastLife = m.localKind(p), m.outside(m.life)
	} else {
		s.NextTry = m.outside(earlier(m.due[timerRetry], earlier(m.due[timerStart], m.due[timerBan])))
	}
	return s
}

// localKind tells which of the own candidates the peer sees as the other end of a pair.
func (m *Machine) localKind(p *pair) exchange.CandidateKind {
	for _, c := range m.own.candidates {
		if p.mapped.IsValid() && c.Target() == p.mapped {
			return c.Kind
		}
	}
	return exchange.PeerReflexive
}
