package punch

import (
	"cmp"
	"math"
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"

	"culvert.dev/culvert/nat"
	"culvert.dev/culvert/traversal/exchange"
	"culvert.dev/culvert/traversal/stun"
)

// model is a NAT with filtering by address and port: a packet comes in if one went out from that port to where it comes from.
type model struct {
	rng     *rand.Rand
	addr    netip.Addr
	mapping nat.Dependence
	draw    func(n *model, local uint16) uint16
	keep    bool    // the own port, if free
	foreign float64 // mappings of others, per second
	counter int     // the port given last, of those that count
	step    int
	openIn  bool // as Linux without a rule for unsolicited packets
	quota   int  // mappings at most, each with a port of its own; 0: ports are shared by destinations

	now    time.Duration
	ports  map[mapKey]uint16
	opened map[flow]bool
	taken  map[flow]bool // by unsolicited packets
	used   map[uint16]bool
}

// mapKey is what a mapping is for, flow what an outer port is open for.
type mapKey struct {
	local uint16
	to    remote
}
type flow struct {
	port uint16
	peer remote
}

// remote is an endpoint in a form that maps are quick with.
type remote struct {
	addr [4]byte
	port uint16
}

func remoteOf(e netip.AddrPort) remote { return remote{e.Addr().As4(), e.Port()} }

// till lets time pass, in which others use the NAT.
func (n *model) till(now time.Duration) {
	mean := n.foreign * (now - n.now).Seconds()
	for mean > 0 && n.rng.ExpFloat64() < mean { // an arrival within what is left
		mean -= n.rng.ExpFloat64()
		n.counter += n.step
	}
	n.now = max(n.now, now)
}

// out sends from a socket and returns the outer port; 0 if there is none left.
func (n *model) out(local uint16, dst netip.AddrPort) uint16 {
	to := remoteOf(dst)
	key := mapKey{local, to}
	switch n.mapping {
	case nat.EndpointIndependent:
		key.to = remote{}
	case nat.AddressDependent:
		key.to.port = 0
	}
	port, ok := n.ports[key]
	if !ok {
		if n.quota > 0 && len(n.used) == n.quota {
			return 0
		}
		port = n.next(local, to)
		n.ports[key], n.used[port] = port, true
	}
	n.opened[flow{port, to}] = true
	return port
}

func (n *model) next(local uint16, to remote) uint16 {
	if n.keep && !n.used[local] {
		return local
	}
	if n.step != 0 {
		n.counter += n.step
		return uint16(n.counter)
	}
	for {
		if port := n.draw(n, local); !n.opened[flow{port, to}] && !n.taken[flow{port, to}] && (n.quota == 0 || !n.used[port]) {
			return port
		}
	}
}

// in reports whether a packet passes.
func (n *model) in(port uint16, from netip.AddrPort) bool {
	f := flow{port, remoteOf(from)}
	if n.openIn && !n.opened[f] {
		n.taken[f] = true
	}
	return n.opened[f]
}

// kinds of NATs, by the names of testnet's router types.
var kinds = map[string]func(n *model){
	"prc":  func(n *model) { n.mapping, n.keep, n.draw = nat.EndpointIndependent, true, anyPort },
	"prcr": func(n *model) { n.mapping, n.draw = nat.EndpointIndependent, anyPort },
	"sym":  func(n *model) { n.draw = tiers },
	"cisco": func(n *model) {
		n.draw = func(n *model, local uint16) uint16 { return classes(n, local, 512) }
	},
	"symflat":   func(n *model) { n.draw = anyPort },
	"adm":       func(n *model) { n.mapping, n.draw = nat.AddressDependent, anyPort },
	"admlow":    func(n *model) { n.mapping, n.draw = nat.AddressDependent, tiers },
	"symkeep":   func(n *model) { n.keep, n.draw = true, tiers },
	"keepflat":  func(n *model) { n.keep, n.draw = true, anyPort },
	"pf":        func(n *model) { n.draw = between(50001, 65535) },
	"block64":   func(n *model) { n.draw = between(20480, 20543) },
	"block512":  func(n *model) { n.draw = between(20480, 20991) },
	"block1024": func(n *model) { n.draw = between(40960, 41983) },
	"block1008": func(n *model) { n.draw = between(1024+7*1008, 1024+8*1008-1) },
	"block2048": func(n *model) { n.draw = between(40960, 43007) },
	"block4096": func(n *model) { n.draw = between(40960, 45055) },
	"quota1024": func(n *model) { n.draw, n.quota = between(40960, 41983), 1024 },
	"symseq":    func(n *model) { n.step, n.counter = 1, 30000 },
	"seqdown":   func(n *model) { n.step, n.counter = -2, 30000 },
	"seqwrap":   func(n *model) { n.step, n.counter = 1, 65300 },
	"seq5":      func(n *model) { n.step, n.counter, n.foreign = 1, 30000, 5 },
	"seq20":     func(n *model) { n.step, n.counter, n.foreign = 1, 30000, 20 },
	"seq100":    func(n *model) { n.step, n.counter, n.foreign = 1, 30000, 100 },
	"admseq":    func(n *model) { n.mapping, n.step, n.counter = nat.AddressDependent, 1, 30000 },
	"openin":    func(n *model) { n.draw, n.openIn = tiers, true },
	"prcopenin": func(n *model) { n.mapping, n.keep, n.draw, n.openIn = nat.EndpointIndependent, true, anyPort, true },
}

func anyPort(n *model, _ uint16) uint16 { return uint16(firstPort + n.rng.IntN(lastPort-firstPort+1)) }

func tiers(n *model, local uint16) uint16 { return classes(n, local, 600) }

// classes draws from the class of the own port; that of 512 to 1023 begins at low.
func classes(n *model, local uint16, low int) uint16 {
	if local >= 512 && local < 1024 {
		return uint16(low + n.rng.IntN(1024-low))
	}
	return anyPort(n, local)
}

func between(low, high int) func(*model, uint16) uint16 {
	return func(n *model, _ uint16) uint16 { return uint16(low + n.rng.IntN(high-low+1)) }
}

func newModel(t testing.TB, kind, addr string, seed uint64) *model {
	t.Helper()
	n := &model{
		rng: rand.New(rand.NewPCG(seed, uint64(len(kind)))), addr: netip.MustParseAddr(addr), mapping: nat.AddressAndPortDependent,
		ports: map[mapKey]uint16{}, opened: map[flow]bool{}, taken: map[flow]bool{}, used: map[uint16]bool{},
	}
	if kinds[kind] == nil {
		t.Fatalf("no NAT %q", kind)
	}
	kinds[kind](n)
	return n
}

var server = netip.MustParseAddrPort("198.51.100.1:3478")
var server2 = netip.MustParseAddrPort("198.51.100.2:3478")

// hints are what discovery with 12 sockets makes of the NAT.
func (n *model) hints() exchange.Hints {
	h := exchange.Hints{
		Known: true, NAT: true, Sockets: 12, Step: int16(n.step),
		Mapping:   stun.Range{Least: n.mapping, Most: n.mapping},
		Filtering: stun.Range{Least: nat.AddressAndPortDependent, Most: nat.AddressAndPortDependent},
	}
	for i := range 12 {
		local := uint16(33000 + 331*i)
		port := n.out(local, server)
		if port == local {
			h.Preserved++
		}
		if port%2 == local%2 {
			h.Parity++
		}
		if i == 0 {
			h.Min, h.Max = port, port
		}
		h.Min, h.Max = min(h.Min, port), max(h.Max, port)
	}
	return h
}

// side is a node behind a model.
type side struct {
	*model
	hints exchange.Hints
	plan  Plan
	seen  []Seen
}

func newSide(t testing.TB, kind, addr string, seed uint64) *side {
	n := newModel(t, kind, addr, seed)
	return &side{model: n, hints: n.hints()}
}

// prepare opens sockets and asks two servers, 5 ms for each answer.
func (s *side) prepare(plan Plan, seed uint64) ([]exchange.Ports, error) {
	s.plan, s.seen = plan, nil
	locals := plan.Locals(seed)
	for i := range plan.Sockets {
		local := uint16(33000 + s.rng.IntN(27000))
		if plan.Own {
			local = 51820
		} else if locals != nil {
			local = locals[i]
		}
		s.seen = append(s.seen, Seen{Local: local})
	}
	for i := range plan.Ask {
		for _, to := range []netip.AddrPort{server, server2} {
			s.till(s.now + 5*time.Millisecond)
			s.seen[i].Mapped = append(s.seen[i].Mapped, netip.AddrPortFrom(s.addr, s.out(s.seen[i].Local, to)))
		}
	}
	return plan.Expect(s.seen, s.hints)
}

// result is how an attempt went.
type result struct {
	ok      bool
	err     error
	packets [2]int // sent until then
	after   time.Duration
	shots   [2]int // planned
}

// world is what lies between the sides.
type world struct {
	delay       time.Duration // one way
	negotiation time.Duration // from one side's measurement to the start
	skew        time.Duration // of the second side's start
	loss        float64
	hops        int // low TTLs below this do not arrive; 0: 8
	sockets     int // at most so many helper sockets; 0: all
}

// attempt runs one technique.
func attempt(t testing.TB, technique Technique, a, b *side, w world, seed uint64) (r result) {
	t.Helper()
	sides := []*side{a, b}
	var expect [2][]exchange.Ports
	start := max(a.now, b.now)
	for i, s := range []*side{b, a} { // the follower first
		s.till(start)
		plan := Prepare(technique, s.hints, sides[i].hints, i == 1)
		if w.sockets > 0 {
			plan.Sockets, plan.Ask = min(plan.Sockets, w.sockets), min(plan.Ask, w.sockets)
		}
		list, err := s.prepare(plan, seed)
		if err != nil {
			return result{err: err}
		}
		expect[1-i] = list
		start = s.now + w.negotiation/2
	}
	type event struct {
		at   time.Duration
		from int
		shot Shot
		port uint16 // of a packet under way; 0: it is to be sent
	}
	var queues [2][]event
	for i, s := range sides {
		seq := s.plan.Shots(expect[1-i], len(s.seen), seed*2+uint64(i))
		r.shots[i] = seq.Total
		for shot, ok := seq.Next(); ok; shot, ok = seq.Next() {
			queues[i] = append(queues[i], event{at: start + shot.At + time.Duration(i)*w.skew, from: i, shot: shot})
		}
	}
	var flying []event
	for {
		next, due := &flying, time.Duration(math.MaxInt64) // what happens first; arrivals before shots
		for _, q := range []*[]event{&flying, &queues[0], &queues[1]} {
			if len(*q) > 0 && (*q)[0].at < due {
				next, due = q, (*q)[0].at
			}
		}
		if len(*next) == 0 {
			return r
		}
		e := (*next)[0]
		*next = (*next)[1:]
		if next == &flying {
			from, to := sides[e.from], sides[1-e.from]
			if e.shot.To.Addr() == to.addr && to.in(e.shot.To.Port(), netip.AddrPortFrom(from.addr, e.port)) {
				r.ok, r.after = true, e.at-start
				return r
			}
			continue
		}
		s := sides[e.from]
		s.till(e.at)
		e.port = s.out(s.seen[e.shot.Socket].Local, e.shot.To)
		r.packets[e.from]++
		if e.port == 0 {
			continue
		}
		hops := cmp.Or(w.hops, 8)
		if (e.shot.TTL == 0 || int(e.shot.TTL) >= hops) && s.rng.Float64() >= w.loss {
			e.at += w.delay
			flying = append(flying, e)
		}
	}
}
