package tunnel

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"testing"

	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"

	"culvert.dev/culvert/internal/wgkey"
)

// hub joins binds by their addresses. It loses nothing: who sends waits until it is taken.
type hub struct {
	mu    sync.Mutex
	binds map[string]*hubBind
}

type hubBind struct {
	hub    *hub
	at     memEndpoint
	inbox  chan hubBatch
	closed chan struct{}
	taken  atomic.Int64 // datagrams
}

type hubBatch struct {
	from conn.Endpoint
	msgs [][]byte
}

func (h *hub) bind(at string) *hubBind {
	h.mu.Lock()
	defer h.mu.Unlock()
	b := &hubBind{hub: h, at: memEndpoint{netip.MustParseAddrPort(at)}, inbox: make(chan hubBatch), closed: make(chan struct{})}
	if h.binds == nil {
		h.binds = map[string]*hubBind{}
	}
	h.binds[at] = b
	return b
}

func (b *hubBind) Open(uint16) ([]conn.ReceiveFunc, uint16, error) {
	b.hub.mu.Lock()
	closed := make(chan struct{})
	b.closed = closed
	b.hub.mu.Unlock()
	return []conn.ReceiveFunc{func(bufs [][]byte, sizes []int, eps []conn.Endpoint) (int, error) {
		select {
		case <-closed:
			return 0, net.ErrClosed
		case batch := <-b.inbox:
			for i, m := range batch.msgs {
				sizes[i], eps[i] = copy(bufs[i], m), batch.from
			}
			b.taken.Add(int64(len(batch.msgs)))
			return len(batch.msgs), nil
		}
	}}, 1, nil
}

func (b *hubBind) Send(bufs [][]byte, to conn.Endpoint) error {
	b.hub.mu.Lock()
	dst := b.hub.binds[to.DstToString()]
	closed := dst.closed
	b.hub.mu.Unlock()
	batch := hubBatch{from: b.at}
	for _, m := range bufs {
		batch.msgs = append(batch.msgs, slices.Clone(m))
	}
	select {
	case dst.inbox <- batch:
	case <-closed:
	}
	return nil
}

func (b *hubBind) Close() error {
	b.hub.mu.Lock()
	defer b.hub.mu.Unlock()
	select {
	case <-b.closed:
	default:
		close(b.closed)
	}
	return nil
}

func (b *hubBind) ParseEndpoint(s string) (conn.Endpoint, error) {
	at, err := netip.ParseAddrPort(s)
	return memEndpoint{at}, err
}

func (b *hubBind) SetMark(uint32) error { return nil }
func (b *hubBind) BatchSize() int       { return conn.IdealBatchSize }

// star is a tunnel with so many peers, which have called it.
type star struct {
	*lineEnd
	peers []*lineEnd
}

func starPeer(i int) netip.Addr {
	return netip.AddrFrom4([4]byte{10, 9, 1 + byte(i>>7), 1 + byte(i&127)})
}

func newStar(t testing.TB, peers int) *star {
	h := new(hub)
	key := newKey(t)
	start := func(bind conn.Bind, cfg Config) *lineEnd {
		e := new(lineEnd)
		e.dev = newBatchTUN(func(packets [][]byte) {
			if f := e.deliver.Load(); f != nil {
				(*f)(packets)
			}
			e.arrived.Add(int64(len(packets)))
		})
		cfg.Bind = bind
		var err error
		if e.Tunnel, err = New(e.dev, cfg); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { e.Close() })
		if err := e.Start(); err != nil {
			t.Fatal(err)
		}
		return e
	}
	centre := Config{PrivateKey: key, inFlight: 4 * batchLen} // the least there is
	keys := make([]Config, peers)
	for i := range keys {
		keys[i] = Config{PrivateKey: newKey(t), Peers: []Peer{{PublicKey: key.Public(), AllowedIPs: prefixes("10.9.0.1/32"), Endpoint: "192.0.2.1:1"}}}
		centre.Peers = append(centre.Peers, Peer{PublicKey: keys[i].PrivateKey.Public(), AllowedIPs: prefixes(starPeer(i).String() + "/32")})
	}
	s := &star{lineEnd: start(h.bind("192.0.2.1:1"), centre)}
	for i, cfg := range keys {
		p := start(h.bind(fmt.Sprintf("198.51.%d.%d:1", 100+i>>7, 1+i&127)), cfg)
		p.dev.out <- packetsTo(addrA, starPeer(i), 1, 60)
		s.peers = append(s.peers, p)
	}
	until(t, "sessions with all", func() bool { return s.arrived.Load() == int64(peers) })
	return s
}

// feedAll has every peer send so many packets, each in batches of its own.
func (s *star) feedAll(packets int) *sync.WaitGroup {
	var fed sync.WaitGroup
	for i, p := range s.peers {
		fed.Go(func() { feed(p.dev, packetsTo(addrA, starPeer(i), packets, 60)) })
	}
	return &fed
}

// Batches that are in nobody's queue, since each peer's receiver has taken one, are in flight all the same.
func TestManyPeersHoldFewBuffers(t *testing.T) {
	const peers, each = 24, batchLen
	s := newStar(t, peers)
	s.neverByClock()
	release := make(chan struct{})
	hold := func([][]byte) { <-release }
	s.deliver.Store(&hold)
	before := s.arrived.Load()
	bind := s.wire.Bind.(*hubBind)
	bind.taken.Store(0)
	fed := s.feedAll(each)
	f := s.wire.in
	until(t, "the receiver to be held", func() bool {
		if f.waiting.Load() == 0 || s.queues.decryption.Len() > 0 {
			return bind.taken.Load() == peers*each
		}
		f.correct(f.queue.Load())
		return f.waiting.Load() > 0 && f.n.Load() > f.limit/2
	})
	if taken := bind.taken.Load(); taken > f.limit+(2+unqueued)*batchLen {
		t.Errorf("%d packets are in flight, the limit is %d", taken, f.limit)
	}
	close(release)
	s.deliver.Store(nil)
	fed.Wait()
	until(t, "the packets", func() bool { return s.arrived.Load()-before == peers*each })
}

// While the receiver is held, the sockets can be closed, and opened again.
func TestSocketsCloseWhileTheReceiverIsHeld(t *testing.T) {
	a, b := newLinePair(t, packetsInFlight())
	a.neverByClock()
	release := make(chan struct{})
	hold := func([][]byte) { <-release }
	a.deliver.Store(&hold)
	before := a.arrived.Load()
	n := 4 * packetsInFlight()
	feed(b.dev, packetsTo(addrA, addrB, n, 60))
	until(t, "the receiver", func() bool { return a.wire.in.waiting.Load() > 0 })
	if err := a.Tunnel.dev.BindClose(); err != nil { // it waits for the receiver
		t.Fatal(err)
	}
	if err := a.Tunnel.dev.BindUpdate(); err != nil {
		t.Fatal(err)
	}
	close(release)
	a.deliver.Store(nil)
	until(t, "the packets", func() bool { return a.arrived.Load()-before == int64(n) })
	burstIn(t, a, b, n) // it is held again
}

// BenchmarkMeasure is what a look at the queues costs.
func BenchmarkMeasure(b *testing.B) {
	for _, peers := range []int{1, 200, 10_000} {
		b.Run(fmt.Sprint(peers), func(b *testing.B) {
			dev := device.NewDevice(newBatchTUN(nil), newMemNet(0).bind(addressA), bridge(discard))
			defer dev.Close()
			q, err := newQueues(dev)
			if err != nil {
				b.Fatal(err)
			}
			for i := range peers {
				key := device.NoisePublicKey{9, byte(i), byte(i >> 8)}
				p, err := dev.NewPeer(key)
				if err != nil {
					b.Fatal(err)
				}
				q.add(wgkey.Public(key), p)
			}
			b.ReportAllocs()
			for b.Loop() {
				if q.inbound() != 0 {
					b.Fatal("there is something")
				}
			}
		})
	}
}
