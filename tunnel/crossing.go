package tunnel

import "time"

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

	// maxCopies bounds what forged initiations can make us send.
	maxCopies = 2
)

// ownInitiation is an initiation of ours that is not answered yet.
type ownInitiation struct {
	sent    time.Time
	index   uint32
	lower   bool // our public key is the lower one
	refused bool // an initiation of the peer was refused for this one
	copies  int  // sent since
}

type verdict uint8

const (
	letIn  verdict = iota // hand the peer's initiation to wireguard-go
	refuse                // drop it
	insist                // drop it and send our own again
)

// judge decides about an initiation that came from where o was sent to.
func (o *ownInitiation) judge(now time.Time) verdict {
	window := crossWindowHigher
	if o.lower {
		window = crossWindowLower
	}
	if now.Sub(o.sent) >= window || o.refused && !o.lower {
		return letIn
	}
	o.refused = true
	if o.copies == maxCopies {
		return refuse
	}
	o.copies++
	return insist
}
