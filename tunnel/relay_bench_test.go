package tunnel

import (
	"fmt"
	"net"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"golang.zx2c4.com/wireguard/conn"

	"culvert.dev/culvert/internal/wgkey"
)

// pipeRelay joins two keys without delay. A batch stays a batch.
type pipeRelay struct {
	self wgkey.Public
	in   chan [][]byte
	free chan [][]byte // batches that were delivered
	to   *pipeRelay
	rest [][]byte
	used [][]byte
}

func newPipeRelays(a, b wgkey.Public) (*pipeRelay, *pipeRelay) {
	end := func(self wgkey.Public) *pipeRelay {
		r := &pipeRelay{self: self, in: make(chan [][]byte, 64), free: make(chan [][]byte, 66)}
		for range cap(r.free) {
			r.free <- newBufs(conn.IdealBatchSize, 2000)
		}
		return r
	}
	ra, rb := end(a), end(b)
	ra.to, rb.to = rb, ra
	return ra, rb
}

func (r *pipeRelay) Send(_ wgkey.Public, datagrams [][]byte) error {
	batch := <-r.to.free
	for i, d := range datagrams {
		batch[i] = append(batch[i][:0], d...)
	}
	r.to.in <- batch[:len(datagrams)]
	return nil
}

func (r *pipeRelay) Receive(done <-chan struct{}, bufs [][]byte, sizes []int, from []wgkey.Public) (int, error) {
	if len(r.rest) == 0 {
		if r.used != nil {
			r.free <- r.used[:conn.IdealBatchSize]
			r.used = nil
		}
		select {
		case <-done:
			return 0, net.ErrClosed
		case r.rest = <-r.in:
			r.used = r.rest
		}
	}
	n := min(len(r.rest), len(bufs))
	for i, d := range r.rest[:n] {
		sizes[i], from[i] = copy(bufs[i], d), r.to.self
	}
	r.rest = r.rest[n:]
	return n, nil
}

// BenchmarkTunnel moves packets from one tunnel to another, by UDP on the loopback, through a relay in memory, and by ways of
// a route: from WireGuard's socket, and from another one to another one. ns/op is per packet.
func BenchmarkTunnel(b *testing.B) {
	for _, c := range []struct {
		name  string
		by    string
		stamp bool
	}{{"udp", "udp", false}, {"udp stamped", "udp", true}, {"relay", "relay", false}, {"relay stamped", "relay", true}, {"way", "way", false}, {"socket", "socket", false}} {
		b.Run(c.name, func(b *testing.B) { benchmarkTunnel(b, c.by, c.stamp) })
	}
}

func benchmarkTunnel(b *testing.B, by string, stamp bool) {
	const size, batch = 1400, 64
	ka, kb := newKey(b), newKey(b)
	ra, rb := newPipeRelays(ka.Public(), kb.Public())
	var arrived atomic.Int64
	more := make(chan struct{}, 1)
	count := func(packets [][]byte) {
		arrived.Add(int64(len(packets)))
		select {
		case more <- struct{}{}:
		default:
		}
	}
	start := func(key wgkey.Private, relay Relay, dev *batchTUN, peer Peer) *Tunnel {
		tn, err := New(dev, Config{PrivateKey: key, Peers: []Peer{peer}, Relay: relay, Stamp: stamp, AnyPort: true})
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { tn.Close() })
		if err := tn.Start(); err != nil {
			b.Fatal(err)
		}
		return tn
	}
	there := start(kb, rb, newBatchTUN(count), Peer{PublicKey: ka.Public(), AllowedIPs: prefixes("10.9.0.1/32")})
	peer := Peer{PublicKey: kb.Public(), AllowedIPs: prefixes("10.9.0.2/32")}
	if by == "udp" {
		peer.Endpoint = fmt.Sprintf("127.0.0.1:%d", there.ListenPort())
	}
	dev := newBatchTUN(count)
	here := start(ka, ra, dev, peer)
	if by == "way" || by == "socket" {
		routeBetween(b, here, there, ka.Public(), kb.Public(), by == "socket")
	}
	packets := packetsTo(addrB, addrA, batch, size)
	dev.out <- packets
	for arrived.Load() < batch {
		<-more
	}
	b.SetBytes(size)
	b.ReportAllocs()
	b.ResetTimer()
	lost := int64(0)
	for sent := int64(batch); sent < int64(b.N)+batch; {
		for sent-lost-arrived.Load() > 8*batch {
			select {
			case <-more:
			case <-time.After(100 * ms): // the socket's buffer is small on this host
				lost = sent - arrived.Load()
			}
		}
		dev.out <- packets
		sent += batch
	}
	b.ReportMetric(float64(lost), "lost")
}

// routeBetween makes two tunnels on this host send to each other by UDP.
func routeBetween(b testing.TB, here, there *Tunnel, kh, kt wgkey.Public, beside bool) {
	at := func(t *Tunnel) (socket uint32, addr netip.AddrPort) {
		port := t.ListenPort()
		if beside {
			var err error
			if socket, port, err = t.OpenSocket(4, 0); err != nil {
				b.Fatal(err)
			}
		}
		return socket, netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), port)
	}
	sh, ah := at(here)
	st, at2 := at(there)
	if err := here.SetRoute(kt, Route{Via: ViaWay, Way: Way{sh, at2}}); err != nil {
		b.Fatal(err)
	}
	if err := there.SetRoute(kh, Route{Via: ViaWay, Way: Way{st, ah}}); err != nil {
		b.Fatal(err)
	}
}

func TestRelayedDataIsNotAllocatedFor(t *testing.T) {
	ka, kb := newKey(t).Public(), newKey(t).Public()
	ra, rb := newPipeRelays(ka, kb)
	wireOf := func(key wgkey.Public, relay Relay, peer wgkey.Public) (*wire, conn.ReceiveFunc) {
		w := &wire{Bind: fixedBind{}, log: discard, shakes: newHandshakes(key), link: newRelayLink(relay)}
		w.link.add(peer, nil)
		fns, _, err := w.Open(1)
		if err != nil {
			t.Fatal(err)
		}
		return w, fns[1]
	}
	wa, _ := wireOf(ka, ra, kb)
	wb, recv := wireOf(kb, rb, ka)
	out := newBufs(64, 1400)
	for _, b := range out {
		b[0] = typeTransport
	}
	bufs, sizes, eps := newBufs(128, 2000), make([]int, 128), make([]conn.Endpoint, 128)
	to := wa.link.of(kb)
	step := func() {
		if err := wa.Send(out, to); err != nil {
			t.Fatal(err)
		}
		if n, err := recv(bufs, sizes, eps); n != len(out) || err != nil || sizes[63] != 1400 || eps[63] != conn.Endpoint(wb.link.of(ka)) {
			t.Fatalf("%d datagrams, %v", n, err)
		}
	}
	if n := testing.AllocsPerRun(100, step); n != 0 {
		t.Errorf("%v allocations per batch", n)
	}
	wb.link.of(ka).settle(7, memEndpoint{}, time.Now())
	if n := testing.AllocsPerRun(100, func() { wa.Send(out, to); recv(bufs, sizes, eps) }); n != 0 {
		t.Errorf("%v allocations per batch after a handshake by UDP", n)
	}
}
