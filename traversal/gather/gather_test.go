package gather

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"culvert.dev/culvert/internal/testnet"
	"culvert.dev/culvert/nat"
	"culvert.dev/culvert/traversal/exchange"
	"culvert.dev/culvert/traversal/stun"
)

const (
	ei  = nat.EndpointIndependent
	ad  = nat.AddressDependent
	apd = nat.AddressAndPortDependent
)

// truth is what a router type does, as its builder says, and not as it was found out.
type truth struct {
	nat                bool
	mapping, filtering nat.Dependence
	kept               bool // the own port, by the first destination
	step               int16
	low, high          uint16 // of the ports, if they are from a small range
}

var truths = map[testnet.RouterType]truth{
	testnet.Pub:      {},
	testnet.PubFW:    {filtering: apd},
	testnet.FC:       {nat: true, kept: true},
	testnet.FCR:      {nat: true},
	testnet.ARC:      {nat: true, filtering: ad, kept: true},
	testnet.PRC:      {nat: true, filtering: apd, kept: true},
	testnet.PRCR:     {nat: true, filtering: apd},
	testnet.ADM:      {nat: true, mapping: ad, filtering: apd},
	testnet.SymKeep:  {nat: true, mapping: apd, filtering: apd, kept: true},
	testnet.SymSeq:   {nat: true, mapping: apd, filtering: apd, step: 1},
	testnet.Sym:      {nat: true, mapping: apd, filtering: apd},
	testnet.CGNE:     {nat: true, filtering: apd},
	testnet.CGNS:     {nat: true, mapping: apd, filtering: apd},
	testnet.Linux:    {nat: true, filtering: apd, kept: true},
	testnet.SymBlock: {nat: true, mapping: apd, filtering: apd, low: 1024, high: 2047},
	testnet.SymPF:    {nat: true, mapping: apd, filtering: apd, low: 50001, high: 65535},
}

func TestEveryRouterType(t *testing.T) {
	t.Logf("%-9s %-7s %-9s %-9s %s", "type", "first", "in 100 ms", "in 10 s", "candidates; hints")
	for _, typ := range append(testnet.RouterTypes(), testnet.Linux, testnet.SymBlock, testnet.SymPF) {
		if typ == testnet.Blocked {
			continue // TestBlockedUDP
		}
		inWorld(t, typ, testnet.SiteConfig{}, func(w *world) {
			began := time.Now()
			w.node.Eager(true)
			w.node.start()
			first := w.node.untilFirst()
			known := w.node.Local().Hints4
			pass(100*time.Millisecond - first)
			burst := w.node.count(began, 100*time.Millisecond)
			pass(10 * time.Second)
			l := w.node.Local()
			up, _ := w.host.Link().Stats()
			t.Logf("%-9s %-7v %-9d %-9d %s; %v, %v, %d of %d kept, step %d, %d to %d", typ, first, burst, up.Sent, strings.Join(w.node.lines(), ", "),
				l.Hints4.Mapping, l.Hints4.Filtering, l.Hints4.Preserved, l.Hints4.Sockets, l.Hints4.Step, l.Hints4.Min, l.Hints4.Max)
			if first > 100*time.Millisecond || burst > 10 || up.Sent > 150 || !l.First || !l.Complete || l.UDPBlocked {
				t.Errorf("%s: first after %v, %d datagrams in the first 100 ms, %+v", typ, first, burst, l)
			}
			is := truths[typ]
			if known.NAT != is.nat || known.Mapping != (stun.Range{Least: is.mapping, Most: is.mapping}) {
				t.Errorf("%s: at first %+v", typ, known)
			}
			if known.Step != is.step || is.mapping == apd && is.kept != (known.Preserved == 1) {
				t.Errorf("%s: what peers need to know at first: %+v", typ, known)
			}
			is.check(t, typ, l.Hints4)
			w.checkCandidates(typ, is)
		})
	}
}

// Where mappings depend on the destination, fresh sockets are looked at without delay, peers being wanted or not: in less than a second
// it is known what to do, without the rest that takes longer.
func TestHardNATIsStudiedAtOnce(t *testing.T) {
	for _, typ := range []testnet.RouterType{testnet.Sym, testnet.SymKeep, testnet.SymSeq, testnet.SymBlock, testnet.ADM, testnet.CGNS} {
		inWorld(t, typ, testnet.SiteConfig{}, func(w *world) {
			w.node.start()
			w.node.untilFirst()
			pass(1500 * time.Millisecond)
			h, is := w.node.Local().Hints4, truths[typ]
			if h.Sockets != studySockets || h.Kept() != is.kept || h.Step != is.step || h.Filtering.Least == h.Filtering.Most {
				t.Errorf("%s: after 1.5 s %+v", typ, h)
			}
			pass(10 * time.Second)
			is.check(t, typ, w.node.Local().Hints4)
		})
	}
	inWorld(t, testnet.PRC, testnet.SiteConfig{}, func(w *world) {
		w.node.start()
		pass(10 * time.Second)
		if h := w.node.Local().Hints4; h.Sockets != 1 {
			t.Errorf("studied though no peer is wanted: %+v", h)
		}
	})
}

// A study that is broken off is made again, though a part of it is known.
func TestStudyBrokenOff(t *testing.T) {
	inWorld(t, testnet.Sym, testnet.SiteConfig{}, func(w *world) {
		w.node.Eager(true)
		w.node.start()
		w.node.untilFirst()
		pass(1500 * time.Millisecond)
		if h := w.node.Local().Hints4; h.Sockets != studySockets || h.Filtering.Least == h.Filtering.Most {
			t.Fatalf("%+v", h)
		}
		w.node.Network()
		pass(10 * time.Second)
		truths[testnet.Sym].check(t, testnet.Sym, w.node.Local().Hints4)
	})
}

func (is truth) check(t *testing.T, typ testnet.RouterType, h exchange.Hints) {
	t.Helper()
	if !h.Known || h.NAT != is.nat || h.Mapping != (stun.Range{Least: is.mapping, Most: is.mapping}) || h.Filtering != (stun.Range{Least: is.filtering, Most: is.filtering}) {
		t.Errorf("%s: %+v", typ, h)
	}
	if is.nat && (h.Sockets != studySockets || h.Kept() != is.kept || h.Step != is.step) {
		t.Errorf("%s: ports %+v", typ, h)
	}
	if is.high > 0 && (h.Min < is.low || h.Max > is.high || h.Max-h.Min < (is.high-is.low)/2) {
		t.Errorf("%s: range %d to %d of %d to %d", typ, h.Min, h.Max, is.low, is.high)
	}
}

// checkCandidates compares with what the router shows to someone else.
func (w *world) checkCandidates(typ testnet.RouterType, is truth) {
	w.Helper()
	host := netip.AddrPortFrom(w.host.Addr(), port)
	if got := w.node.kinds(exchange.Host); !slices.Equal(got, []netip.AddrPort{host}) {
		w.Errorf("%s: host %v, want %v", typ, got, host)
	}
	reflexive, own := w.node.kinds(exchange.Reflexive), w.node.kinds(exchange.OwnPort)
	if !is.nat {
		if len(reflexive)+len(own) > 0 {
			w.Errorf("%s: %v %v without a NAT", typ, reflexive, own)
		}
		return
	}
	gateway := w.site.Gateway
	if w.site.Carrier != nil {
		gateway = w.site.Carrier
	}
	public := gateway.WAN()[0]
	if len(reflexive) != 1 || reflexive[0].Addr() != public {
		w.Fatalf("%s: reflexive %v, outer address %v", typ, reflexive, public)
	}
	if want := netip.AddrPortFrom(public, port); reflexive[0] == want {
		if len(own) != 0 || !is.kept {
			w.Errorf("%s: own port %v beside %v", typ, own, reflexive)
		}
	} else if !slices.Equal(own, []netip.AddrPort{want}) {
		w.Errorf("%s: own port %v, want %v", typ, own, want)
	}
	for _, c := range w.node.Local().Candidates {
		if c.Base != host {
			w.Errorf("%s: %v has base %v", typ, c, c.Base)
		}
	}
	stranger, err := w.inet.Host("stranger", testnet.HostConfig{}).ListenPacket(netip.AddrPort{})
	if err != nil {
		w.Fatal(err)
	}
	defer stranger.Close()
	_, before := w.host.Link().Stats()
	stranger.WriteToUDPAddrPort([]byte("hello"), reflexive[0])
	pass(10 * time.Millisecond)
	_, after := w.host.Link().Stats()
	if arrived := after.Delivered > before.Delivered; arrived != (is.filtering == ei) {
		w.Errorf("%s: a stranger reaches %v: %v", typ, reflexive[0], arrived)
	}
}

// untilFirst waits for Local.First, and returns how long it took.
func (n *node) untilFirst() time.Duration {
	n.t.Helper()
	began := time.Now()
	for !n.Local().First {
		if time.Since(began) > time.Second {
			n.t.Fatal("nothing to tell after a second")
		}
		time.Sleep(time.Millisecond)
	}
	return time.Since(began)
}

func TestBothFamilies(t *testing.T) {
	inWorld(t, testnet.PRCR, testnet.SiteConfig{IPv6: true}, func(w *world) {
		w.node.Eager(true)
		w.node.start()
		if first := w.node.untilFirst(); first > 100*time.Millisecond {
			t.Errorf("first after %v", first)
		}
		pass(20 * time.Second)
		l := w.node.Local()
		if v6 := netip.AddrPortFrom(w.host.Addr6(), port); !slices.Contains(w.node.kinds(exchange.Host), v6) || slices.Contains(w.node.kinds(exchange.Reflexive), v6) {
			t.Errorf("%v once, as a host candidate, in %v", v6, w.node.lines())
		}
		h := l.Hints6
		if !h.Known || h.NAT || h.Mapping != (stun.Range{}) || h.Filtering != (stun.Range{Least: apd, Most: apd}) {
			t.Errorf("hints of IPv6: %+v", h)
		}
		truths[testnet.PRCR].check(t, testnet.PRCR, l.Hints4)
	})
}

func TestBlockedUDP(t *testing.T) {
	inWorld(t, testnet.Blocked, testnet.SiteConfig{}, func(w *world) {
		w.node.Eager(true)
		w.node.start()
		if first := w.node.untilFirst(); first < maxFirst || first > maxFirst+2*time.Millisecond {
			t.Errorf("first after %v, want %v", first, maxFirst)
		}
		if w.node.Local().UDPBlocked {
			t.Error("blocked before it can be known")
		}
		pass(10 * time.Second)
		l := w.node.Local()
		if !l.UDPBlocked || l.Hints4.Known || !l.Complete {
			t.Errorf("%+v", l)
		}
		w.node.wantLines("host 192.168.1.2:20007")
		if _, err := w.node.Ask(w.Context(), 0); err == nil {
			t.Error("Ask succeeds")
		}
		// In another network.
		w.host.Move(w.inet.Site("other", testnet.PRC, testnet.SiteConfig{}).Router, testnet.HostConfig{})
		w.node.Network()
		pass(maxFirst)
		if l := w.node.Local(); l.UDPBlocked || !l.First || len(w.node.kinds(exchange.Reflexive)) != 1 {
			t.Errorf("in another network: %+v", l)
		}
	})
}

// One silent server of two delays nothing, and takes nothing away.
func TestSilentServer(t *testing.T) {
	inWorld(t, testnet.FCR, testnet.SiteConfig{}, func(w *world) {
		w.two.set(func() { w.two.silent = true })
		w.node.start()
		if first := w.node.untilFirst(); first > 150*time.Millisecond {
			t.Errorf("first after %v", first)
		}
		pass(10 * time.Second)
		l := w.node.Local()
		if len(w.node.kinds(exchange.Reflexive)) != 1 || l.UDPBlocked || !l.Complete {
			t.Errorf("%+v", l)
		}
		// One address and two ports tell no more.
		if l.Hints4.Mapping != (stun.Range{Least: ei, Most: ad}) || !l.Hints4.NAT {
			t.Errorf("hints %+v", l.Hints4)
		}
		status := w.node.Status()
		if len(status) != 2 || status[0].Err == nil || status[1].Err != nil || status[1].Endpoint != w.node.kinds(exchange.Reflexive)[0] {
			t.Errorf("status %+v", status)
		}
	})
}

func TestNoServers(t *testing.T) {
	inWorld(t, testnet.PRC, testnet.SiteConfig{}, func(w *world) {
		w.node.start([]string{}...)
		w.node.SetServers(nil, nil)
		if first := w.node.untilFirst(); first > 2*time.Millisecond {
			t.Errorf("first after %v", first)
		}
		pass(time.Minute)
		w.node.wantLines("host 192.168.1.2:20007")
		if l := w.node.Local(); !l.Complete || l.UDPBlocked || w.node.Stats().Requests != 0 {
			t.Errorf("%+v, %+v", l, w.node.Stats())
		}
	})
}

// A server may say what it likes: peers are not sent to places that cannot be ours.
func TestLyingServer(t *testing.T) {
	for _, lie := range []string{
		"192.168.77.5:20007", "10.0.0.1:20007", "100.64.3.4:20007", "127.0.0.1:20007", "169.254.7.7:20007", "100.72.0.9:20007", "[fd00::7]:20007", "[fe80::7]:20007",
	} {
		inWorld(t, testnet.FC, testnet.SiteConfig{}, func(w *world) {
			n := newNode(w.T, w.site.Host("liars victim", testnet.HostConfig{}), func(c *Config) {
				c.Mesh = func() []netip.Prefix { return []netip.Prefix{netip.MustParsePrefix("100.72.0.0/16")} }
			})
			defer n.stop()
			w.two.set(func() { w.two.lie = ap(lie) })
			n.start()
			pass(10 * time.Second)
			for _, c := range n.Local().Candidates {
				if c.WG.Addr() == ap(lie).Addr() {
					t.Errorf("%s: candidate %v", lie, c)
				}
			}
			if got := n.kinds(exchange.Reflexive); len(got) != 1 || got[0].Addr() != w.site.WAN()[0] {
				t.Errorf("%s: the honest server's answer is lost: %v", lie, got)
			}
			if n.Stats().Refused == 0 {
				t.Errorf("%s: not counted", lie)
			}
		})
	}
}

// Every NAT that restarts gives a new mapping, or a provider a new address: while eager, that is known within 5 s, by all servers.
func TestRestartedNAT(t *testing.T) {
	for _, what := range []string{"reboot", "renumber"} {
		for _, eager := range []bool{true, false} {
			inWorld(t, testnet.FCR, testnet.SiteConfig{}, func(w *world) {
				w.node.Eager(eager)
				w.node.start()
				pass(20*time.Second + 100*time.Millisecond)
				before := w.node.kinds(exchange.Reflexive)
				if what == "reboot" {
					w.site.Reboot()
				} else {
					w.site.Renumber()
				}
				began := time.Now()
				limit := 5 * time.Second
				if !eager {
					limit = 26 * time.Second
				}
				for slices.Equal(before, w.node.kinds(exchange.Reflexive)) && time.Since(began) < time.Minute {
					pass(10 * time.Millisecond)
				}
				took := time.Since(began)
				t.Logf("%s, eager %v: noticed after %v", what, eager, took)
				if took > limit {
					t.Errorf("%s, eager %v: noticed after %v", what, eager, took)
				}
				pass(maxFirst + time.Second)
				after := w.node.kinds(exchange.Reflexive)
				if len(after) != 1 || after[0].Addr() != w.site.WAN()[0] {
					t.Errorf("%s: %v, from %v", what, after, before)
				}
				for _, s := range w.node.Status() {
					if s.Endpoint != after[0] {
						t.Errorf("%s: %+v, want %v", what, s, after[0])
					}
				}
				if l := w.node.Local(); l.Hints4.Mapping != (stun.Range{}) || !l.First {
					t.Errorf("%s: %+v", what, l)
				}
			})
		}
	}
}

// In another network, nothing of the one before is told once there are answers.
func TestAnotherNetwork(t *testing.T) {
	inWorld(t, testnet.FC, testnet.SiteConfig{}, func(w *world) {
		w.node.Eager(true)
		w.node.start()
		pass(20 * time.Second)
		old := w.node.kinds(exchange.Reflexive)[0]
		site := w.inet.Site("other", testnet.Sym, testnet.SiteConfig{})
		w.host.Move(site.Router, testnet.HostConfig{})
		w.node.Network()
		synctest.Wait()
		if l := w.node.Local(); l.First || !slices.Contains(w.node.kinds(exchange.Reflexive), old) {
			t.Errorf("at once: %+v", l)
		}
		w.node.untilFirst()
		l := w.node.Local()
		if got := w.node.kinds(exchange.Reflexive); len(got) != 1 || got[0].Addr() != site.WAN()[0] {
			t.Errorf("reflexive %v, outer address %v", got, site.WAN()[0])
		}
		if l.Hints4.Mapping != (stun.Range{Least: apd, Most: apd}) || l.Hints4.Filtering == (stun.Range{}) {
			t.Errorf("hints %+v are those of the old network", l.Hints4)
		}
		pass(10 * time.Second)
		truths[testnet.Sym].check(t, testnet.Sym, w.node.Local().Hints4)

		// Nothing has changed in truth: nothing is studied again, and the peers see nothing.
		before, studies := w.node.lines(), w.node.Stats().Studies
		w.node.Network()
		pass(10 * time.Second)
		if after := w.node.lines(); !slices.Equal(after, before) || w.node.Stats().Studies != studies {
			t.Errorf("%v, before %v; %+v", after, before, w.node.Stats())
		}
	})
}

// Helper sockets are asked about in order, which shows how ports follow each other.
func TestAskAboutHelperSockets(t *testing.T) {
	for _, typ := range []testnet.RouterType{testnet.PRC, testnet.SymSeq, testnet.Sym} {
		inWorld(t, typ, testnet.SiteConfig{IPv6: true}, func(w *world) {
			w.node.start()
			pass(time.Second)
			w.node.open(7, 40001)
			began := time.Now()
			got, err := w.node.Ask(w.Context(), 7)
			took := time.Since(began)
			t.Logf("%s: %v in %v", typ, got, took)
			var v4 []netip.AddrPort
			for _, a := range got {
				if a.Addr().Is4() {
					v4 = append(v4, a)
				}
			}
			if err != nil || len(v4) < 2 || len(got) == len(v4) || took > 50*time.Millisecond {
				t.Fatalf("%s: %v, %v in %v", typ, got, err, took)
			}
			for i, a := range v4[1:] {
				step := int(a.Port()) - int(v4[i].Port())
				if typ == testnet.PRC && step != 0 || typ == testnet.SymSeq && step != 1 || typ == testnet.Sym && step == 0 || a.Addr() != w.site.WAN()[0] {
					t.Errorf("%s: %v", typ, v4)
				}
			}
			if _, err := w.node.Ask(w.Context(), 8); err == nil {
				t.Errorf("%s: a socket that is not there has an answer", typ)
			}
			w.two.set(func() { w.two.silent = true })
			began = time.Now()
			if got, _ := w.node.Ask(w.Context(), 7); len(got) == 0 || time.Since(began) > askPatience {
				t.Errorf("%s: with a silent server %v in %v", typ, got, time.Since(began))
			}
			w.node.mu.Lock()
			defer w.node.mu.Unlock()
			if len(w.node.clients) != 0 {
				t.Errorf("%s: clients are left: %v", typ, w.node.clients)
			}
		})
	}
}

func TestTraffic(t *testing.T) {
	for _, eager := range []bool{false, true} {
		inWorld(t, testnet.PRC, testnet.SiteConfig{IPv6: true}, func(w *world) {
			w.node.Eager(eager)
			w.node.start()
			pass(time.Minute)
			began, changes := time.Now(), w.node.news()
			asked := w.two.requests()
			pass(time.Hour)
			hour := w.node.count(began, time.Hour)
			busiest := 0
			for k := range 3600 {
				busiest = max(busiest, w.node.count(began.Add(time.Duration(k)*time.Second), time.Second))
			}
			t.Logf("eager %v: %d datagrams per hour, %d in the busiest second, %d to the server with two addresses", eager, hour, busiest, w.two.requests()-asked)
			limit := 3 * 3600 / 23 // three addresses
			if eager {
				limit += 900 // canaries
			}
			if hour > limit || busiest > 4 {
				t.Errorf("eager %v: %d datagrams per hour, want at most %d; %d in a second", eager, hour, limit, busiest)
			}
			if more := w.node.news() - changes; more > 1 || !eager && more > 0 { // the study after an hour sees other ports
				t.Errorf("eager %v: %d changes in an hour without any", eager, more)
			}
			if eager && w.node.Stats().Studies != 4 { // each family at the start and an hour later
				t.Errorf("%d studies", w.node.Stats().Studies)
			}
			// The mapping has lived all the time, although NATs forget.
			for _, s := range w.node.Status() {
				if s.Endpoint.IsValid() && time.Since(s.Since) < time.Hour {
					t.Errorf("%+v", s)
				}
			}
		})
	}
}

// However many servers there are, they are not all asked in the same instant.
func TestNoBurstWithManyServers(t *testing.T) {
	inWorld(t, testnet.PRC, testnet.SiteConfig{}, func(w *world) {
		var servers []string
		for i := range 20 {
			s := newServer(w.T, w.inet.Host(fmt.Sprint("more ", i), testnet.HostConfig{}))
			servers = append(servers, netip.AddrPortFrom(s.host.Addr(), 3478).String())
		}
		began := time.Now()
		w.node.start(servers...)
		if first := w.node.untilFirst(); first > 150*time.Millisecond {
			t.Errorf("first after %v", first)
		}
		pass(3 * time.Second)
		if n := w.node.count(began, 100*time.Millisecond); n > 10 {
			t.Errorf("%d datagrams in the first 100 ms", n)
		}
		for _, s := range w.node.Status() {
			if !s.Endpoint.IsValid() {
				t.Errorf("%+v", s)
			}
		}
	})
}

// However often somebody says that something may have changed, the servers have their peace, and the peers are told something.
func TestStormOfNews(t *testing.T) {
	for what, news := range map[string]func(*node){"network": (*node).Network, "refresh": (*node).Refresh} {
		inWorld(t, testnet.PRC, testnet.SiteConfig{}, func(w *world) {
			w.node.start()
			pass(time.Second)
			began, first := time.Now(), 0
			for range 1000 {
				news(w.node)
				pass(10 * time.Millisecond)
				if w.node.Local().First {
					first++
				}
				if _, err := w.node.Ask(w.Context(), 0); err != nil {
					t.Fatalf("%s: %v", what, err)
				}
			}
			took := time.Since(began)
			asked := int(w.node.Stats().Rounds)
			pass(time.Second)
			if l := w.node.Local(); !l.First || first == 0 || asked > int(took/maxFirst)+3 || what == "refresh" && asked > int(took/againGap)+3 {
				t.Errorf("%s: %d rounds in %v, of 1000 times there was something to tell %d times", what, asked, took, first)
			}
		})
	}
}

// Where every fifth datagram is lost, the same is found out, if a little later.
func TestLoss(t *testing.T) {
	for _, typ := range []testnet.RouterType{testnet.PRC, testnet.FCR, testnet.Sym} {
		inWorld(t, typ, testnet.SiteConfig{}, func(w *world) {
			w.host.Link().Set(testnet.LinkConfig{Loss: 0.2})
			w.node.Eager(true)
			w.node.start()
			if first := w.node.untilFirst(); first > maxFirst+2*time.Millisecond {
				t.Errorf("%s: first after %v", typ, first)
			}
			pass(2 * time.Second)
			if len(w.node.kinds(exchange.Reflexive)) == 0 {
				t.Errorf("%s: after two seconds %v", typ, w.node.lines())
			}
			pass(18 * time.Second)
			is := truths[typ]
			if h := w.node.Local().Hints4; !h.NAT || h.Mapping.Least > is.mapping || h.Mapping.Most < is.mapping {
				t.Errorf("%s: %+v", typ, h)
			}
			before := w.node.kinds(exchange.Reflexive)
			pass(10 * time.Minute)
			// What one server saw of a mapping for it alone may be out of sight for a while, and another's be offered.
			if after := w.node.kinds(exchange.Reflexive); len(after) != 1 || is.mapping == ei && after[0] != before[0] {
				t.Errorf("%s: reflexive %v, before %v", typ, after, before)
			}
		})
	}
}

// After an outage, in which the NAT has restarted, nothing is mixed up with what was before.
func TestOutage(t *testing.T) {
	inWorld(t, testnet.FCR, testnet.SiteConfig{}, func(w *world) {
		w.node.start()
		pass(20 * time.Second)
		w.site.Uplink().Cut()
		pass(time.Minute)
		w.node.wantLines("host 192.168.1.2:20007")
		w.site.Reboot()
		w.site.Uplink().Restore()
		pass(30 * time.Second)
		l := w.node.Local()
		if len(w.node.kinds(exchange.Reflexive)) != 1 || !l.Hints4.NAT || l.Hints4.Mapping != (stun.Range{}) || l.UDPBlocked {
			t.Errorf("%v, %+v", w.node.lines(), l)
		}
	})
}

// An address of its own that the host has made a moment ago is no sign of a NAT, and is told.
func TestNewTemporaryAddress(t *testing.T) {
	inWorld(t, testnet.PRC, testnet.SiteConfig{IPv6: true}, func(w *world) {
		n := newNode(w.T, w.site.Host("renewed", testnet.HostConfig{}), nil)
		defer n.stop()
		n.cfg.Interfaces = func() []netip.Addr {
			b := n.host.Addr6().As16()
			b[15] ^= 0x80
			return []netip.Addr{n.host.Addr(), netip.AddrFrom16(b)}
		}
		n.start()
		pass(5 * time.Second)
		if l := n.Local(); l.Hints6.NAT || !l.Hints6.Known || !slices.Contains(n.kinds(exchange.Reflexive), netip.AddrPortFrom(n.host.Addr6(), port)) {
			t.Errorf("%v, %+v", n.lines(), l.Hints6)
		}
	})
}

// A server that is silent for long keeps nobody from noticing that the NAT has restarted.
func TestRestartedNATBesideSilentServer(t *testing.T) {
	inWorld(t, testnet.FCR, testnet.SiteConfig{}, func(w *world) {
		w.one.set(func() { w.one.silent = true })
		w.node.Eager(true)
		w.node.start()
		for range 40 {
			pass(2900 * time.Millisecond)
			before := w.node.kinds(exchange.Reflexive)
			w.site.Reboot()
			began := time.Now()
			for slices.Equal(before, w.node.kinds(exchange.Reflexive)) && time.Since(began) < time.Minute {
				pass(10 * time.Millisecond)
			}
			if took := time.Since(began); took > canaryInterval+100*time.Millisecond {
				t.Errorf("noticed after %v", took)
			}
		}
	})
}
