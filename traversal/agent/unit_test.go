package agent

import (
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"

	"culvert.dev/culvert/internal/wgkey"
	"culvert.dev/culvert/traversal/check"
	"culvert.dev/culvert/traversal/exchange"
	"culvert.dev/culvert/traversal/path"
)

func at(d time.Duration) time.Time { return time.Unix(1e9, 0).Add(d) }

func routeTo(port uint16) path.Route {
	a := netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, 1}), port)
	return path.Route{Check: a, WG: a}
}

func TestPacerSendsNoMoreThanTheRateInAnySecond(t *testing.T) {
	p := newPacer(50)
	rng := rand.New(rand.NewPCG(1, 2))
	peers := make([]*peer, 20)
	for i := range peers {
		peers[i] = &peer{}
	}
	var sent []time.Time
	for now := at(0); now.Before(at(20 * time.Second)); now = now.Add(time.Millisecond) {
		p.add(peers[rng.IntN(len(peers))], path.Check{Route: routeTo(uint16(rng.IntN(4)))}, class(1+rng.IntN(2)), false, now)
		if _, _, ok := p.next(now, func() {}); ok {
			sent = append(sent, now)
		} else if due := p.due(); !due.After(now) {
			t.Fatalf("due at %v, and nothing goes", due.Sub(at(0)))
		}
	}
	if most := perSecond(sent); most > 50 || len(sent) < 20*44 {
		t.Errorf("%d in the busiest second, %d in all", most, len(sent))
	}
}

func TestPacerTakesTurns(t *testing.T) {
	p := newPacer(1000)
	used, busy, quiet := &peer{}, &peer{}, [3]*peer{{}, {}, {}}
	now := at(0)
	for i := range 20 {
		r := path.Check{Route: routeTo(uint16(i))}
		p.add(busy, r, active, false, now)
		for _, q := range quiet {
			p.add(q, r, idle, false, now)
		}
	}
	p.add(used, path.Check{Route: routeTo(1)}, proven, false, now)
	got := map[*peer]int{}
	for i := range 40 {
		q, _, ok := p.next(now, func() {})
		if !ok {
			t.Fatalf("only %d sent", i)
		}
		if i == 0 && q != used {
			t.Error("the path in use is not first")
		}
		got[q]++
	}
	if got[busy] != 20 || got[quiet[0]] < 6 || got[quiet[1]] < 6 || got[quiet[2]] < 6 {
		t.Errorf("busy %d, quiet %d %d %d", got[busy], got[quiet[0]], got[quiet[1]], got[quiet[2]])
	}
	p.forget(quiet[0])
	for {
		q, _, ok := p.next(now, func() {})
		if !ok {
			break
		}
		if q == quiet[0] {
			t.Fatal("a check for a peer that was forgotten")
		}
	}
	if !p.due().IsZero() {
		t.Error("due with nothing left")
	}
}

func TestPacerMergesAndDropsWhatIsStale(t *testing.T) {
	p := newPacer(50)
	q := &peer{}
	if !p.add(q, path.Check{Route: routeTo(1), TTL: 4}, idle, false, at(0)) || p.add(q, path.Check{Route: routeTo(1)}, idle, false, at(0)) {
		t.Error("the same check waits twice, or not at all")
	}
	if _, c, ok := p.next(at(0), func() {}); !ok || c.TTL != 4 {
		t.Errorf("got TTL %d, want that of the opener", c.TTL)
	}
	p.add(q, path.Check{Route: routeTo(1), TTL: 4}, idle, false, at(0))
	p.add(q, path.Check{Route: routeTo(1)}, idle, true, at(0))
	if _, c, ok := p.next(at(0), func() {}); !ok || c.TTL != 0 {
		t.Errorf("got TTL %d, want that of the answer to a check", c.TTL)
	}
	p.add(q, path.Check{Route: routeTo(1)}, idle, false, at(0))
	stale := 0
	if _, _, ok := p.next(at(staleAfter+1), func() { stale++ }); ok || stale != 1 {
		t.Errorf("sent %v, %d stale", ok, stale)
	}
}

func TestPathsInUseMayExceedTheRate(t *testing.T) {
	p := newPacer(50)
	n := 0
	for now := at(0); now.Before(at(10 * time.Second)); now = now.Add(time.Millisecond) {
		if now.Sub(at(0))%(10*time.Millisecond) == 0 { // 100 a second
			p.add(&peer{}, path.Check{Route: routeTo(1)}, proven, false, now)
		}
		if _, _, ok := p.next(now, func() { t.Fatal("a check of a path in use became stale") }); ok {
			n++
		}
	}
	if n < 930 { // some wait still
		t.Errorf("%d of 1000 sent", n)
	}
}

func TestIdentsNameTheirPeer(t *testing.T) {
	s, other := newIdents(), newIdents()
	seen := map[check.ID]bool{}
	for n := range uint32(1000) {
		id := s.next(n)
		if got := s.peer(&id); got != n {
			t.Fatalf("got peer %d, want %d", got, n)
		}
		if other.peer(&id) < 1000 {
			t.Errorf("an id of another process names a peer")
		}
		seen[id] = true
	}
	if len(seen) != 1000 {
		t.Error("an id came twice")
	}
}

func TestResponsesCountOnceAndFromWhereWasAsked(t *testing.T) {
	p, stranger := &peer{number: 1}, uint32(2)
	r := routeTo(7)
	r.Socket = 3
	good := way{3, r.Check}
	for _, c := range []struct {
		name string
		c    checked
		want Counter
	}{
		{"as asked", checked{peer: 1, from: good}, ResponsesReceived},
		{"of another peer", checked{peer: stranger, from: good}, ResponsesUnasked},
		{"from another address", checked{peer: 1, from: way{3, routeTo(8).Check}}, ResponsesAstray},
		{"on another socket", checked{peer: 1, from: way{0, r.Check}}, ResponsesAstray},
		{"too late", checked{peer: 1, from: good, at: at(answerTime + 1)}, ResponsesUnasked},
		{"never asked", checked{peer: 1, from: good, id: check.ID{9}}, ResponsesUnasked},
	} {
		q := newRequests()
		q.add(check.ID{1}, &request{peer: p, route: r, sent: at(0)})
		if c.c.id == (check.ID{}) {
			c.c.id = check.ID{1}
		}
		if c.c.at.IsZero() {
			c.c.at = at(time.Second)
		}
		if _, got := q.answered(&c.c); got != c.want {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
		if _, again := q.answered(&c.c); again == ResponsesReceived {
			t.Errorf("%s: counts twice", c.name)
		}
	}
}

func TestRequestsAreBounded(t *testing.T) {
	q := newRequests()
	ids, p := newIdents(), &peer{number: 1}
	for i := range 5 * maxRequests {
		q.add(ids.next(1), &request{peer: p, sent: at(time.Duration(i))})
	}
	if len(q.byID) > maxRequests || len(q.queue) > 4*maxRequests {
		t.Errorf("%d wait, in a queue of %d", len(q.byID), len(q.queue))
	}
	q.add(ids.next(1), &request{peer: p, sent: at(time.Minute)})
	if len(q.byID) != 1 {
		t.Errorf("%d wait after a minute", len(q.byID))
	}
	q.forget(p)
	if len(q.byID) != 0 {
		t.Error("not forgotten")
	}
}

func TestStrangersAreLimitedBySource(t *testing.T) {
	var s strangers
	s.init()
	bad, good := netip.MustParseAddr("203.0.113.1"), netip.MustParseAddr("203.0.113.2")
	for s.slot(good) == s.slot(bad) {
		good = good.Next()
	}
	tries := 0
	for range 1000 {
		if s.failures(bad, at(0)) < strangerTries {
			tries++
			s.failed(bad, at(0))
		}
	}
	if tries != strangerTries || s.failures(good, at(0)) != 0 || s.failures(bad, at(time.Second)) != 0 {
		t.Errorf("%d tries; another source %d; a second later %d", tries, s.failures(good, at(0)), s.failures(bad, at(time.Second)))
	}
	if s.slot(netip.MustParseAddr("2001:db8::1")) != s.slot(netip.MustParseAddr("2001:db8::ffff:1")) {
		t.Error("addresses of one /64 are told apart")
	}
}

func TestCountersHaveNames(t *testing.T) {
	seen := map[string]bool{}
	for c := range NumCounters {
		if s := c.String(); s == "" || seen[s] {
			t.Errorf("counter %d: name %q", c, s)
		} else {
			seen[s] = true
		}
	}
}

// reception is an agent with an index of 200 peers, and messages to it.
type reception struct {
	a                                   *Agent
	stranger, forged, response, garbage []byte
	genuine                             []byte
	peer                                wgkey.Public
	from                                netip.AddrPort
}

func newReception(t testing.TB) *reception {
	key := must(wgkey.NewPrivate())
	a := must(New(Config{
		Key: key, Transport: &node{}, Relay: &nodeRelay{}, Gather: &fixed{}, Echo: (&node{}).echo,
		Filter: func() *exchange.Filter { return &exchange.Filter{} },
	}))
	r := &reception{a: a, from: netip.MustParseAddrPort("203.0.113.1:1000")}
	peers := map[wgkey.Public]*peer{}
	for i := range uint32(200) {
		p := &peer{Peer: Peer{Key: wgkey.Public{byte(i), 1}}, number: i + 1, session: exchange.NewSession(), theirs: exchange.NewSession()}
		peers[p.Key] = p
		if i > 0 {
			continue
		}
		other := must(wgkey.NewPrivate())
		secret := must(check.NewSecret(key, other.Public()))
		theirs := must(check.NewSecret(other, key.Public()))
		p.keys = secret.Keys(p.session, p.theirs)
		send := theirs.Keys(p.theirs, p.session).Send
		q := check.Request{To: p.session, From: p.theirs, ID: check.NewID()}
		r.genuine = check.AppendRequest(nil, &send, q)
		r.forged = check.AppendRequest(nil, &check.Key{1}, q)
		q.To = exchange.NewSession()
		r.stranger = check.AppendRequest(nil, &check.Key{1}, q)
		r.response = check.AppendResponse(nil, &check.Key{1}, check.NewID(), r.from)
		r.peer = p.Key
	}
	r.garbage = make([]byte, 200)
	a.index.Store(newIndex(peers))
	return r
}

func TestReceptionTellsWhatIsGenuine(t *testing.T) {
	r := newReception(t)
	for _, m := range [][]byte{r.stranger, r.forged, r.response, r.garbage, nil, r.genuine[:50]} {
		r.a.HandleSide(m, 0, r.from)
	}
	if n := len(r.a.checks); n != 0 {
		t.Fatalf("%d checks of strangers got through", n)
	}
	for range checkShare + 5 {
		r.a.HandleSide(r.genuine, 2, netip.AddrPortFrom(netip.AddrFrom16(r.from.Addr().As16()), r.from.Port()))
	}
	s := r.a.Stats().Counts
	if len(r.a.checks) != checkShare || s[ChecksOverflowed] != 5 || s[Forged] != 1 || s[UnknownSessions] != 2 || s[NotChecks] != 3 {
		t.Errorf("%d queued, %d dropped, %d forged, %d unknown, %d others", len(r.a.checks), s[ChecksOverflowed], s[Forged], s[UnknownSessions], s[NotChecks])
	}
	if c := <-r.a.checks; c.from != (way{2, r.from}) || c.kind != check.KindRequest || c.size != len(r.genuine) {
		t.Errorf("queued: %+v", c)
	}
	for range sealedShare + 3 {
		r.a.HandleSealed([]byte("TS💬 and more"), r.peer)
	}
	r.a.HandleSealed([]byte("TS💬 and more"), wgkey.Public{1})
	r.a.HandleSealed([]byte("something else"), r.peer)
	r.a.HandleSide([]byte("TS💬 and more"), 0, r.from)
	s = r.a.Stats().Counts
	if len(r.a.sealed) != sealedShare || s[SealedOverflowed] != 3 || s[SealedUnknown] != 1 || s[SealedMalformed] != 1 || s[SealedElsewhere] != 1 {
		t.Errorf("sealed: %d queued, counts %v", len(r.a.sealed), s)
	}
}

func TestStrangersCostNoAllocation(t *testing.T) {
	r := newReception(t)
	for name, m := range map[string][]byte{"stranger": r.stranger, "forged": r.forged, "response": r.response, "garbage": r.garbage} {
		if n := testing.AllocsPerRun(100, func() { r.a.HandleSide(m, 0, r.from) }); n != 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}

func BenchmarkForgedDatagram(b *testing.B) {
	r := newReception(b)
	for _, c := range []struct {
		name    string
		msg     []byte
		sources int
	}{
		{"garbage", r.garbage, 1},
		{"unknown session", r.stranger, 1},
		{"response never asked for", r.response, 1},
		{"known session, one source", r.forged, 1},
		{"known session, sources made up", r.forged, 1 << 16},
	} {
		b.Run(c.name, func(b *testing.B) {
			b.ReportAllocs()
			i := 0
			for b.Loop() {
				i++
				from := netip.AddrPortFrom(netip.AddrFrom4([4]byte{203, 0, byte(i % c.sources >> 8), byte(i % c.sources)}), 1000)
				r.a.HandleSide(c.msg, 0, from)
			}
		})
	}
}
