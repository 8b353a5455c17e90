package tunnel

import (
	"bytes"
	"sync"
	"sync/atomic"
	"time"

	"culvert.dev/culvert/internal/wgkey"
)

// failAfter is for how long initiations stay unanswered before the peer's endpoint is taken to be wrong.
const failAfter = 10 * time.Second

// answerWithin is for how long a working path may leave initiations unanswered: wireguard-go makes another one by then.
const answerWithin = 5 * time.Second

// confirmWithin is for how long a response of ours waits for the first transport message.
const confirmWithin = 5 * time.Second

// handshakes follows the handshake messages of all peers as they pass: it judges crossing initiations, measures round
// trips and notices peers that do not answer. It does no I/O and is told the time.
//
// The messages are not authenticated at this point. Forged ones can delay a handshake by seconds or falsify an RTT; they
// cannot do more, since every message that is let in is verified by wireguard-go.
type handshakes struct {
	self   wgkey.Public
	selfTo macKey

	// unanswered, refusals and unconfirmed count the entries of byOwn, byTheirs and byResponse. They let the receive path
	// skip the lock.
	unanswered, refusals, unconfirmed atomic.Int32

	mu         sync.Mutex // guards the following
	peers      map[wgkey.Public]*peerHandshake
	byAddress  map[string]*peerHandshake // whom the last handshake message to a UDP endpoint was for
	byEndpoint map[string]*peerHandshake // own initiations that wait for an answer; one may have several endpoints
	byOwn      map[uint32]*peerHandshake // the same, by the index in the initiation
	byTheirs   map[uint32]*peerHandshake // by the index in the peer's initiation that was refused for ours
	byResponse map[uint32]*peerHandshake // own responses that wait for the first transport message
	swept      time.Time                 // when byResponse was last rid of those that nobody confirms
	strange    [8]strangeInitiation      // the last that were let in for want of knowing whose they are
	strangers  int                       // how many those were in all
}

type peerHandshake struct {
	key     wgkey.Public
	to      macKey
	address string // key in byAddress, empty if none

	own      ownInitiation
	message  []byte // the initiation itself
	waiting  bool   // own is in byOwn, and its ways are in byEndpoint
	attempts int    // initiations in a row that brought no success, own among them

	response   uint32 // key in byResponse while answered is set
	answered   time.Time
	rtt        time.Duration
	relayed    int       // how many of the last handshakes in a row were completed by the relay
	sought     time.Time // when UDP was last sought for the peer although it was served by the relay
	tryingFrom time.Time // first of the initiations in a row that brought no success; zero after one
}

func newHandshakes(self wgkey.Public) *handshakes {
	return &handshakes{
		self:       self,
		selfTo:     macKeyOf(self),
		peers:      map[wgkey.Public]*peerHandshake{},
		byAddress:  map[string]*peerHandshake{},
		byEndpoint: map[string]*peerHandshake{},
		byOwn:      map[uint32]*peerHandshake{},
		byTheirs:   map[uint32]*peerHandshake{},
		byResponse: map[uint32]*peerHandshake{},
	}
}

// add makes a peer known. Nothing changes for one that is.
func (h *handshakes) add(key wgkey.Public) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.peers[key] == nil {
		h.peers[key] = &peerHandshake{key: key, to: macKeyOf(key)}
	}
}

// remove forgets a peer.
func (h *handshakes) remove(key wgkey.Public) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if p := h.peers[key]; p != nil {
		h.settleOwn(p)
		h.forgetTheirs(p)
		h.settleResponse(p)
		delete(h.byAddress, p.address)
		delete(h.peers, key)
	}
}

// rtt returns the round-trip time of the peer's last handshake, zero if unknown.
func (h *handshakes) rtt(key wgkey.Public) time.Duration {
	h.mu.Lock()
	defer h.mu.Unlock()
	if p := h.peers[key]; p != nil {
		return p.rtt
	}
	return 0
}

// addressee finds the peer that a handshake message of ours was made for. The messages do not say, but whom the endpoint
// belonged to last does in nearly every case: else every peer has to be tried. That a relay endpoint is another peer's means
// that the relay has mixed up, or was made to mix up, the two.
func (h *handshakes) addressee(msg []byte, endpoint string) *peerHandshake {
	key, relayed := relayedKey(endpoint)
	p := h.byAddress[endpoint]
	if relayed {
		p = h.peers[key]
	}
	if p != nil && p.to.addressed(msg) {
		return p
	}
	for _, p := range h.peers {
		if !p.to.addressed(msg) {
			continue
		}
		if !relayed {
			delete(h.byAddress, p.address)
			if other := h.byAddress[endpoint]; other != nil {
				other.address = ""
			}
			p.address = endpoint
			h.byAddress[endpoint] = p
		}
		return p
	}
	return nil
}

// attempt is an initiation of ours that is about to be sent.
type attempt struct {
	key     wgkey.Public
	index   uint32
	number  int  // from 1, of those in a row that brought no success
	failing bool // the peer has not answered for failAfter
}

// begin notes an initiation of ours that wireguard-go wants to send to an endpoint. It replaces the one before. ok is false
// if it is not for any peer.
func (h *handshakes) begin(msg []byte, endpoint string, now time.Time) (a attempt, ok bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	p := h.addressee(msg, endpoint)
	if p == nil {
		return attempt{}, false
	}
	h.settleOwn(p)
	h.forgetTheirs(p)
	if p.tryingFrom.IsZero() || now.Sub(p.own.sent) > failAfter { // attempts that belong together are 5 s apart
		p.tryingFrom, p.attempts = now, 0
	}
	p.attempts++
	p.own = ownInitiation{sent: now, index: senderIndex(msg), lower: bytes.Compare(h.self[:], p.key[:]) < 0}
	p.message = append(p.message[:0], msg...)
	p.waiting = true
	h.byOwn[p.own.index] = p
	h.unanswered.Store(int32(len(h.byOwn)))
	return attempt{p.key, p.own.index, p.attempts, now.Sub(p.tryingFrom) >= failAfter}, true
}

// goes notes that the initiation with the given index goes to an endpoint now, and returns it; nil if it has been there
// already or is not wanted any more. The message must not be changed.
func (h *handshakes) goes(key wgkey.Public, index uint32, endpoint string, now time.Time) []byte {
	h.mu.Lock()
	defer h.mu.Unlock()
	p := h.peers[key]
	if p == nil || !p.waiting || p.own.index != index {
		return nil
	}
	w := p.own.wayTo(endpoint)
	if w == nil || !w.sent.IsZero() {
		return nil
	}
	w.sent = now
	h.byEndpoint[endpoint] = p
	return bytes.Clone(p.message)
}

// repeats notes that the initiation with the given index goes to an endpoint once more, and returns it; nil if it is not
// wanted any more.
func (h *handshakes) repeats(key wgkey.Public, index uint32, endpoint string) []byte {
	h.mu.Lock()
	defer h.mu.Unlock()
	p := h.peers[key]
	if p == nil || !p.waiting || p.own.index != index {
		return nil
	}
	if w := p.own.wayTo(endpoint); w != nil {
		w.repeated = true
	}
	return bytes.Clone(p.message)
}

// again returns the initiation with the given index while it is wanted.
func (h *handshakes) again(key wgkey.Public, index uint32) []byte {
	h.mu.Lock()
	defer h.mu.Unlock()
	if p := h.peers[key]; p != nil && p.waiting && p.own.index == index {
		return bytes.Clone(p.message)
	}
	return nil
}

// left notes that an initiation that was held back has gone to an endpoint only now: from now on it can cross the peer's, and be
// answered.
func (h *handshakes) left(key wgkey.Public, index uint32, endpoint string, now time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	p := h.peers[key]
	if p == nil || !p.waiting || p.own.index != index {
		return
	}
	p.own.sent = now
	if w := p.own.wayTo(endpoint); w != nil {
		w.sent = now
	}
}

// pending returns the initiation that waits for an answer of a peer.
func (h *handshakes) pending(key wgkey.Public) (a attempt, ok bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	p := h.peers[key]
	if p == nil || !p.waiting {
		return attempt{}, false
	}
	return attempt{key: key, index: p.own.index, number: p.attempts}, true
}

// sentResponse notes that wireguard-go has accepted a peer's initiation, which ends our own. It returns whose that was, and
// zero if nobody's.
func (h *handshakes) sentResponse(msg []byte, endpoint string, now time.Time) (key wgkey.Public) {
	h.mu.Lock()
	defer h.mu.Unlock()
	p := h.addressee(msg, endpoint)
	if p == nil {
		return key
	}
	h.settleOwn(p)
	h.forgetTheirs(p)
	h.settleResponse(p)
	p.response, p.answered = senderIndex(msg), now
	h.byResponse[p.response] = p
	h.unconfirmed.Store(int32(len(h.byResponse)))
	return p.key
}

// seek reports whether it is time to look whether a peer that is served by the relay is reached by UDP, and notes it.
func (h *handshakes) seek(key wgkey.Public, now time.Time) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	p := h.peers[key]
	if p == nil || now.Sub(p.sought) < seekEvery {
		return false
	}
	p.sought = now
	return true
}

// gotAnswer notes a response or cookie reply. It may come from elsewhere than the initiation went to. ok is set for a
// response to an initiation that waited for one.
func (h *handshakes) gotAnswer(msg []byte, endpoint string, now time.Time) (key wgkey.Public, ok bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	p := h.byOwn[receiverIndex(msg)]
	if p == nil {
		return key, false
	}
	h.settleOwn(p)
	if msg[0] != typeResponse {
		h.forgetTheirs(p)
		return key, false
	}
	if rtt := p.own.roundTrip(endpoint, now); rtt > 0 {
		p.rtt = rtt
	}
	_, relayed := relayedKey(endpoint)
	h.completed(p, relayed)
	return p.key, true
}

// gotTransport notes the first transport message of a session that a peer began. ok is set for such a one.
func (h *handshakes) gotTransport(index uint32, relayed bool, now time.Time) (key wgkey.Public, ok bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if now.Sub(h.swept) > time.Second {
		h.swept = now
		for _, p := range h.byResponse {
			if now.Sub(p.answered) >= confirmWithin {
				h.settleResponse(p)
			}
		}
	}
	p := h.byResponse[index]
	if p == nil {
		return key, false
	}
	p.rtt = now.Sub(p.answered)
	h.settleResponse(p)
	h.completed(p, relayed)
	return p.key, true
}

func (h *handshakes) completed(p *peerHandshake, relayed bool) {
	p.tryingFrom = time.Time{}
	if p.relayed++; !relayed {
		p.relayed = 0
	}
}

// isFailing reports whether initiations to a peer have been unanswered for 5 s, and it is still being tried.
func (h *handshakes) isFailing(key wgkey.Public, now time.Time) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	p := h.peers[key]
	return p != nil && p.waiting && now.Sub(p.tryingFrom) >= answerWithin && now.Sub(p.own.sent) < failAfter
}

// isRelayed reports whether the last handshake with a peer was completed by the relay.
func (h *handshakes) isRelayed(key wgkey.Public) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	p := h.peers[key]
	return p != nil && p.relayed > 0
}

// hasBecomeRelayed reports whether the last handshake with a peer was completed by the relay and the one before was not.
func (h *handshakes) hasBecomeRelayed(key wgkey.Public) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	p := h.peers[key]
	return p != nil && p.relayed == 1
}

// settleOwn forgets the initiation of ours that waits for an answer, if any.
func (h *handshakes) settleOwn(p *peerHandshake) {
	if !p.waiting {
		return
	}
	p.waiting = false
	for i := range p.own.ways {
		if e := p.own.ways[i].endpoint; e != "" && h.byEndpoint[e] == p {
			delete(h.byEndpoint, e)
		}
	}
	delete(h.byOwn, p.own.index)
	h.unanswered.Store(int32(len(h.byOwn)))
}

// settleResponse forgets the response of ours that waits for its confirmation, if any.
func (h *handshakes) settleResponse(p *peerHandshake) {
	if !p.answered.IsZero() {
		delete(h.byResponse, p.response)
		p.answered = time.Time{}
		h.unconfirmed.Store(int32(len(h.byResponse)))
	}
}
