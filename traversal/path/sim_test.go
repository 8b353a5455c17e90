package path

import (
	"container/heap"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"culvert.dev/culvert/internal/wgkey"
	"culvert.dev/culvert/traversal/exchange"
)

// The model: two nodes with a Machine each, a relay between them, and realms of addresses in which UDP goes from one to the other.
// Time is virtual, and all that is random comes from a seed.

var epoch = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

const hops = 10 // a TTL below this does not reach the other side

type world struct {
	t      testing.TB
	now    time.Time
	random *rand.Rand
	queue  queue
	order  int
	nodes  [2]*simNode
	realms []*realm

	relayDelay time.Duration
	relayDown  bool
	relayed    int // messages given to the relay
	cutAfter   int // the relay is lost after so many; 0: never
	trace      bool

	dropMessage func(exchange.Message) bool
}

// realm is a network in which the nodes may have addresses.
type realm struct {
	prefix        netip.Prefix
	delay, jitter time.Duration
	loss          float64
	cut           bool    // nothing passes
	deaf          [2]bool // nothing passes that comes from this node
	noWG          bool    // only what is not WireGuard's passes
}

type attachment struct {
	realm *realm
	host  netip.AddrPort
	nat   *natModel
	kind  exchange.CandidateKind // of host, if there is no NAT
	check netip.AddrPort         // of a socket for checks apart
}

// socket is the one that takes WireGuard's datagrams, or what is not WireGuard's.
func (a *attachment) socket(wg bool) netip.AddrPort {
	if !wg && a.check.IsValid() {
		return a.check
	}
	return a.host
}

type simNode struct {
	w       *world
	i       int
	m       *Machine
	cfg     Config
	attach  []*attachment
	life    int // of the sealer
	theirs  int // life of the peer as heard
	seq     int // of messages
	heard   int
	mode    Mode
	route   Route
	accept  []Route
	echo    int // the last one
	pending map[int]*checkSent
	ids     int

	tx, rxRoute, rxRelay uint64 // since the last Traffic
	sending              bool
	active               bool
	frozen               bool // the host sleeps: nothing is executed, nothing arrives
	got                  map[int]bool
	appSent              int
	hints                exchange.Hints
	blocked              bool
	wgFails              bool

	checks     []time.Time
	sends      []time.Time
	candidates []time.Time
	steps      int
	uses       []usedAt
	punches    int
	punch      func(Punch)
	regathers  int
	onCheck    func(Check)
	extra      int // further host candidates, where nobody is
}

type usedAt struct {
	at  time.Time
	use Use
}

type checkSent struct {
	route Route
	at    time.Time
}

type item struct {
	at    time.Time
	order int
	do    func()
}

type queue []item

func (q queue) Len() int { return len(q) }
func (q queue) Less(i, j int) bool {
	return q[i].at.Before(q[j].at) || q[i].at.Equal(q[j].at) && q[i].order < q[j].order
}
func (q queue) Swap(i, j int) { q[i], q[j] = q[j], q[i] }
func (q *queue) Push(x any)   { *q = append(*q, x.(item)) }
func (q *queue) Pop() any {
	old := *q
	x := old[len(old)-1]
	*q = old[:len(old)-1]
	return x
}

func newWorld(t testing.TB, seed uint64) *world {
	w := &world{t: t, now: epoch, random: rand.New(rand.NewPCG(seed, 1)), relayDelay: 25 * time.Millisecond}
	for i := range w.nodes {
		var self, peer wgkey.Public
		self[0], peer[0] = byte(i+1), byte(2-i)
		n := &simNode{w: w, i: i, life: i + 1, pending: map[int]*checkSent{}, got: map[int]bool{}}
		n.cfg = Config{Self: self, Peer: peer, Session: exchange.Session(1000*seed + uint64(i) + 1), Seed: seed}
		n.m = New(n.cfg)
		w.nodes[i] = n
	}
	return w
}

func (w *world) realm(prefix string, delay time.Duration) *realm {
	r := &realm{prefix: netip.MustParsePrefix(prefix), delay: delay}
	w.realms = append(w.realms, r)
	return r
}

// internet puts both nodes behind NATs in one realm; nil is a public address.
func (w *world) internet(a, b *natKind) *realm {
	r := w.realm("198.51.100.0/24", 10*time.Millisecond)
	for i, k := range []*natKind{a, b} {
		n := w.nodes[i]
		ip := netip.AddrFrom4([4]byte{198, 51, 100, byte(i + 1)})
		if k == nil {
			n.attach = append(n.attach, &attachment{realm: r, host: netip.AddrPortFrom(ip, 51820), kind: exchange.Host})
			n.hints = exchange.Hints{Known: true}
			continue
		}
		n.attach = append(n.attach, &attachment{
			realm: r, host: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, byte(i), 2}), 51820),
			nat: &natModel{kind: *k, ip: ip, nextPort: uint16(w.random.IntN(60000))},
		})
		n.hints = k.hints()
	}
	return r
}

func (w *world) after(d time.Duration, do func()) {
	w.order++
	heap.Push(&w.queue, item{w.now.Add(d), w.order, do})
}

// every does something again and again, for ever.
func (w *world) every(d time.Duration, do func()) {
	w.after(d, func() {
		do()
		w.every(d, do)
	})
}

// run lets time pass.
func (w *world) run(d time.Duration) { w.runUntil(d, func() bool { return false }) }

func (w *world) runUntil(d time.Duration, done func() bool) bool {
	end := w.now.Add(d)
	for !done() {
		next, node := end.Add(1), (*simNode)(nil)
		if len(w.queue) > 0 {
			next = w.queue[0].at
		}
		for _, n := range w.nodes {
			if at := n.m.Next(); !n.frozen && !at.IsZero() && at.Before(next) {
				next, node = at, n
			}
		}
		if next.After(end) {
			w.now = end
			return done()
		}
		w.now = later(w.now, next)
		if node != nil {
			node.step(Tick{})
			continue
		}
		heap.Pop(&w.queue).(item).do()
	}
	return true
}

// begin connects both nodes to the relay and has them want each other.
func (w *world) begin() {
	for _, n := range w.nodes {
		n.step(Relay{Connected: true})
		n.gather(false)
		n.step(Wanted{On: true, Active: n.active})
	}
}

func (w *world) direct() bool {
	for _, n := range w.nodes {
		if s := n.m.State(); s.Phase != Direct || s.Mode != ModeRoute {
			return false
		}
	}
	return true
}

func (w *world) relayIs(up bool) {
	w.relayDown = !up
	for _, n := range w.nodes {
		n.step(Relay{Connected: up})
	}
}

// candidatesNow is what a gatherer would find.
func (n *simNode) candidatesNow() []exchange.Candidate {
	var list []exchange.Candidate
	server := netip.MustParseAddrPort("203.0.113.1:3478")
	for _, a := range n.attach {
		if a.nat == nil {
			list = append(list, exchange.Candidate{Kind: a.kind, WG: a.host, Check: a.check})
			continue
		}
		seen := exchange.Candidate{Kind: exchange.Reflexive, WG: a.nat.outbound(a.host, server, n.w.now)}
		if a.check.IsValid() {
			seen.Check = a.nat.outbound(a.check, server, n.w.now)
		}
		list = append(list, exchange.Candidate{Kind: exchange.Host, WG: a.host, Check: a.check}, seen)
	}
	for i := range n.extra {
		list = append(list, exchange.Candidate{
			Kind: exchange.Host, WG: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 99, 0, byte(i)}), 51820),
		})
	}
	return list
}

func (n *simNode) gather(network bool) {
	n.step(Gathered{Candidates: n.candidatesNow(), Hints4: n.hints, Network: network, Blocked: n.blocked})
}

// restart is the node's process beginning anew.
func (n *simNode) restart() {
	n.life += 10
	n.theirs, n.heard = 0, 0
	n.newMachine()
}

// newMachine is the agent beginning anew with the peer, in the same process.
func (n *simNode) newMachine() {
	n.cfg.Session += 7777
	n.m = New(n.cfg)
	n.mode, n.route, n.accept = ModeRelay, Route{}, nil
	n.pending = map[int]*checkSent{}
	n.step(Relay{Connected: !n.w.relayDown})
	n.gather(false)
	n.step(Wanted{On: true, Active: n.active})
}

func (n *simNode) peer() *simNode { return n.w.nodes[1-n.i] }

func (n *simNode) step(ev Event) {
	if n.frozen {
		return
	}
	n.steps++
	acts := n.m.Step(ev, n.w.now)
	if n.w.trace {
		n.w.t.Logf("%8v %d %T%+v", n.w.now.Sub(epoch), n.i, ev, ev)
	}
	n.m.verify(n.w.t, acts, n.w.now)
	for _, a := range slices.Clone(acts) {
		if n.w.trace {
			n.w.t.Logf("%8v %d   -> %T%+v", n.w.now.Sub(epoch), n.i, a, a)
		}
		n.execute(a)
	}
}

func (n *simNode) execute(a Action) {
	w := n.w
	switch a := a.(type) {
	case Send:
		n.send(a.Message)
	case Check:
		n.checks = append(n.checks, w.now)
		if n.onCheck != nil {
			n.onCheck(a)
		}
		n.ids++
		id := n.ids
		n.pending[id] = &checkSent{a.Route, w.now}
		from, to := n.m.cfg.Session, n.m.State().PeerSession
		n.datagram(a.Route.Check, a.TTL, false, func(p *simNode, src, dst netip.AddrPort) { p.request(n, id, from, to, src, dst) })
	case Use:
		n.mode, n.route = a.Mode, a.Route
		n.uses = append(n.uses, usedAt{w.now, a})
	case Accept:
		n.accept = a.Routes
	case Echo:
		n.echo++
		id, begin := n.echo, w.now
		over := func(ok bool) {
			if n.echo == id {
				n.echo++
				n.step(Echoed{OK: ok, RTT: w.now.Sub(begin)})
			}
		}
		n.data(func(p *simNode) { p.data(func(*simNode) { over(true) }) })
		w.after(time.Second, func() { over(false) })
	case Punch:
		n.punches++
		if n.punch != nil {
			n.punch(a)
			return
		}
		if a.Lead {
			n.send(exchange.Message{Kind: exchange.KindStart, Session: n.cfg.Session, Technique: uint8(a.Technique)})
		}
		w.after(time.Second, func() { n.step(PunchDone{Technique: a.Technique}) })
	case Regather:
		n.regathers++
		w.after(60*time.Millisecond, func() { n.gather(false) })
	}
}

// datagram sends by UDP: out of the own NAT, through the realm, into the other one.
func (n *simNode) datagram(to netip.AddrPort, ttl uint8, wg bool, arrive func(p *simNode, src, dst netip.AddrPort)) {
	w, p := n.w, n.peer()
	for _, a := range n.attach {
		r := a.realm
		if !r.prefix.Contains(to.Addr()) {
			continue
		}
		src := a.host
		if !wg && a.check.IsValid() {
			src = a.check
		}
		if a.nat != nil {
			src = a.nat.outbound(src, to, w.now)
		}
		if ttl != 0 && ttl < hops || r.cut || r.deaf[n.i] || wg && r.noWG || w.random.Float64() < r.loss {
			return
		}
		delay := r.delay
		if r.jitter > 0 {
			delay += time.Duration(w.random.Int64N(int64(r.jitter)))
		}
		w.after(delay, func() {
			for _, b := range p.attach {
				switch {
				case b.realm != r || p.frozen:
				case b.nat == nil && b.socket(wg) == to:
					arrive(p, src, to)
				case b.nat != nil && b.nat.ip == to.Addr():
					if inside, ok := b.nat.inbound(src, to.Port(), w.now); ok && inside == b.socket(wg) {
						arrive(p, src, to)
					}
				}
			}
		})
		return
	}
}

// request is a check that has arrived: authentic if both sessions are those that are known.
func (n *simNode) request(from *simNode, id int, theirs, ours exchange.Session, src, dst netip.AddrPort) {
	if ours != n.m.cfg.Session || theirs != n.m.State().PeerSession {
		return
	}
	n.datagram(src, 0, false, func(p *simNode, back, _ netip.AddrPort) {
		if c := p.pending[id]; p == from && c != nil && back == c.route.Check {
			delete(p.pending, id)
			p.step(Answered{Route: c.route, RTT: p.w.now.Sub(c.at), Mapped: src})
		}
	})
	n.step(Asked{Route: Route{Check: src}})
}

// send seals a message: by relay, and by a proven route where the relay cannot be relied upon.
func (n *simNode) send(msg exchange.Message) {
	w := n.w
	n.sends = append(n.sends, w.now)
	if msg.Kind == exchange.KindCandidates {
		n.candidates = append(n.candidates, w.now)
	}
	n.seq++
	seq, life, echo := n.seq, n.life, n.theirs
	arrive := func(p *simNode) { p.open(msg, seq, life, echo) }
	if !w.relayDown && (w.dropMessage == nil || !w.dropMessage(msg)) {
		w.relayed++
		w.after(w.relayDelay, func() {
			if p := n.peer(); !w.relayDown && !p.frozen {
				arrive(p)
			}
		})
		if w.cutAfter > 0 && w.relayed == w.cutAfter {
			w.after(0, func() { w.relayIs(false) })
		}
	}
	side := msg.Kind == exchange.KindProposal || msg.Kind == exchange.KindAnswer || msg.Kind == exchange.KindGoodbye
	if (w.relayDown || side) && len(n.accept) > 0 {
		to := n.accept[0]
		if n.route.IsValid() {
			to = n.route
		}
		n.datagram(to.Check, 0, false, func(p *simNode, _, _ netip.AddrPort) { arrive(p) })
	}
}

// open is what exchange.Sealer.Open does with replays and lives.
func (n *simNode) open(msg exchange.Message, seq, life, echo int) {
	if seq <= n.heard && life == n.theirs {
		return
	}
	known := echo == n.life
	if echo != 0 && !known || echo == 0 && msg.Kind != exchange.KindCandidates && msg.Kind != exchange.KindTrickle {
		n.heard, n.theirs = seq, life
		n.step(Hello{})
		return
	}
	n.heard, n.theirs = seq, life
	msg.Fresh = known
	if known {
		msg.RTT = 2 * n.w.relayDelay
	}
	n.step(Heard{Message: msg})
}

// data sends one of WireGuard's datagrams whichever way is in use; arrive is called for the first copy.
func (n *simNode) data(arrive func(p *simNode)) {
	w := n.w
	n.tx++
	n.flow()
	done := false
	take := func(p *simNode, count *uint64) {
		*count++
		p.flow()
		if !done && !p.wgFails {
			done = true
			arrive(p)
		}
	}
	if n.mode != ModeRoute && !w.relayDown {
		w.after(w.relayDelay, func() {
			if p := n.peer(); !w.relayDown && !p.frozen {
				take(p, &p.rxRelay)
			}
		})
	}
	if n.mode != ModeRelay {
		n.datagram(n.route.WG, 0, true, func(p *simNode, src, _ netip.AddrPort) {
			if p.cfg.Vanilla || slices.ContainsFunc(p.accept, func(r Route) bool { return r.WG == src }) {
				take(p, &p.rxRoute)
			} else {
				p.step(Roamed{Remote: src})
			}
		})
	}
}

// flow has Traffic told 250 ms after a datagram.
func (n *simNode) flow() {
	if n.sending {
		return
	}
	n.sending = true
	n.w.after(250*time.Millisecond, func() {
		ev := Traffic{Tx: n.tx, RxRoute: n.rxRoute, RxRelay: n.rxRelay}
		n.tx, n.rxRoute, n.rxRelay, n.sending = 0, 0, 0, false
		n.step(ev)
	})
}

// talk sends datagrams of an application for a time, and returns how many did not arrive.
func (n *simNode) talk(every, d time.Duration) (lost func() int) {
	first := n.appSent
	end := n.w.now.Add(d)
	var next func()
	next = func() {
		if !n.w.now.Before(end) {
			return
		}
		n.appSent++
		id := n.appSent
		n.data(func(p *simNode) { p.got[id] = true })
		n.w.after(every, next)
	}
	next()
	return func() (lost int) {
		for id := first + 1; id <= n.appSent; id++ {
			if !n.peer().got[id] {
				lost++
			}
		}
		return lost
	}
}

// verify is what holds after every step.
func (m *Machine) verify(t testing.TB, acts []Action, now time.Time) {
	t.Helper()
	if next := m.Next(); !next.IsZero() && !next.After(now) {
		t.Fatalf("next step is due at %v, which is not after %v: %+v", next, now, m.due)
	}
	if len(m.pairs) > MaxPairs || len(m.bans) > MaxBans || len(m.accepted) > MaxAccept || len(acts) > 200 {
		t.Fatalf("%d pairs, %d bans, %d accepted, %d actions", len(m.pairs), len(m.bans), len(m.accepted), len(acts))
	}
	if m.mode != ModeRelay && (m.using == nil || !slices.Contains(m.accepted, m.using.route)) {
		t.Fatalf("mode %v by a route that is not accepted", m.mode)
	}
	if m.used.Mode == ModeRelay && m.used.Route.IsValid() || m.used.Mode != m.mode {
		t.Fatalf("used %+v, mode %v", m.used, m.mode)
	}
	if m.using != nil && !slices.Contains(m.pairs, m.using) {
		t.Fatalf("the pair in use is not in the list")
	}
	for _, a := range acts {
		if s, ok := a.(Send); ok && s.Message.Kind == exchange.KindProposal {
			for _, b := range m.bans {
				if b.until.After(m.now) && b.route.WG == s.Message.Acceptor {
					t.Fatalf("proposes %v, which is banned", b.route)
				}
			}
		}
	}
}

// within counts the largest number of times that lie in any window of a length.
func within(times []time.Time, window time.Duration) int {
	most, from := 0, 0
	for i, at := range times {
		for at.Sub(times[from]) >= window {
			from++
		}
		most = max(most, i-from+1)
	}
	return most
}

func since(times []time.Time, from time.Time) []time.Time {
	i, _ := slices.BinarySearchFunc(times, from, time.Time.Compare)
	return times[i:]
}

func (w *world) describe() string {
	s := ""
	for _, n := range w.nodes {
		st := n.m.State()
		s += fmt.Sprintf("node %d: %v %v %v pairs %d valid %d bans %v reason %v; ", n.i, st.Phase, st.Mode, st.Route, st.Pairs, st.Valid, st.Bans, st.Why(w.now))
	}
	return s
}

func percentile(list []time.Duration, p float64) time.Duration {
	if len(list) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(list))
	return sorted[min(int(float64(len(sorted))*p), len(sorted)-1)]
}
