package filter

import (
	"net/netip"
	"testing"

	"culvert.dev/culvert/internal/hostnet"
	"culvert.dev/culvert/internal/packet"
)

// The mesh of the tests: one node, and a peer for each permission.
const (
	plain   uint16 = iota + 1 // no permission
	guest                     // AllowInbound
	roamer                    // AllowRouting
	inmate                    // AllowRouting and AllowLAN
	friend                    // AllowPeers plain, office
	office                    // has a LAN behind it
	exit                      // this node's own exit: default routes
	lanonly                   // AllowLAN without AllowRouting
)

var peerAddrs = map[uint16][2]string{
	plain: {"100.64.0.11", "fd7a::11"}, guest: {"100.64.0.12", "fd7a::12"}, roamer: {"100.64.0.13", "fd7a::13"}, inmate: {"100.64.0.14", "fd7a::14"},
	friend: {"100.64.0.15", "fd7a::15"}, office: {"100.64.0.16", "fd7a::16"}, exit: {"100.64.0.17", "fd7a::17"}, lanonly: {"100.64.0.18", "fd7a::18"},
}

func addrs(list ...string) (out []netip.Addr) {
	for _, s := range list {
		out = append(out, netip.MustParseAddr(s))
	}
	return out
}

func fixture() Config {
	cfg := Config{
		Self: addrs("100.64.0.1", "fd7a::1"),
		Mesh: parsePrefixes([]string{"100.64.0.0/24", "fd7a::/64"}),
		Peers: []Peer{
			{ID: plain, Name: "plain"},
			{ID: guest, Name: "guest", AllowInbound: true},
			{ID: roamer, Name: "roamer", AllowRouting: true},
			{ID: inmate, Name: "inmate", AllowRouting: true, AllowLAN: true},
			{ID: friend, Name: "friend", AllowPeers: []uint16{plain, office}},
			{ID: office, Name: "office", AllowInbound: true, AllowRouting: true, AllowLAN: true},
			{ID: exit, Name: "exit", AllowInbound: true},
			{ID: lanonly, Name: "lanonly", AllowLAN: true},
		},
		Host: hostnet.Snapshot{
			Addrs:  addrs("127.0.0.1", "192.168.1.5", "203.0.113.5", "::1", "2001:db8:1::5", "fe80::5"),
			OnLink: parsePrefixes([]string{"192.168.1.0/24", "203.0.113.0/28", "2001:db8:1::/64", "fe80::/64"}),
			Local:  parsePrefixes([]string{"198.51.100.128/25", "2001:db8:a::/64"}),
		},
		Deny:  parsePrefixes([]string{"198.51.100.0/28", "10.66.0.0/16", "2001:db8:dead::/48", "fd66::/16", "64:ff9b::6464:0/112"}),
		Allow: parsePrefixes([]string{"169.254.7.0/24", "10.66.1.0/24", "198.51.100.7/32", "fe80::77/128", "fd66:1::/32", "2001:db8:dead:7::/64", "::ffff:198.18.0.0/111"}),
		SelfPorts: []SelfPort{
			{packet.ProtoTCP, 8443, NeedInbound}, {packet.ProtoUDP, 53, NeedRouting}, {packet.ProtoTCP, 53, NeedRouting},
		},
	}
	for id, a := range peerAddrs {
		cfg.Routes = append(cfg.Routes, Route{netip.MustParsePrefix(a[0] + "/32"), id}, Route{netip.MustParsePrefix(a[1] + "/128"), id})
	}
	for _, s := range []string{"192.168.7.0/24", "fd77::/64", "100.99.0.0/16"} {
		cfg.Routes = append(cfg.Routes, Route{netip.MustParsePrefix(s), office})
	}
	for _, s := range []string{"0.0.0.0/0", "128.0.0.0/1", "::/0", "2000::/3"} {
		cfg.Routes = append(cfg.Routes, Route{netip.MustParsePrefix(s), exit})
	}
	return cfg
}

func mustNew(t testing.TB, cfg Config) *Policy {
	t.Helper()
	p, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// key makes the key of a packet; a port of zero and protocol ICMP stand for an echo request.
func key(src, dst netip.Addr, proto uint8, port uint16) *packet.Key {
	k := &packet.Key{Src: src.As16(), Dst: dst.As16(), SrcPort: 40000, DstPort: port, Proto: proto, V: 6}
	if dst.Is4() {
		k.V = 4
	}
	return k
}

// from returns a peer's own address of dst's family.
func from(peer uint16, dst netip.Addr) netip.Addr {
	a := peerAddrs[peer]
	if dst.Is4() {
		return netip.MustParseAddr(a[0])
	}
	return netip.MustParseAddr(a[1])
}

func echoProto(dst netip.Addr) uint8 {
	if dst.Is4() {
		return packet.ProtoICMPv4
	}
	return packet.ProtoICMPv6
}
