package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"culvert.dev/culvert/internal/testnet"
	"culvert.dev/culvert/internal/wgkey"
	"culvert.dev/culvert/traversal/check"
	"culvert.dev/culvert/traversal/exchange"
	"culvert.dev/culvert/traversal/gather"
	"culvert.dev/culvert/traversal/path"
	"culvert.dev/culvert/traversal/punch"
)

// recorder is a Transport that keeps what is sent where.
type recorder struct {
	sent  map[netip.AddrPort][]int // sizes
	fails error                    // of SetRoute
	last  uint32
	open  int
	most  int // open at a time
}

func (r *recorder) SetRoute(wgkey.Public, path.Mode, path.Route, []path.Route) error { return r.fails }
func (r *recorder) Traffic(wgkey.Public) (Traffic, bool)                             { return Traffic{}, true }

func (r *recorder) OpenSocket(uint8, uint16) (uint32, uint16, error) {
	r.last++
	r.open++
	r.most = max(r.most, r.open)
	return r.last, uint16(30000 + r.last), nil
}

func (r *recorder) CloseSocket(uint32) { r.open-- }

func (r *recorder) SendFrom(_ uint32, msg []byte, to netip.AddrPort, _ uint8) error {
	r.sent[to] = append(r.sent[to], len(msg))
	return nil
}

// away is a Relay that takes everything, and brings nothing.
type away struct{}

func (away) Send(wgkey.Public, [][]byte) error  { return nil }
func (away) Presence(wgkey.Public) (bool, bool) { return true, false }

// bench is an engine whose events are the test's, and one peer of it, heard already and let begin.
type bench struct {
	*engine
	*recorder
	p   *peer
	log lines
	now time.Time
}

func newBench(t *testing.T) *bench {
	b := &bench{recorder: &recorder{sent: map[netip.AddrPort][]int{}}, now: time.Now()}
	us := gather.Local{First: true, Complete: true, Hints4: symmetric, Candidates: []exchange.Candidate{
		{Kind: exchange.Host, WG: netip.MustParseAddrPort("192.0.2.1:1000")},
	}}
	a := must(New(Config{
		Key: must(wgkey.NewPrivate()), Transport: b.recorder, Relay: away{}, Gather: &fixed{local: us}, HardNAT: true,
		Echo:   func(context.Context, wgkey.Public) (time.Duration, error) { return 0, errors.New("nobody there") },
		Filter: func() *exchange.Filter { return &exchange.Filter{} }, Logger: slog.New(slog.NewTextHandler(&b.log, nil)),
	}))
	leader := must(wgkey.NewPrivate()).Public()
	for string(leader[:]) > string(a.self[:]) { // with the lower key
		leader = must(wgkey.NewPrivate()).Public()
	}
	if err := a.SetPeers([]Peer{{Key: leader, Name: "p"}}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	b.engine = newEngine(ctx, a, b.now)
	t.Cleanup(func() { cancel(); b.workers.Wait() })
	b.setPeers(a.takeRoster(), b.now)
	b.p = b.list[0]
	b.hear(1)
	b.settle(b.now)
	return b
}

// hear has the peer say, in a session, where it is.
func (b *bench) hear(s exchange.Session) {
	b.heard(b.p, exchange.Message{
		Kind: exchange.KindCandidates, Session: s, Fresh: true, Hints4: symmetric,
		Candidates: []exchange.Candidate{{Kind: exchange.Host, WG: netip.MustParseAddrPort("203.0.113.1:2000")}},
	}, b.now)
}

// start has the peer ask for an attempt at a hard NAT.
func (b *bench) start(t punch.Technique) {
	b.heard(b.p, exchange.Message{Kind: exchange.KindStart, Session: b.p.theirs, Fresh: true, Technique: uint8(t)}, b.now)
	b.settle(b.now)
}

// run lets time go on, and does what is due.
func (b *bench) run(d, step time.Duration) {
	for end := b.now.Add(d); b.now.Before(end); b.now = b.now.Add(step) {
		for len(b.done) > 0 {
			(<-b.done)(b.now)
		}
		b.tick(b.now)
		b.settle(b.now)
	}
}

func TestFloodOfOnePeerLeavesRoomForOthers(t *testing.T) {
	r := newReception(t)
	other := wgkey.Public{7, 1}
	sealed := []byte("TS💬 and more")
	x := r.a.index.Load()
	x.routes[way{0, r.from}] = x.keys[r.peer]
	for range 2 * sealedQueue {
		r.a.HandleSealed(sealed, r.peer)
		r.a.HandleSide(sealed, 0, r.from) // which anybody can send
	}
	for range 2 * checkQueue {
		r.a.HandleSide(r.genuine, 0, r.from)
	}
	if len(r.a.sealed) != 2*sealedShare || len(r.a.checks) != checkShare {
		t.Errorf("%d sealed messages and %d checks of one peer wait", len(r.a.sealed), len(r.a.checks))
	}
	before := len(r.a.sealed)
	r.a.HandleSealed(sealed, other)
	if len(r.a.sealed) != before+1 {
		t.Error("another peer is not heard")
	}
}

// Messages that only claim to come from a peer do not use up what its own ones need.
func TestForgedMessagesByUDPDoNotSilenceThePeer(t *testing.T) {
	b := newBench(t)
	for range 1000 {
		b.p.inbox.direct.Add(1)
		b.handleSealed(&sealed{packet: []byte("TS💬 nonsense"), from: b.p.Key, byUDP: true, share: &b.p.inbox.direct}, b.now)
	}
	limited := b.Stats().Counts[SealedLimited]
	b.p.inbox.relayed.Add(1)
	b.handleSealed(&sealed{packet: []byte("TS💬 by relay"), from: b.p.Key, share: &b.p.inbox.relayed}, b.now)
	if got := b.Stats().Counts; limited == 0 || got[SealedLimited] != limited || b.p.inbox.direct.Load() != 0 || b.p.inbox.relayed.Load() != 0 {
		t.Errorf("%d limited before, %d after; %d and %d places taken", limited, got[SealedLimited], b.p.inbox.direct.Load(), b.p.inbox.relayed.Load())
	}
}

func TestForgedChecksFromThePathDoNotKeepOutThePeer(t *testing.T) {
	r := newReception(t)
	x := r.a.index.Load()
	x.routes[way{0, r.from}] = x.keys[r.peer]
	for range 10 * strangerTries {
		r.a.HandleSide(r.forged, 0, r.from)
	}
	if r.a.HandleSide(r.genuine, 0, r.from); len(r.a.checks) != 1 {
		t.Errorf("the peer's own check is not taken: %v", r.a.Stats().Counts)
	}
	elsewhere := netip.AddrPortFrom(r.from.Addr(), 999)
	before := r.a.Stats().Counts[Forged]
	if r.a.HandleSide(r.forged, 0, elsewhere); r.a.Stats().Counts[Forged] != before {
		t.Error("no limit for another port")
	}
}

// Two peers may be accepted at one address, as one can pretend to be at the other's. Messages from there are of the one that answers.
func TestAddressOfTwoPeersIsOfTheOneThatUsesIt(t *testing.T) {
	r := routeTo(7)
	user := &peer{Peer: Peer{Key: wgkey.Public{1}}, number: 1, mode: path.ModeRoute, use: r, accept: []path.Route{r}}
	liar := &peer{Peer: Peer{Key: wgkey.Public{2}}, number: 2, accept: []path.Route{r}}
	for range 50 { // maps have no order
		if e := newIndex(map[wgkey.Public]*peer{user.Key: user, liar.Key: liar}).routes[wayOf(r)]; e.number != 1 {
			t.Fatal("the address is the liar's")
		}
	}
}

// A request may be a recording, sent with somebody else's address: what goes there is no more than a few small datagrams.
func TestRecordedRequestBringsItsSourceLittle(t *testing.T) {
	b := newBench(t)
	victim := netip.MustParseAddrPort("203.0.113.99:53")
	for range 5 {
		b.p.inbox.checks.Add(1)
		b.handleCheck(&checked{peer: b.p.number, kind: check.KindRequest, id: check.NewID(), from: way{0, victim}, at: b.now, share: &b.p.inbox.checks})
		b.run(time.Second, 10*time.Millisecond)
	}
	b.run(time.Minute, 100*time.Millisecond)
	if len(b.sent[victim]) == 0 {
		t.Fatal("nothing was sent: the test tests nothing")
	}
	for _, n := range b.sent[victim] {
		if n > check.MinRequest {
			t.Fatalf("datagrams of %v bytes, for requests of %d", b.sent[victim], check.MinRequest)
		}
	}
}

func TestPeerThatBeginsAnewAllTheTimeDoesNotFloodTheLog(t *testing.T) {
	b := newBench(t)
	for i := range 1000 {
		b.hear(exchange.Session(2 + i))
		b.settle(b.now)
		b.now = b.now.Add(25 * time.Millisecond)
	}
	if n := strings.Count(b.log.String(), "\n"); n == 0 || n > lineBurst+5 {
		t.Errorf("%d lines in 25 s", n)
	}
	b.now = b.now.Add(time.Minute)
	b.hear(1)
	if !strings.Contains(b.log.String(), "held_back=") {
		t.Error("the log does not say that lines are missing")
	}
}

// Good messages and late ones in turns bring one warning a minute.
func TestWarningsOfClocksAreFew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 1)
		defer w.end()
		log := &lines{}
		x, y := w.pair(testnet.Pub, testnet.Pub, func(x, _ *nodeConfig) { x.handler = slog.NewTextHandler(log, nil) })
		w.become(x, y, 5*time.Second)
		off := must(exchange.NewSealer(y.key))
		if err := off.SetPeers([]wgkey.Public{x.public}); err != nil {
			t.Fatal(err)
		}
		m := exchange.Message{Kind: exchange.KindCandidates, Session: 7}
		for range 20 {
			x.agent.HandleSealed(must(off.Seal(nil, x.public, m, time.Now().Add(5*time.Minute))), y.public)
			time.Sleep(100 * time.Millisecond)
			good := exchange.Message{Kind: exchange.KindAnswer, Session: 7, Attempt: 1}
			x.agent.HandleSealed(must(y.agent.sealer.Seal(nil, x.public, good, time.Now())), y.public)
			time.Sleep(100 * time.Millisecond)
		}
		if n := strings.Count(log.String(), "refused for their time"); n != 1 {
			t.Errorf("%d warnings in 4 s", n)
		}
	})
}

// A peer that has this node open sockets again and again, and lets it wait, soon has to wait itself.
func TestPeerThatWastesAttemptsHasToWait(t *testing.T) {
	b := newBench(t)
	taken, techniques := time.Duration(0), []punch.Technique{punch.Prediction, punch.Sweep, punch.Birthday}
	for began, i := b.now, 0; b.now.Sub(began) < time.Hour; i++ {
		b.start(techniques[i%len(techniques)])
		if b.engine.punch != nil {
			since := b.now
			for b.engine.punch != nil {
				b.run(time.Second, 100*time.Millisecond)
			}
			taken += b.now.Sub(since)
		}
		b.run(time.Second, 100*time.Millisecond)
	}
	t.Logf("in an hour: %v with the peer's attempts, %d of them, %d sockets at most", taken, b.Stats().Counts[PunchesFollowed], b.most)
	if b.most < 2 || taken > 5*time.Minute {
		t.Errorf("the one place was taken for %v", taken)
	}
	if b.run(2*time.Second, 100*time.Millisecond); b.most > punch.MaxSockets || b.open != 0 {
		t.Errorf("%d sockets at once, %d open in the end", b.most, b.open)
	}
}

// The end may come in the midst of an attempt.
func TestEndDuringAnAttemptClosesItsSockets(t *testing.T) {
	b := newBench(t)
	b.start(punch.Birthday)
	b.run(time.Second, 100*time.Millisecond)
	if b.open < 2 {
		t.Fatalf("%d sockets open: the test tests nothing", b.open)
	}
	b.end()
	if b.open != 0 || len(b.list) != 0 || len(b.lingers) != 0 {
		t.Errorf("%d sockets open, %d peers, %d sockets linger", b.open, len(b.list), len(b.lingers))
	}
}

func TestRecordedStartsBeginNothing(t *testing.T) {
	b := newBench(t)
	before := b.p.state
	b.heard(b.p, exchange.Message{Kind: exchange.KindStart, Session: 1, Technique: uint8(punch.Birthday)}, b.now)
	b.settle(b.now)
	if b.engine.punch != nil || b.p.state.Phase != before.Phase || b.Stats().Counts[PunchesDeclined] != 0 {
		t.Errorf("an attempt has begun, or was declined, for a recording: %v", b.p.state.Phase)
	}
}

// A seat is not for ever, however often the peer has the search begun anew.
func TestSeatIsNotKeptByBeginningAnew(t *testing.T) {
	b := newBench(t)
	if b.p.state.Phase != path.Checking || !b.holdsSeat(b.p, b.now) {
		t.Fatalf("phase %v: the test tests nothing", b.p.state.Phase)
	}
	for i := range 40 {
		b.hear(exchange.Session(2 + i))
		b.run(time.Second, 50*time.Millisecond)
	}
	if b.p.state.Phase == path.Checking && b.holdsSeat(b.p, b.now) {
		t.Error("still in its seat")
	}
}

// WireGuard may have let go of a peer before the agent hears of it: that is nothing to complain about.
func TestPeerThatLeavesIsNoFault(t *testing.T) {
	b := newBench(t)
	b.route(b.p, path.ModeRoute, routeTo(1), []path.Route{routeTo(1)}, b.now)
	b.fails = fmt.Errorf("no such peer")
	if err := b.SetPeers(nil); err != nil {
		t.Fatal(err)
	}
	b.setPeers(b.takeRoster(), b.now)
	if strings.Contains(b.log.String(), "could not be set") || b.Stats().Counts[RouteErrors] != 0 {
		t.Errorf("%s", b.log.String())
	}
}

func TestWithdrawingIsNoShutdown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 1)
		defer w.end()
		log := &lines{}
		x, y := w.pair(testnet.PRC, testnet.PRC, func(_, y *nodeConfig) { y.handler = slog.NewTextHandler(log, nil) })
		w.become(x, y, 5*time.Second)
		if err := x.agent.Withdraw(t.Context()); err != nil {
			t.Fatal(err)
		}
		want := "reason=" + strconv.Quote(exchange.NotWanted.String())
		if _, ok := wait(time.Second, func() bool { return strings.Contains(log.String(), want) }); !ok {
			t.Errorf("the peer is not told %s:\n%s", want, log)
		}
	})
}
