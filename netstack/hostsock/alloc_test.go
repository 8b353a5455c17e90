//go:build linux && !race

package hostsock

import (
	"runtime"
	"testing"
)

// The race detector makes sync.Pool forget at random, hence the build tag.

func TestNoAllocationPerDatagram(t *testing.T) {
	for _, tt := range []struct {
		name  string
		sizes []int
	}{
		{"one small", []int{64}},
		{"one large", []int{9000}},
		{"a run", []int{1200, 1200, 1200, 1200, 700}},
		{"mixed", []int{64, 1200, 1200, 5000, 300, 300, 20}},
	} {
		for _, v := range []uint8{4, 6} {
			p := newTestPoller(t, 1)
			c := &counted{make(chan int, 100)}
			a := openUDP(t, p, v, drain{})
			b, err := p.OpenUDP(v, 0, c)
			if err != nil {
				t.Skip(err)
			}
			var batch []Datagram
			for i, n := range tt.sizes {
				batch = append(batch, Datagram{To: at(v, b.LocalPort()), B: make([]byte, n), TTL: uint8(i / 4 * 60)})
			}
			runtime.GC() // a collection during the measurement would empty the pools
			n := testing.AllocsPerRun(200, func() {
				if n, err := a.Send(batch); n != len(batch) {
					t.Fatal(n, err)
				}
				for n := len(batch); n > 0; {
					n -= <-c.n
				}
			})
			if n != 0 {
				t.Errorf("%s, IPv%d: %v allocations", tt.name, v, n)
			}
			b.Close()
		}
	}
}

func TestNoAllocationPerTCPTransfer(t *testing.T) {
	c, far := tcpPair(t, 4)
	pool := NewBufPool(60300)
	iov := [][]byte{make([]byte, 1000), make([]byte, 500)}
	buf := make([]byte, 1500)
	n := testing.AllocsPerRun(200, func() {
		if n, err := c.Writev(iov); n != 1500 || err != nil {
			t.Fatal(n, err)
		}
		for n := 0; n < 1500; {
			m, err := far.Read(buf)
			if err != nil {
				t.Fatal(err)
			}
			far.Write(buf[:m])
			n += m
		}
		for n := 0; n < 1500; {
			b, m, err := c.Recv(pool)
			if err != nil {
				t.Fatal(err)
			}
			n += m
			b.Release()
		}
	})
	if n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestNoAllocationPerEcho(t *testing.T) {
	p := newTestPoller(t, 1)
	s, err := p.OpenPing(4, drain{})
	if err != nil {
		t.Skip(err)
	}
	defer s.Close()
	data := make([]byte, 56)
	if n := testing.AllocsPerRun(100, func() { s.Send(loopback(4), 1, data, 0, true) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
