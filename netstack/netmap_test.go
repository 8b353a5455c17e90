package netstack

import (
	"net/netip"
	"testing"

	"culvert.dev/culvert/filter"
	"culvert.dev/culvert/internal/packet"
	"culvert.dev/culvert/nat"
)

// TestNetmapBetweenPeers reaches the network behind another peer under a prefix of this node's own making.
func TestNetmapBetweenPeers(t *testing.T) {
	behind, known := netip.MustParseAddr("192.168.9.5"), netip.MustParseAddr("10.9.0.5")
	router, routerKnown := netip.MustParseAddr("192.168.9.1"), netip.MustParseAddr("10.9.0.1")
	n := newTestNet(t, testPolicy(t, func(c *filter.Config) {
		c.Peers[0].AllowPeers = []uint16{2}
		c.Routes = append(c.Routes, filter.Route{Prefix: netip.MustParsePrefix("192.168.9.0/24"), Peer: 2})
	}))
	m, err := nat.NewNetmap([]nat.NetmapPrefix{{From: netip.MustParsePrefix("10.9.0.0/24"), To: netip.MustParsePrefix("192.168.9.0/24")}})
	if err != nil {
		t.Fatal(err)
	}
	n.SetNetmap(m)
	w := newWire(n)
	p := one(t, w.send(udpPacket(ap(peerV4, 5), ap(known, 9), 64, []byte("ping"))))
	if p.SrcAddrPort() != ap(peerV4, 5) || p.DstAddrPort() != ap(behind, 9) || !p.ChecksumOK() {
		t.Fatalf("forwarded as %+v", p)
	}
	there := append([]byte(nil), p.Buf...)
	p = one(t, w.send(udpPacket(ap(behind, 9), ap(peerV4, 5), 64, []byte("pong"))))
	if p.SrcAddrPort() != ap(known, 9) || p.DstAddrPort() != ap(peerV4, 5) || !p.ChecksumOK() {
		t.Errorf("the answer: %+v", p)
	}
	for _, c := range []struct{ from, want netip.Addr }{{behind, known}, {router, routerKnown}, {otherV4, otherV4}} {
		var quoted packet.Packet
		packet.Decode(&quoted, there)
		p = one(t, w.send(packet.AppendICMPError(nil, &quoted, c.from, packet.PortUnreachable(4))))
		quote, ok := packet.Quoted(p)
		if p.SrcAddr() != c.want || p.DstAddr() != peerV4 || !p.ChecksumOK() || !ok || quote.DstAddrPort() != ap(known, 9) {
			t.Errorf("an error from %s comes from %s about %s (%v)", c.from, p.SrcAddr(), quote.DstAddrPort(), ok)
		}
	}
	n.SetNetmap(nil)
	if n.table.Len() != 0 {
		t.Error("the flow outlives its translation")
	}
}
