//go:build linux

package hostsock

import (
	"net"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"
)

// patience is how long a test waits for what must happen.
const patience = 10 * time.Second

// got is one datagram as a test wants to see it.
type got struct {
	from netip.AddrPort
	data []byte
	ttl  uint8
}

// sink is a Receiver that takes received datagrams apart and keeps copies.
type sink struct {
	mu     sync.Mutex // guards the following
	data   []got
	errs   []ICMPError
	change chan struct{} // closed at the next event
}

func newSink() *sink { return &sink{change: make(chan struct{})} }

func (s *sink) Datagrams(in []Inbound) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, m := range in {
		for b := m.Buf.B[:m.N]; ; {
			n := min(m.GSO, len(b))
			s.data = append(s.data, got{m.From, slices.Clone(b[:n]), m.TTL})
			if b = b[n:]; len(b) == 0 {
				break
			}
		}
		m.Buf.Release()
	}
	s.changed()
}

func (s *sink) SocketError(e *ICMPError) {
	s.mu.Lock()
	defer s.mu.Unlock()
	kept := *e
	kept.Payload = slices.Clone(e.Payload)
	s.errs = append(s.errs, kept)
	s.changed()
}

func (s *sink) changed() {
	close(s.change)
	s.change = make(chan struct{})
}

// await blocks until cond, which is called with the lock held.
func (s *sink) await(t testing.TB, what string, cond func() bool) {
	t.Helper()
	timeout := time.After(patience)
	for {
		s.mu.Lock()
		ok, change := cond(), s.change
		nd, ne := len(s.data), len(s.errs)
		s.mu.Unlock()
		if ok {
			return
		}
		select {
		case <-change:
		case <-timeout:
			t.Fatalf("%s: timed out with %d datagrams and %d errors", what, nd, ne)
		}
	}
}

// take waits for n datagrams and removes them from the sink.
func (s *sink) take(t testing.TB, n int) []got {
	t.Helper()
	s.await(t, "datagrams", func() bool { return len(s.data) >= n })
	s.mu.Lock()
	defer s.mu.Unlock()
	d := s.data[:n]
	s.data = slices.Clone(s.data[n:])
	return d
}

// takeError waits for an error and removes it.
func (s *sink) takeError(t testing.TB) ICMPError {
	t.Helper()
	s.await(t, "error", func() bool { return len(s.errs) > 0 })
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.errs[0]
	s.errs = s.errs[1:]
	return e
}

func newTestPoller(t testing.TB, loops int) *Poller {
	t.Helper()
	p, err := NewPoller(loops)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	return p
}

func openUDP(t testing.TB, p *Poller, v uint8, r Receiver) *UDP {
	t.Helper()
	u, err := p.OpenUDP(v, 0, r)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(u.Close)
	return u
}

// loopback returns the loopback address of a family.
func loopback(v uint8) netip.Addr {
	if v == 4 {
		return netip.AddrFrom4([4]byte{127, 0, 0, 1})
	}
	return netip.IPv6Loopback()
}

func at(v uint8, port uint16) netip.AddrPort { return netip.AddrPortFrom(loopback(v), port) }

// plainUDP is a socket of the standard library to test against.
func plainUDP(t testing.TB, v uint8) (*net.UDPConn, netip.AddrPort) {
	t.Helper()
	c, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(at(v, 0)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetReadBuffer(udpBuffer)
	c.SetReadDeadline(time.Now().Add(patience))
	return c, c.LocalAddr().(*net.UDPAddr).AddrPort()
}

// families runs f for IPv4 and for IPv6.
func families(t *testing.T, f func(t *testing.T, v uint8)) {
	t.Run("4", func(t *testing.T) { f(t, 4) })
	t.Run("6", func(t *testing.T) {
		c, err := net.ListenPacket("udp6", "[::1]:0")
		if err != nil {
			t.Skipf("no IPv6 on this host: %v", err)
		}
		c.Close()
		f(t, 6)
	})
}

// pattern returns n bytes that tell i and the place.
func pattern(i, n int) []byte {
	b := make([]byte, n)
	for j := range b {
		b[j] = byte(i*31 + j*7 + j>>8)
	}
	return b
}

// counted passes on how many datagrams came.
type counted struct{ n chan int }

func (c *counted) Datagrams(in []Inbound) {
	total := 0
	for i := range in {
		m := &in[i]
		total += max(1, (m.N+m.GSO-1)/max(m.GSO, 1))
		m.Buf.Release()
	}
	c.n <- total
}

func (c *counted) SocketError(*ICMPError) {}
