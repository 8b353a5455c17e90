package stun

import (
	"math/rand/v2"
	"net/netip"
	"sync"
	"testing"
	"time"
	"unsafe"
)

// requests are how many of n requests, one each interval from a time on, a limiter lets pass.
func requests(l *limiter, source uint64, n int, from, interval time.Duration) (passed int) {
	for i := range n {
		if l.take(source, int64(from+time.Duration(i)*interval)) == pass {
			passed++
		}
	}
	return passed
}

func TestRateOfOneSource(t *testing.T) {
	l := newLimiter(50, 200, 1000)
	if got := requests(l, 7, 1000, 0, 0); got != 200 {
		t.Errorf("burst: %d", got)
	}
	if got := requests(l, 8, 1000, 0, 0); got != 200 {
		t.Errorf("burst of another: %d", got)
	}
	if got := requests(l, 7, 10_000, 0, time.Millisecond); got != 10*50-1 && got != 10*50 {
		t.Errorf("10 s of 1,000 a second: %d", got)
	}
	if got := requests(l, 7, 100, time.Minute, 20*time.Millisecond); got != 100 {
		t.Errorf("exactly the rate: %d", got)
	}
	if got := requests(l, 7, 1000, time.Hour, 0); got != 200 {
		t.Errorf("after an hour: %d", got)
	}
}

func TestSourcesAreAddressesAndSlash64s(t *testing.T) {
	for _, c := range []struct {
		a, b string
		same bool
	}{
		{"192.0.2.1", "192.0.2.1", true},
		{"192.0.2.1", "192.0.2.2", false},
		{"2001:db8:0:1::1", "2001:db8:0:1:ffff::2", true},
		{"2001:db8:0:1::1", "2001:db8:0:2::1", false},
		{"255.255.255.255", "::1", false},
		{"192.0.2.1", "::c000:201", false},
	} {
		if got := sourceOf(netip.MustParseAddr(c.a)) == sourceOf(netip.MustParseAddr(c.b)); got != c.same {
			t.Errorf("%s and %s: same %v", c.a, c.b, got)
		}
	}
}

// TestTableIsBounded: a flood of sources neither makes the table larger nor gives any source more than its rate, and a source
// that was there before keeps its own.
func TestTableIsBounded(t *testing.T) {
	l := newLimiter(10, 20, 1024)
	before := len(l.sets)
	if size := uintptr(len(l.sets)) * unsafe.Sizeof(l.sets[0]); size > 1024*20 {
		t.Errorf("%d bytes for 1,024 sources", size)
	}
	rng := rand.New(rand.NewPCG(3, 4))
	const victim = 42
	got, full := 0, 0
	for i := range 1_000_000 { // one second
		now := int64(i) * 1000
		if l.take(rng.Uint64()|1<<63, now) == dropSources {
			full++
		}
		if i%1000 == 0 && l.take(victim, now) == pass {
			got++
		}
	}
	if len(l.sets) != before {
		t.Error("the table has grown")
	}
	if got < 29 || got > 30 {
		t.Errorf("%d requests of one source passed in a second, want 20 and 10", got)
	}
	// A million sources a second, each with a bucket that is full again after 100 ms, are 100,000 at a time.
	if full < 900_000 {
		t.Errorf("%d of a million sources found no place in a table of 1,024", full)
	}
	if v := l.take(rng.Uint64(), int64(10*time.Second)); v != pass {
		t.Errorf("after the flood: %d", v)
	}
}

// TestDefaultTableHoldsAgainstTheTotalRate: as many sources as the total rate lets through find a place. The hash is random:
// one in a hundred runs has a set that nine of them fall into.
func TestDefaultTableHoldsAgainstTheTotalRate(t *testing.T) {
	cfg, _ := ServerConfig{}.withDefaults()
	l := newLimiter(cfg.Rate, cfg.Burst, cfg.Sources)
	rng := rand.New(rand.NewPCG(5, 6))
	full := 0
	for i := range 300_000 {
		if l.take(rng.Uint64(), int64(float64(i)/cfg.TotalRate*1e9)) != pass {
			full++
		}
	}
	if full > 3 {
		t.Errorf("%d of 300,000 sources at %v a second found no place", full, cfg.TotalRate)
	}
}

func TestLimiterAtTheExtremes(t *testing.T) {
	for _, c := range []struct {
		rate  float64
		burst int
	}{{1e12, 1}, {1e-9, 1}, {1e-9, 1 << 40}, {1e12, 1 << 62}} {
		g := newGCRA(c.rate, c.burst)
		if g.interval <= 0 || g.depth <= 0 {
			t.Errorf("%+v: %+v", c, g)
		}
		if _, ok := g.take(0, 0); !ok {
			t.Errorf("%+v: not even one", c)
		}
	}
	g := newGCRA(1e-9, 1)
	fullAt, _ := g.take(0, 0)
	if _, ok := g.take(fullAt, int64(time.Hour)); ok {
		t.Error("once in thirty years has come early")
	}
}

func TestTotalRate(t *testing.T) {
	g := fakeSite(3478, 3479, fourAddrs...)
	s := bareServer(t, ServerConfig{TotalRate: 1000}, g)
	req := build(t)
	at := place{g, fourAddrs[0], 0}
	answered := 0
	for i := range 10_000 { // two seconds; each from another address
		from := netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}), 1000)
		if _, ok := s.respond(nil, req, at, from, int64(i)*int64(200*time.Microsecond)); ok {
			answered++
		}
	}
	if answered < 2090 || answered > 2110 { // the burst is a tenth of a second's
		t.Errorf("%d answered", answered)
	}
	if got := s.Stats(); got.TotalRate != uint64(10_000-answered) {
		t.Errorf("got %+v", got)
	}
}

// TestDiscoveryRate: what is of RFC 5780 is dearer than what is not.
func TestDiscoveryRate(t *testing.T) {
	g := fakeSite(3478, 3479, fourAddrs...)
	at := place{g, fourAddrs[0], 0}
	for name, req := range map[string][]byte{
		"CHANGE-REQUEST": build(t, change(changePort)), "RESPONSE-PORT": build(t, responsePort(5000)),
		"PADDING": build(t, attr(0x0026, 1, 2, 3, 4)), "plain": build(t), "no flags": build(t, change(0)),
	} {
		s := bareServer(t, ServerConfig{Rate: 100, Burst: 100, DiscoveryRate: 1, DiscoveryBurst: 10}, g)
		answered := 0
		for range 50 {
			if _, ok := s.respond(nil, req, at, client4, 0); ok {
				answered++
			}
		}
		want := 10
		if name == "plain" || name == "no flags" {
			want = 50
		}
		if got := s.Stats(); answered != want || got.DiscoveryRate != uint64(50-want) || got.SourceRate != 0 {
			t.Errorf("%s: %d answered, %+v", name, answered, got)
		}
		if _, ok := s.respond(nil, build(t), at, client4, 0); !ok {
			t.Errorf("%s: and then not even a plain request", name)
		}
		if _, ok := s.respond(nil, req, at, ap("203.0.113.6:1"), 0); !ok {
			t.Errorf("%s: and another source not either", name)
		}
	}
}

func TestLimiterFromManyGoroutines(t *testing.T) {
	l := newLimiter(1, 1000, 64)
	tt := total{gcra: newGCRA(1, 1000)}
	var work sync.WaitGroup
	var mu sync.Mutex
	one, all := 0, 0
	for range 8 {
		work.Go(func() {
			a, b := 0, 0
			for range 1000 {
				if l.take(1, 0) == pass {
					a++
				}
				if tt.take(0) {
					b++
				}
			}
			mu.Lock()
			one, all = one+a, all+b
			mu.Unlock()
		})
	}
	work.Wait()
	if one != 1000 || all != 1000 {
		t.Errorf("%d and %d of 8,000 passed, want 1,000", one, all)
	}
}
