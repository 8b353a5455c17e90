package relay

import (
	"errors"
	"fmt"
	"net"
	"testing"
	"time"

	"culvert.dev/culvert/internal/wgkey"
)

// testWorld has relays in memory, at relay1, relay2, …, and pools that use them. Use it inside synctest.Test, which also finds
// goroutines that are left.
type testWorld struct {
	t      testing.TB
	net    *memNet
	relays []*fakeRelay
	hosts  []*memHost
}

// newWorld starts one relay for each latency (one way).
func newWorld(t testing.TB, latencies ...time.Duration) *testWorld {
	w := &testWorld{t: t, net: newMemNet()}
	for i, l := range latencies {
		f := newFakeRelay(t)
		w.relays = append(w.relays, f)
		w.hosts = append(w.hosts, w.net.listen(fmt.Sprintf("relay%d:80", i+1), l, f.serve))
	}
	t.Cleanup(func() {
		for _, h := range w.hosts {
			w.net.kill(h)
		}
		time.Sleep(time.Second)
	})
	return w
}

func (w *testWorld) servers(numbers ...int) (list []Server) {
	for _, n := range numbers {
		list = append(list, Server{URL: fmt.Sprintf("http://relay%d", n), Proxy: "none"})
	}
	return list
}

// testPool is a pool whose datagrams are collected.
type testPool struct {
	*Pool
	key  wgkey.Public
	got  chan received
	done chan struct{}
}

type received struct {
	from wgkey.Public
	data string
	at   time.Time
}

// pool starts a pool that uses the relays with these numbers. The end of the test closes it.
func (w *testWorld) pool(numbers ...int) *testPool {
	w.t.Helper()
	key := newKey(w.t)
	p, err := NewPool(PoolConfig{Key: key, Relays: w.servers(numbers...), DialTCP: w.net.dial})
	if err != nil {
		w.t.Fatal(err)
	}
	tp := &testPool{Pool: p, key: key.Public(), got: make(chan received, 100000), done: make(chan struct{})}
	go tp.receive()
	w.t.Cleanup(func() {
		p.Close()
		<-tp.done
	})
	return tp
}

func (p *testPool) receive() {
	defer close(p.done)
	bufs, sizes, from := make([][]byte, 16), make([]int, 16), make([]wgkey.Public, 16)
	for i := range bufs {
		bufs[i] = make([]byte, 65535)
	}
	for {
		n, err := p.Receive(nil, bufs, sizes, from)
		if err != nil {
			return
		}
		for i := range n {
			p.got <- received{from[i], string(bufs[i][:sizes[i]]), time.Now()}
		}
	}
}

// take returns what has been received until now.
func (p *testPool) take() (list []received) {
	for {
		select {
		case r := <-p.got:
			list = append(list, r)
		default:
			return list
		}
	}
}

func (p *testPool) send(t testing.TB, to wgkey.Public, data ...string) {
	t.Helper()
	var b [][]byte
	for _, d := range data {
		b = append(b, []byte(d))
	}
	if err := p.Send(to, b); err != nil && !errors.Is(err, ErrNoRelay) && !errors.Is(err, net.ErrClosed) {
		t.Fatal(err)
	}
}

// home returns the number of the home relay, 0 without.
func (p *testPool) home() int {
	for _, s := range p.Status() {
		if s.Home {
			var n int
			fmt.Sscanf(s.URL, "http://relay%d", &n)
			return n
		}
	}
	return 0
}

// via returns the number of the relay by which a peer is reached, 0 if that is not known.
func (p *testPool) via(peer wgkey.Public) (n int) {
	r, _ := p.Route(peer)
	fmt.Sscanf(r.URL, "http://relay%d", &n)
	return n
}

func (p *testPool) status(number int) Status {
	for _, s := range p.Status() {
		if s.URL == fmt.Sprintf("http://relay%d", number) {
			return s
		}
	}
	return Status{}
}
