package relay

import "time"

const (
	// silentAfter is how long a relay may send nothing while packets are sent, before it is asked.
	silentAfter = time.Second
	// pongWithin is how long the answer may then take: with silentAfter, failover is under 2 s.
	pongWithin = 700 * time.Millisecond
	// pongWithinMax bounds the same for a relay that is far away.
	pongWithinMax = 5 * time.Second
	// idlePing is how long apart the pings of an idle connection are; it keeps mappings of NATs alive.
	idlePing = 25 * time.Second
	// secondPing is how long after the first ping of a connection the second goes out: the first is often slower.
	secondPing = 2 * time.Second
)

// watch judges whether a connection is alive. It does no I/O and is told the time.
type watch struct {
	pings   int       // sent so far
	next    time.Time // when the next is due anyway
	pending bool      // one is not answered
	sent    time.Time // when
	urgent  bool      // its answer must come soon: the network has changed
	again   bool      // and has changed once more since: ask again then
	rtt     time.Duration
}

type verdict uint8

const (
	watchWait verdict = iota // until the time returned
	watchPing                // send one
	watchDead                // give the connection up
)

// step returns what to do at now, and when to ask again at the latest. waiting is since when packets are sent with nothing
// coming in, zero if none are; heard is when something came last.
func (w *watch) step(now, waiting, heard time.Time) (verdict, time.Time) {
	if w.pending && heard.After(w.sent) {
		w.urgent = false // alive, whether the answer itself comes or not
	}
	silent := !waiting.IsZero() && now.Sub(waiting) >= silentAfter
	if !w.pending {
		switch {
		case silent || !now.Before(w.next):
			return watchPing, now
		case waiting.IsZero():
			return watchWait, w.next
		}
		return watchWait, earlier(w.next, waiting.Add(silentAfter))
	}
	limit := w.sent.Add(pongWithinMax)
	if w.urgent || silent {
		limit = w.sent.Add(w.patience())
	}
	if now.Before(limit) {
		if !waiting.IsZero() && !silent {
			limit = earlier(limit, waiting.Add(silentAfter))
		}
		return watchWait, limit
	}
	if heard.After(w.sent) { // the relay drops pings, or answers late
		w.pending = false
		w.next = now.Add(idlePing)
		return w.step(now, waiting, heard)
	}
	return watchDead, now
}

// patience is how long an answer may take that is waited for.
func (w *watch) patience() time.Duration { return min(max(pongWithin, 3*w.rtt), pongWithinMax) }

// pinged notes that a ping was sent.
func (w *watch) pinged(now time.Time) {
	w.pings++
	w.pending, w.sent = true, now
	w.next = now.Add(idlePing)
	if w.pings == 1 {
		w.next = now.Add(secondPing)
	}
}

// answered notes that the answer has come.
func (w *watch) answered(rtt time.Duration) {
	w.pending, w.urgent = false, false
	w.rtt = rtt
	if w.again {
		w.again = false
		w.hurry()
	}
}

// hurry asks for a verdict soon: the connection may not have survived a change of the network. A verdict that is about to come is
// not put off.
func (w *watch) hurry() {
	if w.pending && w.urgent {
		w.again = true
		return
	}
	w.pending, w.urgent = false, true
	w.next = time.Time{}
}

func earlier(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}
