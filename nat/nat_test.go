package nat

import (
	"net/netip"
	"testing"

	"culvert.dev/culvert/internal/packet"
)

func TestOpenSetsReplyAndOnward(t *testing.T) {
	for _, a := range families {
		r := newRouter(t, NATConfig{Ports: PortRandom}, Config{})
		p := decode(t, udpBytes(at(a.inner, 5000), at(a.remote, 80)))
		p.Peer = peer1
		f := &Flow{Key: p.Key, Owner: "mine"}
		if v := r.Open(f, 7); v != Pass {
			t.Fatal(v)
		}
		ext := f.Reply.DstAddrPort()
		want := packet.Key{Src: a.remote.As16(), Dst: a.ext.As16(), SrcPort: 80, DstPort: ext.Port(), Peer: outside, Proto: packet.ProtoUDP, V: a.v}
		if f.Reply != want {
			t.Errorf("reply tuple %+v, want %+v", f.Reply, want)
		}
		if got, d := r.tab.Lookup(&f.Reply); got != f || d != Reply || f.Owner != "mine" {
			t.Error("not found by the reply tuple")
		}
		if v := r.Translate(p, f, Original, 8); v != Pass || p.Key != f.Onward(Original) || p.Peer != outside || f.Last() != 8 {
			t.Errorf("%v: %+v", v, p.Key)
		}
		back := r.check(decode(t, udpBytes(at(a.remote, 80), ext)), Pass)
		if v := r.Translate(back, f, Reply, 9); v != Pass || back.Key != f.Key.Reverse() || f.State() != StateAssured {
			t.Errorf("%v: %+v, %v", v, back.Key, f.State())
		}
		if v := r.Open(&Flow{Key: f.Key}, 9); v == Pass {
			t.Error("one key opened twice")
		}
		if r.Mappings() != 1 {
			t.Errorf("%d mappings", r.Mappings())
		}
	}
}

// One-to-one translation of the destination comes on top: both ends of a packet change.
func TestOpenToTranslatesTheDestination(t *testing.T) {
	for _, filtering := range behaviours {
		r := newRouter(t, NATConfig{Mapping: AddressDependent, Filtering: filtering}, Config{})
		known, real := netip.MustParseAddr("10.1.0.7"), netip.MustParseAddr("192.168.1.7")
		p := decode(t, udpBytes(at(inner1, 5000), at(known, 80)))
		p.Peer = peer1
		f := &Flow{Key: p.Key}
		if v := r.OpenTo(f, real, 0); v != Pass {
			t.Fatal(v)
		}
		r.Translate(p, f, Original, 0)
		r.check(p, Pass)
		ext := p.SrcAddrPort()
		if p.DstAddrPort() != at(real, 80) || ext.Addr() != ext4 {
			t.Errorf("leaves as %v to %v", ext, p.DstAddrPort())
		}
		q, v := r.in(udpBytes(at(real, 80), ext))
		if v != Pass || q.SrcAddrPort() != at(known, 80) || q.DstAddrPort() != at(inner1, 5000) {
			t.Errorf("answer: %v, %v to %v", v, q.SrcAddrPort(), q.DstAddrPort())
		}
		// An error of the remote end itself is from the address that the inside knows; one of a router is from the router.
		for from, want := range map[netip.Addr]netip.Addr{real: known, other: other} {
			e, v := r.in(errorBytes(from, ext4, packet.PortUnreachable(4), udpBytes(ext, at(real, 80))))
			if k, _ := packet.Quoted(e); v != Pass || e.SrcAddr() != want || k.DstAddrPort() != at(known, 80) {
				t.Errorf("error from %v: %v, from %v about a packet to %v", from, v, e.SrcAddr(), k.DstAddrPort())
			}
		}
		if filtering == AddressDependent {
			r.arrives(at(known, 81), ext, at(inner1, 5000), Filtered)
			r.arrives(at(real, 81), ext, at(inner1, 5000), Pass)
		}
		for _, bad := range []netip.Addr{ext6, {}} {
			if v := r.OpenTo(&Flow{Key: f.Key}, bad, 0); v != NoAddress {
				t.Errorf("to %v: %v", bad, v)
			}
		}
		if v := r.OpenTo(&Flow{Key: f.Key}, ext4, 0); v != Filtered {
			t.Errorf("to the own address: %v", v)
		}
	}
}

func TestTheNodeItselfMayUseTheExternalAddress(t *testing.T) {
	r := newRouter(t, NATConfig{}, Config{})
	self := at(ext4, 5353)
	if got := r.send(PeerSelf, self, at(remote, 53)); got != self {
		t.Errorf("%v became %v", self, got)
	}
	if got := r.send(peer1, at(inner1, 5353), at(remote, 53)); got == self {
		t.Errorf("a peer has %v too", got)
	}
	p, v := r.in(udpBytes(at(remote, 53), self))
	if v != Pass || p.Peer != PeerSelf || p.DstAddrPort() != self {
		t.Errorf("answer: %v to %v of peer %d", v, p.DstAddrPort(), p.Peer)
	}
	if _, v := r.out(peer1, udpBytes(self, at(other, 53))); v != NoMapping {
		t.Errorf("a peer with the external address: %v", v)
	}
}

func TestOpenInboundKeepsTheOwner(t *testing.T) {
	r := newRouter(t, NATConfig{}, Config{})
	ext := r.send(peer1, at(inner1, 5000), at(remote, 80))
	p := decode(t, udpBytes(at(other, 9), ext))
	p.Peer = outside
	f, v := r.OpenInbound(p, "mine", 5)
	if v != Pass || f.Owner != "mine" || f.Key != p.Key || f.Reply.Peer != peer1 || f.Started() != 5 {
		t.Fatalf("%v: %+v", v, f)
	}
	if f, v := r.OpenInbound(p, "mine", 5); f != nil || v == Pass {
		t.Errorf("opened twice: %v", v)
	}
	if _, v := r.OpenInbound(decode(t, udpBytes(at(other6, 9), at(ext6, 1))), nil, 0); v != NoMapping {
		t.Errorf("nobody there: %v", v)
	}
	if _, v := r.OpenInbound(decode(t, udpBytes(at(other, 9), at(ext4b, ext.Port()))), nil, 0); v != NoMapping {
		t.Errorf("not an own address: %v", v)
	}
}

// A second NAT on the table leaves the flows of the first alone.
func TestTwoNATsOnOneTable(t *testing.T) {
	r := newRouter(t, NATConfig{Addrs: []netip.Addr{ext4}}, Config{})
	n2, err := NewNAT(NATConfig{Table: r.tab, Outside: 77, Addrs: []netip.Addr{ext4b}})
	if err != nil {
		t.Fatal(err)
	}
	r2 := &router{NAT: n2, t: t, tab: r.tab}
	r.send(peer1, at(inner1, 5000), at(remote, 80))
	p, v := r2.out(peer2, udpBytes(at(inner2, 5000), at(remote, 80)))
	if v != Pass || p.Peer != 77 || p.SrcAddr() != ext4b {
		t.Fatalf("%v, %v for peer %d", v, p.SrcAddrPort(), p.Peer)
	}
	r.tab.Recheck(func(f *Flow) bool { return f.Key.Peer != peer1 })
	if r.Mappings() != 0 || r2.Mappings() != 1 {
		t.Errorf("%d and %d mappings, want 0 and 1", r.Mappings(), r2.Mappings())
	}
}

func TestOutboundCounts(t *testing.T) {
	r := newRouter(t, NATConfig{}, Config{})
	b := udpBytes(at(inner1, 5000), at(remote, 80))
	size := uint64(len(b))
	p, _ := r.out(peer1, b)
	k := p.Key.Reverse()
	k.Peer = outside
	for range 2 {
		r.in(udpBytes(at(remote, 80), p.SrcAddrPort()))
	}
	f, _ := r.tab.Lookup(&k)
	if packets, bytes := f.Counters(Original); packets != 1 || bytes != size {
		t.Errorf("original: %d packets, %d bytes", packets, bytes)
	}
	if packets, bytes := f.Counters(Reply); packets != 2 || bytes != 2*size {
		t.Errorf("reply: %d packets, %d bytes", packets, bytes)
	}
}

func TestNamesOfBehavioursAndVerdicts(t *testing.T) {
	seen := map[string]bool{}
	for v := range Verdict(NumVerdicts) {
		if s := v.String(); s == "" || seen[s] {
			t.Errorf("verdict %d is called %q", v, s)
		} else {
			seen[s] = true
		}
	}
	for i, want := range []string{"endpoint-independent", "address-dependent", "address-and-port-dependent"} {
		if got := Dependence(i).String(); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}
