package path

import (
	"errors"
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"

	"culvert.dev/culvert/internal/wgkey"
	"culvert.dev/culvert/traversal/exchange"
	"culvert.dev/culvert/traversal/punch"
)

// chaos makes events out of bytes.
type chaos struct {
	data []byte
}

func (c *chaos) byte() byte {
	if len(c.data) == 0 {
		return 0
	}
	b := c.data[0]
	c.data = c.data[1:]
	return b
}

func (c *chaos) bool() bool { return c.byte()&1 == 1 }

func (c *chaos) endpoint() netip.AddrPort {
	b := c.byte()
	if b == 255 {
		return netip.AddrPort{}
	}
	ip := netip.AddrFrom4([4]byte{192, 0, 2, b & 15})
	if b&16 != 0 {
		ip = netip.AddrFrom4([4]byte{10, 0, 0, b & 15})
	}
	if b&32 != 0 {
		ip = netip.AddrFrom16([16]byte{0x20, 1, 0xd, 0xb8, 15: b & 15})
	}
	return netip.AddrPortFrom(ip, uint16(1+b>>6))
}

func (c *chaos) route() Route {
	e := c.endpoint()
	r := Route{Check: e, WG: e}
	switch c.byte() % 8 {
	case 0:
		r.Socket = uint32(c.byte() % 4)
	case 1:
		r.WG = c.endpoint()
	}
	return r
}

func (c *chaos) hints() exchange.Hints {
	k := natKinds[int(c.byte())%len(natKinds)]
	h := k.hints()
	h.Known, h.NAT = c.byte()%8 != 0, c.byte()%4 != 0
	return h
}

func (c *chaos) candidates() []exchange.Candidate {
	list := make([]exchange.Candidate, c.byte()%12)
	for i := range list {
		list[i] = exchange.Candidate{Kind: exchange.CandidateKind(1 + c.byte()%7), WG: c.endpoint()}
		if !list[i].WG.IsValid() {
			list[i].WG = netip.MustParseAddrPort("192.0.2.99:99")
		}
		if c.byte()%4 == 0 {
			list[i].Check = c.endpoint()
		}
	}
	return list
}

func (c *chaos) message() exchange.Message {
	m := exchange.Message{
		Kind: exchange.Kind(1 + c.byte()%6), Session: exchange.Session(1 + c.byte()%8/7), Fresh: c.byte()%8 != 0,
		StartIn: time.Duration(c.byte()) * time.Millisecond, Attempt: uint32(c.byte() % 8), Reason: exchange.Reason(c.byte() % 10),
		Proposer: c.endpoint(), Acceptor: c.endpoint(), RTT: time.Duration(c.byte()) * time.Millisecond,
	}
	if m.Kind <= exchange.KindTrickle {
		m.Candidates, m.Hints4, m.Hints6 = c.candidates(), c.hints(), c.hints()
	}
	if c.byte()%16 == 0 {
		m.Technique = c.byte() % 7
	}
	return m
}

func (c *chaos) event(m *Machine) Event {
	switch c.byte() % 20 {
	case 0:
		return Wanted{On: c.byte()%4 != 0, Active: c.bool()}
	case 1:
		return Gathered{Candidates: c.candidates(), Hints4: c.hints(), Hints6: c.hints(), Network: c.byte()%8 == 0}
	case 2:
		return Relay{Connected: c.byte()%4 != 0, NotHere: c.byte()%4 == 0}
	case 3, 4, 5, 6:
		return Heard{c.message()}
	case 7:
		return Hello{}
	case 8, 9:
		return Asked{Route: c.route()}
	case 10, 11, 12:
		r := c.route()
		if len(m.pairs) > 0 && c.byte()%4 != 0 {
			r = m.pairs[int(c.byte())%len(m.pairs)].route
		}
		return Answered{Route: r, RTT: time.Duration(c.byte()) * time.Millisecond, Mapped: c.endpoint()}
	case 13, 14:
		return Traffic{Tx: uint64(c.byte() % 4), RxRoute: uint64(c.byte() % 4), RxRelay: uint64(c.byte() % 4)}
	case 15:
		return Handshake{Failing: c.bool()}
	case 16:
		return Echoed{OK: c.bool()}
	case 17:
		return Roamed{Remote: c.endpoint()}
	case 18:
		return PunchDone{Technique: punch.Technique(c.byte() % 6), Found: c.bool()}
	case 19:
		return Unsent{Route: c.route(), Err: errors.New("no route to host")}
	}
	return Tick{}
}

// scenario runs a machine on events and pauses, and looks after each step whether what must hold does. After limit ticks pauses are
// slept through.
func scenario(t testing.TB, data []byte, limit int) {
	ticks := 0
	c := &chaos{data}
	var low, high wgkey.Public
	high[0] = 1
	cfg := Config{Self: low, Peer: high, Session: 1, HardNAT: c.bool(), Vanilla: c.byte()%4 == 0}
	if c.bool() {
		cfg.Self, cfg.Peer = high, low
	}
	m := New(cfg)
	now := epoch
	step := func(ev Event) {
		acts := m.Step(ev, now)
		m.verify(t, acts, now)
		m.verifyActions(t, acts)
		_ = m.State().Why(now)
	}
	step(Relay{Connected: true})
	step(Gathered{Candidates: []exchange.Candidate{{Kind: exchange.Host, WG: netip.MustParseAddrPort("10.9.9.9:1")}}})
	step(Wanted{On: true, Active: true})
	step(Heard{exchange.Message{Kind: exchange.KindCandidates, Session: 1, Fresh: true, Candidates: c.candidates()}})
	for len(c.data) > 0 {
		step(c.event(m))
		wait := [...]time.Duration{0, time.Millisecond, 50 * time.Millisecond, time.Second, 20 * time.Second, 10 * time.Minute, 3 * time.Hour}
		until := now.Add(wait[c.byte()%byte(len(wait))])
		for i := 0; ; i++ {
			next := m.Next()
			if next.IsZero() || next.After(until) {
				break
			}
			now = later(now, next)
			step(Tick{})
			if i > 20000 {
				t.Fatalf("%d steps by %v: %+v", i, now, m.due)
			}
			if ticks++; ticks > limit || i == 50 && c.byte()%4 == 0 {
				break // the rest is slept through
			}
		}
		now = later(now, until)
	}
}

// verifyActions is what holds of single actions.
func (m *Machine) verifyActions(t testing.TB, acts []Action) {
	t.Helper()
	for i, a := range acts {
		switch a := a.(type) {
		case Accept:
			if i != 0 {
				t.Fatal("accept is not first")
			}
		case Use:
			if m.cfg.Vanilla && a.Mode == ModeBoth {
				t.Fatal("two ways at once with a vanilla WireGuard")
			}
			if a.Mode != ModeRelay && !a.Route.IsValid() {
				t.Fatalf("%+v", a)
			}
		case Check:
			if !a.Route.Check.IsValid() {
				t.Fatalf("%+v", a)
			}
		case Send:
			if a.Message.Kind == exchange.KindProposal && !(a.Message.Proposer.IsValid() && a.Message.Acceptor.IsValid()) {
				t.Fatalf("%+v", a.Message)
			}
			if a.Message.Session != m.cfg.Session {
				t.Fatalf("session %v", a.Message.Session)
			}
		}
	}
	s := m.State()
	if s.Phase == Direct && s.Mode == ModeRelay || s.Mode == ModeRelay && s.Route.IsValid() {
		t.Fatalf("%+v", s)
	}
}

func FuzzStep(f *testing.F) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 8 {
		data := make([]byte, 200)
		for i := range data {
			data[i] = byte(r.Uint32())
		}
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) > 1000 {
			return
		}
		scenario(t, data, 2000)
	})
}

func TestChaos(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	for range 60 {
		data := make([]byte, 2000)
		for i := range data {
			data[i] = byte(r.Uint32())
		}
		scenario(t, data, 1<<30)
	}
}
