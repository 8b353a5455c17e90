//go:build linux

package hostsock

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"os"
	"syscall"
	"testing"
)

func TestEchoOfEverySize(t *testing.T) {
	families(t, func(t *testing.T, v uint8) {
		p := newTestPoller(t, 1)
		near, far := newSink(), newSink()
		a, b := openUDP(t, p, v, near), openUDP(t, p, v, far)
		for _, n := range []int{0, 1, 2, 63, 64, 576, 1200, 1472, 2047, 2048, 2049, 4096, 9000, 32768, 60300, 65000, 65001, 65506, 65507} {
			want := pattern(n, n)
			send(t, a, Datagram{To: at(v, b.LocalPort()), B: want})
			there := far.take(t, 1)[0]
			if there.from != at(v, a.LocalPort()) || !bytes.Equal(there.data, want) {
				t.Fatalf("%d bytes: got %d bytes from %v", n, len(there.data), there.from)
			}
			send(t, b, Datagram{To: there.from, B: there.data})
			if back := near.take(t, 1)[0]; !bytes.Equal(back.data, want) {
				t.Fatalf("%d bytes: %d came back", n, len(back.data))
			}
		}
	})
}

func send(t testing.TB, u *UDP, batch ...Datagram) {
	t.Helper()
	if n, err := u.Send(batch); n != len(batch) || err != nil {
		t.Fatalf("Send: %d of %d, %v", n, len(batch), err)
	}
}

func TestRunArrivesAsSeparateDatagrams(t *testing.T) {
	families(t, func(t *testing.T, v uint8) {
		p := newTestPoller(t, 1)
		u := openUDP(t, p, v, newSink())
		c, to := plainUDP(t, v)
		other, toOther := plainUDP(t, v)
		// One run, cut by a shorter datagram, an empty one, another target, another TTL, and a longer one.
		var batch []Datagram
		for i, n := range []int{1200, 1200, 1200, 700, 0, 1200, 1200, 300, 300, 301, 1200} {
			batch = append(batch, Datagram{To: to, B: pattern(i, n)})
		}
		batch[6].To = toOther
		batch[10].TTL = 9
		send(t, u, batch...)
		buf := make([]byte, 1<<16)
		for i, d := range batch {
			from := c
			if d.To == toOther {
				from = other
			}
			n, err := from.Read(buf)
			if err != nil || !bytes.Equal(buf[:n], d.B) {
				t.Fatalf("datagram %d: %d bytes, %v; want %d", i, n, err, len(d.B))
			}
		}
	})
}

func TestRunEndsWhereOneMessageMust(t *testing.T) {
	a, b := at(4, 1), at(4, 2)
	d := func(to netip.AddrPort, ttl uint8, sizes ...int) (ds []Datagram) {
		for _, n := range sizes {
			ds = append(ds, Datagram{To: to, TTL: ttl, B: make([]byte, n)})
		}
		return ds
	}
	many := make([]int, 200)
	for i := range many {
		many[i] = 10
	}
	for _, tt := range []struct {
		name  string
		batch []Datagram
		want  int
	}{
		{"a single one", d(a, 0, 100), 1},
		{"equal sizes", d(a, 0, 100, 100, 100), 3},
		{"a shorter one is the last", d(a, 0, 100, 99, 99), 2},
		{"a longer one does not fit", d(a, 0, 100, 101), 1},
		{"an empty one is not part", d(a, 0, 100, 0), 1},
		{"empty ones are alone", d(a, 0, 0, 0), 1},
		{"another target", append(d(a, 0, 100), d(b, 0, 100)...), 1},
		{"another TTL", append(d(a, 0, 100), d(a, 3, 100)...), 1},
		{"64 at most", d(a, 0, many...), maxSegments},
		{"65000 bytes at most", d(a, 0, 32500, 32500, 32500), 2},
		{"large ones are alone", d(a, 0, 65507, 65507), 1},
	} {
		if got := runEnd(tt.batch, 0, maxSegments); got != tt.want {
			t.Errorf("%s: %d, want %d", tt.name, got, tt.want)
		}
	}
}

func TestPlainSenderIsReceived(t *testing.T) {
	families(t, func(t *testing.T, v uint8) {
		p := newTestPoller(t, 1)
		s := newSink()
		u := openUDP(t, p, v, s)
		c, from := plainUDP(t, v)
		for i := range 200 {
			if _, err := c.WriteToUDPAddrPort(pattern(i, 1+i*10), at(v, u.LocalPort())); err != nil {
				t.Fatal(err)
			}
		}
		for i, d := range s.take(t, 200) {
			if d.from != from || !bytes.Equal(d.data, pattern(i, 1+i*10)) {
				t.Fatalf("datagram %d: %d bytes from %v", i, len(d.data), d.from)
			}
		}
	})
}

func TestOrderIsKept(t *testing.T) {
	families(t, func(t *testing.T, v uint8) {
		const total, window = 10000, 100
		p := newTestPoller(t, 2)
		s := newSink()
		a, b := openUDP(t, p, v, newSink()), openUDP(t, p, v, s)
		for sent := 0; sent < total; sent += window {
			var batch []Datagram
			for i := sent; i < sent+window; i++ {
				// Sizes change so that runs, single datagrams, small and large buffers alternate.
				d := make([]byte, 4+[]int{1200, 1200, 1200, 60, 3000}[i/7%5])
				binary.BigEndian.PutUint32(d, uint32(i))
				batch = append(batch, Datagram{To: at(v, b.LocalPort()), B: d})
			}
			send(t, a, batch...)
			for i, d := range s.take(t, window) {
				if n := int(binary.BigEndian.Uint32(d.data)); n != sent+i {
					t.Fatalf("datagram %d came at place %d", n, sent+i)
				}
			}
		}
	})
}

func TestTTLBothWays(t *testing.T) {
	families(t, func(t *testing.T, v uint8) {
		p := newTestPoller(t, 1)
		s := newSink()
		a, b := openUDP(t, p, v, newSink()), openUDP(t, p, v, s)
		to := at(v, b.LocalPort())
		send(t, a, Datagram{To: to, B: []byte("x"), TTL: 7}, Datagram{To: to, B: []byte("y"), TTL: 8}, Datagram{To: to, B: []byte("z")})
		for i, want := range []uint8{7, 8, 64} {
			if d := s.take(t, 1)[0]; d.ttl != want {
				t.Errorf("datagram %d: TTL %d, want %d", i, d.ttl, want)
			}
		}
	})
}

func TestClosedPortIsReported(t *testing.T) {
	families(t, func(t *testing.T, v uint8) {
		p := newTestPoller(t, 1)
		s := newSink()
		u := openUDP(t, p, v, s)
		c, closed := plainUDP(t, v)
		c.Close()
		open, to := plainUDP(t, v)
		send(t, u, Datagram{To: closed, B: []byte("knock")})
		e := s.takeError(t)
		wantType, wantCode := uint8(3), uint8(3)
		if v == 6 {
			wantType, wantCode = 1, 4
		}
		if e.Type != wantType || e.Code != wantCode || e.Errno != syscall.ECONNREFUSED || e.Local || e.Info != 0 {
			t.Errorf("got type %d code %d %v local %v info %d", e.Type, e.Code, e.Errno, e.Local, e.Info)
		}
		if e.To != closed || e.Offender != loopback(v) || string(e.Payload) != "knock" {
			t.Errorf("got to %v, offender %v, payload %q", e.To, e.Offender, e.Payload)
		}

		// Errors of earlier datagrams never cost one to somebody else.
		buf := make([]byte, 100)
		for i := range 200 {
			batch := []Datagram{{To: closed, B: []byte{byte(i)}}, {To: to, B: []byte{byte(i)}}, {To: closed, B: []byte{byte(i)}}, {To: to, B: []byte{byte(i)}}}
			send(t, u, batch...)
			for range 2 {
				if n, err := open.Read(buf); err != nil || n != 1 || buf[0] != byte(i) {
					t.Fatalf("round %d: %d bytes, %v", i, n, err)
				}
			}
		}
	})
}

func TestPendingErrorCostsNoDatagram(t *testing.T) {
	families(t, func(t *testing.T, v uint8) {
		p := newTestPoller(t, 1)
		u := openUDP(t, p, v, newSink())
		p.Close() // so that nobody takes the pending error away
		c, closed := plainUDP(t, v)
		c.Close()
		c, to := plainUDP(t, v)
		for range 100 {
			send(t, u, Datagram{To: closed, B: []byte("x")})
			send(t, u, Datagram{To: to, B: []byte("y")})
			if n, err := c.Read(make([]byte, 10)); n != 1 || err != nil {
				t.Fatal(n, err)
			}
		}
	})
}

func TestWhatIsSegmentedIsLearnt(t *testing.T) {
	for _, tt := range []struct {
		errno   syscall.Errno
		tries   int
		refused bool
		max     int32
	}{
		{syscall.EIO, 0, true, 0},
		{syscall.EINVAL, 0, true, 1399},
		{syscall.EMSGSIZE, 0, false, maxRunBytes}, // can be an earlier datagram's
		{syscall.EMSGSIZE, 2, true, 1399},
		{syscall.ECONNREFUSED, 9, false, maxRunBytes},
	} {
		var u UDP
		u.gsoMax.Store(maxRunBytes)
		if got := u.segmentsRefused(tt.errno, 1400, tt.tries); got != tt.refused || u.gsoMax.Load() != tt.max {
			t.Errorf("%v after %d tries: %v, up to %d", tt.errno, tt.tries, got, u.gsoMax.Load())
		}
	}
}

func TestSendTellsWhichDatagramFailed(t *testing.T) {
	families(t, func(t *testing.T, v uint8) {
		p := newTestPoller(t, 1)
		u := openUDP(t, p, v, newSink())
		c, to := plainUDP(t, v)
		batch := []Datagram{
			{To: to, B: []byte("1")},
			{To: to, B: make([]byte, 65508)},
			{To: at(10-v, 9), B: []byte("wrong family")},
			{B: []byte("nowhere")},
			{To: at(v, 0), B: []byte("port 0")},
			{To: to, B: []byte("2")},
		}
		want := []syscall.Errno{0, syscall.EMSGSIZE, syscall.EAFNOSUPPORT, syscall.EAFNOSUPPORT, syscall.EINVAL, 0}
		if v == 6 {
			batch[1].B = make([]byte, 65528) // 65,527 fit, by the letter of RFC 8200
		}
		n, err := u.Send(batch)
		if n != 2 || !errors.Is(err, syscall.EMSGSIZE) {
			t.Errorf("Send: %d, %v", n, err)
		}
		for i, d := range batch {
			if d.Err != want[i] {
				t.Errorf("datagram %d: %v, want %v", i, d.Err, want[i])
			}
		}
		buf := make([]byte, 100)
		for _, want := range []string{"1", "2"} {
			if n, err := c.Read(buf); err != nil || string(buf[:n]) != want {
				t.Fatalf("got %q, %v, want %q", buf[:n], err, want)
			}
		}
	})
}

func TestPreferredPort(t *testing.T) {
	p := newTestPoller(t, 1)
	a := openUDP(t, p, 4, newSink())
	port := a.LocalPort()
	b, err := p.OpenUDP(4, port, newSink())
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	if b.LocalPort() == port || b.LocalPort() == 0 {
		t.Errorf("taken port %d: got %d", port, b.LocalPort())
	}
	a.Close()
	c, err := p.OpenUDP(4, port, newSink())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if c.LocalPort() != port {
		t.Errorf("free port %d: got %d", port, c.LocalPort())
	}
	if os.Geteuid() == 0 {
		t.Log("root may bind port 1: privileged port not tested")
		return
	}
	d, err := p.OpenUDP(4, 1, newSink())
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if d.LocalPort() < 1024 {
		t.Errorf("privileged port: got %d", d.LocalPort())
	}
}

func TestFamiliesAreApart(t *testing.T) {
	p := newTestPoller(t, 1)
	a := openUDP(t, p, 4, newSink())
	b, err := p.OpenUDP(6, a.LocalPort(), newSink())
	if err != nil {
		t.Skipf("no IPv6 on this host: %v", err)
	}
	defer b.Close()
	if a.LocalPort() != b.LocalPort() {
		t.Errorf("port %d is free in IPv6, got %d", a.LocalPort(), b.LocalPort())
	}
	if _, err := p.OpenUDP(5, 0, newSink()); !errors.Is(err, syscall.EAFNOSUPPORT) {
		t.Errorf("family 5: %v", err)
	}
}

func TestMTUTo(t *testing.T) {
	families(t, func(t *testing.T, v uint8) {
		p := newTestPoller(t, 1)
		u := openUDP(t, p, v, newSink())
		lo, err := net.InterfaceByName("lo")
		if err != nil {
			t.Skip(err)
		}
		want := lo.MTU
		if v == 4 {
			want = min(want, 65535) // what IPv4 can carry
		}
		if got := u.MTUTo(loopback(v)); got != want {
			t.Errorf("got %d, want %d", got, want)
		}
		if got := u.MTUTo(loopback(10 - v)); got != 0 {
			t.Errorf("wrong family: got %d", got)
		}
	})
}

func TestTooLargeIsALocalError(t *testing.T) {
	families(t, func(t *testing.T, v uint8) {
		p := newTestPoller(t, 1)
		s := newSink()
		u := openUDP(t, p, v, s)
		lo, err := net.InterfaceByName("lo")
		if err != nil || lo.MTU != 65536 {
			t.Skipf("needs a loopback MTU of 65536: %v", err)
		}
		if err := u.SetDF(true); err != nil {
			t.Fatal(err)
		}
		batch := []Datagram{{To: at(v, 9), B: make([]byte, 65520)}} // for IPv4 above any size, for IPv6 above the MTU
		if n, err := u.Send(batch); n != 0 || !errors.Is(err, syscall.EMSGSIZE) {
			t.Errorf("Send: %d, %v", n, err)
		}
		e := s.takeError(t)
		if !e.Local || e.Errno != syscall.EMSGSIZE || e.To.Addr() != loopback(v) || e.Info < 65535 || len(e.Payload) != 0 || e.Offender.IsValid() {
			t.Errorf("got %+v", e)
		}
	})
}
