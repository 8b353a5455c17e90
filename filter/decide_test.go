package filter

import (
	"net/netip"
	"strings"
	"testing"

	"culvert.dev/culvert/internal/packet"
)

var (
	accSelf     = Decision{Action: Accept, Where: Self, Via: ViaHost}
	accLAN      = Decision{Action: Accept, Where: LAN, Via: ViaHost}
	accInternet = Decision{Action: Accept, Where: Internet, Via: ViaHost}
)

func deny(where Where, r Reason) Decision { return Decision{Action: Reject, Where: where, Reason: r} }
func nowhere(r Reason) Decision           { return deny(Nowhere, r) }
func dropped(r Reason) Decision           { return Decision{Action: Drop, Reason: r} }

// Every row of the package comment about destinations, by who asks, in both families. The four columns of want are for the
// peers plain, roamer, inmate and lanonly.
func TestDestinations(t *testing.T) {
	same := func(d Decision) [4]Decision { return [4]Decision{d, d, d, d} }
	lan := [4]Decision{deny(LAN, ReasonNoRouting), deny(LAN, ReasonNoLAN), accLAN, deny(LAN, ReasonNoRouting)}
	internet := [4]Decision{deny(Internet, ReasonNoRouting), accInternet, accInternet, deny(Internet, ReasonNoRouting)}
	transit := func(to uint16) [4]Decision {
		return same(Decision{Action: Reject, Where: OtherPeer, Reason: ReasonOtherPeer, To: to})
	}
	rows := []struct {
		name string
		dst  string // separated by blanks
		want [4]Decision
	}{
		{"unspecified", "0.0.0.0 ::", same(nowhere(ReasonUnspecified))},
		{"loopback", "127.0.0.1 127.0.0.0 127.255.255.255 ::1", same(nowhere(ReasonLoopback))},
		{"multicast", "224.0.0.0 224.0.0.251 239.255.255.255 ff00:: ff02::fb ff0e::1", same(dropped(ReasonMulticast))},
		{"broadcast", "255.255.255.255", same(dropped(ReasonBroadcast))},
		{"directed broadcast of an on-link network", "192.168.1.255 203.0.113.15", same(dropped(ReasonBroadcast))},
		{"address of the host", "192.168.1.5 203.0.113.5 2001:db8:1::5 fe80::5", same(nowhere(ReasonHostAddress))},
		{"network the host answers for", "198.51.100.128 198.51.100.255 2001:db8:a::1", same(nowhere(ReasonHostAddress))},
		{"reserved", "0.0.0.1 0.255.255.255 240.0.0.1 255.255.255.254", same(nowhere(ReasonReserved))},
		{"another peer", "100.64.0.16 fd7a::16", transit(office)},
		{"LAN behind another peer", "192.168.7.1 192.168.7.255 100.99.1.1 fd77::1", transit(office)},
		{"peer with a default route: its own address", "100.64.0.17 fd7a::17", transit(exit)},
		{"unassigned in the mesh", "100.64.0.0 100.64.0.99 100.64.0.255 fd7a:: fd7a::99", same(nowhere(ReasonMeshUnassigned))},
		{"metadata", "169.254.169.254 fd00:ec2::254 fd20:ce::254 168.63.129.16 100.100.100.200 192.0.0.192", same(nowhere(ReasonMetadata))},
		{"link-local", "169.254.0.1 169.254.255.255 fe80::1 febf::1", same(nowhere(ReasonLinkLocal))},
		{"link-local that AllowTo names", "169.254.7.1 fe80::77", internet},
		{"DenyTo on the internet", "198.51.100.1 2001:db8:dead::1", same(deny(Internet, ReasonDeniedByConfig))},
		{"DenyTo in the LAN", "10.66.0.1 10.66.2.0 fd66::1", same(deny(LAN, ReasonDeniedByConfig))},
		{"AllowTo inside DenyTo, internet", "198.51.100.7 2001:db8:dead:7::1", internet},
		{"AllowTo inside DenyTo, LAN: still the LAN", "10.66.1.1 fd66:1::1", lan},
		{"RFC 1918", "10.0.0.1 10.255.255.255 172.16.0.1 172.31.255.255 192.168.0.1 192.168.255.255", lan},
		{"shared address space outside the mesh", "100.64.1.0 100.127.255.255", lan},
		{"unique local", "fc00::1 fdff::1", lan},
		{"site-local", "fec0::1 feff::1", lan},
		{"on-link with public addresses", "203.0.113.0 203.0.113.14 2001:db8:1::1 2001:db8:1::ffff", lan},
		{"next to on-link", "203.0.113.16 2001:db8:1:1::1 2001:db8::1", internet},
		{"next to RFC 1918", "9.255.255.255 11.0.0.0 172.15.255.255 172.32.0.0 192.167.255.255 192.169.0.0", internet},
		{"next to the shared address space", "100.63.255.255 100.128.0.0", internet},
		{"next to loopback and multicast", "126.255.255.255 128.0.0.1 223.255.255.255 1.0.0.0", internet},
		{"documentation prefixes, as labs use them", "192.0.2.1 198.51.100.20 203.0.113.77 2001:db8:2::1 198.18.0.1", internet},
		{"the internet is not the exit peer's", "8.8.8.8 192.88.99.1 2606:4700::1111", internet},

		{"v4-mapped", "::ffff:8.8.8.8 ::ffff:198.51.100.20", same(nowhere(ReasonV4Mapped))},
		{"v4-mapped LAN", "::ffff:10.0.0.1", same(nowhere(ReasonV4Mapped))},
		{"v4-mapped that AllowTo names", "::ffff:198.18.0.1", internet},
		{"embedded internet", "::8.8.8.8 64:ff9b::8.8.8.8 2002:808:808::1 2001:0:808:808::f7f7:f7f7", internet},
		{"embedded LAN", "::10.0.0.1 64:ff9b::192.168.3.1 2002:a00:1::1 64:ff9b::203.0.113.1", lan},
		{"Teredo with a LAN server", "2001:0:a00:1::f7f7:f7f7", lan},
		{"Teredo with a LAN client", "2001:0:808:808::f5ff:fffe", lan},
		{"embedded loopback", "::ffff:127.0.0.1 ::127.0.0.1 64:ff9b::127.0.0.1 2002:7f00:1:: 2001:0:7f00:1::f7f7:f7f7 2001:0:808:808::80ff:fffe", same(nowhere(ReasonLoopback))},
		{"embedded host address", "::ffff:192.168.1.5 ::192.168.1.5 64:ff9b::203.0.113.5 2002:c0a8:105:: 2001:0:808:808::3f57:fefa", same(nowhere(ReasonHostAddress))},
		{"embedded mesh address of this node", "::ffff:100.64.0.1 64:ff9b::100.64.0.1 2002:6440:1::", same(nowhere(ReasonHostAddress))},
		{"embedded peer", "::ffff:100.64.0.16 64:ff9b::100.64.0.16 2002:6440:10:: 64:ff9b::192.168.7.1", transit(office)},
		{"embedded unassigned", "64:ff9b::100.64.0.99 2002:6440:63::", same(nowhere(ReasonMeshUnassigned))},
		{"embedded metadata", "::ffff:169.254.169.254 ::169.254.169.254 64:ff9b::169.254.169.254 2002:a9fe:a9fe:: 2001:0:808:808::5601:5601", same(nowhere(ReasonMetadata))},
		{"embedded link-local that AllowTo names", "64:ff9b::169.254.7.1 2002:a9fe:701::", internet},
		{"embedded reserved", "::2 ::0.1.0.0 64:ff9b::240.0.0.1 2002:f000::1", same(nowhere(ReasonReserved))},
		{"embedded unspecified", "::ffff:0.0.0.0 64:ff9b:: 2002::1 2001:0:808:808::ffff:ffff", same(nowhere(ReasonUnspecified))},
		{"embedded multicast", "::ffff:224.0.0.1 64:ff9b::239.1.1.1 2002:e000:1::", same(dropped(ReasonMulticast))},
		{"embedded broadcast", "64:ff9b::255.255.255.255 2002:c0a8:1ff::", same(dropped(ReasonBroadcast))},
		{"embedded DenyTo", "64:ff9b::198.51.100.1 2002:c633:6401::", same(deny(Internet, ReasonDeniedByConfig))},
		{"DenyTo names the form itself", "64:ff9b::100.100.0.1", same(deny(Internet, ReasonDeniedByConfig))},
		{"local-use NAT64", "64:ff9b:1::808:808 64:ff9b:1:ffff::1", same(nowhere(ReasonNAT64Local))},
		{"next to the forms", "::1:0:0:1 64:ff9a::1 64:ff9b:0:1:: 64:ff9b:2::1 2001:1::1 2003::1 ::fffe:7f00:1", internet},
	}
	p := mustNew(t, fixture())
	for _, r := range rows {
		for _, s := range strings.Fields(r.dst) {
			dst := netip.MustParseAddr(s)
			for i, peer := range []uint16{plain, roamer, inmate, lanonly} {
				for _, proto := range []uint8{packet.ProtoTCP, packet.ProtoUDP, echoProto(dst), 132} {
					if got := p.Decide(peer, key(from(peer, dst), dst, proto, 53)); got != r.want[i] {
						t.Errorf("%s: %s to %s: %v, want %v", r.name, p.Peer(peer).Name, s, got, r.want[i])
					}
				}
				if got := p.DecideTo(peer, packet.ProtoTCP, netip.AddrPortFrom(dst, 53)); got != r.want[i] {
					t.Errorf("%s: for %s to %s: %v, want %v", r.name, p.Peer(peer).Name, s, got, r.want[i])
				}
			}
		}
	}
}

func TestThisNode(t *testing.T) {
	p := mustNew(t, fixture())
	noIn, noRoute, noPort := deny(Self, ReasonNoInbound), deny(Self, ReasonNoRouting), deny(Self, ReasonSelfPort)
	for _, r := range []struct {
		name                 string
		proto                uint8
		port                 uint16
		plain, guest, roamer Decision
	}{
		{"echo", 0, 0, accSelf, accSelf, accSelf},
		{"published port", packet.ProtoTCP, 8443, noIn, accSelf, noIn},
		{"the same number in the other protocol", packet.ProtoUDP, 8443, noPort, noPort, noPort},
		{"DNS over UDP", packet.ProtoUDP, 53, noRoute, noRoute, accSelf},
		{"DNS over TCP", packet.ProtoTCP, 53, noRoute, noRoute, accSelf},
		{"nothing there", packet.ProtoTCP, 22, noPort, noPort, noPort},
		{"another protocol", 132, 8443, noPort, noPort, noPort},
	} {
		for _, dst := range fixture().Self {
			proto := r.proto
			if proto == 0 {
				proto = echoProto(dst)
			}
			for peer, want := range map[uint16]Decision{plain: r.plain, guest: r.guest, roamer: r.roamer} {
				if got := p.Decide(peer, key(from(peer, dst), dst, proto, r.port)); got != want {
					t.Errorf("%s: %s to %s: %v, want %v", r.name, p.Peer(peer).Name, dst, got, want)
				}
			}
			// The other family's ICMP is no echo here.
			other := uint8(packet.ProtoICMPv4 + packet.ProtoICMPv6 - int(echoProto(dst)))
			if got := p.Decide(guest, key(from(guest, dst), dst, other, 0)); got != noPort {
				t.Errorf("protocol %d to %s: %v", other, dst, got)
			}
		}
	}
}

// The security fault that the project exists to avoid: every pair of peers, both ways, both families, every address of
// theirs. Only what AllowPeers names is open, and only in that direction.
func TestPeersAreIsolated(t *testing.T) {
	cfg := fixture()
	p := mustNew(t, cfg)
	targets := map[uint16][]string{office: {"192.168.7.9", "fd77::9", "100.99.3.4"}}
	opened := 0
	for a := range peerAddrs {
		for b, own := range peerAddrs {
			for _, s := range append(targets[b], own[0], own[1]) {
				dst := netip.MustParseAddr(s)
				want := Decision{Action: Reject, Where: OtherPeer, Reason: ReasonOtherPeer, To: b}
				switch {
				case a == b:
					want = nowhere(ReasonSamePeer)
				case a == friend && (b == plain || b == office):
					want = Decision{Action: Accept, Where: OtherPeer, Via: ViaHost, To: b}
					opened++
				}
				for _, proto := range []uint8{packet.ProtoTCP, packet.ProtoUDP, echoProto(dst)} {
					if got := p.Decide(a, key(from(a, dst), dst, proto, 443)); got != want {
						t.Errorf("%s to %s at %s: %v, want %v", p.Peer(a).Name, p.Peer(b).Name, dst, got, want)
					}
				}
			}
		}
	}
	if opened != 7 {
		t.Errorf("%d addresses are open to friend, want 7", opened)
	}
	// AllowTo and DenyTo are about the exit; neither opens a peer.
	cfg.Allow = parsePrefixes([]string{"0.0.0.0/0", "::/0"})
	p = mustNew(t, cfg)
	for _, s := range []string{"100.64.0.16", "fd7a::16", "192.168.7.1", "fd77::1", "::ffff:100.64.0.16", "64:ff9b::100.64.0.16", "2002:6440:10::"} {
		dst := netip.MustParseAddr(s)
		want := Decision{Action: Reject, Where: OtherPeer, Reason: ReasonOtherPeer, To: office}
		if got := p.Decide(inmate, key(from(inmate, dst), dst, packet.ProtoTCP, 443)); got != want {
			t.Errorf("AllowTo everything: %s: %v, want %v", s, got, want)
		}
	}
	// friend may reach office, but not by an address that this node would send elsewhere.
	dst := netip.MustParseAddr("64:ff9b::100.64.0.16")
	if got := p.Decide(friend, key(from(friend, dst), dst, packet.ProtoTCP, 443)); got.Action != Reject {
		t.Errorf("transit through NAT64: %v", got)
	}
}

// AllowTo lifts what the package comment says, and not the protection of the host.
func TestAllowToEverything(t *testing.T) {
	cfg := fixture()
	cfg.Allow = parsePrefixes([]string{"0.0.0.0/0", "::/0"})
	p := mustNew(t, cfg)
	for want, list := range map[Decision]string{
		nowhere(ReasonUnspecified):    "0.0.0.0 :: ::ffff:0.0.0.0",
		nowhere(ReasonLoopback):       "127.0.0.1 ::1 ::ffff:127.0.0.1 64:ff9b::127.0.0.1 2002:7f00:1:: 2001:0:808:808::80ff:fffe",
		nowhere(ReasonHostAddress):    "192.168.1.5 203.0.113.5 2001:db8:1::5 fe80::5 ::ffff:192.168.1.5 198.51.100.200",
		nowhere(ReasonReserved):       "0.1.2.3 240.0.0.1 64:ff9b::240.0.0.1",
		nowhere(ReasonMeshUnassigned): "100.64.0.99 fd7a::99 ::ffff:100.64.0.99",
		dropped(ReasonMulticast):      "224.0.0.1 ff02::1 ::ffff:224.0.0.1",
		dropped(ReasonBroadcast):      "255.255.255.255 192.168.1.255 ::ffff:255.255.255.255",
		accInternet:                   "169.254.169.254 fe80::1 fd00:ec2::254 ::ffff:8.8.8.8 64:ff9b::169.254.169.254 64:ff9b:1::1 198.51.100.1",
		accLAN:                        "10.66.3.3 ::ffff:10.0.0.1 fd66::1 192.168.1.77",
	} {
		for _, s := range strings.Fields(list) {
			dst := netip.MustParseAddr(s)
			if got := p.Decide(inmate, key(from(inmate, dst), dst, packet.ProtoTCP, 443)); got != want {
				t.Errorf("%s: %v, want %v", s, got, want)
			}
		}
	}
	for _, s := range []string{"10.66.3.3", "::ffff:10.0.0.1", "fd66::1", "64:ff9b::10.66.3.3"} {
		dst := netip.MustParseAddr(s)
		if got, want := p.Decide(roamer, key(from(roamer, dst), dst, packet.ProtoTCP, 443)), deny(LAN, ReasonNoLAN); got != want {
			t.Errorf("the LAN by AllowTo alone: %s: %v, want %v", s, got, want)
		}
	}
}

func TestSources(t *testing.T) {
	p := mustNew(t, fixture())
	for _, r := range []struct {
		name string
		peer uint16
		src  string
		want Decision
	}{
		{"own address", roamer, "100.64.0.13 fd7a::13", accInternet},
		{"LAN behind the peer", office, "192.168.7.3 fd77::3", accInternet},
		{"another peer's address", roamer, "100.64.0.14 fd7a::14", dropped(ReasonSpoofedSource)},
		{"nobody's address", roamer, "10.1.1.1 fd00::1", dropped(ReasonSpoofedSource)},
		{"own address, v4-mapped", roamer, "::ffff:100.64.0.13", dropped(ReasonSpoofedSource)},
		{"no such peer", 99, "100.64.0.13 fd7a::13", dropped(ReasonUnknownPeer)},
		{"no peer", 0, "100.64.0.13 fd7a::13", dropped(ReasonUnknownPeer)},
		{"beyond all IDs", 65535, "100.64.0.13 fd7a::13", dropped(ReasonUnknownPeer)},
		{"exit for us: any internet address", exit, "8.8.8.8 2606:4700::1", deny(Internet, ReasonNoRouting)},
		{"exit for us: hub's address in the mesh", exit, "100.64.0.99 fd7a::99", deny(Internet, ReasonNoRouting)},
		{"exit for us: another peer's address", exit, "100.64.0.13 fd7a::13", dropped(ReasonSpoofedSource)},
		{"exit for us: this node", exit, "100.64.0.1 fd7a::1", dropped(ReasonBadSource)},
		{"exit for us: the host", exit, "192.168.1.5 2001:db8:1::5", dropped(ReasonBadSource)},
		{"exit for us: loopback", exit, "127.0.0.1 ::1", dropped(ReasonBadSource)},
		{"exit for us: unspecified", exit, "0.0.0.0 ::", dropped(ReasonBadSource)},
		{"exit for us: multicast", exit, "224.0.0.1 ff02::1", dropped(ReasonBadSource)},
		{"exit for us: broadcast", exit, "255.255.255.255 192.168.1.255", dropped(ReasonBadSource)},
	} {
		for _, s := range strings.Fields(r.src) {
			src := netip.MustParseAddr(s)
			dst := netip.MustParseAddr("2606:4700::1111")
			if src.Is4() {
				dst = netip.MustParseAddr("1.1.1.1")
			}
			if got := p.Decide(r.peer, key(src, dst, packet.ProtoUDP, 443)); got != r.want {
				t.Errorf("%s: from %s: %v, want %v", r.name, s, got, r.want)
			}
		}
	}
}

// The family is the packet's, not what the bytes look like: an IPv6 packet to a v4-mapped address is never judged as an
// IPv4 one, nor its source taken for an IPv4 peer's.
func TestFamiliesDoNotMix(t *testing.T) {
	p := mustNew(t, fixture())
	for _, s := range []string{"8.8.8.8", "10.0.0.1", "100.64.0.1", "192.168.7.1", "127.0.0.1"} {
		dst4 := netip.MustParseAddr(s)
		k := key(from(office, dst4), dst4, packet.ProtoTCP, 8443)
		k.V = 6
		if got := p.Decide(office, k); got != dropped(ReasonSpoofedSource) {
			t.Errorf("%s with an IPv6 version: %v", s, got)
		}
		dst6 := netip.AddrFrom16(dst4.As16())
		if got := p.Decide(office, key(from(office, dst6), dst6, packet.ProtoTCP, 8443)); got.Action == Accept {
			t.Errorf("%s: %v", dst6, got)
		}
	}
	// And the reverse: the low four bytes of an IPv6 address are not an IPv4 address.
	k := key(from(inmate, netip.IPv6Unspecified()), netip.MustParseAddr("2001:db8:9::a00:1"), packet.ProtoTCP, 80)
	if got := p.Decide(inmate, k); got != accInternet {
		t.Errorf("an internet address that ends like 10.0.0.1: %v", got)
	}
}

func TestDecideToWithoutAddress(t *testing.T) {
	p := mustNew(t, fixture())
	if got := p.DecideTo(roamer, packet.ProtoTCP, netip.AddrPort{}); got.Action != Drop {
		t.Errorf("%v", got)
	}
	if got := p.DecideTo(99, packet.ProtoTCP, netip.MustParseAddrPort("8.8.8.8:53")); got != dropped(ReasonUnknownPeer) {
		t.Errorf("%v", got)
	}
}

func TestReasonsHaveNamesAndExplanations(t *testing.T) {
	seen := map[string]bool{}
	for r := Reason(0); int(r) < NumReasons; r++ {
		if r.String() == "" || r.Explain() == "" || seen[r.String()] {
			t.Errorf("reason %d: %q, %q", r, r, r.Explain())
		}
		seen[r.String()] = true
	}
	for f := packet.Fault(1); int(f) < packet.NumFaults; f++ {
		if seen[f.String()] {
			t.Errorf("%q is both a fault and a reason, but they share the drop counters' names", f)
		}
	}
	if Reason(NumReasons).String() != "unknown" || Reason(NumReasons).Explain() == "" {
		t.Error("beyond the last reason")
	}
	for a, want := range map[Action]string{Drop: "drop", Reject: "reject", Accept: "accept"} {
		if a.String() != want {
			t.Errorf("action %d is %q", a, a)
		}
	}
	for w, want := range map[Where]string{Nowhere: "nowhere", Self: "self", OtherPeer: "other-peer", LAN: "lan", Internet: "internet"} {
		if w.String() != want {
			t.Errorf("place %d is %q", w, w)
		}
	}
}
