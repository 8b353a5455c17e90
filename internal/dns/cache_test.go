package dns

import (
	"fmt"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

func soa(name string, ttl, minimum uint32) dnsmessage.Resource {
	return resource(name, ttl, &dnsmessage.SOAResource{NS: dnsmessage.MustNewName("ns."), MBox: dnsmessage.MustNewName("mail."), MinTTL: minimum})
}

func parsed(t testing.TB, m dnsmessage.Message) *message {
	t.Helper()
	p, ok := parse(pack(t, m))
	if !ok {
		t.Fatalf("parse of %v failed", m)
	}
	return &p
}

func TestLifetimeOfAnswers(t *testing.T) {
	const name = "example.com."
	alias := resource(name, 50, &dnsmessage.CNAMEResource{CNAME: dnsmessage.MustNewName("a.example.")})
	for _, c := range []struct {
		name string
		edit func(*dnsmessage.Message)
		want time.Duration
	}{
		{"least TTL counts", func(m *dnsmessage.Message) {
			m.Answers = []dnsmessage.Resource{record4(name, "192.0.2.1", 70), record4(name, "192.0.2.2", 40)}
		}, 40 * time.Second},
		{"alias counts too", func(m *dnsmessage.Message) {
			m.Answers = []dnsmessage.Resource{alias, record4("a.example.", "192.0.2.1", 70)}
		}, 50 * time.Second},
		{"long TTL is limited", func(m *dnsmessage.Message) {
			m.Answers = []dnsmessage.Resource{record4(name, "192.0.2.1", 1<<31-1)}
		}, maxTTL},
		{"TTL zero", func(m *dnsmessage.Message) { m.Answers = []dnsmessage.Resource{record4(name, "192.0.2.1", 0)} }, 0},
		{"TTL with the top bit", func(m *dnsmessage.Message) { m.Answers = []dnsmessage.Resource{record4(name, "192.0.2.1", 1<<31)} }, 0},
		{"truncated", func(m *dnsmessage.Message) {
			m.Truncated, m.Answers = true, []dnsmessage.Resource{record4(name, "192.0.2.1", 40)}
		}, 0},
		{"absent name", func(m *dnsmessage.Message) {
			m.RCode, m.Authorities = dnsmessage.RCodeNameError, []dnsmessage.Resource{soa("com.", 300, 60)}
		}, time.Minute},
		{"absent name, TTL of the SOA is less", func(m *dnsmessage.Message) {
			m.RCode, m.Authorities = dnsmessage.RCodeNameError, []dnsmessage.Resource{soa("com.", 30, 60)}
		}, 30 * time.Second},
		{"absent name, limited", func(m *dnsmessage.Message) {
			m.RCode, m.Authorities = dnsmessage.RCodeNameError, []dnsmessage.Resource{soa("com.", 86400, 86400)}
		}, maxNegativeTTL},
		{"absent name without SOA", func(m *dnsmessage.Message) { m.RCode = dnsmessage.RCodeNameError }, 0},
		{"absent type", func(m *dnsmessage.Message) { m.Authorities = []dnsmessage.Resource{soa("com.", 300, 60)} }, time.Minute},
		{"alias to an absent type", func(m *dnsmessage.Message) {
			m.Answers, m.Authorities = []dnsmessage.Resource{alias}, []dnsmessage.Resource{soa("com.", 300, 60)}
		}, 50 * time.Second},
		{"alias that leads nowhere", func(m *dnsmessage.Message) { m.Answers = []dnsmessage.Resource{alias} }, 0},
		{"referral", func(m *dnsmessage.Message) {
			m.Authorities = []dnsmessage.Resource{resource("com.", 300, &dnsmessage.NSResource{NS: dnsmessage.MustNewName("ns.")})}
		}, 0},
		{"server failure", func(m *dnsmessage.Message) {
			m.RCode, m.Authorities = dnsmessage.RCodeServerFailure, []dnsmessage.Resource{soa("com.", 300, 60)}
		}, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := answerTo(question(name, dnsmessage.TypeA, edns(1232)))
			c.edit(&m)
			if got := lifetime(parsed(t, m)); got != c.want {
				t.Errorf("got %v, want %v", got, c.want)
			}
		})
	}
}

func TestCachedAnswerAges(t *testing.T) {
	c := newCache(10)
	now := time.Unix(1000, 0)
	q := question("example.com.", dnsmessage.TypeA, edns(1232))
	c.put(parsed(t, q), parsed(t, answerTo(q, record4("example.com.", "192.0.2.1", 100), record4("example.com.", "192.0.2.2", 60))), c.currentEpoch(), now)

	other := question("EXAMPLE.com.", dnsmessage.TypeA, edns(4096))
	other.ID = 77
	m, ok := c.get(parsed(t, other), now.Add(59*time.Second+time.Second/2))
	if !ok {
		t.Fatal("a live entry is not found")
	}
	got := unpack(t, m.raw)
	if got.ID != 77 || got.Questions[0].Name.String() != "EXAMPLE.com." {
		t.Errorf("got ID %d and question %v, want those of the second query", got.ID, got.Questions[0].Name)
	}
	if a, b := got.Answers[0].Header.TTL, got.Answers[1].Header.TTL; a != 41 || b != 1 {
		t.Errorf("TTLs are %d and %d, want 41 and 1", a, b)
	}
	if got.Additionals[0].Header.TTL != 0 {
		t.Errorf("the flags of OPT are %#x, want 0", got.Additionals[0].Header.TTL)
	}
	if _, ok := c.get(parsed(t, other), now.Add(60*time.Second)); ok {
		t.Error("a dead entry is found")
	}
	if m, _ := c.get(parsed(t, other), now.Add(-time.Hour)); unpack(t, m.raw).Answers[0].Header.TTL != 100 {
		t.Error("a clock that went back makes records older")
	}
}

func TestQueriesThatDoNotShareAnswers(t *testing.T) {
	base := question("example.com.", dnsmessage.TypeA, edns(1232))
	for _, c := range []struct {
		name  string
		query dnsmessage.Message
	}{
		{"other type", question("example.com.", dnsmessage.TypeAAAA, edns(1232))},
		{"other name", question("example.org.", dnsmessage.TypeA, edns(1232))},
		{"other class", question("example.com.", dnsmessage.TypeA, edns(1232), func(m *dnsmessage.Message) { m.Questions[0].Class = dnsmessage.ClassCHAOS })},
		{"without EDNS", question("example.com.", dnsmessage.TypeA)},
		{"without RD", question("example.com.", dnsmessage.TypeA, edns(1232), func(m *dnsmessage.Message) { m.RecursionDesired = false })},
		{"with AD", question("example.com.", dnsmessage.TypeA, edns(1232), func(m *dnsmessage.Message) { m.AuthenticData = true })},
		{"with CD", question("example.com.", dnsmessage.TypeA, edns(1232), func(m *dnsmessage.Message) { m.CheckingDisabled = true })},
		{"with DO", question("example.com.", dnsmessage.TypeA, edns(1232), func(m *dnsmessage.Message) { m.Additionals[0].Header.TTL = 1 << 15 })},
		{"with an EDNS option", question("example.com.", dnsmessage.TypeA, edns(1232, dnsmessage.Option{Code: 10, Data: make([]byte, 8)}))},
		{"with another additional record", question("example.com.", dnsmessage.TypeA, edns(1232), func(m *dnsmessage.Message) {
			m.Additionals = append(m.Additionals, record4("tsig.", "192.0.2.1", 0))
		})},
	} {
		t.Run(c.name, func(t *testing.T) {
			cache, now := newCache(10), time.Unix(1000, 0)
			cache.put(parsed(t, base), parsed(t, answerTo(base, record4("example.com.", "192.0.2.1", 100))), cache.currentEpoch(), now)
			if _, ok := cache.get(parsed(t, base), now); !ok {
				t.Fatal("the same query finds nothing")
			}
			if _, ok := cache.get(parsed(t, c.query), now); ok {
				t.Error("answered from the entry of another query")
			}
		})
	}
}

func TestCacheIsBounded(t *testing.T) {
	const size = 16
	c, now := newCache(size), time.Unix(1000, 0)
	for i := range 10 * size {
		q := question(fmt.Sprintf("n%d.example.", i), dnsmessage.TypeA)
		ttl := uint32(100)
		if i%2 == 0 {
			ttl = 1
		}
		c.put(parsed(t, q), parsed(t, answerTo(q, record4("example.", "192.0.2.1", ttl))), c.currentEpoch(), now)
		if _, ok := c.get(parsed(t, q), now); !ok {
			t.Fatalf("entry %d is not found right after it was stored", i)
		}
		now = now.Add(100 * time.Millisecond)
	}
	if len(c.entries) > size {
		t.Errorf("%d entries, want at most %d", len(c.entries), size)
	}
	huge := answerTo(question("example.com.", dnsmessage.TypeTXT), texts("example.com.", 40)...)
	c.flush()
	c.put(parsed(t, question("example.com.", dnsmessage.TypeTXT)), parsed(t, huge), c.currentEpoch(), now)
	if len(c.entries) != 0 {
		t.Error("an answer above the size limit was stored")
	}
}

func TestAnswerFromBeforeAFlushIsNotKept(t *testing.T) {
	c, now := newCache(4), time.Unix(1000, 0)
	q := question("example.com.", dnsmessage.TypeA)
	asked := c.currentEpoch()
	c.flush()
	c.put(parsed(t, q), parsed(t, answerTo(q, record4("example.com.", "192.0.2.1", 100))), asked, now)
	if _, ok := c.get(parsed(t, q), now); ok {
		t.Error("the answer of a resolver that is no longer asked was kept")
	}
}

func TestServerCache(t *testing.T) {
	up := newUpstream(t, fixed("192.0.2.7"))
	var list atomic.Pointer[[]netip.AddrPort]
	list.Store(&[]netip.AddrPort{up.addr})
	s, addr := newServer(t, Config{Upstreams: func() []netip.AddrPort { return *list.Load() }})
	for range 3 {
		mustUDP(t, addr, question("example.com.", dnsmessage.TypeA))
	}
	if got := mustTCP(t, addr, question("example.com.", dnsmessage.TypeA)); len(addresses(got)) != 1 {
		t.Errorf("by TCP: %v", got)
	}
	if n, hits := up.udp.Load(), s.Counters().CacheHits; n != 1 || hits != 3 {
		t.Errorf("upstream saw %d queries, %d cache hits; want 1 and 3", n, hits)
	}
	second := newUpstream(t, fixed("192.0.2.8")) // the host moved to another network
	list.Store(&[]netip.AddrPort{second.addr})
	if got := addresses(mustUDP(t, addr, question("example.com.", dnsmessage.TypeA))); len(got) != 1 || got[0] != "192.0.2.8" {
		t.Errorf("after a change of upstreams: %v, want 192.0.2.8", got)
	}
}

func TestServerWithoutCache(t *testing.T) {
	up := newUpstream(t, fixed("192.0.2.7"))
	_, addr := newServer(t, Config{CacheEntries: -1}, up)
	for range 2 {
		mustUDP(t, addr, question("example.com.", dnsmessage.TypeA))
	}
	if n := up.udp.Load(); n != 2 {
		t.Errorf("upstream saw %d queries, want 2", n)
	}
}
