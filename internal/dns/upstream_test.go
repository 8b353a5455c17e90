package dns

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

func blockingDial(started, release chan struct{}) func(context.Context, string, string) (net.Conn, error) {
	return func(context.Context, string, string) (net.Conn, error) {
		started <- struct{}{}
		<-release
		return nil, errors.New("released")
	}
}

func TestNextUpstreamIsAsked(t *testing.T) {
	for _, c := range []struct {
		name  string
		first handler // nil: nothing listens
		least time.Duration
		most  time.Duration
	}{
		{"first refuses the port", nil, 0, time.Second},
		{"first is silent", silent, attemptTime, attemptTime + time.Second},
		{"first says SERVFAIL", withRCode(dnsmessage.RCodeServerFailure), 0, time.Second},
		{"first says REFUSED", withRCode(dnsmessage.RCodeRefused), 0, time.Second},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			first := closedPort(t)
			if c.first != nil {
				first = newUpstream(t, c.first).addr
			}
			second := newUpstream(t, fixed("192.0.2.2"))
			list := []netip.AddrPort{first, second.addr}
			s, addr := newParallelServer(t, Config{Upstreams: func() []netip.AddrPort { return list }, CacheEntries: -1})
			start := time.Now()
			m := mustUDP(t, addr, question("example.com.", dnsmessage.TypeA))
			if got := addresses(m); len(got) != 1 || got[0] != "192.0.2.2" {
				t.Errorf("got %v %v, want the second upstream's answer", m.RCode, got)
			}
			if took := time.Since(start); took < c.least || took > c.most {
				t.Errorf("took %v, want %v to %v", took, c.least, c.most)
			}
			if c.least == 0 {
				return
			}
			start = time.Now()
			mustUDP(t, addr, question("again.example.com.", dnsmessage.TypeA))
			if took := time.Since(start); took > attemptTime/2 {
				t.Errorf("the next query waited %v for the silent upstream again", took)
			}
			if n := s.Counters().Failures; n != 0 {
				t.Errorf("%d failures counted", n)
			}
		})
	}
}

// newParallelServer is newServer without the count of goroutines, which other tests disturb.
func newParallelServer(t *testing.T, cfg Config) (*Server, string) {
	t.Helper()
	s := New(cfg)
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go s.ServeUDP(pc)
	t.Cleanup(func() { s.Close() })
	return s, pc.LocalAddr().String()
}

func TestFailureOfAllIsPassedOn(t *testing.T) {
	up := newUpstream(t, withRCode(dnsmessage.RCodeRefused))
	_, addr := newServer(t, Config{}, up)
	if m := mustUDP(t, addr, question("example.com.", dnsmessage.TypeA)); m.RCode != dnsmessage.RCodeRefused {
		t.Errorf("got %v, want the upstream's REFUSED", m.RCode)
	}
	if n := up.udp.Load(); n != 1 {
		t.Errorf("asked %d times, want once: the upstream did answer", n)
	}
}

func TestDeadUpstreams(t *testing.T) {
	var log syncBuffer
	dead := closedPort(t)
	for _, c := range []struct {
		name string
		list []netip.AddrPort
	}{{"nothing listens", []netip.AddrPort{dead}}, {"none configured", nil}} {
		t.Run(c.name, func(t *testing.T) {
			s, addr := newServer(t, Config{
				Upstreams: func() []netip.AddrPort { return c.list },
				Logger:    slog.New(slog.NewTextHandler(&log, nil)),
			})
			for range 3 {
				if m := mustUDP(t, addr, question("example.com.", dnsmessage.TypeA)); m.RCode != dnsmessage.RCodeServerFailure {
					t.Errorf("got %v, want SERVFAIL", m.RCode)
				}
			}
			if n := s.Counters().Failures; n != 3 {
				t.Errorf("%d failures counted, want 3", n)
			}
			if n := strings.Count(log.String(), "no upstream answers"); n != 1 {
				t.Errorf("logged %d times, want once:\n%s", n, log.String())
			}
			log.Reset()
		})
	}
}

func TestSilentUpstreamEndsInTime(t *testing.T) {
	t.Parallel()
	up := newUpstream(t, silent)
	_, addr := newParallelServer(t, Config{Upstreams: func() []netip.AddrPort { return []netip.AddrPort{up.addr} }})
	start := time.Now()
	m := mustUDP(t, addr, question("example.com.", dnsmessage.TypeA))
	if took := time.Since(start); m.RCode != dnsmessage.RCodeServerFailure || took > queryTime+time.Second {
		t.Errorf("got %v after %v, want SERVFAIL within %v", m.RCode, took, queryTime)
	}
	if n := up.udp.Load(); n != rounds {
		t.Errorf("asked %d times, want %d", n, rounds)
	}
}

func TestSlowUpstreamIsWaitedFor(t *testing.T) {
	up := newUpstream(t, func(network string, q dnsmessage.Message) [][]byte {
		time.Sleep(300 * time.Millisecond)
		return fixed("192.0.2.7")(network, q)
	})
	_, addr := newServer(t, Config{}, up)
	if got := addresses(mustUDP(t, addr, question("example.com.", dnsmessage.TypeA))); len(got) != 1 {
		t.Errorf("got %v, want the late answer", got)
	}
}

// A forger's datagrams, even from the upstream's own address, neither become the answer nor end the wait for it.
func TestForgedAnswersAreIgnored(t *testing.T) {
	forge := func(q dnsmessage.Message, edit func(*dnsmessage.Message)) []byte {
		m := answerTo(q, record4(q.Questions[0].Name.String(), "203.0.113.66", 60))
		m.Questions = slices.Clone(m.Questions)
		edit(&m)
		b, _ := m.Pack()
		return b
	}
	up := newUpstream(t, func(network string, q dnsmessage.Message) [][]byte {
		real := fixed("192.0.2.7")(network, q)[0]
		return [][]byte{
			forge(q, func(m *dnsmessage.Message) { m.ID++ }),
			forge(q, func(m *dnsmessage.Message) { m.Response = false }),
			forge(q, func(m *dnsmessage.Message) { m.OpCode = 4 }),
			forge(q, func(m *dnsmessage.Message) { m.Questions[0].Name = dnsmessage.MustNewName("example.net.") }),
			forge(q, func(m *dnsmessage.Message) { m.Questions[0].Type = dnsmessage.TypeAAAA }),
			forge(q, func(m *dnsmessage.Message) { m.Questions[0].Class = dnsmessage.ClassCHAOS }),
			forge(q, func(m *dnsmessage.Message) { m.Questions = nil }),
			real[:len(real)-1],
			real[:5],
			{},
			real,
		}
	})
	_, addr := newServer(t, Config{}, up)
	if got := addresses(mustUDP(t, addr, question("example.com.", dnsmessage.TypeA))); len(got) != 1 || got[0] != "192.0.2.7" {
		t.Errorf("got %v, want 192.0.2.7", got)
	}
}

func TestAnswerFromAnotherSourceIsRefused(t *testing.T) {
	other, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	ours := make(chan net.Addr, 1)
	up := newUpstream(t, func(network string, q dnsmessage.Message) [][]byte {
		forged := fixed("203.0.113.66")(network, q)[0]
		if _, err := other.WriteTo(forged, <-ours); err != nil {
			t.Errorf("forge: %v", err)
		}
		return fixed("192.0.2.7")(network, q)
	})
	_, addr := newServer(t, Config{Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
		c, err := new(net.Dialer).DialContext(ctx, network, address)
		if err == nil {
			ours <- c.LocalAddr()
		}
		return c, err
	}}, up)
	if got := addresses(mustUDP(t, addr, question("example.com.", dnsmessage.TypeA))); len(got) != 1 || got[0] != "192.0.2.7" {
		t.Errorf("got %v, want 192.0.2.7", got)
	}
}

func TestForgedTCPAnswerIsAFailure(t *testing.T) {
	up := newUpstream(t, func(network string, q dnsmessage.Message) [][]byte {
		if network == "udp" {
			return big(40, 512)(network, q)
		}
		q.ID++
		return big(40, 512)(network, q)
	})
	_, addr := newServer(t, Config{}, up)
	if m := mustTCP(t, addr, question("example.com.", dnsmessage.TypeTXT)); m.RCode != dnsmessage.RCodeServerFailure {
		t.Errorf("got %v, want SERVFAIL", m.RCode)
	}
}

func TestHeaderOnlyErrorGetsTheQuestionBack(t *testing.T) {
	up := newUpstream(t, func(_ string, q dnsmessage.Message) [][]byte {
		m := dnsmessage.Message{Header: q.Header}
		m.Response, m.RCode = true, dnsmessage.RCodeFormatError
		b, _ := m.Pack()
		return [][]byte{b}
	})
	_, addr := newServer(t, Config{}, up)
	m := mustUDP(t, addr, question("example.com.", dnsmessage.TypeA))
	if m.RCode != dnsmessage.RCodeFormatError || len(m.Questions) != 1 {
		t.Errorf("got %v with questions %v, want FORMERR with the question", m.RCode, m.Questions)
	}
}

// The upstream's port and ID must be hard to guess: both are new for each query.
func TestEachQueryHasItsOwnIDAndSocket(t *testing.T) {
	var mu sync.Mutex
	ids, sockets := map[uint16]bool{}, map[string]bool{}
	up := newUpstream(t, func(network string, q dnsmessage.Message) [][]byte {
		mu.Lock()
		ids[q.ID] = true
		mu.Unlock()
		return fixed("192.0.2.7")(network, q)
	})
	_, addr := newServer(t, Config{CacheEntries: -1, Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
		c, err := new(net.Dialer).DialContext(ctx, network, address)
		if err == nil {
			mu.Lock()
			sockets[c.LocalAddr().String()] = true
			mu.Unlock()
		}
		return c, err
	}}, up)
	const n = 20
	for range n {
		mustUDP(t, addr, question("example.com.", dnsmessage.TypeA))
	}
	mu.Lock()
	defer mu.Unlock()
	if len(ids) < n-2 || len(sockets) < n/2 { // a port may come again after its socket has closed
		t.Errorf("%d IDs and %d ports for %d queries", len(ids), len(sockets), n)
	}
}

func TestSilentUpstreamsComeLastForAWhile(t *testing.T) {
	a, b, c := netip.MustParseAddrPort("192.0.2.1:53"), netip.MustParseAddrPort("192.0.2.2:53"), netip.MustParseAddrPort("192.0.2.3:53")
	list := []netip.AddrPort{a, b, c}
	now := time.Unix(1000, 0)
	var u upstreams
	check := func(now time.Time, want ...netip.AddrPort) {
		t.Helper()
		if got, _ := u.order(list, now); !slices.Equal(got, want) {
			t.Errorf("got %v, want %v", got, want)
		}
	}
	if _, changed := u.order(list, now); !changed {
		t.Error("the first list is not reported as new")
	}
	u.missed(a, now)
	check(now, b, c, a)
	check(now.Add(silentTime), a, b, c)
	u.heard(a)
	check(now, a, b, c)
	u.missed(netip.MustParseAddrPort("192.0.2.9:53"), now) // of a list that has been replaced meanwhile
	if len(u.silent) != 0 {
		t.Error("an upstream that is not in the list was recorded")
	}
	if _, changed := u.order(list[:2], now); !changed {
		t.Error("a shorter list is not reported as new")
	}
}

type syncBuffer struct {
	mu sync.Mutex // guards the following
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

func (s *syncBuffer) Reset() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.b.Reset()
}
