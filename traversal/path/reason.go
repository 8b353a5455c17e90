package path

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"culvert.dev/culvert/nat"
	"culvert.dev/culvert/traversal/exchange"
	"culvert.dev/culvert/traversal/punch"
)

// Reason is why a path is not direct.
type Reason uint8

// Reasons.
const (
	ReasonNone         Reason = iota // it is direct
	ReasonOff                        // nothing has been asked for
	ReasonNoRelay                    // the peer cannot be told anything
	ReasonRelayLost                  // likewise, now that candidates have been exchanged
	ReasonPeerAway                   // no relay has the peer
	ReasonPeerSilent                 // the peer is there, and says nothing
	ReasonPeerLeft                   // it has said goodbye
	ReasonPeerRefuses                // it wants no direct paths
	ReasonGathering                  // own candidates are not known yet
	ReasonChecking                   // an attempt is under way
	ReasonPunching                   // a technique for hard NATs is under way
	ReasonBanned                     // the best pair failed under WireGuard
	ReasonLost                       // the path has stopped answering
	ReasonNoAddress                  // the peer names no address of a family that this node has
	ReasonNoEndpoint                 // it names none at all that may be sent to
	ReasonBlockedHere                // no UDP to the internet
	ReasonUnseenHere                 // no server is asked where this node is seen from outside
	ReasonBlockedThere               // the peer does not know where it is seen from outside
	ReasonHardBoth                   // both NATs map per destination
	ReasonHardHere                   // the own one does, and the peer's filters by port
	ReasonHardThere                  // the other way round
	ReasonTriedAll                   // techniques for hard NATs have failed
	ReasonHardNATOff                 // they would be of use, and are switched off
	ReasonNoAnswer                   // nothing is known that would explain it

	numReasons
)

// String says it in words that a user can act on. State.Why adds what is particular.
func (r Reason) String() string {
	switch r {
	case ReasonNone:
		return "the path is direct"
	case ReasonOff:
		return "no direct path has been asked for yet"
	case ReasonNoRelay:
		return "no relay is connected, so the peer cannot be told where this node is"
	case ReasonRelayLost:
		return "relay lost: known endpoints of the peer are being checked without it"
	case ReasonPeerAway:
		return "the peer has not come to a relay"
	case ReasonPeerSilent:
		return "the peer does not speak (stock WireGuard, or traversal is off there)"
	case ReasonPeerLeft:
		return "the peer has shut down"
	case ReasonPeerRefuses:
		return "direct paths are switched off at the peer"
	case ReasonGathering:
		return "this node's own endpoints are still being found out"
	case ReasonChecking:
		return "endpoints are being checked"
	case ReasonPunching:
		return "a technique for hard NATs is being tried"
	case ReasonBanned:
		return "the last path failed under WireGuard"
	case ReasonLost:
		return "the path has stopped answering and is being checked"
	case ReasonNoAddress:
		return "this node and the peer have no address family in common"
	case ReasonNoEndpoint:
		return "the peer names no endpoint that may be sent to (it has no network but the tunnel's, or all are filtered)"
	case ReasonBlockedHere:
		return "UDP to the internet is blocked here: needs a firewall that lets UDP out"
	case ReasonUnseenHere:
		return "nobody tells this node where it is seen from outside: needs a [STUN] server in its configuration"
	case ReasonBlockedThere:
		return "UDP is blocked at the peer: needs a firewall there that lets UDP out, or a [STUN] server in its configuration if it has none"
	case ReasonHardBoth:
		return "both NATs map per destination: needs IPv6, a port forward or UPnP on one side"
	case ReasonHardHere:
		return "the NAT here maps per destination and the peer's filters by port: needs IPv6, or a port forward or UPnP on one side"
	case ReasonHardThere:
		return "the peer's NAT maps per destination and the one here filters by port: needs IPv6, or a port forward or UPnP on one side"
	case ReasonTriedAll:
		return "hard NAT, no technique got through: needs IPv6, a port forward or UPnP on one side"
	case ReasonHardNATOff:
		return "hard NAT: techniques for it are switched off (HardNAT = no) here or at the peer"
	case ReasonNoAnswer:
		return "checks get no answer: a firewall on the way may drop UDP; a port forward on one side would do"
	}
	return fmt.Sprintf("reason %d", uint8(r))
}

// reason finds out why the path is not direct: what is missing first, then what goes on, then what both sides' hints say.
func (m *Machine) reason() Reason {
	switch {
	case m.using != nil && m.trial == nil:
		return ReasonNone
	case !m.wanted.On && m.peer.session == 0 && m.resends == 0 && !m.unwanted && !m.peerLeft:
		return ReasonOff
	case !m.own.known:
		return ReasonGathering
	case m.unwanted:
		return ReasonPeerRefuses
	case m.peerLeft:
		return ReasonPeerLeft
	case !m.relay.Connected && m.peer.session == 0:
		return ReasonNoRelay
	case m.relay.NotHere && m.trial == nil:
		return ReasonPeerAway
	case m.peer.session == 0 && m.resends < 2:
		return ReasonChecking
	case m.peer.session == 0:
		return ReasonPeerSilent
	case m.punching != punch.None:
		return ReasonPunching
	case !m.relay.Connected && m.trial == nil:
		return ReasonRelayLost
	case m.trial != nil:
		return ReasonChecking
	case m.anyBan():
		return ReasonBanned
	case m.rounds <= 1 && (m.roundOn || !m.due[timerStart].IsZero()):
		return ReasonChecking
	case m.lastLost != nil && !m.quiet:
		return ReasonLost
	}
	return m.reasonOfHints()
}

func (m *Machine) anyBan() bool {
	return slices.ContainsFunc(m.bans, func(b ban) bool { return b.until.After(m.now) })
}

// reasonOfHints explains checks without answer.
func (m *Machine) reasonOfHints() Reason {
	own, peer := m.own.hints4, m.peer.hints4
	switch {
	case m.blockedHere:
		return ReasonBlockedHere
	case m.own.unseen():
		return ReasonUnseenHere
	case m.peer.unseen():
		return ReasonBlockedThere
	case len(m.pairs) == 0 && len(m.peer.candidates) == 0:
		return ReasonNoEndpoint
	case len(m.pairs) == 0:
		return ReasonNoAddress
	case len(m.tried) > 0 && !m.refused:
		return ReasonTriedAll
	case m.rounds == 0 || m.fails == 0:
		return ReasonChecking
	}
	r := whichHard(own, peer)
	if r != ReasonNoAnswer && (!m.cfg.HardNAT || m.refused) {
		return ReasonHardNATOff
	}
	return r
}

// whichHard says which NATs keep two nodes apart, if hints do.
func whichHard(own, peer exchange.Hints) Reason {
	switch here, there := perDestination(own), perDestination(peer); {
	case here && there:
		return ReasonHardBoth
	case here && filtersPort(peer):
		return ReasonHardHere
	case there && filtersPort(own):
		return ReasonHardThere
	}
	return ReasonNoAnswer
}

func perDestination(h exchange.Hints) bool {
	return h.Known && h.NAT && h.Mapping.Least != nat.EndpointIndependent
}

func filtersPort(h exchange.Hints) bool {
	return h.Known && h.Filtering.Most == nat.AddressAndPortDependent
}

// unseen reports whether a node does not know where it is seen from outside, and has no address that would be reached in any case.
func (s *side) unseen() bool {
	if s.hints4.Known || s.hints6.Known || len(s.candidates) == 0 {
		return false
	}
	return !slices.ContainsFunc(s.candidates, func(c exchange.Candidate) bool {
		return c.Kind != exchange.Host && c.Kind != exchange.OwnPort || !private(c.WG.Addr())
	})
}

// Why says in words why the path is not direct, at a time by the clock of Step: the reason, and how long bans last, what was tried,
// when the next attempt is due.
func (s State) Why(now time.Time) string {
	text := s.Reason.String()
	switch s.Reason {
	case ReasonBanned:
		for _, b := range s.Bans {
			if left := b.Until.Sub(now); left > 0 {
				return fmt.Sprintf("%s; %v is banned for %v (%s)", text, b.Route, left.Round(time.Second), b.Reason)
			}
		}
	case ReasonTriedAll:
		names := make([]string, len(s.Tried))
		for i, t := range s.Tried {
			names[i] = t.String()
		}
		if which := whichHard(s.Own4, s.Peer4); which != ReasonNoAnswer {
			text = which.String()
		}
		text = fmt.Sprintf("%s; tried: %s", text, strings.Join(names, ", "))
	}
	if left := s.NextTry.Sub(now); !s.NextTry.IsZero() && left > 0 {
		text = fmt.Sprintf("%s; next try in %v", text, left.Round(time.Second))
	}
	return text
}
