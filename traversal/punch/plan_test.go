package punch

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"culvert.dev/culvert/nat"
	"culvert.dev/culvert/traversal/exchange"
	"culvert.dev/culvert/traversal/stun"
)

const ei, ad, apd = nat.EndpointIndependent, nat.AddressDependent, nat.AddressAndPortDependent

// some hints, of nodes behind a NAT that filters by address and port but where the name says otherwise.
func hard(least, most nat.Dependence) exchange.Hints {
	return exchange.Hints{Known: true, NAT: true, Mapping: stun.Range{Least: least, Most: most},
		Filtering: stun.Range{Least: apd, Most: apd}, Sockets: 8, Min: 1200, Max: 64000}
}

func with(h exchange.Hints, change func(*exchange.Hints)) exchange.Hints {
	change(&h)
	return h
}

func kept(h *exchange.Hints)     { h.Preserved = h.Sockets }
func counts(h *exchange.Hints)   { h.Step, h.Min, h.Max = 1, 30000, 30031 }
func block(h *exchange.Hints)    { h.Min, h.Max = 40970, 41980 }
func filterAD(h *exchange.Hints) { h.Filtering = stun.Range{Least: ad, Most: ad} }
func filterEI(h *exchange.Hints) { h.Filtering = stun.Range{} }
func noNAT(h *exchange.Hints)    { *h = exchange.Hints{Known: true, Filtering: h.Filtering} }

func TestChoose(t *testing.T) {
	steadyH, wildH, admH, maybe := hard(ei, ei), hard(apd, apd), hard(ad, ad), hard(ei, apd)
	keep, count, ranged := with(wildH, kept), with(wildH, counts), with(wildH, block)
	wide := with(wildH, func(h *exchange.Hints) { h.Min, h.Max = 10000, 13900 })
	firewall := with(steadyH, noNAT)
	for _, c := range []struct {
		name      string
		a, b      exchange.Hints
		low, high string // all that is chosen one after the other, with low ports and without
	}{
		{"both steady: plain checks failed for another reason", steadyH, steadyH, "", ""},
		{"one filters by address and is steady", with(steadyH, filterAD), wildH, "", ""},
		{"one does not filter", with(wildH, filterEI), wildH, "", ""},
		{"one filters by address, but its port is not known", with(wildH, filterAD), wildH, "low ports", ""},
		{"no NAT and an open firewall", with(firewall, filterAD), wildH, "", ""},
		{"no NAT, but a firewall", firewall, wildH, "low ports, birthday", "birthday"},
		{"random and steady", wildH, steadyH, "low ports, birthday", "birthday"},
		{"by address and steady", admH, steadyH, "low ports, birthday", "birthday"},
		{"random and random", wildH, wildH, "low ports", ""},
		{"by address twice", admH, admH, "low ports", ""},
		{"counting and steady", count, steadyH, "prediction, birthday", "prediction, birthday"},
		{"counting twice", count, count, "prediction", "prediction"},
		{"counting and random", count, wildH, "low ports", ""},
		{"keeping and steady", keep, steadyH, "prediction, low ports, birthday", "prediction, birthday"},
		{"keeping twice", keep, keep, "prediction, low ports", "prediction"},
		{"keeping and random", keep, wildH, "low ports, sweep", ""},
		{"perhaps steady, ports kept", with(maybe, kept), steadyH, "prediction, low ports, birthday", "prediction, birthday"},
		{"a block and steady", ranged, steadyH, "sweep", "sweep"},
		{"two blocks", ranged, ranged, "sweep", "sweep"},
		{"a block and random", ranged, wildH, "low ports", ""},
		{"a block and counting", ranged, count, "sweep", "sweep"},
		{"a block and keeping", ranged, keep, "low ports, sweep", "sweep"},
		{"two blocks that are too large", wide, wide, "low ports", ""},
		{"unknown and steady", exchange.Hints{}, steadyH, "low ports, birthday", "birthday"},
		{"unknown and random", exchange.Hints{}, wildH, "low ports, birthday", "birthday"},
		{"unknown twice", exchange.Hints{}, exchange.Hints{}, "low ports", ""},
		{"perhaps steady, ports random", maybe, wildH, "low ports, birthday", "birthday"},
	} {
		for _, low := range []bool{true, false} {
			want := c.high
			if low {
				want = c.low
			}
			for _, pair := range [][2]exchange.Hints{{c.a, c.b}, {c.b, c.a}} {
				var names []string
				var tried []Technique
				for next := Choose(pair[0], pair[1], low, nil); next != None; next = Choose(pair[0], pair[1], low, tried) {
					names, tried = append(names, next.String()), append(tried, next)
					for i, h := range pair {
						if p := Prepare(next, h, pair[1-i], i == 0); p.Sockets == 0 || p.Sockets > MaxSockets || p.Ask < 1 || p.Ask > p.Sockets || p.LowPorts && !low {
							t.Errorf("%s: %v is chosen, and the plan is %+v", c.name, next, p)
						}
					}
				}
				if got := strings.Join(names, ", "); got != want {
					t.Errorf("%s, low ports %v: %q, want %q", c.name, low, got, want)
				}
			}
		}
	}
}

// TestWhatIsNotForThePair: a peer may lead to anything.
func TestWhatIsNotForThePair(t *testing.T) {
	p := Prepare(Prediction, hard(apd, apd), hard(ei, ei), false)
	if p.Sockets != 0 || p.Own {
		t.Errorf("a random NAT is to be predicted: %+v", p)
	}
	if list, err := p.Expect(nil, hard(apd, apd)); err == nil {
		t.Errorf("expects %v", list)
	}
	for technique := range Technique(NumTechniques + 1) {
		p := Prepare(technique, exchange.Hints{}, exchange.Hints{}, true)
		if list, err := p.Expect(nil, exchange.Hints{}); err == nil {
			t.Errorf("%v: nothing seen, but %v expected", technique, list)
		}
	}
	if s := (Plan{}).Shots([]exchange.Ports{{Addr: server.Addr(), From: 1, To: 9}}, 3, 1); s.Total != 0 {
		t.Errorf("%d shots of no plan", s.Total)
	}
}

var outer = netip.MustParseAddr("192.0.2.1")

// seenAt is sockets at local ports from 600 on, with the outer ports of each.
func seenAt(ports ...[]uint16) (list []Seen) {
	for i, of := range ports {
		s := Seen{Local: uint16(600 + i)}
		for _, p := range of {
			s.Mapped = append(s.Mapped, netip.AddrPortFrom(outer, p))
		}
		list = append(list, s)
	}
	return list
}

func TestExpect(t *testing.T) {
	steadyH, wildH, maybe := hard(ei, ei), hard(apd, apd), hard(ei, apd)
	keep, count, ranged := with(wildH, kept), with(wildH, counts), with(wildH, block)
	down := with(count, func(h *exchange.Hints) { h.Step = -4 })
	none := []uint16(nil)
	for _, c := range []struct {
		name      string
		technique Technique
		own, peer exchange.Hints
		seen      []Seen
		want      string // or the error
	}{
		{"one port", Prediction, steadyH, count, seenAt([]uint16{777, 777}), "192.0.2.1:777"},
		{"not one port", Birthday, steadyH, wildH, seenAt([]uint16{777, 778}), "another port"},
		{"not seen", Birthday, steadyH, wildH, seenAt(none), "no STUN server"},
		{"own ports", Prediction, keep, steadyH, seenAt([]uint16{600, 9999}, none, none), "192.0.2.1:601 192.0.2.1:602"},
		{"not the own port", Prediction, keep, steadyH, seenAt([]uint16{9999, 600}, none, none), "not kept"},
		{"a socket only", Prediction, keep, steadyH, seenAt([]uint16{600, 9999}), "too few sockets"},
		{"own ports in a row", Sweep, keep, wildH, seenAt([]uint16{600}, none, none, none), "192.0.2.1:601-603"},
		{"next ports", Prediction, count, steadyH, seenAt([]uint16{5000, 5001}, []uint16{5002, 5005}), "192.0.2.1:5006-5069 by +1"},
		{"next ports of a pair", Prediction, count, count, seenAt([]uint16{5000, 5001}, []uint16{5002, 5005}), "192.0.2.1:5006-5009 by +1"},
		{"next ports downwards", Prediction, down, steadyH, seenAt([]uint16{5000, 4996}, []uint16{4992, 4984}), "192.0.2.1:4728-4980 by -4"},
		{"a smaller step than hinted", Prediction, down, steadyH, seenAt([]uint16{5000, 4998}), "192.0.2.1:4870-4996 by -2"},
		{"asked out of order", Prediction, count, steadyH, seenAt([]uint16{5003, 5002}, []uint16{5001, 5000}), "192.0.2.1:5004-5067 by +1"},
		{"begun anew", Prediction, count, steadyH, seenAt([]uint16{65534, 3}), "192.0.2.1:4-67 by +1"},
		{"at the end", Prediction, count, steadyH, seenAt([]uint16{65532, 65533}), "192.0.2.1:65534-65535 by +1"},
		{"at the very end", Prediction, count, steadyH, seenAt([]uint16{65534, 65535}), "begin anew"},
		{"no order", Prediction, count, steadyH, seenAt([]uint16{5000, 40000}), "do not follow"},
		{"next ports for a sweep", LowPort, count, wildH, seenAt([]uint16{5000, 5001}, []uint16{5002, 5003}), "192.0.2.1:5004-5915 by +1"},
		{"next ports of a busy NAT", Birthday, count, steadyH, seenAt([]uint16{5000, 5001}), "192.0.2.1:5002-7049 by +1"},
		{"low", LowPort, wildH, wildH, seenAt([]uint16{600, 1023}, []uint16{700, 800}), "192.0.2.1:600-1023"},
		{"low from 512 on", LowPort, wildH, wildH, seenAt([]uint16{599, 1023}), "192.0.2.1:512-1023"},
		{"not low", LowPort, wildH, wildH, seenAt([]uint16{700, 1024}), "seen at 700 to 1024"},
		{"lower than that", LowPort, wildH, wildH, seenAt([]uint16{511, 700}), "seen at 511 to 700"},
		{"better than feared", LowPort, maybe, wildH, seenAt([]uint16{4000, 4000}, []uint16{5000, 5000}), "192.0.2.1:4000 192.0.2.1:5000"},
		{"by address: the same for one server's ports", LowPort, wildH, wildH, seenAt([]uint16{700, 700}), "192.0.2.1:600-1023"},
		{"a block", Sweep, ranged, steadyH, seenAt([]uint16{41000, 41900}, []uint16{41500, 41501}), "192.0.2.1:40960-41983"},
		{"no longer that block", Sweep, ranged, steadyH, seenAt([]uint16{41000, 60000}), "spread from"},
		{"any port", Birthday, wildH, steadyH, seenAt([]uint16{3000, 60000}), "192.0.2.1:1024-65535"},
		{"any port, low ones too", Birthday, with(wildH, func(h *exchange.Hints) { h.Min = 80 }), steadyH, seenAt([]uint16{3000, 60000}), "192.0.2.1:1-65535"},
		{"upper ports", Birthday, with(wildH, func(h *exchange.Hints) { h.Min = 50100 }), steadyH, seenAt([]uint16{52000, 60000}, []uint16{65000, 51000}), "192.0.2.1:47390-65535"},
	} {
		list, err := Prepare(c.technique, c.own, c.peer, true).Expect(c.seen, c.own)
		got := strings.Trim(fmt.Sprint(list), "[]")
		if err != nil {
			got = err.Error()
		}
		if got != c.want && (err == nil || !strings.Contains(got, c.want)) {
			t.Errorf("%s: %s, want %s", c.name, got, c.want)
		}
		if len(list) > exchange.MaxExpect {
			t.Errorf("%s: %d ranges", c.name, len(list))
		}
	}
}

// TestMostSeenAddress: one of two outer addresses is expected.
func TestMostSeenAddress(t *testing.T) {
	seen := seenAt([]uint16{700, 701}, []uint16{702, 703})
	seen[0].Mapped[0] = netip.MustParseAddrPort("[::ffff:203.0.113.77]:9")
	list, err := Prepare(LowPort, hard(apd, apd), hard(apd, apd), true).Expect(seen, hard(apd, apd))
	if err != nil || len(list) != 1 || list[0].Addr != outer {
		t.Errorf("%v %v", list, err)
	}
}

// plans are one of each role.
func plans() map[string]Plan {
	steadyH, wildH := hard(ei, ei), hard(apd, apd)
	keep, count, ranged := with(wildH, kept), with(wildH, counts), with(wildH, block)
	return map[string]Plan{
		"fixed, prediction": Prepare(Prediction, steadyH, count, true), "fixed, low ports": Prepare(LowPort, steadyH, wildH, true),
		"fixed, birthday": Prepare(Birthday, steadyH, wildH, true), "fresh": Prepare(Prediction, keep, keep, true),
		"following": Prepare(Prediction, count, count, true), "following, sweep": Prepare(Sweep, count, ranged, true),
		"low": Prepare(LowPort, wildH, wildH, true), "swept": Prepare(Sweep, ranged, ranged, true),
		"many": Prepare(Birthday, wildH, steadyH, true), "run": Prepare(Sweep, keep, wildH, true),
	}
}

// hostile are things that a peer may say it expects.
func hostile() map[string][]exchange.Ports {
	all := make([]exchange.Ports, 20)
	for i := range all {
		all[i] = exchange.Ports{Addr: outer.Next(), From: 1, To: 65535}
	}
	stepped := slices.Clone(all)
	for i := range stepped {
		stepped[i].Step = int16(1 - 2*(i%2))
	}
	return map[string][]exchange.Ports{
		"one port":            {{Addr: outer, From: 7, To: 7}},
		"low ports":           {{Addr: outer, From: 600, To: 1023}},
		"a window":            {{Addr: outer, From: 5000, To: 5063, Step: 1}},
		"all ports 20 times":  all,
		"and with steps":      stepped,
		"ranges that overlap": {{Addr: outer, From: 600, To: 700}, {Addr: outer, From: 650, To: 750, Step: 3}, {Addr: outer, From: 600, To: 610}},
		"both families":       {{Addr: outer, From: 600, To: 700}, {Addr: netip.IPv6Loopback(), From: 650, To: 750}},
		"the largest steps":   {{Addr: outer, From: 1, To: 65535, Step: -32768}, {Addr: outer, From: 1, To: 65535, Step: 32767}},
		"no ranges at all":    {{Addr: outer}, {From: 1, To: 2}, {Addr: outer, From: 5, To: 4}, {Addr: outer, To: 9, Step: 1}},
		"nothing":             nil,
	}
}

// TestShotsAreBounded: whatever the peer says, there are not more packets than promised, no more a second, to nobody else, no pair
// twice in a pass, and the same again for the same seed.
func TestShotsAreBounded(t *testing.T) {
	for role, p := range plans() {
		for what, ranges := range hostile() {
			for _, sockets := range []int{0, 1, 2, p.Sockets, 5000} {
				name := fmt.Sprintf("%s, %s, %d sockets", role, what, sockets)
				s, again := p.Shots(ranges, sockets, 5), p.Shots(ranges, sockets, 5)
				if s.Total > MaxPackets || s.Rate > 3000 || s.Lasts > 20*time.Second || (s.Total > 0) != (s.Rate > 0) {
					t.Fatalf("%s: %d shots, %d a second, lasts %v", name, s.Total, s.Rate, s.Lasts)
				}
				checkShots(t, name, s, again, ranges, min(sockets, p.Sockets))
			}
		}
	}
}

func checkShots(t *testing.T, name string, s, again Sequence, ranges []exchange.Ports, sockets int) {
	t.Helper()
	type once struct {
		pair
		ttl uint8
	}
	times := map[once]int{}
	var last time.Duration
	var sent []time.Duration
	n := 0
	for shot, ok := s.Next(); ok; shot, ok = s.Next() {
		if other, _ := again.Next(); other != shot {
			t.Fatalf("%s: %+v, and with the same seed %+v", name, shot, other)
		}
		if shot.At < last || shot.At > s.Lasts-grace || shot.Socket < 0 || shot.Socket >= sockets {
			t.Fatalf("%s: %+v after %v of %v", name, shot, last, s.Lasts)
		}
		last = shot.At
		sent = append(sent, shot.At)
		if i := len(sent) - 1 - s.Rate; i >= 0 && sent[i] <= shot.At-time.Second+time.Microsecond { // rounding
			sent = sent[i:]
		} else if i > 0 {
			t.Fatalf("%s: more than %d within a second", name, s.Rate)
		}
		if !slices.ContainsFunc(ranges, func(r exchange.Ports) bool {
			return r.Addr == shot.To.Addr() && r.From <= shot.To.Port() && shot.To.Port() <= r.To && r.From > 0
		}) {
			t.Fatalf("%s: %v is not expected", name, shot.To)
		}
		key := once{pair{shot.Socket, shot.To}, shot.TTL}
		if times[key]++; times[key] > fewPasses {
			t.Fatalf("%s: %+v for the %dth time", name, shot, times[key])
		}
		n++
	}
	if _, ok := s.Next(); ok || n != s.Total {
		t.Errorf("%s: %d shots, %d announced", name, n, s.Total)
	}
}

// TestSweepIsAPermutation: each socket sends to each port, once with a low TTL and once without.
func TestSweepIsAPermutation(t *testing.T) {
	p := plans()["low"]
	low := []exchange.Ports{{Addr: outer, From: 600, To: 1023}}
	count := map[Shot]int{}
	var order [2][]netip.AddrPort
	for seed := range order {
		s := p.Shots(low, p.Sockets, uint64(seed))
		if s.Total != 2*3*424 {
			t.Fatalf("%d shots", s.Total)
		}
		for shot, ok := s.Next(); ok; shot, ok = s.Next() {
			order[seed] = append(order[seed], shot.To)
			shot.At = 0
			count[shot]++
		}
	}
	if len(count) != 2*3*424 {
		t.Errorf("%d different shots", len(count))
	}
	for shot, n := range count {
		if n != 2 || shot.TTL != 0 && shot.TTL != middleTTL {
			t.Errorf("%+v: %d times with two seeds", shot, n)
		}
	}
	if slices.Equal(order[0], order[1]) {
		t.Error("two seeds, one order")
	}
}

func TestLocals(t *testing.T) {
	all := plans()
	if got := all["swept"].Locals(1); got != nil {
		t.Errorf("any port will do, but %d are named", len(got))
	}
	got := all["low"].Locals(1)
	slices.Sort(got)
	if len(slices.Compact(got)) != 424 || got[0] != 600 || got[423] != 1023 || !all["low"].LowPorts {
		t.Errorf("low ports %v", got)
	}
	for seed := range uint64(1000) {
		got = all["run"].Locals(seed)
		if n := len(got); n < all["run"].Sockets || got[0] < 1024 || int(got[n-1]) != int(got[0])+n-1 {
			t.Fatalf("ports in a row: %v", got)
		}
	}
}

// TestSampleIsUniform: a part of very many combinations is drawn without preference.
func TestSampleIsUniform(t *testing.T) {
	r := []exchange.Ports{{Addr: outer, From: 1, To: 60000}}
	var upper, second int
	for seed := range uint64(20) {
		list := sample(rand.New(rand.NewPCG(seed, 0)), 4, 2, r, 60000, 1000)
		if len(list) != 1000 || len(distinct(list)) != 1000 {
			t.Fatalf("%d", len(list))
		}
		for _, p := range list {
			if p.to.Port() > 30000 {
				upper++
			}
			if second += p.socket - 4; p.socket < 4 || p.socket > 5 {
				t.Fatal(p)
			}
		}
	}
	if upper < 9700 || upper > 10300 || second < 9700 || second > 10300 {
		t.Errorf("of 20000: %d of the upper half, %d of the second socket", upper, second)
	}
}

func TestTechniqueNames(t *testing.T) {
	if got := fmt.Sprint(None, Prediction, LowPort, Sweep, Birthday, Technique(9)); got != "plain prediction low ports sweep birthday technique 9" {
		t.Error(got)
	}
}

// FuzzShots: no range that a peer may name makes more of a sequence than is allowed.
func FuzzShots(f *testing.F) {
	f.Add(uint8(Birthday), uint8(0), uint16(1), uint16(65535), int16(0), uint16(600), uint16(1023), int16(-1), 256, uint64(1))
	f.Add(uint8(Prediction), uint8(3), uint16(5000), uint16(5063), int16(1), uint16(7), uint16(7), int16(0), 32, uint64(1))
	classes := []exchange.Hints{hard(ei, ei), hard(apd, apd), with(hard(apd, apd), kept), with(hard(apd, apd), counts), with(hard(apd, apd), block), {}}
	f.Fuzz(func(t *testing.T, technique, pair uint8, from, to uint16, step int16, from2, to2 uint16, step2 int16, sockets int, seed uint64) {
		ranges := []exchange.Ports{{Addr: outer, From: from, To: to, Step: step}, {Addr: outer, From: from2, To: to2, Step: step2}}
		own, peer := classes[int(pair)%len(classes)], classes[int(pair)/len(classes)%len(classes)]
		p := Prepare(Technique(technique), own, peer, seed%2 == 0)
		s, again := p.Shots(ranges, sockets, seed), p.Shots(ranges, sockets, seed)
		if s.Total > MaxPackets {
			t.Fatalf("%d shots", s.Total)
		}
		checkShots(t, "fuzzed", s, again, ranges, min(sockets, p.Sockets))
	})
}
