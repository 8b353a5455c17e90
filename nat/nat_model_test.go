package nat

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"culvert.dev/culvert/internal/packet"
)

// innerEnd is an inside end of the model.
type innerEnd struct {
	netip.AddrPort
	peer uint16
}

// modelKey is an inside end and as much of a remote end as the mapping behaviour looks at.
type modelKey struct {
	x innerEnd
	y netip.AddrPort
}

// session is what the model knows of a conversation: x, seen from outside as e, talks with y. A hairpinned one has another
// inside end far behind y. half is one whose other end's filter is closed, self one of an end with itself.
type session struct {
	proto             uint8
	x, far            innerEnd
	e, y              netip.AddrPort
	key, farKey       modelKey // of the mappings
	hairpin           bool
	half, self        bool
	fromOutside       bool
	sent, farSent     bool // x, or far, has sent
	answered          bool
	last              int64
	assured, unproved time.Duration
}

// model is the slow and obvious NAT: a list of sessions that is scanned in full for every question.
type model struct {
	mapping, filtering Dependence
	hairpin, strict    bool
	own                netip.Addr
	sessions           []*session
}

func (m *model) expire(now int64) {
	m.sessions = slices.DeleteFunc(m.sessions, func(s *session) bool {
		idle := s.unproved
		if s.answered {
			idle = s.assured
		}
		return s.last+int64(idle) <= now
	})
	m.prune()
}

// prune ends the sessions of mappings that no inside end keeps alive.
func (m *model) prune() {
	if !m.strict {
		return
	}
	kept := func(proto uint8, e netip.AddrPort) bool {
		return m.find(func(s *session) bool {
			return s.proto == proto && (s.e == e && s.sent || s.hairpin && s.y == e && s.farSent)
		}) != nil
	}
	for n := -1; n != len(m.sessions); {
		n = len(m.sessions)
		if s := m.find(func(s *session) bool {
			return s.fromOutside && !s.sent && !kept(s.proto, s.e) || s.hairpin && !s.farSent && !kept(s.proto, s.y)
		}); s != nil {
			m.drop(s)
		}
	}
}

func (m *model) find(ok func(*session) bool) *session {
	if i := slices.IndexFunc(m.sessions, ok); i >= 0 {
		return m.sessions[i]
	}
	return nil
}

func (m *model) mapKey(x innerEnd, y netip.AddrPort) modelKey {
	switch m.mapping {
	case EndpointIndependent:
		return modelKey{x: x}
	case AddressDependent:
		return modelKey{x, netip.AddrPortFrom(y.Addr(), 0)}
	}
	return modelKey{x, y}
}

// external returns the external end that is x's towards y, if there is one.
func (m *model) external(proto uint8, x innerEnd, y netip.AddrPort) (netip.AddrPort, bool) {
	key := m.mapKey(x, y)
	for _, s := range m.sessions {
		if s.proto == proto && s.key == key {
			return s.e, true
		}
		if s.proto == proto && s.hairpin && s.farKey == key {
			return s.y, true
		}
	}
	return netip.AddrPort{}, false
}

// owner returns the inside end of an external one.
func (m *model) owner(proto uint8, e netip.AddrPort) (x innerEnd, key modelKey, ok bool) {
	for _, s := range m.sessions {
		if s.proto == proto && s.e == e {
			return s.x, s.key, true
		}
		if s.proto == proto && s.hairpin && s.y == e {
			return s.far, s.farKey, true
		}
	}
	return innerEnd{}, modelKey{}, false
}

// permitted is RFC 4787 section 5 for packets from y to e.
func (m *model) permitted(proto uint8, e, y netip.AddrPort) bool {
	match := func(to netip.AddrPort) bool {
		return m.filtering == EndpointIndependent || to == y || m.filtering == AddressDependent && to.Addr() == y.Addr()
	}
	return m.filtering == EndpointIndependent || m.find(func(s *session) bool {
		return s.proto == proto && (s.e == e && s.sent && match(s.y) || s.hairpin && s.y == e && s.farSent && match(s.e))
	}) != nil
}

// talking returns the session in which x sends to y, and whether x is its far end.
func (m *model) talking(proto uint8, x innerEnd, y netip.AddrPort) (s *session, far bool) {
	if s := m.find(func(s *session) bool { return s.proto == proto && s.x == x && s.y == y }); s != nil {
		return s, false
	}
	s = m.find(func(s *session) bool { return s.proto == proto && s.hairpin && s.far == x && s.e == y })
	return s, s != nil
}

// out is a packet from x to y. If a new external end is due, that is new; wrong is set if it is taken.
func (m *model) out(now int64, proto uint8, x innerEnd, y, new netip.AddrPort) (v Verdict, s *session, far, wrong bool) {
	s, far = m.talking(proto, x, y)
	switch {
	case s != nil && s.self:
		s.last = now
		return Hairpinned, s, false, false
	case s != nil && s.half:
		s.last = now
		owner, _, ok := m.owner(proto, y)
		if !ok {
			return NoMapping, s, false, false
		}
		if !m.permitted(proto, y, s.e) {
			return Filtered, s, false, false
		}
		m.drop(s)
		return m.join(now, proto, x, owner, s.e, y, s.key)
	case s != nil:
		s.last = now
		if far || s.fromOutside {
			s.answered = true
		}
		if far {
			s.farSent = true
		} else {
			s.sent = true
		}
		if s.hairpin {
			return Hairpinned, s, far, false
		}
		return Pass, s, false, false
	}
	s = &session{proto: proto, x: x, y: y, key: m.mapKey(x, y), sent: true, last: now}
	e, known := m.external(proto, x, y)
	if !known {
		e = new
		_, _, wrong = m.owner(proto, e)
	}
	s.e = e
	if y.Addr() != m.own {
		m.sessions = append(m.sessions, s)
		return Pass, s, false, wrong
	}
	owner, _, ok := m.owner(proto, y)
	switch {
	case !m.hairpin:
		return Filtered, nil, false, false
	case proto == packet.ProtoICMPv4 || !ok:
		return NoMapping, nil, false, false
	case known && y == e:
		s.self = true
		m.sessions = append(m.sessions, s)
		return Hairpinned, s, false, false
	}
	if !m.permitted(proto, y, e) {
		s.half = true
		m.sessions = append(m.sessions, s)
		return Filtered, s, false, wrong
	}
	v, s, far, _ = m.join(now, proto, x, owner, e, y, s.key)
	return v, s, far, wrong
}

// join starts a hairpinned session from x to far.
func (m *model) join(now int64, proto uint8, x, far innerEnd, e, y netip.AddrPort, key modelKey) (Verdict, *session, bool, bool) {
	_, farKey, _ := m.owner(proto, y)
	farSent := false
	if o, _ := m.talking(proto, far, e); o != nil {
		if !o.half {
			return NoPort, nil, false, false
		}
		m.drop(o)
		farSent = true
	}
	s := &session{proto: proto, x: x, far: far, e: e, y: y, key: key, farKey: farKey, hairpin: true, sent: true, farSent: farSent, last: now}
	m.sessions = append(m.sessions, s)
	return Hairpinned, s, false, false
}

func (m *model) drop(s *session) {
	m.sessions = slices.DeleteFunc(m.sessions, func(o *session) bool { return o == s })
}

// in is a packet from y to e.
func (m *model) in(now int64, proto uint8, y, e netip.AddrPort) (Verdict, innerEnd) {
	if s := m.find(func(s *session) bool { return s.proto == proto && s.y == y && s.e == e && !s.hairpin && !s.half }); s != nil {
		if !m.strict {
			s.last = now
		}
		if !s.fromOutside {
			s.answered = true
		}
		return Pass, s.x
	}
	x, key, ok := m.owner(proto, e)
	if !ok {
		return NoMapping, x
	}
	if !m.permitted(proto, e, y) {
		return Filtered, x
	}
	if o, _ := m.talking(proto, x, y); o != nil {
		return NoPort, x
	}
	m.sessions = append(m.sessions, &session{proto: proto, x: x, y: y, e: e, key: key, fromOutside: true, last: now})
	return Pass, x
}

// mappings counts the external ends in use.
func (m *model) mappings() int {
	type end struct {
		proto uint8
		e     netip.AddrPort
	}
	ends := map[end]bool{}
	for _, s := range m.sessions {
		ends[end{s.proto, s.e}] = true
		if s.hairpin {
			ends[end{s.proto, s.y}] = true
		}
	}
	return len(ends)
}

// modelTimes are idle times that no packet of the test hits: it sends every five seconds.
var modelTimes = Timeouts{UDP: 302 * time.Second, UDPOneWay: 32 * time.Second, UDPDNS: 302 * time.Second, TCPTransitory: 242 * time.Second, ICMP: 62 * time.Second}

func (s *session) setTimes() {
	switch s.proto {
	case packet.ProtoUDP:
		s.assured, s.unproved = modelTimes.UDP, modelTimes.UDPOneWay
	case packet.ProtoTCP:
		s.assured, s.unproved = modelTimes.TCPTransitory, modelTimes.TCPTransitory
	default:
		s.assured, s.unproved = modelTimes.ICMP, modelTimes.ICMP
	}
}

func TestNATAgainstModel(t *testing.T) {
	seed := uint64(1)
	for _, mapping := range behaviours {
		for _, filtering := range behaviours {
			for _, hairpin := range []bool{false, true} {
				for _, strict := range []bool{false, true} {
					seed++
					t.Run(fmt.Sprintf("%v/%v/hairpin=%v/strict=%v", mapping, filtering, hairpin, strict), func(t *testing.T) {
						m := &model{mapping: mapping, filtering: filtering, hairpin: hairpin, strict: strict, own: ext4}
						r := newRouter(t, NATConfig{
							Mapping: mapping, Filtering: filtering, Hairpin: hairpin, StrictRefresh: strict,
							Ports: PortPolicy(seed % 4), Addrs: []netip.Addr{ext4}, Seed: seed,
						}, Config{Timeouts: modelTimes})
						runModel(t, m, r, rand.New(rand.NewPCG(seed, 2)))
					})
				}
			}
		}
	}
}

func runModel(t *testing.T, m *model, r *router, rnd *rand.Rand) {
	verdicts := map[Verdict]int{}
	hosts, remotes := []netip.Addr{inner1, inner2}, []netip.Addr{remote, other}
	var ends []netip.AddrPort // external ones that have been seen
	externalEnd := func() netip.AddrPort {
		if len(ends) == 0 || rnd.IntN(20) == 0 {
			return at(ext4, uint16(1024+rnd.IntN(60000)))
		}
		return ends[rnd.IntN(len(ends))]
	}
	for step := range 1800 {
		if rnd.IntN(3) == 0 {
			r.wait(5)
			if rnd.IntN(100) == 0 {
				r.wait(250)
			}
			m.expire(r.now)
		}
		proto := []uint8{packet.ProtoUDP, packet.ProtoUDP, packet.ProtoTCP, packet.ProtoICMPv4}[rnd.IntN(4)]
		y := at(remotes[rnd.IntN(2)], uint16(80+rnd.IntN(2)))
		if rnd.IntN(2) == 0 {
			e := externalEnd()
			if proto == packet.ProtoICMPv4 {
				y = at(y.Addr(), 0)
			}
			want, x := m.in(r.now, proto, y, e)
			p, got := r.in(packetBetween(proto, y, e, true))
			if got != want || got == Pass && (p.DstAddrPort() != x.AddrPort || p.Peer != x.peer || p.SrcAddrPort() != y) {
				t.Fatalf("step %d: protocol %d from %v to %v: %v for %v (peer %d), want %v for %v", step, proto, y, e, got, p.DstAddrPort(), p.Peer, want, x)
			}
			verdicts[got]++
		} else {
			i := rnd.IntN(2)
			x := innerEnd{at(hosts[i], uint16(5000+rnd.IntN(2))), uint16(1 + i)}
			if rnd.IntN(3) == 0 {
				y = externalEnd()
			}
			if proto == packet.ProtoICMPv4 {
				y = at(y.Addr(), 0)
			}
			p, got := r.out(x.peer, packetBetween(proto, x.AddrPort, y, false))
			e := r.externalOfLast(p, got)
			want, s, far, wrong := m.out(r.now, proto, x, y, e)
			if got != want || wrong {
				t.Fatalf("step %d: protocol %d from %v to %v: %v, want %v", step, proto, x, y, got, want)
			}
			verdicts[got]++
			compareOut(t, p, got, s, far)
			if e.IsValid() && !slices.Contains(ends, e) {
				ends = append(ends[max(0, len(ends)-7):], e)
			}
		}
		for _, s := range m.sessions {
			s.setTimes()
		}
		m.prune()
		if r.Mappings() != m.mappings() {
			t.Fatalf("step %d: %d mappings, the model has %d", step, r.Mappings(), m.mappings())
		}
	}
	for _, v := range []Verdict{Pass, NoMapping} {
		if verdicts[v] < 50 {
			t.Errorf("verdict %v only %d times: the test does not test much", v, verdicts[v])
		}
	}
	// Where neither behaviour is endpoint-independent, two ends behind one NAT seldom find each other.
	if m.hairpin && verdicts[Hairpinned] < 10 && (m.mapping == EndpointIndependent || m.filtering == EndpointIndependent) {
		t.Errorf("hairpinned only %d times", verdicts[Hairpinned])
	}
	r.wait(1000)
	for i := range r.shards {
		if s := &r.shards[i]; len(s.maps)+len(s.permits) != 0 {
			t.Errorf("%d mappings and %d permits left", len(s.maps), len(s.permits))
		}
	}
}

// externalOfLast is the external end that a packet from inside has got, or holds in a half-open flow.
func (r *router) externalOfLast(p *packet.Packet, v Verdict) netip.AddrPort {
	switch v {
	case Pass, Hairpinned:
		return p.SrcAddrPort()
	case Filtered:
		if f, _ := r.tab.Lookup(&p.Key); f != nil {
			return at(f.extra.Load().near.ext.v4(), f.extra.Load().near.port)
		}
	}
	return netip.AddrPort{}
}

func (e *external) v4() netip.Addr { return netip.AddrFrom16(e.addr).Unmap() }

// compareOut checks the ends of a packet from inside.
func compareOut(t *testing.T, p *packet.Packet, v Verdict, s *session, far bool) {
	t.Helper()
	if v != Pass && v != Hairpinned {
		return
	}
	src, dst := s.e, s.y
	switch {
	case s.self:
		dst = s.x.AddrPort
	case far:
		src, dst = s.y, s.x.AddrPort
	case s.hairpin:
		dst = s.far.AddrPort
	}
	if p.SrcAddrPort() != src || p.DstAddrPort() != dst {
		t.Fatalf("leaves as %v to %v, want %v to %v", p.SrcAddrPort(), p.DstAddrPort(), src, dst)
	}
	if v == Hairpinned == (p.Peer == outside) {
		t.Fatalf("%v for peer %d", v, p.Peer)
	}
}

// packetBetween is a packet that may be the first of a flow: a SYN, a datagram, an echo request or reply.
func packetBetween(proto uint8, src, dst netip.AddrPort, reply bool) []byte {
	switch proto {
	case packet.ProtoTCP:
		return tcpBytes(src, dst, segment{flags: fSYN, seq: 1, win: 100})
	case packet.ProtoUDP:
		return udpBytes(src, dst)
	}
	if reply {
		return echoBytes(src.Addr(), dst.Addr(), dst.Port(), true)
	}
	return echoBytes(src.Addr(), dst.Addr(), src.Port(), false)
}
