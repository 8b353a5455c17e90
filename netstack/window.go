package netstack

import "time"

// window bounds what a connection has on its way to a peer, by the size of its send buffer. gVisor's congestion control grows until
// something is lost, and towards a peer nothing is for long: its own host, the tunnel and the network buffer megabytes, and everything
// else that the peer is sent waits behind them. So no more is sent at once than three times what the path holds, after the idea of BBR's
// bound (draft-ietf-ccwg-bbr, section 5.6.4.2): the rate that was reached, times the round trip without a queue.
//
// That round trip is the least that was seen. If it has not been seen for a while, less is sent for a moment: either the queue was
// the connection's own, and the least is seen again; or the path has become longer, and what is seen then is the least.
//
// The zero value is ready for use. It is not safe for concurrent use.
type window struct {
	size int // of the send buffer; zero: not yet chosen

	sent    int       // since
	rate    float64   // bytes a second that were reached lately
	since   time.Time // zero: before the first write
	least   time.Duration
	leastAt time.Time
	drained time.Time // until when less is sent; zero: not now
	drop    time.Duration
}

const (
	// windowLeast is what any connection may have on its way.
	windowLeast = 256 << 10

	// windowSlack is how long a round trip is taken for at least. On fast short paths the work of all involved is what takes time, and
	// is done in batches whose size comes from what waits: with 2 ms, with 7 ms and without any bound a download on two cores cost the exit
	// 3.8, 3.2 and 3.0 CPU seconds per GB, and a ping beside it took 4, 12 and 14 ms (bench/compare, tcp-1-down and rtt-tcp-down).
	windowSlack = 7 * time.Millisecond

	// windowGain is how many times what the path holds may be sent: gVisor wakes a writer when half of its buffer is empty.
	windowGain = 3

	windowEvery = 10 * time.Millisecond // at least, between two measurements
	leastFor    = 10 * time.Second
)

// wrote takes in that n bytes were put into the send buffer.
func (w *window) wrote(n int) { w.sent += n }

// due reports whether it is time for update.
func (w *window) due(now time.Time) bool {
	if w.since.IsZero() {
		w.since, w.sent = now, 0
		return false
	}
	return now.Sub(w.since) >= max(windowEvery, w.least)
}

// update takes in a round trip, and reports whether size has changed.
func (w *window) update(now time.Time, rtt time.Duration) bool {
	elapsed := now.Sub(w.since)
	if rtt <= 0 || elapsed <= 0 {
		return false
	}
	w.rate = max(float64(w.sent)/elapsed.Seconds(), w.rate*7/8) // now and then a sender has nothing to send
	w.sent, w.since = 0, now
	switch {
	case w.least == 0 || rtt <= w.least:
		w.least, w.leastAt = rtt, now
	case rtt <= w.least+w.least/4:
		w.leastAt = now
	case !w.drained.IsZero():
		w.drop = min(w.drop, rtt)
	}
	want := windowGain * w.rate * max(w.least, windowSlack).Seconds()
	switch {
	case !w.drained.IsZero() && now.After(w.drained):
		if w.leastAt.Before(now.Add(-leastFor)) { // not seen even now: the path is another
			w.least = w.drop
		}
		w.leastAt, w.drained = now, time.Time{}
	case w.drained.IsZero() && now.Sub(w.leastAt) > leastFor && rtt > windowSlack:
		w.drained, w.drop = now.Add(3*rtt), rtt
	}
	least := windowLeast
	if !w.drained.IsZero() {
		want, least = w.rate*w.least.Seconds()*3/4, windowLeast/4
	}
	size := int(min(max(want, float64(least)), tcpMaxBuffer))
	if d := size - w.size; d <= w.size/8 && -d <= w.size/8 {
		return false
	}
	w.size = size
	return true
}
