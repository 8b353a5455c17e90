// Package path is the state machine of one peer's path: from relayed to direct by way of checks, and back when the path dies.
//
// It decides, and does nothing: Step takes an event and the time, and returns actions for the caller to execute. It has no
// goroutine, no clock, no socket, and knows nothing of keys or packets.
//
//	            candidates of both              a pair answers, its round trip is known
//	Waiting ───────────────────────▶ Checking ────────────────────────▶ Trial ──────────▶ Direct
//	   ▲                               ▲   │ 5 s without                   │ 1.5 s without │
//	   │ peer or relay gone            │   ▼                               ▼ ban           │ 2.5 s of silence
//	   └──────────────────────────── Relayed ◀────── retry, quiet ◀────────┴───────────────┘
//	                                   │   ▲
//	                                   ▼   │ nothing found
//	                                 Punching
//
// # Attempts
//
// A pair is an own socket and a remote endpoint. Both nodes check all their pairs at the same instant; the node with the lower
// public key, which is called controlling, says when, by a start. The first checks of a pair have a low TTL: they open the own NAT
// and die before they reach the peer's, some of which take a packet that comes too early for a flow of their own and then refuse
// the port. A check that arrives is answered by a check.
//
// # Moving
//
// The controlling node proposes the pair of the lowest round trip. During the trial both nodes send by relay and by the pair, so
// that nothing is lost whatever comes of it. A pair has passed when WireGuard's datagrams have come by it and an echo inside the
// tunnel has come back. Else it is banned for 10 s, and for twice as long each time up to 10 min. A node takes datagrams from all
// pairs that have answered it, so it does no harm when only one of both has moved.
//
// # Watching
//
// What is sent on a path has to be followed by a sign of life. After 0.5 s without, checks are sent; after 1 s datagrams also go
// by relay; after 2.5 s they go by relay only. The pair is then checked until it answers, ever more seldom, and is used again
// without delay.
//
// # Giving up
//
// Where plain checks fail, the techniques of package punch follow, each once; after 5 s, or after less than one where the hints of
// both nodes say that plain checks lead nowhere. Costly techniques wait until fresh sockets have told more of the NATs. Then only
// two checks a minute are sent until something changes: candidates, hints, the network, or traffic comes after a pause. These are
// sent at the same second of the minute by both nodes, so that they may meet.
//
// # What is taken from the peer
//
// The peer is authentic, and may be wrong or lie. Its word makes no more than the limits of checks allow: rounds, ends of bans, new
// sessions and trials of endpoints that checks cannot prove have limits of their own. What comes from it, or seems to, does not
// keep a path on which own checks get no answer.
//
// # Use
//
//	m := path.New(path.Config{Self: self, Peer: peer, Session: exchange.NewSession(), HardNAT: true})
//	for {
//		var ev path.Event
//		select {
//		case ev = <-events:
//		case <-time.After(time.Until(m.Next())):
//			ev = path.Tick{}
//		}
//		for _, a := range m.Step(ev, time.Now()) {
//			execute(a)
//		}
//	}
//
// A Machine belongs to one goroutine.
package path
