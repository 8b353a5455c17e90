package exchange

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"time"
)

// MaxStartIn is the longest that a message may have its receiver wait before checks.
const MaxStartIn = 10 * time.Second

// Kind is what a message is for. Its numbers are on the wire.
type Kind uint8

// Kinds of messages, with the fields of Message that each has besides Session.
const (
	KindCandidates Kind = 1 // Candidates (may be none), Hints4, Hints6, StartIn: opens a session or starts it anew
	KindTrickle    Kind = 2 // Candidates: more of the same session
	KindStart      Kind = 3 // StartIn: when checks begin; Technique, Expect: what is tried then
	KindProposal   Kind = 4 // Attempt, Proposer, Acceptor: move WireGuard to this path
	KindAnswer     Kind = 5 // Attempt, Reason: of a proposal
	KindGoodbye    Kind = 6 // Reason: the session, or with Session 0 all, end here

	numKinds = 7
)

// String names the kind, "kind N" if it is unknown.
func (k Kind) String() string {
	switch k {
	case KindCandidates:
		return "candidates"
	case KindTrickle:
		return "trickle"
	case KindStart:
		return "start"
	case KindProposal:
		return "proposal"
	case KindAnswer:
		return "answer"
	case KindGoodbye:
		return "goodbye"
	}
	return fmt.Sprintf("kind %d", uint8(k))
}

// addressesOnly reports whether a message names addresses and moves nothing, so that it is taken from a sender who does not know
// our life yet.
func (k Kind) addressesOnly() bool { return k == KindCandidates || k == KindTrickle }

// Reason is why a proposal is refused or a session ends; Accepted in an answer is consent. Its numbers are on the wire, and
// unknown ones are passed on as they are.
type Reason uint8

// Reasons.
const (
	Accepted       Reason = 0
	UnknownSession Reason = 1 // the session is not, or no longer, known
	UnknownPath    Reason = 2 // no check has succeeded between these endpoints
	Banned         Reason = 3 // the path failed lately
	Worse          Reason = 4 // the acceptor is on a better path
	Crossed        Reason = 5 // the acceptor has a proposal of its own on the way, which goes first
	Busy           Reason = 6 // another attempt is under way
	Shutdown       Reason = 7 // the node ends
	NotWanted      Reason = 8 // direct paths to this peer are switched off
)

// String says it in words, "reason N" for an unknown one.
func (r Reason) String() string {
	switch r {
	case Accepted:
		return "accepted"
	case UnknownSession:
		return "unknown session"
	case UnknownPath:
		return "no check succeeded on this path"
	case Banned:
		return "the path failed lately"
	case Worse:
		return "worse than the present path"
	case Crossed:
		return "crossed by a proposal"
	case Busy:
		return "busy with another attempt"
	case Shutdown:
		return "shutting down"
	case NotWanted:
		return "direct paths are off"
	}
	return fmt.Sprintf("reason %d", uint8(r))
}

// Session identifies one negotiation between two nodes; zero is none.
type Session uint64

// NewSession draws a session at random.
func NewSession() Session { return Session(draw()) }

// String is for logs.
func (s Session) String() string { return fmt.Sprintf("%016x", uint64(s)) }

// draw returns a random number that is not zero. crypto/rand does not fail.
func draw() uint64 {
	for {
		var b [8]byte
		rand.Read(b[:])
		if n := binary.BigEndian.Uint64(b[:]); n != 0 {
			return n
		}
	}
}

// Message is what one node says to another. Kind says which fields it has; Seal does not send the others.
type Message struct {
	Kind    Kind
	Session Session

	Candidates     []Candidate
	Hints4, Hints6 Hints

	// StartIn is when the receiver begins with checks, counted from receipt, in microseconds. The sender begins when the receiver
	// does: StartIn and half of RTT after it has sent the message. Zero in a start is at once, in candidates not said.
	StartIn time.Duration

	// Technique is how hard NATs are to be overcome, by the numbers of package punch; 0 is by plain checks. Expect is where the
	// sender's packets will be seen to come from, when it has prepared for that: at most MaxExpect ranges, with a Technique only.
	Technique uint8
	Expect    []Ports

	Attempt  uint32         // which proposal of the session
	Proposer netip.AddrPort // where WireGuard of the proposer is, as the acceptor is to reach it
	Acceptor netip.AddrPort // likewise of the acceptor
	Reason   Reason

	// What follows is set by Open, and ignored by Seal.

	// Sent is when the message was sent, by the sender's clock.
	Sent time.Time

	// Fresh says that the sender has heard from this node since it knows the peer, so that the message is no recording of an
	// earlier time. Only candidates and trickles are opened without.
	Fresh bool

	// RTT is the round trip to the peer by relay, as measured by this message: zero if it was not. The peer's word is in it.
	RTT time.Duration
}

// check returns what is wrong with a message that is to be sent.
func (m *Message) check() error {
	switch {
	case m.Kind == 0 || m.Kind >= numKinds:
		return fmt.Errorf("unknown %v", m.Kind)
	case m.Session == 0 && m.Kind != KindGoodbye:
		return errors.New("no session")
	case m.Kind.addressesOnly() && len(m.Candidates) > MaxCandidates:
		return fmt.Errorf("%d candidates: at most %d fit, see Pack", len(m.Candidates), MaxCandidates)
	case m.Kind == KindTrickle && len(m.Candidates) == 0:
		return errors.New("no candidates")
	case m.Kind == KindProposal && !(m.Proposer.IsValid() && m.Acceptor.IsValid()):
		return errors.New("an endpoint is missing")
	case (m.Kind == KindStart || m.Kind == KindCandidates) && (m.StartIn < 0 || m.StartIn > MaxStartIn):
		return fmt.Errorf("start in %v: at most %v", m.StartIn, MaxStartIn)
	case m.Kind == KindStart:
		return m.checkExpect()
	case !m.Kind.addressesOnly():
		return nil
	}
	for _, c := range m.Candidates {
		if !c.Kind.known() || !c.WG.IsValid() {
			return fmt.Errorf("candidate %v: unknown kind or no endpoint", c)
		}
	}
	for _, h := range []*Hints{&m.Hints4, &m.Hints6} {
		if h.Known && !h.valid() {
			return fmt.Errorf("hints %+v contradict themselves", *h)
		}
	}
	return nil
}

func (m *Message) checkExpect() error {
	switch {
	case len(m.Expect) > MaxExpect:
		return fmt.Errorf("%d ranges of ports: at most %d fit", len(m.Expect), MaxExpect)
	case len(m.Expect) > 0 && m.Technique == 0:
		return errors.New("ports are expected, but with no technique")
	}
	for _, p := range m.Expect {
		if !p.valid() {
			return fmt.Errorf("ports %v: no address, or no range", p)
		}
	}
	return nil
}
