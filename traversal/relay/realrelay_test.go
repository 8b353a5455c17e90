package relay

import (
	"crypto/x509"
	"encoding/binary"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"runtime"
	"sync"
	"testing"
	"time"

	"culvert.dev/culvert/internal/wgkey"
	"culvert.dev/culvert/traversal/relay/relayserver"
)

// realPool starts a pool over real connections and waits until it is connected to all relays.
func realPool(t testing.TB, roots *x509.CertPool, urls ...string) *Pool {
	t.Helper()
	var servers []Server
	for _, u := range urls {
		servers = append(servers, Server{URL: u, Proxy: "none"})
	}
	p, err := NewPool(PoolConfig{Key: newKey(t), Relays: servers, Roots: roots})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	waitFor(t, "the pool to connect", func() bool {
		for _, s := range p.Status() {
			if s.State != StateConnected && s.State != StateStandby || s.RTT == 0 {
				return false
			}
		}
		return true
	})
	return p
}

// waitFor waits until f is true: real connections have no virtual time.
func waitFor(t testing.TB, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !f(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited too long for %s", what)
		}
	}
}

// realWindow is how many packets may be on the way to one pool, so that the relay's queue for it is never full.
const realWindow = 128

// TestPoolsOverRealRelays has four pools talk to each other over two relays by TLS, from several goroutines each.
func TestPoolsOverRealRelays(t *testing.T) {
	cert := newCertificate(t, "127.0.0.1")
	urls := []string{newRelay(t, newKey(t), &cert, nil), newRelay(t, newKey(t), &cert, nil)}
	const pools, each, batch = 4, 50, 20
	var all []*Pool
	for range pools {
		all = append(all, realPool(t, rootsOf(cert), urls...))
	}
	var wg sync.WaitGroup
	counts := make([]map[wgkey.Public]int, pools)
	windows := make([]chan struct{}, pools) // of packets on the way to each: a relay drops what it cannot deliver
	for i := range windows {
		windows[i] = make(chan struct{}, realWindow)
	}
	for i, p := range all {
		counts[i] = map[wgkey.Public]int{}
		wg.Go(func() {
			r := newReceiver(128, 65535)
			total := 0
			for total < (pools-1)*each*batch {
				n, err := p.Receive(nil, r.bufs, r.sizes, r.from)
				if err != nil {
					return
				}
				for k := range n {
					want := binary.BigEndian.Uint32(r.bufs[k])
					if uint32(r.sizes[k]) != want {
						t.Errorf("received %d bytes, want %d", r.sizes[k], want)
					}
					counts[i][r.from[k]]++
					<-windows[i]
				}
				total += n
			}
		})
		for j, to := range all {
			if i == j {
				continue
			}
			wg.Go(func() {
				for k := range each {
					var packets [][]byte
					for l := range batch {
						b := make([]byte, 4+(k*batch+l)%1400)
						binary.BigEndian.PutUint32(b, uint32(len(b)))
						packets = append(packets, b)
						windows[j] <- struct{}{}
					}
					if err := p.Send(to.cfg.Key.Public(), packets); err != nil {
						t.Error(err)
					}
				}
			})
		}
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		wg.Wait()
	}()
	select {
	case <-done:
	case <-time.After(20 * time.Second):
		for _, p := range all {
			p.Close()
		}
		<-done
		t.Errorf("not everything arrived: %v", counts)
	}
	for i := range counts {
		if len(counts[i]) != pools-1 {
			t.Errorf("pool %d heard of %d others", i, len(counts[i]))
		}
	}
}

// TestRealRelayDrains has the relay go away with a hint: the pools move to the other one and come back to the new one.
func TestRealRelayDrains(t *testing.T) {
	key := newKey(t)
	s, err := relayserver.New(relayserver.Config{
		Key: key, Admit: func(wgkey.Public, netip.Addr) error { return nil }, ConnectRate: 1e9, ConnectBurst: 1e9,
	})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	web := httptest.NewServer(s.Handler())
	defer web.Close()
	defer web.CloseClientConnections()
	other := newRelay(t, newKey(t), nil, nil)
	p := realPool(t, nil, web.URL, other)
	if n := s.Stats().Clients; n != 1 {
		t.Fatalf("%d clients", n)
	}
	drained := make(chan error, 1)
	go func() { drained <- s.Drain(t.Context(), 0, time.Second) }()
	waitFor(t, "the other relay to be home", func() bool { return p.Status()[1].Home })
	if err := <-drained; err != nil {
		t.Errorf("drain: %v", err)
	}
	waitFor(t, "the relay to refuse", func() bool { return p.Status()[0].State == StateWaiting && p.Status()[0].Err != errRestart.Error() })
	if got := p.Status()[0].Err; got == "" {
		t.Error("no reason is shown")
	}
}

// TestNothingIsLeft opens and closes pools in all ways of connecting, and counts goroutines and descriptors.
func TestNothingIsLeft(t *testing.T) {
	cert := newCertificate(t, "127.0.0.1")
	plain, fast := newRelay(t, newKey(t), nil, nil), newRelay(t, newKey(t), &cert, nil)
	spoiled := newRelay(t, newKey(t), &cert, onlyWebSocket(http.StatusBadRequest))
	refusing := newRelay(t, newKey(t), nil, func(http.Handler) http.Handler { return http.NotFoundHandler() })
	once := func() {
		p, err := NewPool(PoolConfig{Key: newKey(t), Roots: rootsOf(cert), Relays: []Server{
			{URL: plain, Proxy: "none"}, {URL: fast, Proxy: "none"}, {URL: spoiled, Proxy: "none"}, {URL: refusing, Proxy: "none"},
		}})
		if err != nil {
			t.Fatal(err)
		}
		waitFor(t, "three relays", func() bool {
			n := 0
			for _, s := range p.Status() {
				if s.Transport != "" {
					n++
				}
			}
			return n == 3
		})
		p.Close()
	}
	once()
	goroutines, files := runtime.NumGoroutine(), openFiles(t)
	for range 10 {
		once()
	}
	waitFor(t, "goroutines to end", func() bool { return runtime.NumGoroutine() <= goroutines+2 })
	waitFor(t, "descriptors to be closed", func() bool { return openFiles(t) <= files+2 })
}

func openFiles(t testing.TB) int {
	d, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Skip("cannot count descriptors: ", err)
	}
	return len(d)
}

// BenchmarkPoolToPool sends batches of 128 packets of 1,452 bytes from one pool to another over a real relay by TLS.
func BenchmarkPoolToPool(b *testing.B) {
	a, z := benchPools(b)
	const size, batch = 1452, 128
	packets := make([][]byte, batch)
	for i := range packets {
		packets[i] = make([]byte, size)
	}
	to := z.cfg.Key.Public()
	r := newReceiver(128, 65535)
	b.SetBytes(size)
	b.ReportAllocs()
	// A window of packets on the way, as a transport inside would keep one: the relay drops what it cannot deliver.
	credit := make(chan struct{}, realWindow)
	for range realWindow {
		credit <- struct{}{}
	}
	done := make(chan struct{})
	b.ResetTimer()
	go func() {
		defer close(done)
		for got := 0; got < b.N; {
			n, err := z.Receive(nil, r.bufs, r.sizes, r.from)
			if err != nil {
				return
			}
			got += n
			for range n {
				credit <- struct{}{}
			}
		}
	}()
	for sent := 0; sent < b.N; {
		<-credit
		n := 1
		for limit := min(batch, b.N-sent); n < limit && len(credit) > 0; n++ {
			<-credit
		}
		if err := a.Send(to, packets[:n]); err != nil {
			b.Fatal(err)
		}
		sent += n
	}
	<-done
}

// BenchmarkRoundTrip sends one packet there and back.
func BenchmarkRoundTrip(b *testing.B) {
	a, z := benchPools(b)
	go func() {
		r := newReceiver(8, 65535)
		for {
			n, err := z.Receive(nil, r.bufs, r.sizes, r.from)
			if err != nil {
				return
			}
			for i := range n {
				z.Send(r.from[i], [][]byte{r.bufs[i][:r.sizes[i]]})
			}
		}
	}()
	packet := [][]byte{make([]byte, 148)}
	to := z.cfg.Key.Public()
	r := newReceiver(8, 65535)
	b.ReportAllocs()
	for b.Loop() {
		if err := a.Send(to, packet); err != nil {
			b.Fatal(err)
		}
		if _, err := a.Receive(nil, r.bufs, r.sizes, r.from); err != nil {
			b.Fatal(err)
		}
	}
}

func benchPools(b *testing.B) (*Pool, *Pool) {
	cert := newCertificate(b, "127.0.0.1")
	url := newRelay(b, newKey(b), &cert, nil)
	a, z := realPool(b, rootsOf(cert), url), realPool(b, rootsOf(cert), url)
	// Routes are known, as they are once peers have talked.
	r := newReceiver(8, 65535)
	for _, way := range [][2]*Pool{{a, z}, {z, a}} {
		if err := way[0].Send(way[1].cfg.Key.Public(), [][]byte{{1}}); err != nil {
			b.Fatal(err)
		}
		if _, err := way[1].Receive(nil, r.bufs, r.sizes, r.from); err != nil {
			b.Fatal(err)
		}
	}
	return a, z
}
