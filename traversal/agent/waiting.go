package agent

import (
	"time"

	"culvert.dev/culvert/traversal/check"
	"culvert.dev/culvert/traversal/path"
)

const (
	answerTime  = 10 * time.Second // after which a response is no use
	maxRequests = 8192             // that wait for one; the oldest give way
	maxBad      = 4                // responses to one request that come from elsewhere, until it is given up
)

// request is a check request that was sent.
type request struct {
	peer  *peer
	route path.Route
	sent  time.Time
	size  int // that the datagram was padded to; 0: it was not
	bad   uint8
}

// requests are those that wait for a response. They are forgotten in the order they were sent in, whenever there is a new one:
// nothing has to be done while nothing is sent.
type requests struct {
	byID  map[check.ID]*request
	queue []check.ID // from the oldest on; the ids of those that were answered are still there
	sent  []time.Time
	head  int
}

func newRequests() requests { return requests{byID: map[check.ID]*request{}} }

// add notes a request.
func (q *requests) add(id check.ID, r *request) {
	for q.head < len(q.queue) && (r.sent.Sub(q.sent[q.head]) > answerTime || len(q.queue)-q.head >= maxRequests) {
		delete(q.byID, q.queue[q.head])
		q.head++
	}
	if q.head > 64 && q.head > len(q.queue)/2 {
		q.queue = append(q.queue[:0], q.queue[q.head:]...)
		q.sent = append(q.sent[:0], q.sent[q.head:]...)
		q.head = 0
	}
	q.byID[id] = r
	q.queue = append(q.queue, id)
	q.sent = append(q.sent, r.sent)
}

// answered takes a request off if the response to it came from where it was asked.
func (q *requests) answered(c *checked) (*request, Counter) {
	r := q.byID[c.id]
	switch {
	case r == nil || r.peer.number != c.peer || c.at.Sub(r.sent) > answerTime:
		return nil, ResponsesUnasked
	case wayOf(r.route) != c.from:
		if r.bad++; r.bad == maxBad {
			delete(q.byID, c.id)
		}
		return nil, ResponsesAstray
	}
	delete(q.byID, c.id)
	return r, ResponsesReceived
}

// forget drops what waits for a peer's responses.
func (q *requests) forget(p *peer) {
	for id, r := range q.byID {
		if r.peer == p {
			delete(q.byID, id)
		}
	}
}
