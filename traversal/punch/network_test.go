package punch

import (
	"context"
	"net"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"culvert.dev/culvert/internal/testnet"
	"culvert.dev/culvert/traversal/check"
	"culvert.dev/culvert/traversal/exchange"
	"culvert.dev/culvert/traversal/stun"
)

// servers are two STUN servers of two ports each.
func servers(t *testing.T, inet *testnet.Router) (list []netip.AddrPort) {
	for _, addr := range []string{"198.51.100.10", "198.51.100.20"} {
		h := inet.Host(addr, testnet.HostConfig{Addrs: []netip.Addr{netip.MustParseAddr(addr)}})
		for _, port := range []uint16{3478, 3479} {
			s, err := h.ListenPacket(netip.AddrPortFrom(h.Addrs()[0], port))
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { s.Close() })
			go func() {
				buf := make([]byte, 1500)
				for n, from, err := s.ReadFromUDPAddrPort(buf); err == nil; n, from, err = s.ReadFromUDPAddrPort(buf) {
					if answer, ok := stun.Answer(nil, buf[:n], from); ok {
						s.WriteToUDPAddrPort(answer, from)
					}
				}
			}()
			list = append(list, s.LocalAddrPort())
		}
	}
	return list
}

// player is one side: a host with its sockets.
type player struct {
	t       *testing.T
	host    *testnet.Host
	servers []netip.AddrPort
	hints   exchange.Hints
	own     *muxed
	keys    check.Keys
	session [2]exchange.Session // own, the peer's

	found chan time.Time // when a response came, once

	mu      sync.Mutex // guards the following
	asked   map[check.ID]bool
	sockets []*muxed
}

// muxed is a socket whose datagrams go to a STUN client or to the player.
type muxed struct {
	*testnet.Socket
	client *stun.Client
}

func newPlayer(t *testing.T, h *testnet.Host, servers []netip.AddrPort) *player {
	t.Helper()
	p := &player{t: t, host: h, servers: servers, asked: map[check.ID]bool{}, found: make(chan time.Time, 1)}
	p.own = p.open(51820)
	p.sockets = nil
	report, err := stun.Discover(t.Context(), stun.DiscoverConfig{
		Server: servers[0], More: servers[2:3], Local: h.Addrs(),
		Listen: func() (net.PacketConn, error) { return h.ListenPacket(netip.AddrPort{}) },
	})
	if err != nil {
		t.Fatal(err)
	}
	p.hints = exchange.HintsOf(report)
	return p
}

// open opens a socket and reads from it until it is closed; nil if the port is taken.
func (p *player) open(port uint16) *muxed {
	s, err := p.host.ListenPacket(netip.AddrPortFrom(netip.IPv4Unspecified(), port))
	if err != nil {
		return nil
	}
	p.t.Cleanup(func() { s.Close() })
	m := &muxed{Socket: s}
	m.client = stun.NewClient(func(msg []byte, to netip.AddrPort) error {
		_, err := s.WriteToUDPAddrPort(msg, to)
		return err
	})
	go func() {
		buf := make([]byte, 1500)
		for n, from, err := s.ReadFromUDPAddrPort(buf); err == nil; n, from, err = s.ReadFromUDPAddrPort(buf) {
			if !m.client.Handle(buf[:n], from) {
				p.handle(m, buf[:n], from)
			}
		}
	}()
	p.sockets = append(p.sockets, m)
	return m
}

// handle answers requests, and takes note of the first response.
func (p *player) handle(s *muxed, msg []byte, from netip.AddrPort) {
	m, ok := check.Parse(msg)
	if !ok || !check.Verify(msg, &p.keys.Receive) {
		return
	}
	if m.Kind == check.KindRequest {
		s.WriteToUDPAddrPort(check.AppendResponse(nil, &p.keys.Send, m.ID, from), from)
		p.send(s, from, 0) // a triggered check
		return
	}
	p.mu.Lock()
	known := p.asked[m.ID]
	p.mu.Unlock()
	if known {
		select {
		case p.found <- time.Now():
		default:
		}
	}
}

func (p *player) send(s *muxed, to netip.AddrPort, ttl uint8) {
	id := check.NewID()
	p.mu.Lock()
	p.asked[id] = true
	p.mu.Unlock()
	msg := check.AppendRequest(nil, &p.keys.Send, check.Request{To: p.session[1], From: p.session[0], ID: id})
	s.WriteToTTL(msg, to, ttl)
}

// prepare opens the sockets of a plan and has those asked about that are to be.
func (p *player) prepare(plan Plan, seed uint64) ([]exchange.Ports, error) {
	p.sockets = nil
	locals := plan.Locals(seed)
	switch {
	case plan.Own:
		p.sockets = []*muxed{p.own}
	case locals == nil:
		for range plan.Sockets {
			p.open(0)
		}
	default:
		for len(p.sockets) < plan.Sockets && len(locals) > 0 {
			p.open(locals[0])
			locals = locals[1:]
		}
	}
	var seen []Seen
	for i, s := range p.sockets {
		seen = append(seen, Seen{Local: s.LocalAddrPort().Port()})
		if i >= plan.Ask {
			continue
		}
		for _, server := range []netip.AddrPort{p.servers[0], p.servers[2]} {
			r, err := s.client.Bind(p.t.Context(), server)
			if err != nil {
				p.t.Fatal(err)
			}
			seen[i].Mapped = append(seen[i].Mapped, r.Mapped)
		}
	}
	return plan.Expect(seen, p.hints)
}

// shoot sends a sequence until it ends or the context does.
func (p *player) shoot(ctx context.Context, seq Sequence) {
	start := time.Now()
	for shot, ok := seq.Next(); ok; shot, ok = seq.Next() {
		if wait := time.Until(start.Add(shot.At)); wait > 0 {
			select {
			case <-time.After(wait):
			case <-ctx.Done():
				return
			}
		}
		p.send(p.sockets[shot.Socket], shot.To, shot.TTL)
	}
}

// meet tries what Choose says until the two hear from each other.
func meet(t *testing.T, a, b *player, seed uint64) (with Technique, after time.Duration) {
	t.Helper()
	var tried []Technique
	for {
		technique := Choose(a.hints, b.hints, true, tried)
		if other := Choose(b.hints, a.hints, true, tried); other != technique {
			t.Errorf("one side takes %v, the other %v", technique, other)
		}
		if technique == None {
			return None, 0
		}
		tried = append(tried, technique)
		planA, planB := Prepare(technique, a.hints, b.hints, true), Prepare(technique, b.hints, a.hints, false)
		fromB, errB := b.prepare(planB, seed)
		fromA, errA := a.prepare(planA, seed+1)
		if errA != nil || errB != nil {
			t.Logf("%v ends early: %v %v", technique, errA, errB)
			continue
		}
		time.Sleep(100 * time.Millisecond) // what the relay takes
		ctx, cancel := context.WithCancel(t.Context())
		start := time.Now()
		seqA, seqB := planA.Shots(fromB, len(a.sockets), seed), planB.Shots(fromA, len(b.sockets), seed+1)
		limit := time.After(max(seqA.Lasts, seqB.Lasts))
		var done sync.WaitGroup
		done.Go(func() { a.shoot(ctx, seqA) })
		done.Go(func() { b.shoot(ctx, seqB) })
		var at time.Time
		select {
		case at = <-a.found:
		case at = <-b.found:
		case <-limit:
		}
		cancel()
		done.Wait()
		if !at.IsZero() {
			return technique, at.Sub(start)
		}
	}
}

// linuxS is a Linux router behind a carrier's NAT that is Linux with random ports.
const linuxS testnet.RouterType = "linuxS"

func site(inet *testnet.Router, name string, typ testnet.RouterType) *testnet.Site {
	link := testnet.SiteConfig{Link: testnet.LinkConfig{Latency: 10 * time.Millisecond}}
	if typ != linuxS {
		return inet.Site(name, typ, link)
	}
	carrier := inet.Gateway(name+" carrier", testnet.GatewayConfig{
		Link: link.Link, NAT: &testnet.NATConfig{Netfilter: &testnet.NetfilterConfig{Random: true}},
		LAN: []netip.Prefix{netip.MustParsePrefix("100.64.0.0/10")},
	})
	return carrier.Site(name, testnet.Linux, testnet.SiteConfig{})
}

// TestPairsOfRouters has real checks travel a network in memory, between the router types whose pairs plain checks do not bring
// together: discovery, choice, preparation, shots.
func TestPairsOfRouters(t *testing.T) {
	const prc, prcr, cgnE, pubfw = testnet.PRC, testnet.PRCR, testnet.CGNE, testnet.PubFW
	const keep, seq, sym, adm = testnet.SymKeep, testnet.SymSeq, testnet.Sym, testnet.ADM
	for _, c := range []struct {
		a, b testnet.RouterType
		want Technique
	}{
		{pubfw, seq, Prediction}, {prc, seq, Prediction}, {cgnE, seq, Prediction}, {seq, seq, Prediction},
		{prc, keep, Prediction}, {cgnE, keep, Prediction}, {keep, keep, Prediction}, {keep, seq, Prediction},
		{pubfw, sym, LowPort}, {prc, sym, LowPort}, {prcr, sym, LowPort}, {cgnE, sym, LowPort}, {sym, sym, LowPort}, {sym, seq, LowPort},
		{prc, linuxS, LowPort}, {sym, linuxS, LowPort}, {linuxS, linuxS, LowPort}, {linuxS, seq, LowPort}, {linuxS, keep, Sweep},
		{sym, keep, Sweep}, {testnet.SymBlock, prc, Sweep}, {testnet.SymBlock, sym, LowPort},
		{prc, testnet.CGNS, Birthday}, // its inner NAT is not Linux: low ports do not stay low
		{pubfw, adm, Birthday}, {prc, adm, Birthday}, {cgnE, adm, Birthday}, {testnet.SymPF, prc, Birthday},
		{adm, adm, None}, {adm, sym, None}, {adm, keep, None}, {testnet.SymPF, sym, None}, {adm, seq, None},
	} {
		t.Run(string(c.a)+"-"+string(c.b), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				inet := testnet.New(testnet.Config{Seed: 7}).Internet()
				list := servers(t, inet)
				a := newPlayer(t, site(inet, "a", c.a).Host("a", testnet.HostConfig{}), list)
				b := newPlayer(t, site(inet, "b", c.b).Host("b", testnet.HostConfig{}), list)
				a.session, b.session = [2]exchange.Session{1, 2}, [2]exchange.Session{2, 1}
				a.keys, b.keys = check.Keys{Send: check.Key{1}, Receive: check.Key{2}}, check.Keys{Send: check.Key{2}, Receive: check.Key{1}}
				with, after := meet(t, a, b, 3)
				t.Logf("%-8s x %-8s %v after %v", c.a, c.b, with, after.Round(time.Millisecond))
				if with != c.want {
					t.Errorf("connected by %v, want %v: hints\n%+v\n%+v", with, c.want, a.hints, b.hints)
				}
			})
		})
	}
}
