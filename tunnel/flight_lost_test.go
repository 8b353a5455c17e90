package tunnel

import (
	"bytes"
	"net/netip"
	"testing"
	"time"

	"golang.zx2c4.com/wireguard/conn"

	"culvert.dev/culvert/internal/wgkey"
)

// neverByClock has nobody go on by the clock, so that a count that is not corrected shows as a standstill.
func (e *lineEnd) neverByClock() {
	e.wire.in.patience, e.wire.out.patience = time.Hour, time.Hour
}

// exchange sends so many packets both ways, and waits for them.
func exchange(t testing.TB, a, b *lineEnd, packets int) {
	t.Helper()
	x, y := a.arrived.Load(), b.arrived.Load()
	go feed(b.dev, packetsTo(addrA, addrB, packets, 60))
	feed(a.dev, packetsTo(addrB, addrA, packets, 60))
	until(t, "the packets", func() bool { return a.arrived.Load()-x >= int64(packets) && b.arrived.Load()-y >= int64(packets) })
}

// What wireguard-go drops without a word on the way in is not counted for ever.
func TestWhatIsDroppedOnTheWayInHoldsNothingBack(t *testing.T) {
	altered := func(at int) func([]byte) [][]byte {
		return func(msg []byte) [][]byte {
			if msg[0] != typeTransport {
				return nil
			}
			m := bytes.Clone(msg)
			m[(at+len(m))%len(m)] ^= 0x55
			return [][]byte{m, m}
		}
	}
	handshake := func(kind byte, n int) func([]byte) [][]byte {
		m := make([]byte, n)
		m[0] = kind
		return func([]byte) [][]byte { return [][]byte{m} }
	}
	for name, besides := range map[string]func([]byte) [][]byte{
		"replays":               func(msg []byte) [][]byte { return [][]byte{msg, msg} },
		"forgeries":             altered(-1),
		"sessions unknown here": altered(4),
		"without content":       handshake(typeTransport, 16),
		"initiations, bad MAC":  handshake(typeInitiation, initiationLen),
		"responses, bad MAC":    handshake(typeResponse, responseLen),
		"nothing WireGuard has": handshake(200, 100),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a, b := newLinePair(t, packetsInFlight())
			a.neverByClock()
			b.neverByClock()
			for _, l := range []*line{a.bind.in, b.bind.in} {
				l.set(func(l *line) { l.besides = besides })
			}
			exchange(t, a, b, 5*packetsInFlight())
		})
	}
}

// Keepalives are dropped on the way in, and are not counted in on the way out.
func TestKeepalivesHoldNothingBack(t *testing.T) {
	a, b := newLinePair(t, packetsInFlight())
	a.neverByClock()
	b.neverByClock()
	for range 4 * packetsInFlight() {
		peerOf(b.Tunnel).SendKeepalive()
	}
	exchange(t, a, b, 4*packetsInFlight())
	until(t, "the count to be right", func() bool { return a.wire.out.n.Load() == 0 && b.wire.out.n.Load() == 0 })
}

// Packets for peers that cannot be reached, or are none, hold nobody else's back. They are few in the end: of those that wait for a
// session only some stay.
func TestWhatCannotBeSentHoldsNothingBack(t *testing.T) {
	a, b := newLinePair(t, packetsInFlight())
	a.neverByClock()
	peers := []Peer{peersOfTunnel(a)[0]}
	for i, addr := range []string{"10.9.1.1", "10.9.1.2", "10.9.1.3"} {
		p := Peer{PublicKey: newKey(t).Public(), AllowedIPs: prefixes(addr + "/32")}
		if i > 0 {
			p.Endpoint = "192.0.2.99:1" // nobody there
		}
		peers = append(peers, p)
	}
	if err := a.SetPeers(peers); err != nil {
		t.Fatal(err)
	}
	most := 0
	for range 20 {
		for _, to := range []string{"10.9.1.1", "10.9.1.2", "10.9.1.3", "10.200.0.1" /* nobody's */} {
			feed(a.dev, packetsTo(netip.MustParseAddr(to), addrA, packetsInFlight(), 60))
			most = max(most, a.queues.stagedNow())
		}
		exchange(t, a, b, 1000)
	}
	if limit := 4 * packetsInFlight() / batchLen; most == 0 || most > limit {
		t.Errorf("%d batches were waiting for a session, want some and %d at most", most, limit)
	}
}

// stagedNow is how many batches wait for a session.
func (q *queues) stagedNow() (batches int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for i := range q.peers {
		batches += q.peers[i].staged.Len()
	}
	return batches
}

func peersOfTunnel(e *lineEnd) (out []Peer) {
	for _, p := range e.peers.list {
		out = append(out, *p)
	}
	return out
}

// A bind that refuses every packet, or a peer that has lost its endpoint, is no reason to stop.
func TestWhatIsRefusedHoldsNothingBack(t *testing.T) {
	a, b := newLinePair(t, packetsInFlight())
	a.neverByClock()
	b.neverByClock()
	peerOf(a.Tunnel).SetEndpointFromPacket(nil)
	feed(a.dev, packetsTo(addrB, addrA, 10*packetsInFlight(), 60))
	before := a.arrived.Load()
	b.dev.out <- packetsTo(addrA, addrB, 1, 60) // tells a the endpoint again
	until(t, "the packet", func() bool { return a.arrived.Load() > before })
	exchange(t, a, b, 4*packetsInFlight())
}

// The peer goes, comes back, moves, and the sockets close and open, with packets on the way in both directions all the time.
func TestChangesUnderTraffic(t *testing.T) {
	a, b := newLinePair(t, packetsInFlight())
	a.neverByClock()
	b.neverByClock()
	peers := peersOfTunnel(b)
	other, err := wgkey.NewPrivate()
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	fed := make(chan struct{})
	for _, f := range []func(){
		func() { feed(a.dev, packetsTo(addrB, addrA, batchLen, 60)) },
		func() { feed(b.dev, packetsTo(addrA, addrB, batchLen, 60)) },
	} {
		go func() {
			defer func() { fed <- struct{}{} }()
			for {
				select {
				case <-done:
					return
				default:
					f()
				}
			}
		}()
	}
	moves := func() { // the same end by another address
		from := memEndpoint{netip.MustParseAddrPort("192.0.2.77:7")}
		b.bind.mu.Lock()
		b.bind.from = conn.Endpoint(from)
		b.bind.mu.Unlock()
	}
	flows := func() {
		t.Helper()
		x, y := a.arrived.Load(), b.arrived.Load()
		until(t, "packets to flow", func() bool { return a.arrived.Load() > x+1000 && b.arrived.Load() > y+1000 })
	}
	for range 3 {
		flows()
		if err := b.RemovePeer(peers[0].PublicKey); err != nil {
			t.Fatal(err)
		}
		if err := b.AddPeer(Peer{PublicKey: other.Public(), AllowedIPs: peers[0].AllowedIPs}); err != nil {
			t.Fatal(err)
		}
		if err := b.SetPeers(peers); err != nil {
			t.Fatal(err)
		}
		peerOf(a.Tunnel).ExpireCurrentKeypairs() // as after minutes: a handshake makes the next session
		flows()
		moves()
		flows()
		if err := b.Tunnel.dev.Down(); err != nil {
			t.Fatal(err)
		}
		if err := b.Tunnel.dev.Up(); err != nil {
			t.Fatal(err)
		}
		peerOf(a.Tunnel).ExpireCurrentKeypairs()
	}
	flows()
	close(done)
	<-fed
	<-fed
}
