package tunnel

import (
	"bytes"
	"slices"
	"time"

	"culvert.dev/culvert/internal/wgkey"
)

// Crossing handshakes.
//
// A WireGuard node that receives an initiation while its own is on the way answers it and forgets its own. When both ends
// initiate at the same instant, both do so: each then holds a session whose confirmation the other will never send, and the
// handshake has failed. Usually the jitter of the 5 s retry ends that, but a PersistentKeepalive of 5 s starts both
// retries at the same instant again, for ever.
//
//	lower key                          higher key
//	  | initiation L  ----.   .---- initiation H |
//	  |                     x                    |
//	  | <-- H arrives ---'   '---- L arrives --> |   stock: both answer, neither answer is understood
//
// The cure keeps one of the two initiations alive and needs nothing of the other end:
//
//   - An initiation that arrives while our own to the same endpoint is unanswered is refused, and our own is sent once more.
//     A stock peer has meanwhile answered the first copy, and takes the second for a replay.
//   - If the other end does the same, both refused. The copies then decide: the end with the higher public key lets the
//     next initiation in, the end with the lower key goes on refusing. Its initiation wins, one round trip late.
//
// Our copy also reaches a peer that was not there for the first one (it just started), so that refusing its initiation
// costs no more than a round trip. Past the window every initiation is let in.
const (
	// The higher key's window bounds the round-trip time that is covered. The lower key's is longer, so that it does not
	// give way at the moment when the higher key does; it ends before the protocol's retry (5 s).
	crossWindowHigher = 2 * time.Second
	crossWindowLower  = 4 * time.Second

	// maxCopies bounds what forged initiations can make us send by one way.
	maxCopies = 2
)

// Where an initiation goes two ways, by UDP and by the relay, both ends see two copies of one message. Each way then is
// judged by itself: a copy by the other way is no sign that the other end insists, so that the end with the higher key gives
// way only when an initiation comes by a way for the second time. (That may also be one that is repeated for want of an
// answer: no harm, since the end with the lower key goes on refusing all the same.) Whichever way the handshake is
// completed by, the same of the two initiations wins at both ends.
//
// An initiation by the relay also tells whose it is: it crosses ours even if that went by UDP alone, and a copy of it is
// known again by UDP from wherever. An initiation by UDP that came from where ours did not go and was not seen by the relay
// before cannot be told from a stranger's and is let in. It then is the one that wins, since the other end, which knows ours
// by the relay, refuses that.

// ownInitiation is an initiation of ours that is not answered yet.
type ownInitiation struct {
	sent  time.Time
	index uint32
	lower bool   // our public key is the lower one
	ways  [4]way // by the relay, to the configured Endpoint, by the route's way, and by another one that the peer's came by

	theirs initiationID // the peer's that was refused last for this one
}

// way is an endpoint that an initiation goes to, or that the peer's came from. An empty endpoint stands for none.
type way struct {
	endpoint string
	sent     time.Time // when the initiation went there first; zero: not yet
	copies   int       // sent since, to insist
	repeated bool      // and for want of an answer
	refused  bool      // an initiation from there was refused
	theirs   bool      // known as a way of the peer's, not as one of ours
}

// wayTo returns the way with an endpoint, making it if there is room; nil if there is none.
func (o *ownInitiation) wayTo(endpoint string) *way {
	for i := range o.ways {
		w := &o.ways[i]
		if w.endpoint == "" {
			w.endpoint = endpoint
		}
		if w.endpoint == endpoint {
			return w
		}
	}
	return nil
}

type verdict uint8

const (
	letIn  verdict = iota // hand the peer's initiation to wireguard-go
	refuse                // drop it
	insist                // drop it and send our own again
)

// judge decides about an initiation that came by w.
func (o *ownInitiation) judge(w *way, now time.Time) verdict {
	window := crossWindowHigher
	if o.lower {
		window = crossWindowLower
	}
	if now.Sub(o.sent) >= window || w.refused && !o.lower {
		return letIn
	}
	w.refused = true
	if w.copies == maxCopies {
		return refuse
	}
	if w.sent.IsZero() {
		w.sent = now
	} else {
		w.copies++
	}
	return insist
}

// roundTrip tells how long the answer that came from an endpoint took, zero if it is not known which copy was answered
// (RFC 6298 section 3). A peer answers to where a message came from, but may do so from elsewhere.
func (o *ownInitiation) roundTrip(endpoint string, now time.Time) time.Duration {
	var answered *way
	sent := 0
	for i := range o.ways {
		w := &o.ways[i]
		if w.sent.IsZero() {
			continue
		}
		sent++
		if answered == nil || w.endpoint == endpoint {
			answered = w
		}
	}
	if answered == nil || answered.copies > 0 || answered.repeated || sent > 1 && answered.endpoint != endpoint {
		return 0
	}
	return now.Sub(answered.sent)
}

// gotInitiation judges an incoming initiation. With insist it returns a copy of ours, to be sent to where it came from.
func (h *handshakes) gotInitiation(msg []byte, endpoint string, now time.Time) (v verdict, ours []byte) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.wasRefused(msg, now) {
		return refuse, nil
	}
	p := h.initiator(msg, endpoint)
	if !h.selfTo.addressed(msg) {
		return letIn, nil
	}
	id := initiationOf(msg)
	if v, known := h.judgeStrange(id, now); known {
		return v, nil
	}
	if p == nil {
		h.strange[h.strangers%len(h.strange)] = strangeInitiation{id, now}
		h.strangers++
		return letIn, nil
	}
	w := p.own.wayTo(endpoint)
	if w == nil {
		return letIn, nil
	}
	h.byEndpoint[endpoint] = p
	if v = p.own.judge(w, now); v == letIn {
		h.settleOwn(p)
		h.forgetTheirs(p)
		return v, nil
	}
	h.forgetTheirs(p)
	p.own.theirs = id
	h.byTheirs[p.own.theirs.index] = p
	h.refusals.Store(int32(len(h.byTheirs)))
	if v == insist {
		ours = bytes.Clone(p.message)
	}
	return v, ours
}

// strangeInitiation is one that was let in although it may have crossed ours: nobody could tell whose it was.
type strangeInitiation struct {
	initiationID
	at time.Time // zero: none
}

// beingAnswered is how long wireguard-go may take to answer an initiation.
const beingAnswered = 20 * time.Millisecond

// judgeStrange decides about a copy of an initiation that was let in already, which has come by the other way. It is too late
// to insist on ours. While the first copy is being answered the other is kept away, since wireguard-go might answer both.
func (h *handshakes) judgeStrange(id initiationID, now time.Time) (v verdict, known bool) {
	for _, s := range h.strange {
		switch {
		case s.at.IsZero() || s.initiationID != id:
		case now.Sub(s.at) < beingAnswered:
			return refuse, true
		default:
			return letIn, true
		}
	}
	return letIn, false
}

// wasRefused reports whether an initiation is a late copy of one that was refused for ours, which was answered since. It
// would undo what the answer made.
func (h *handshakes) wasRefused(msg []byte, now time.Time) bool {
	p := h.byTheirs[senderIndex(msg)]
	return p != nil && !p.waiting && p.own.theirs == initiationOf(msg) && now.Sub(p.own.sent) < crossWindowLower
}

// initiator finds the peer that an initiation is from, if that can be told and one of ours waits for its answer: by where it
// comes from, or because a copy of it came from there before.
func (h *handshakes) initiator(msg []byte, endpoint string) *peerHandshake {
	if p := h.byEndpoint[endpoint]; p != nil {
		return p
	}
	p := h.byTheirs[senderIndex(msg)]
	if key, ok := relayedKey(endpoint); ok {
		p = h.peers[key]
	} else if p != nil && p.own.theirs != initiationOf(msg) {
		p = nil
	}
	if p == nil || !p.waiting {
		return nil
	}
	return p
}

// isWayOf notes that an endpoint is a way of a peer, which an initiation comes by: it crosses ours wherever that went. One such
// way is noted for each of ours, so that forged ones leave room for those that ours is to go by.
func (h *handshakes) isWayOf(endpoint string, key wgkey.Public) {
	h.mu.Lock()
	defer h.mu.Unlock()
	p := h.peers[key]
	if p == nil || !p.waiting || h.byEndpoint[endpoint] != nil || slices.ContainsFunc(p.own.ways[:], func(w way) bool { return w.theirs }) {
		return
	}
	if w := p.own.wayTo(endpoint); w != nil {
		w.theirs = true
		h.byEndpoint[endpoint] = p
	}
}

// forgetTheirs forgets the initiation of the peer that was refused last, if any.
func (h *handshakes) forgetTheirs(p *peerHandshake) {
	if h.byTheirs[p.own.theirs.index] == p {
		delete(h.byTheirs, p.own.theirs.index)
		h.refusals.Store(int32(len(h.byTheirs)))
	}
}
