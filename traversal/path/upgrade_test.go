package path

import (
	"net/netip"
	"testing"
	"time"

	"culvert.dev/culvert/traversal/exchange"
)

// WireGuard that is kept from a path by which checks pass: trials fail, bans grow, and nothing is lost by it. When it passes, the
// end of a ban leads to a path.
func TestBansGrow(t *testing.T) {
	w := newWorld(t, 1)
	r := w.internet(prc(), prc())
	r.noWG = true
	for _, n := range w.nodes {
		n.active = true
	}
	w.begin()
	lost := w.nodes[0].talk(50*time.Millisecond, time.Hour)
	n := w.nodes[0]
	var lengths []time.Duration
	count := 0
	w.runUntil(time.Hour, func() bool {
		for _, b := range n.m.State().Bans {
			if b.Count > count {
				count = b.Count
				lengths = append(lengths, b.Until.Sub(w.now).Round(time.Second))
			}
		}
		return false
	})
	for i, d := range lengths {
		if want := min(10*time.Second<<i, 10*time.Minute); d > want || d < want-2*time.Second {
			t.Errorf("ban %d lasts %v, want %v", i+1, d, want)
		}
	}
	if len(lengths) < 8 || len(lengths) > 14 {
		t.Errorf("%d bans in an hour: %v", len(lengths), lengths)
	}
	if n.m.State().Reason != ReasonBanned {
		t.Errorf("reason: %v", n.m.State().Why(w.now))
	}
	w.run(2 * time.Second)
	if l := lost(); l != 0 {
		t.Errorf("%d of %d datagrams lost by trials", l, n.appSent)
	}
	r.noWG = false
	n.talk(50*time.Millisecond, 30*time.Minute)
	if !w.runUntil(12*time.Minute, w.direct) {
		t.Errorf("no path after the end of the ban: %s", w.describe())
	}
}

func TestBanFor(t *testing.T) {
	for n, want := range map[int]time.Duration{
		0: 10 * time.Second, 1: 10 * time.Second, 2: 20 * time.Second, 6: 320 * time.Second, 7: 10 * time.Minute, 1000: 10 * time.Minute,
	} {
		if got := banFor(n); got != want {
			t.Errorf("ban %d: %v, want %v", n, got, want)
		}
	}
}

// Bans survive answers to checks, and end with a change of the network.
func TestBanEndsWithNetworkOnly(t *testing.T) {
	w := newWorld(t, 1)
	r := w.internet(prc(), prc())
	r.noWG = true
	w.begin()
	n := w.nodes[0]
	if !w.runUntil(10*time.Second, func() bool { return len(n.m.State().Bans) > 0 }) {
		t.Fatal(w.describe())
	}
	b := n.m.State().Bans[0]
	n.step(Answered{Route: b.Route, RTT: time.Millisecond, Mapped: n.candidatesNow()[1].WG})
	n.step(Asked{Route: b.Route})
	n.gather(false)
	if len(n.m.State().Bans) == 0 {
		t.Error("a check has ended the ban")
	}
	n.gather(true)
	if len(n.m.State().Bans) != 0 {
		t.Error("a change of the network has not ended the ban")
	}
}

// Both nodes propose at the same instant: the controlling one goes first, and both end on one path.
func TestProposalsCross(t *testing.T) {
	w, r := connected(t, 1, time.Minute, time.Hour)
	r.cut = true
	w.run(4 * time.Second)
	r.cut = false
	for _, n := range w.nodes {
		p := n.m.pairs[0]
		for _, q := range n.m.pairs {
			if q.ever {
				p = q
			}
		}
		p.valid, p.lastAnswer = true, n.m.now
		n.m.using, n.m.mode = nil, ModeRelay
		if n.m.trial == nil {
			n.m.propose(p)
		}
		for _, a := range n.m.finish() {
			n.execute(a)
		}
	}
	if !w.nodes[0].m.trial.mine || !w.nodes[1].m.trial.mine {
		t.Fatal("the proposals do not cross")
	}
	if !w.runUntil(5*time.Second, w.direct) {
		t.Fatal(w.describe())
	}
	for i, n := range w.nodes {
		if b := n.m.State().Bans; len(b) > 0 {
			t.Errorf("node %d: bans %v", i, b)
		}
	}
	if w.nodes[0].route.WG.Addr() != netip.MustParseAddr("198.51.100.2") {
		t.Errorf("route %v", w.nodes[0].route)
	}
}

// A better path is used within 60 s of its appearing: of a lower round trip, or on the local network.
func TestBetterPathAppears(t *testing.T) {
	for name, delay := range map[string]time.Duration{"faster": 2 * time.Millisecond, "local": 200 * time.Microsecond} {
		w, _ := connected(t, 5, time.Minute, 10*time.Minute)
		prefix := map[string]string{"faster": "203.0.113.0/24", "local": "192.168.7.0/24"}[name]
		lan := w.realm(prefix, delay)
		begin := w.now
		for i, n := range w.nodes {
			ip := lan.prefix.Addr().Next()
			if i == 1 {
				ip = ip.Next()
			}
			n.attach = append(n.attach, &attachment{realm: lan, host: netip.AddrPortFrom(ip, 51820), kind: exchange.Host})
			n.gather(false)
		}
		there := func() bool {
			return w.direct() && lan.prefix.Contains(w.nodes[0].route.WG.Addr()) && lan.prefix.Contains(w.nodes[1].route.WG.Addr())
		}
		if !w.runUntil(time.Minute, there) {
			t.Errorf("%s: %s", name, w.describe())
			continue
		}
		t.Logf("%s: after %v", name, w.now.Sub(begin))
	}
}

// A path that appears without new candidates, since a link that was down is up, is found by evaluation.
func TestBetterPathRecovers(t *testing.T) {
	w := newWorld(t, 5)
	fast := w.realm("203.0.113.0/24", 2*time.Millisecond)
	for i, n := range w.nodes {
		n.attach = append(n.attach, &attachment{
			realm: fast, host: netip.AddrPortFrom(netip.AddrFrom4([4]byte{203, 0, 113, byte(i + 1)}), 51820), kind: exchange.Host,
		})
	}
	w.internet(prc(), prc())
	fast.cut = true
	w.begin()
	for _, n := range w.nodes {
		n.talk(20*time.Millisecond, 10*time.Minute)
	}
	w.run(2 * time.Minute)
	if !w.direct() || fast.prefix.Contains(w.nodes[0].route.WG.Addr()) {
		t.Fatal(w.describe())
	}
	fast.cut = false
	begin := w.now
	if !w.runUntil(time.Minute, func() bool { return w.direct() && fast.prefix.Contains(w.nodes[0].route.WG.Addr()) }) {
		t.Errorf("not adopted: %s", w.describe())
	}
	t.Logf("after %v", w.now.Sub(begin))
}

// Of pairs about as fast the nearer one is taken, of others the fastest.
func TestChoose(t *testing.T) {
	mk := func(kind exchange.CandidateKind, addr string, rtt time.Duration) *pair {
		e := netip.MustParseAddrPort(addr)
		p := &pair{route: Route{Check: e, WG: e}, kind: kind}
		p.rtts.add(rtt)
		return p
	}
	const ms = time.Millisecond
	host4 := func(rtt time.Duration) *pair { return mk(exchange.Host, "192.0.2.1:1", rtt) }
	host6 := func(rtt time.Duration) *pair { return mk(exchange.Host, "[2001:db8::1]:1", rtt) }
	mapped := func(rtt time.Duration) *pair { return mk(exchange.Mapped, "192.0.2.2:1", rtt) }
	reflexive := func(rtt time.Duration) *pair { return mk(exchange.Reflexive, "192.0.2.3:1", rtt) }
	for name, c := range map[string]struct {
		pairs []*pair
		want  int
	}{
		"none":                          {nil, -1},
		"the fastest":                   {[]*pair{host4(30 * ms), reflexive(10 * ms)}, 1},
		"host before mapped":            {[]*pair{mapped(10 * ms), host4(11 * ms)}, 1},
		"mapped before reflexive":       {[]*pair{reflexive(10 * ms), mapped(11 * ms)}, 1},
		"IPv6 before IPv4":              {[]*pair{host4(10 * ms), host6(11 * ms)}, 1},
		"10 % is about as fast":         {[]*pair{reflexive(100 * ms), host4(109 * ms)}, 1},
		"11 % is not":                   {[]*pair{reflexive(100 * ms), host4(111 * ms)}, 0},
		"no chain of nearly equal ones": {[]*pair{reflexive(10 * ms), mapped(12 * ms), host4(14 * ms)}, 1},
	} {
		got := choose(c.pairs)
		if c.want < 0 && got != nil || c.want >= 0 && got != c.pairs[c.want] {
			t.Errorf("%s: %+v", name, got)
		}
	}
	if worthMoving(host4(9*ms), host4(10*ms)) || worthMoving(host4(7*ms), host4(9*ms)) || !worthMoving(host4(70*ms), host4(100*ms)) {
		t.Error("a move pays by 20 % and 3 ms")
	}
}

// Proposals for what is not known, late and repeated messages, and those of another session do no harm.
func TestStrayMessages(t *testing.T) {
	w, _ := connected(t, 5, time.Minute, time.Minute)
	n := w.nodes[1]
	session := n.m.State().PeerSession
	hear := func(msg exchange.Message) (answers []exchange.Message) {
		msg.Fresh = true
		for _, a := range n.m.Step(Heard{msg}, w.now) {
			if s, ok := a.(Send); ok {
				answers = append(answers, s.Message)
			}
		}
		n.m.verify(t, nil, w.now)
		return answers
	}
	stranger := netip.MustParseAddrPort("192.0.2.77:7")
	p := exchange.Message{Kind: exchange.KindProposal, Session: session, Attempt: 99, Proposer: stranger, Acceptor: stranger}
	for range 2 {
		if a := hear(p); len(a) != 1 || a[0].Reason != exchange.UnknownPath || a[0].Attempt != 99 {
			t.Errorf("unknown path: %+v", a)
		}
	}
	p.Attempt = 98
	if a := hear(p); len(a) != 0 {
		t.Errorf("a proposal older than one that was answered: %+v", a)
	}
	p.Session = 4711
	if a := hear(p); len(a) != 2 || a[0].Kind != exchange.KindAnswer || a[0].Reason != exchange.UnknownSession ||
		a[1].Kind != exchange.KindCandidates {
		t.Errorf("unknown session: %+v", a)
	}
	for _, reason := range []exchange.Reason{0, 1, 2, 3, 4, 5, 6, 7, 8, 200} {
		hear(exchange.Message{Kind: exchange.KindAnswer, Session: session, Attempt: 12345, Reason: reason})
	}
	if s := n.m.State(); s.Phase != Direct || s.Mode != ModeRoute || len(s.Bans) != 0 {
		t.Errorf("%+v", s)
	}
	for range 1000 {
		hear(exchange.Message{Kind: exchange.KindStart, Session: session})
	}
	w.run(10 * time.Second)
	if !w.direct() {
		t.Error(w.describe())
	}
}
