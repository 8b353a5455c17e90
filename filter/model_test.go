package filter

import (
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"culvert.dev/culvert/internal/packet"
)

// The reference model walks the rows of the package comment over plain lists, one address at a time.

func within(a netip.Addr, list []netip.Prefix) bool {
	return slices.ContainsFunc(list, func(p netip.Prefix) bool { return p.Contains(a) })
}

func in(a netip.Addr, list ...string) bool { return within(a, parsePrefixes(list)) }

// modelOwner is the naive longest-prefix match.
func modelOwner(cfg *Config, a netip.Addr, defaults bool) (id uint16) {
	best := -1
	for _, r := range cfg.Routes {
		internet := r.Prefix.Bits() <= 1 || r.Prefix.Addr().Is6() && r.Prefix.Bits() <= 3
		if r.Prefix.Contains(a) && r.Prefix.Bits() > best && (defaults || !internet) {
			best, id = r.Prefix.Bits(), r.Peer
		}
	}
	return id
}

func modelBroadcast(cfg *Config, a netip.Addr) bool {
	if a == netip.MustParseAddr("255.255.255.255") {
		return true
	}
	for _, p := range cfg.Host.OnLink {
		if a.Is4() && p.Addr().Is4() && p.Bits() < 31 && p.Contains(a) && !p.Contains(a.Next()) {
			return true
		}
	}
	return false
}

// modelHard is rows 5 to 10.
func modelHard(cfg *Config, a netip.Addr) Reason {
	switch {
	case a == netip.IPv4Unspecified() || a == netip.IPv6Unspecified():
		return ReasonUnspecified
	case in(a, "127.0.0.0/8", "::1/128"):
		return ReasonLoopback
	case in(a, "224.0.0.0/4", "ff00::/8"):
		return ReasonMulticast
	case modelBroadcast(cfg, a):
		return ReasonBroadcast
	case slices.Contains(cfg.Host.Addrs, a) || within(a, cfg.Host.Local):
		return ReasonHostAddress
	case in(a, "0.0.0.0/8", "240.0.0.0/4"):
		return ReasonReserved
	}
	return ReasonNone
}

func modelLAN(cfg *Config, a netip.Addr) bool {
	return in(a, "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "fc00::/7", "fec0::/10") || within(a, cfg.Host.OnLink)
}

func modelEmbedded(a netip.Addr) (list []netip.Addr) {
	b := a.As16()
	at := func(i int) netip.Addr { return netip.AddrFrom4([4]byte(b[i : i+4])) }
	switch {
	case in(a, "::ffff:0:0/96", "::/96", "64:ff9b::/96"):
		return []netip.Addr{at(12)}
	case in(a, "2002::/16"):
		return []netip.Addr{at(2)}
	case in(a, "2001::/32"):
		return []netip.Addr{at(4), netip.AddrFrom4([4]byte{^b[12], ^b[13], ^b[14], ^b[15]})}
	}
	return nil
}

// modelTo returns Accept with a place, or a denial that permissions do not change. allowed says that AllowTo names an
// address that leads here.
func modelTo(cfg *Config, a netip.Addr, allowed bool) Decision {
	if r := modelHard(cfg, a); r == ReasonMulticast || r == ReasonBroadcast {
		return Decision{Action: Drop, Reason: r}
	} else if r != ReasonNone {
		return Decision{Action: Reject, Reason: r}
	}
	if id := modelOwner(cfg, a, false); id != 0 {
		return Decision{Action: Reject, Where: OtherPeer, Reason: ReasonOtherPeer, To: id}
	}
	if within(a, cfg.Mesh) {
		return Decision{Action: Reject, Reason: ReasonMeshUnassigned}
	}
	allowed = allowed || within(a, cfg.Allow)
	metadata := modelMetadata(a)
	linkLocal := in(a, "169.254.0.0/16", "fe80::/10")
	where := Internet
	if modelLAN(cfg, a) && !metadata && !linkLocal {
		where = LAN
	}
	if !allowed {
		switch {
		case metadata:
			return Decision{Action: Reject, Reason: ReasonMetadata}
		case linkLocal:
			return Decision{Action: Reject, Reason: ReasonLinkLocal}
		case within(a, cfg.Deny):
			return Decision{Action: Reject, Where: where, Reason: ReasonDeniedByConfig}
		}
	}
	for _, e := range modelEmbedded(a) {
		if slices.Contains(cfg.Self, e) {
			return Decision{Action: Reject, Reason: ReasonHostAddress}
		}
		d := modelTo(cfg, e, allowed)
		if d.Action != Accept {
			return d
		}
		if d.Where == LAN {
			where = LAN
		}
	}
	if !allowed && in(a, "::ffff:0:0/96") {
		return Decision{Action: Reject, Reason: ReasonV4Mapped}
	}
	if !allowed && in(a, "64:ff9b:1::/48") {
		return Decision{Action: Reject, Reason: ReasonNAT64Local}
	}
	return Decision{Action: Accept, Where: where}
}

func modelMetadata(a netip.Addr) bool {
	return in(a, "169.254.169.254/32", "fd00:ec2::254/128", "fd20:ce::254/128", "168.63.129.16/32", "100.100.100.200/32", "192.0.0.192/32")
}

// modelDecide is modelPermits, and by which way it leaves.
func modelDecide(cfg *Config, peer uint16, src, dst netip.Addr, proto uint8, port uint16) Decision {
	d := modelPermits(cfg, peer, src, dst, proto, port)
	if d.Action == Accept {
		d.Via = ViaHost
		link := in(dst, "169.254.0.0/16", "fe80::/10") || modelMetadata(dst)
		if i := slices.IndexFunc(cfg.Peers, func(p Peer) bool { return p.ID == peer }); d.Where == Internet && cfg.Peers[i].Upstream && !link {
			d.Via = ViaUpstream
		}
	}
	return d
}

func modelPermits(cfg *Config, peer uint16, src, dst netip.Addr, proto uint8, port uint16) Decision {
	i := slices.IndexFunc(cfg.Peers, func(p Peer) bool { return p.ID == peer })
	if i < 0 {
		return Decision{Reason: ReasonUnknownPeer}
	}
	p := cfg.Peers[i]
	if modelOwner(cfg, src, true) != peer {
		return Decision{Reason: ReasonSpoofedSource}
	}
	if slices.Contains(cfg.Self, src) || modelHard(cfg, src) != ReasonNone {
		return Decision{Reason: ReasonBadSource}
	}
	if slices.Contains(cfg.Self, dst) {
		if proto == echoProto(dst) {
			return Decision{Action: Accept, Where: Self}
		}
		for _, s := range cfg.SelfPorts {
			if s.Proto != proto || s.Port != port {
				continue
			}
			if s.Need == NeedInbound && !p.AllowInbound {
				return Decision{Action: Reject, Where: Self, Reason: ReasonNoInbound}
			}
			if s.Need == NeedRouting && !p.AllowRouting {
				return Decision{Action: Reject, Where: Self, Reason: ReasonNoRouting}
			}
			return Decision{Action: Accept, Where: Self}
		}
		return Decision{Action: Reject, Where: Self, Reason: ReasonSelfPort}
	}
	d := modelTo(cfg, dst, false)
	direct := modelOwner(cfg, dst, false) != 0
	switch {
	case d.Where == OtherPeer && direct && d.To == peer:
		return Decision{Action: Reject, Reason: ReasonSamePeer}
	case d.Where == OtherPeer && direct && slices.Contains(p.AllowPeers, d.To):
		return Decision{Action: Accept, Where: OtherPeer, To: d.To}
	case d.Action == Accept && !p.AllowRouting:
		return Decision{Action: Reject, Where: d.Where, Reason: ReasonNoRouting}
	case d.Action == Accept && d.Where == LAN && !p.AllowLAN:
		return Decision{Action: Reject, Where: LAN, Reason: ReasonNoLAN}
	}
	return d
}

// randomAddr prefers addresses that something is known about: the edges of the configuration's prefixes and of the
// built-in ones, and forms that embed them.
func randomAddr(r *rand.Rand, edges []netip.Addr, v4 bool) netip.Addr {
	a := edges[r.IntN(len(edges))]
	for range r.IntN(3) {
		if next := a.Next(); next.IsValid() && r.IntN(2) == 0 {
			a = next
		} else if prev := a.Prev(); prev.IsValid() {
			a = prev
		}
	}
	if r.IntN(6) == 0 {
		b := a.As16()
		binary.BigEndian.PutUint32(b[12:], r.Uint32())
		if a.Is4() {
			return randomFamily(r, netip.AddrFrom4([4]byte(b[12:])), v4)
		}
		return randomFamily(r, netip.AddrFrom16(b), v4)
	}
	return randomFamily(r, a, v4)
}

// randomFamily turns a into an address of the wanted family by one of the embedding forms, or its low bytes.
func randomFamily(r *rand.Rand, a netip.Addr, v4 bool) netip.Addr {
	b := a.As16()
	if a.Is4() == v4 {
		return a
	}
	if v4 {
		return netip.AddrFrom4([4]byte(b[12:]))
	}
	four := b[12:16]
	switch r.IntN(5) {
	case 0:
		return netip.AddrFrom16(b) // v4-mapped
	case 1:
		return netip.AddrFrom16([16]byte{12: four[0], four[1], four[2], four[3]})
	case 2:
		return netip.AddrFrom16([16]byte{0, 0x64, 0xff, 0x9b, 12: four[0], four[1], four[2], four[3]})
	case 3:
		return netip.AddrFrom16([16]byte{0x20, 2, four[0], four[1], four[2], four[3], 15: 1})
	}
	teredo := [16]byte{0x20, 1, 0, 0, 8, 8, 8, 8, 12: ^four[0], ^four[1], ^four[2], ^four[3]}
	if r.IntN(2) == 0 {
		copy(teredo[4:8], four)
		teredo[15] ^= 0xff
	}
	return netip.AddrFrom16(teredo)
}

// randomConfig scatters prefixes of all lengths over the fixture.
func randomConfig(r *rand.Rand) Config {
	cfg := fixture()
	prefix := func() netip.Prefix {
		bases := []string{"10.0.0.0", "192.168.0.0", "100.64.0.0", "203.0.113.0", "169.254.0.0", "127.0.0.0", "8.8.8.8", "224.0.0.0",
			"fd7a::", "fe80::", "2001:db8::", "64:ff9b::", "64:ff9b:1::", "2002:a00::", "2001::", "::", "::ffff:0:0", "ff02::", "fd00:ec2::254"}
		a := netip.MustParseAddr(bases[r.IntN(len(bases))])
		b := a.As16()
		b[13+r.IntN(3)] = byte(r.Uint32())
		if a.Is4() {
			return netip.PrefixFrom(netip.AddrFrom4([4]byte(b[12:])), 2+r.IntN(31)).Masked()
		}
		return netip.PrefixFrom(netip.AddrFrom16(b), 4+r.IntN(125)).Masked()
	}
	some := func(n int) (out []netip.Prefix) {
		for range r.IntN(n) {
			out = append(out, prefix())
		}
		return out
	}
	taken := map[netip.Prefix]bool{}
	for _, route := range cfg.Routes {
		taken[route.Prefix] = true
	}
	for _, p := range some(12) {
		if !taken[p] {
			taken[p] = true
			cfg.Routes = append(cfg.Routes, Route{p, plain + uint16(r.IntN(8))})
		}
	}
	cfg.Mesh = append(cfg.Mesh, some(3)...)
	cfg.Allow = append(cfg.Allow, some(4)...)
	cfg.Deny = append(cfg.Deny, some(4)...)
	cfg.Host.OnLink = append(slices.Clone(cfg.Host.OnLink), some(4)...)
	cfg.Host.Local = append(slices.Clone(cfg.Host.Local), some(2)...)
	if cfg.HasUpstream = r.IntN(2) == 0; cfg.HasUpstream {
		for i := range cfg.Peers {
			cfg.Peers[i].Upstream = r.IntN(2) == 0
		}
	}
	return cfg
}

func edgesOf(cfg *Config) (edges []netip.Addr) {
	all := slices.Concat(cfg.Mesh, cfg.Allow, cfg.Deny, cfg.Host.OnLink, cfg.Host.Local, hostPrefixes(cfg.Self), hostPrefixes(cfg.Host.Addrs),
		parsePrefixes([]string{"0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "169.254.169.254/32", "172.16.0.0/12",
			"192.168.0.0/16", "224.0.0.0/4", "240.0.0.0/4", "8.8.8.8/32", "192.0.0.192/32", "::/96", "::ffff:0:0/96", "64:ff9b::/96", "64:ff9b:1::/48",
			"2001::/32", "2002::/16", "fc00::/7", "fe80::/10", "fec0::/10", "ff00::/8", "2606:4700::/32", "fd00:ec2::254/128", "fd20:ce::254/128"}))
	for _, r := range cfg.Routes {
		all = append(all, r.Prefix)
	}
	for _, p := range all {
		first, last := span(p)
		edges = append(edges, first.addr(p.Addr().Is4()), last.addr(p.Addr().Is4()))
	}
	return edges
}

func TestDecideEqualsModel(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	seen := map[Decision]int{}
	for range 60 {
		cfg := randomConfig(r)
		p := mustNew(t, cfg)
		edges := edgesOf(&cfg)
		for range 1500 {
			v4 := r.IntN(2) == 0
			peer := uint16(r.IntN(10))
			dst := randomAddr(r, edges, v4)
			src := randomAddr(r, edges, v4)
			if _, ok := peerAddrs[peer]; ok && r.IntN(8) > 0 {
				src = from(peer, dst)
			}
			proto := []uint8{packet.ProtoTCP, packet.ProtoUDP, packet.ProtoICMPv4, packet.ProtoICMPv6, 47}[r.IntN(5)]
			port := []uint16{53, 8443, 80}[r.IntN(3)]
			if got, want := p.PeerOf(src), modelOwner(&cfg, src, true); got != want {
				t.Fatalf("PeerOf(%s) = %d, want %d\n%+v", src, got, want, cfg.Routes)
			}
			got, want := p.Decide(peer, key(src, dst, proto, port)), modelDecide(&cfg, peer, src, dst, proto, port)
			if got != want {
				t.Fatalf("peer %d, %s to %s, protocol %d, port %d: %+v %v, want %+v %v\n%+v", peer, src, dst, proto, port, got, got.Reason, want, want.Reason, cfg)
			}
			seen[Decision{Action: got.Action, Where: got.Where, Reason: got.Reason}]++
		}
	}
	reasons := map[Reason]bool{}
	for d := range seen {
		reasons[d.Reason] = true
	}
	if want := NumReasons - 1; len(reasons) != want { // rules have a model of their own
		t.Errorf("%d of %d reasons have been met: the test does not test much", len(reasons), want)
	}
}

func FuzzDecide(f *testing.F) {
	cfg := fixture()
	for _, a := range edgesOf(&cfg) {
		b := a.As16()
		f.Add(uint16(roamer), b[:], a.Is4(), uint8(6), uint16(53))
	}
	p := mustNew(f, cfg)
	f.Fuzz(func(t *testing.T, peer uint16, b []byte, v4 bool, proto uint8, port uint16) {
		if len(b) < 16 {
			return
		}
		dst := netip.AddrFrom16([16]byte(b))
		if v4 {
			dst = netip.AddrFrom4([4]byte(b[12:]))
		}
		peer %= 10
		src := from(roamer, dst)
		if _, ok := peerAddrs[peer]; ok {
			src = from(peer, dst)
		}
		if got, want := p.Decide(peer, key(src, dst, proto, port)), modelDecide(&cfg, peer, src, dst, proto, port); got != want {
			t.Fatalf("peer %d to %s: %+v, want %+v", peer, dst, got, want)
		}
	})
}
