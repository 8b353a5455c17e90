package tunnel

import (
	"sync"
	"time"

	"golang.zx2c4.com/wireguard/conn"

	"culvert.dev/culvert/internal/wgkey"
)

// How UDP and the relay stand in for each other.
//
// A peer's packets go to one endpoint, and wireguard-go moves that to wherever the peer's authenticated packets come from.
// What moves a peer from one way to the other is therefore a handshake that the peer answers by the other way: an initiation
// goes by both ways where there are two and the answer is open. The peer answers the copy that arrives first, there; the
// other is a replay to it and is dropped.
//
//	in use    attempt   at once       half a second later, unless answered
//	UDP       odd       UDP           relay
//	UDP       even      relay         UDP
//	relay     odd       UDP, relay
//	relay     even      relay         UDP
//	both      any       UDP, relay
//
// The peers with a route fit in with that. Theirs tells what is in use, where UDP is the way of the route; by ViaRelay it is
// the configured Endpoint, as without route. That only adds copies to initiations that are due, to an address that somebody
// has written down: other ways are for those to try who set routes, and no handshake is begun to seek them. An answer that
// comes by UDP from where no way is accepted moves the peer there, until the next SetRoute.
//
// So UDP that works costs the relay nothing; UDP that has died is replaced within the first attempt; and a peer that is
// relayed goes to UDP with the next handshake after that works (again). The relay leads every second attempt for peers that
// hear our UDP but cannot answer by it: the UDP copy would arrive first each time, and the answer to it never.
//
// The end that began a session renews it, so that of a relayed pair the end that knows an address of the other may never
// initiate. Having answered by the relay it therefore initiates itself a little later, once a minute at most. With that,
// two ends that know each other's address and sit behind NATs punch their holes although they are connected already.
//
// The end that began tries again a little later too, but only when the peer has just become a relayed one: its first
// initiation by UDP may simply have been lost, or have come before the peer was there, and the next is due in two minutes.
const (
	// lead is by how much the first copy goes ahead of the second. It is above most round trips, so that the second copy is
	// rarely sent in vain, and low enough for a relayed start in about half a second.
	lead = 500 * time.Millisecond

	// seekAfter is when an end that has answered initiates itself: later than the 5 s that wireguard-go lets pass between
	// two handshake messages.
	seekAfter = 6 * time.Second

	// seekLater is the same for the end that began. The other has then had its turn: they must not both initiate at once.
	seekLater = seekAfter + time.Second

	// seekEvery is the least time between two such attempts: two ends that both make them would answer each other for ever.
	seekEvery = time.Minute
)

// inTurn says by which ways an initiation that is meant for an endpoint goes: at once by the given ways, then by the late
// one. direct is nil if nothing is known beside a relay endpoint. both is set for a peer whose packets go both ways.
func inTurn(number int, to conn.Endpoint, relayed *relayEndpoint, direct conn.Endpoint, both bool) (now []conn.Endpoint, late conn.Endpoint) {
	odd := number%2 == 1
	_, byRelay := to.(*relayEndpoint)
	switch {
	case !byRelay && both:
		return []conn.Endpoint{to, relayed}, nil
	case !byRelay && odd:
		return []conn.Endpoint{to}, relayed
	case !byRelay:
		return []conn.Endpoint{relayed}, to
	case direct == nil:
		return []conn.Endpoint{relayed}, nil
	case odd:
		return []conn.Endpoint{direct, relayed}, nil
	}
	return []conn.Endpoint{relayed}, direct
}

// sendInitiation sends an initiation that wireguard-go has made. The error is that of the way it meant.
func (w *wire) sendInitiation(msg []byte, to conn.Endpoint) error {
	to, both := underRoute(to)
	a, ok := w.shakes.begin(msg, string(to.DstToBytes()), time.Now())
	if !ok {
		return w.carry([][]byte{msg}, to)
	}
	ways, late := []conn.Endpoint{to}, conn.Endpoint(nil)
	relayed, direct := w.link.ways(a.key)
	if relayed != nil {
		relayed.sessions.begun.Store(a.index)
		ways, late = inTurn(a.number, to, relayed, direct, both)
	}
	wait := time.Duration(0) // if none of the ways takes it
	var err error
	for _, ep := range ways {
		switch taken, e := w.sendCopy(a, ep); {
		case taken:
			wait = lead
		case ep == to:
			err = e
		}
	}
	if late != nil {
		time.AfterFunc(wait, func() { w.sendLate(a, late) })
	}
	if _, byRelay := to.(*relayEndpoint); a.failing || byRelay {
		w.failing(a.key)
	}
	return err
}

// underRoute returns the way that wireguard-go means by an endpoint, and whether the relay is meant too.
func underRoute(to conn.Endpoint) (way conn.Endpoint, both bool) {
	if e, ok := to.(*relayEndpoint); ok {
		if r := e.route.Load(); r != nil && r.raw != nil {
			return r.raw, r.via == ViaBoth
		}
	}
	return to, false
}

// sendLate sends the initiation of an attempt by another way than the one that wireguard-go meant.
func (w *wire) sendLate(a attempt, to conn.Endpoint) {
	if w.port() == 0 {
		return
	}
	if _, err := w.sendCopy(a, to); err != nil {
		w.log.Debug("copy of an initiation not sent", keyErr, err)
	}
}

// sendCopy sends the initiation of an attempt to an endpoint, if it is still wanted there. What the relay does not take is
// held back, which is no error.
func (w *wire) sendCopy(a attempt, to conn.Endpoint) (taken bool, err error) {
	msg := w.shakes.goes(a.key, a.index, string(to.DstToBytes()), time.Now())
	if msg == nil {
		return false, nil
	}
	e, byRelay := to.(*relayEndpoint)
	if !byRelay {
		err = w.carry([][]byte{msg}, to)
		return err == nil, err
	}
	if !w.link.send(e, [][]byte{msg}) {
		w.hold(a, e)
		return false, nil
	}
	w.callAgain(a, e, 0)
	return true, nil
}

// carryInitiation sends an initiation of ours again to where the peer's came from.
func (w *wire) carryInitiation(msg []byte, to conn.Endpoint) {
	if err := w.carry([][]byte{msg}, to); err != nil {
		w.log.Debug("initiation not repeated", keyErr, err)
	}
}

// sendResponse sends an answer of wireguard-go's to a peer's initiation to where that came from: a relayed one to the peer that
// it was made for, whatever key the relay gave with the initiation.
func (w *wire) sendResponse(msg []byte, to conn.Endpoint) error {
	now := time.Now()
	key := w.shakes.sentResponse(msg, string(to.DstToBytes()), now)
	_, byRelay := to.(*relayEndpoint)
	e := w.link.of(key)
	switch {
	case e == nil:
	case e.route.Load() != nil:
		e.sessions.add(senderIndex(msg))
		return w.sendRoutedResponse(msg, to, e)
	case byRelay:
		to = e
		w.settle(key, senderIndex(msg), to, now) // before the session's first message
		w.seekUDP(key, seekAfter)
	default:
		e.sessions.add(senderIndex(msg))
	}
	return w.carry([][]byte{msg}, to)
}

// sendRoutedResponse answers the initiation of a peer with a route. One that came by UDP is answered by the relay too, since a
// way may have died in one direction: the peer drops the second answer. wireguard-go, which has moved the peer to the way of
// the initiation, is told again of the one endpoint, unless the peer was somewhere else.
func (w *wire) sendRoutedResponse(msg []byte, to conn.Endpoint, e *relayEndpoint) error {
	answer := [][]byte{msg}
	if _, byRelay := to.(*relayEndpoint); byRelay {
		return w.carry(answer, e)
	}
	if w.link.lookUp(wayOf(to)).owner == e {
		e.peer.Load().SetEndpointFromPacket(e)
	}
	err := w.carry(answer, to)
	w.link.send(e, answer)
	return err
}

// seekUDP begins a handshake with a relayed peer after a while, if it has an address to be sought at and is still relayed then.
// For a peer with a route that is not this one's business.
func (w *wire) seekUDP(key wgkey.Public, after time.Duration) {
	if _, direct := w.link.ways(key); direct == nil || w.link.isRouted(key) || !w.shakes.seek(key, time.Now()) {
		return
	}
	time.AfterFunc(after, func() {
		if w.port() != 0 && w.shakes.isRelayed(key) && !w.link.isRouted(key) {
			w.initiate(key)
		}
	})
}

// try finds out whether a relayed peer is reached by UDP: by the initiation that is on the way to it, or by another one.
func (w *wire) try(key wgkey.Public, direct conn.Endpoint) {
	a, ok := w.shakes.pending(key)
	if !ok {
		w.seekUDP(key, seekAfter)
		return
	}
	w.sendLate(a, direct)
}

// Initiations that no relay took are held back until one does. wireguard-go would make the next one 5 s later, which is long
// for a node that starts and whose relay connects a moment after its peers have been called.
const (
	holdRetry = 50 * time.Millisecond // one attempt for all: nothing is taken while no relay is connected
	holdFor   = 5 * time.Second       // then wireguard-go has made another one
	holdBurst = 256                   // at a time: a relay that has just connected is not to be flooded
)

// heldBack is the initiations that wait for a relay.
type heldBack struct {
	mu      sync.Mutex // guards the following
	waiting map[wgkey.Public]heldInitiation
	ticking bool
}

type heldInitiation struct {
	attempt
	to    *relayEndpoint
	until time.Time
}

// hold keeps an initiation for later. It replaces the one before for the same peer.
func (w *wire) hold(a attempt, to *relayEndpoint) {
	h := &w.held
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.waiting == nil {
		h.waiting = map[wgkey.Public]heldInitiation{}
	}
	h.waiting[a.key] = heldInitiation{a, to, time.Now().Add(holdFor)}
	if !h.ticking {
		h.ticking = true
		time.AfterFunc(holdRetry, w.sendHeld)
	}
}

// sendHeld sends some of what is held back, until the relay refuses again.
func (w *wire) sendHeld() {
	h := &w.held
	h.mu.Lock()
	defer h.mu.Unlock()
	now, sent := time.Now(), 0
	for key, i := range h.waiting {
		msg := w.shakes.again(i.key, i.index)
		switch {
		case msg == nil || w.port() == 0:
		case now.After(i.until):
			w.link.lost.Add(1)
		case sent == holdBurst || !w.link.send(i.to, [][]byte{msg}):
			time.AfterFunc(holdRetry, w.sendHeld)
			return
		default:
			w.shakes.left(i.key, i.index, string(i.to.DstToBytes()), now)
			w.callAgain(i.attempt, i.to, 0)
			sent++
		}
		delete(h.waiting, key)
	}
	h.ticking = false
}

// callAgainAfter is when an initiation that a relay took is sent once more and again, unless answered, each counted from the
// one before. Two nodes that start together come to the relay at different moments, and a relay keeps nothing for a peer that
// is not there yet. To a peer that has heard the first one the others are replays. They are a second apart since a pool of
// relays asks no more often where a peer is, and not made after the second attempt: that peer is away.
func callAgainAfter(n int) (time.Duration, bool) {
	switch n {
	case 0:
		return 300 * time.Millisecond, true
	case 1:
		return 1050 * time.Millisecond, true
	case 2:
		return 1500 * time.Millisecond, true
	}
	return 0, false
}

// callAgain plans the n-th repetition of an initiation, n from 0.
func (w *wire) callAgain(a attempt, to *relayEndpoint, n int) {
	after, ok := callAgainAfter(n)
	if !ok || a.number > 2 {
		return
	}
	time.AfterFunc(after, func() {
		if w.port() == 0 {
			return
		}
		if msg := w.shakes.repeats(a.key, a.index, string(to.DstToBytes())); msg != nil && w.link.send(to, [][]byte{msg}) {
			w.callAgain(a, to, n+1)
		}
	})
}
