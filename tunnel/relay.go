package tunnel

import (
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"golang.zx2c4.com/wireguard/conn"

	"culvert.dev/culvert/internal/wgkey"
)

// Relay carries datagrams to peers by their keys, for peers that cannot be reached by UDP. Its methods are called
// concurrently.
type Relay interface {
	// Send hands over datagrams, at most 128, for one peer. They are the caller's again when Send returns. An error means
	// that none was taken, because no relay is connected. Send may wait a moment for room where it is given data, see HastyRelay;
	// given a handshake message, which comes alone, it must not.
	Send(to wgkey.Public, datagrams [][]byte) error

	// Receive waits for at least one datagram and fills in as many as have come: bufs[i][:sizes[i]] is from from[i]. The
	// slices are equally long. It returns net.ErrClosed once done is closed, without having taken anything.
	Receive(done <-chan struct{}, bufs [][]byte, sizes []int, from []wgkey.Public) (n int, err error)
}

// relayLink joins a Relay to the wire. A nil one stands for none.
//
// Datagrams from keys that are no peers are dropped before wireguard-go sees them, so that endpoints exist for peers only.
type relayLink struct {
	relay Relay
	hasty HastyRelay    // the same; nil if it is none
	lost  atomic.Uint64 // datagrams that the relay did not take

	accepting atomic.Uint64 // counts the changes of byWay

	mu    sync.RWMutex // guards the following
	peers map[wgkey.Public]*relayEndpoint
	byWay map[Way]acceptedWay
}

func newRelayLink(r Relay) *relayLink {
	if r == nil {
		return nil
	}
	hasty, _ := r.(HastyRelay)
	return &relayLink{relay: r, hasty: hasty, peers: map[wgkey.Public]*relayEndpoint{}, byWay: map[Way]acceptedWay{}}
}

// add makes a peer known, reached by UDP at direct if that is not nil.
func (l *relayLink) add(key wgkey.Public, direct conn.Endpoint) {
	if l == nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	e := l.peers[key]
	if e == nil {
		e = newRelayEndpoint(key)
		l.peers[key] = e
	}
	e.direct = direct
}

func (l *relayLink) remove(key wgkey.Public) {
	if l == nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if e := l.peers[key]; e != nil {
		e.route.Store(nil)
		l.forgetLocked(e)
		delete(l.peers, key)
	}
}

// of returns the endpoint of a peer, nil if the key is not one's.
func (l *relayLink) of(key wgkey.Public) *relayEndpoint {
	if l == nil {
		return nil
	}
	l.mu.RLock()
	defer l.mu.RUnlock()
	return l.peers[key]
}

// ways returns by what a peer can be reached: nil where there is no such way.
func (l *relayLink) ways(key wgkey.Public) (relayed *relayEndpoint, direct conn.Endpoint) {
	if l == nil {
		return nil, nil
	}
	l.mu.RLock()
	defer l.mu.RUnlock()
	if relayed = l.peers[key]; relayed != nil {
		direct = relayed.direct
	}
	return relayed, direct
}

// parse returns the endpoint that a text stands for. That of a peer is always the same value.
func (l *relayLink) parse(key wgkey.Public) (conn.Endpoint, error) {
	if l == nil {
		return nil, fmt.Errorf("endpoint of %s: no relay is configured", key.Short())
	}
	if e := l.of(key); e != nil {
		return e, nil
	}
	return newRelayEndpoint(key), nil
}

// send hands datagrams to the relay. What it does not take is lost like a datagram on the network: an error would make
// wireguard-go complain about every packet for as long as the relay is away.
func (l *relayLink) send(e *relayEndpoint, datagrams [][]byte) (taken bool) {
	return l.relay.Send(e.key, datagrams) == nil
}

// receiver returns a ReceiveFunc that ends when done is closed.
func (l *relayLink) receiver(done <-chan struct{}) conn.ReceiveFunc {
	from := make([]wgkey.Public, conn.IdealBatchSize)
	return func(bufs [][]byte, sizes []int, eps []conn.Endpoint) (int, error) {
		n := min(len(bufs), len(from))
		n, err := l.relay.Receive(done, bufs[:n], sizes[:n], from[:n])
		select {
		case <-done:
			return 0, net.ErrClosed
		default:
		}
		if err != nil {
			return 0, fmt.Errorf("receive from relay: %w", err)
		}
		l.label(bufs[:n], sizes[:n], from[:n], eps[:n])
		return n, nil
	}
}

// label gives received datagrams their endpoints and empties those of strangers.
func (l *relayLink) label(bufs [][]byte, sizes []int, from []wgkey.Public, eps []conn.Endpoint) {
	l.mu.RLock()
	defer l.mu.RUnlock()
	var now time.Time
	var e *relayEndpoint
	var count tally
	defer func() { count.end() }()
	for i := range bufs {
		if e == nil || e.key != from[i] {
			e = l.peers[from[i]]
		}
		if e == nil {
			sizes[i] = 0
			continue
		}
		eps[i] = e
		if sizes[i] >= transportMinLen && bufs[i][0] == typeTransport {
			count.count(&e.traffic.rxRelay)
		}
		if e.settled.Load() != nil {
			if now.IsZero() {
				now = time.Now()
			}
			eps[i] = e.endpointFor(bufs[i][:sizes[i]], now)
		}
	}
}
