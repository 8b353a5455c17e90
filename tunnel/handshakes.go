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

	// unanswered and unconfirmed count own initiations and responses. They let the receive path skip the lock.
	unanswered, unconfirmed atomic.Int32

	mu         sync.Mutex // guards the following
	peers      map[wgkey.Public]*peerHandshake
	byEndpoint map[string]*peerHandshake // own initiations that wait for an answer
	byOwn      map[uint32]*peerHandshake // the same, by the index in the initiation
	byResponse map[uint32]*peerHandshake // own responses that wait for the first transport message
	swept      time.Time                 // when byResponse was last rid of those that nobody confirms
}

type peerHandshake struct {
	key wgkey.Public
	to  macKey

	own      ownInitiation
	message  []byte // the initiation itself
	endpoint string // key in byEndpoint while it is unanswered, else empty

	response   uint32 // key in byResponse while answered is set
	answered   time.Time
	rtt        time.Duration
	tryingFrom time.Time // first of the initiations in a row that brought no success; zero after one
}

func newHandshakes(self wgkey.Public) *handshakes {
	return &handshakes{
		self:       self,
		selfTo:     macKeyOf(self),
		peers:      map[wgkey.Public]*peerHandshake{},
		byEndpoint: map[string]*peerHandshake{},
		byOwn:      map[uint32]*peerHandshake{},
		byResponse: map[uint32]*peerHandshake{},
	}
}

// setPeers replaces the set of peers and keeps what is known of those that stay.
func (h *handshakes) setPeers(keys []wgkey.Public) {
	h.mu.Lock()
	defer h.mu.Unlock()
	old := h.peers
	h.peers = make(map[wgkey.Public]*peerHandshake, len(keys))
	for _, k := range keys {
		p := old[k]
		if p == nil {
			p = &peerHandshake{key: k, to: macKeyOf(k)}
		}
		h.peers[k] = p
		delete(old, k)
	}
	for _, p := range old {
		h.settleOwn(p)
		h.settleResponse(p)
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

// addressee finds the peer that a handshake message of ours was made for.
func (h *handshakes) addressee(msg []byte, endpoint string) *peerHandshake {
	if p := h.byEndpoint[endpoint]; p != nil && p.to.addressed(msg) {
		return p
	}
	for _, p := range h.peers {
		if p.to.addressed(msg) {
			return p
		}
	}
	return nil
}

// sentInitiation notes an initiation of ours. failing is set when the peer has not answered for failAfter.
func (h *handshakes) sentInitiation(msg []byte, endpoint string, now time.Time) (key wgkey.Public, failing bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	p := h.addressee(msg, endpoint)
	if p == nil {
		return key, false
	}
	h.settleOwn(p)
	if other := h.byEndpoint[endpoint]; other != nil {
		h.settleOwn(other)
	}
	if p.tryingFrom.IsZero() || now.Sub(p.own.sent) > failAfter { // attempts that belong together are 5 s apart
		p.tryingFrom = now
	}
	p.own = ownInitiation{sent: now, index: senderIndex(msg), lower: bytes.Compare(h.self[:], p.key[:]) < 0}
	p.message = append(p.message[:0], msg...)
	p.endpoint = endpoint
	h.byEndpoint[endpoint] = p
	h.byOwn[p.own.index] = p
	h.unanswered.Store(int32(len(h.byEndpoint)))
	return p.key, now.Sub(p.tryingFrom) >= failAfter
}

// sentResponse notes that wireguard-go has accepted a peer's initiation, which ends our own.
func (h *handshakes) sentResponse(msg []byte, endpoint string, now time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	p := h.addressee(msg, endpoint)
	if p == nil {
		return
	}
	h.settleOwn(p)
	h.settleResponse(p)
	p.response, p.answered = senderIndex(msg), now
	h.byResponse[p.response] = p
	h.unconfirmed.Store(int32(len(h.byResponse)))
}

// gotInitiation judges an incoming initiation. With insist it returns a copy of ours, to be sent to where it came from.
func (h *handshakes) gotInitiation(msg []byte, endpoint string, now time.Time) (v verdict, ours []byte) {
	h.mu.Lock()
	defer h.mu.Unlock()
	p := h.byEndpoint[endpoint]
	if p == nil || !h.selfTo.addressed(msg) {
		return letIn, nil
	}
	switch v = p.own.judge(now); v {
	case letIn:
		h.settleOwn(p)
	case insist:
		ours = bytes.Clone(p.message)
	}
	return v, ours
}

// gotAnswer notes a response or cookie reply. It may come from elsewhere than the initiation went to.
func (h *handshakes) gotAnswer(msg []byte, now time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	p := h.byOwn[receiverIndex(msg)]
	if p == nil {
		return
	}
	h.settleOwn(p)
	if msg[0] != typeResponse {
		return
	}
	p.tryingFrom = time.Time{}
	if p.own.copies == 0 { // else nobody knows which copy was answered (RFC 6298 section 3)
		p.rtt = now.Sub(p.own.sent)
	}
}

// gotTransport notes the first transport message of a session that a peer began.
func (h *handshakes) gotTransport(index uint32, now time.Time) {
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
		return
	}
	p.tryingFrom = time.Time{}
	p.rtt = now.Sub(p.answered)
	h.settleResponse(p)
}

// settleOwn forgets the initiation of ours that waits for an answer, if any.
func (h *handshakes) settleOwn(p *peerHandshake) {
	if p.endpoint != "" {
		delete(h.byEndpoint, p.endpoint)
		delete(h.byOwn, p.own.index)
		p.endpoint = ""
		h.unanswered.Store(int32(len(h.byEndpoint)))
	}
}

// settleResponse forgets the response of ours that waits for its confirmation, if any.
func (h *handshakes) settleResponse(p *peerHandshake) {
	if !p.answered.IsZero() {
		delete(h.byResponse, p.response)
		p.answered = time.Time{}
		h.unconfirmed.Store(int32(len(h.byResponse)))
	}
}
