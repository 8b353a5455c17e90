package netstack

import (
	"bytes"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"testing"

	"culvert.dev/culvert/filter"
	"culvert.dev/culvert/internal/packet"
	"culvert.dev/culvert/nat"
)

var (
	serviceV4 = netip.MustParseAddr("100.64.0.4")
	serviceV6 = netip.MustParseAddr("fd74:656c:696f::4")
)

// tapped gives the packets of nat.PeerService to a list, from the two addresses above.
func tapped(n *Net) *[][]byte {
	var got [][]byte
	n.SetTap(nat.PeerService, func(b []byte) { got = append(got, bytes.Clone(b)) }, serviceV4, serviceV6)
	return &got
}

// allowAll permits whatever a rule can permit, to the service too.
func allowAll(c *filter.Config) {
	c.Peers[0] = filter.Peer{ID: 1, Name: "laptop", AllowRouting: true, AllowLAN: true, AllowInbound: true, AllowPeers: []uint16{2}}
	c.Routes = append(c.Routes, filter.Route{Prefix: netip.MustParsePrefix("0.0.0.0/0"), Peer: 1}, filter.Route{Prefix: netip.MustParsePrefix("::/0"), Peer: 1})
}

// servicePackets are packets of every kind that the pipeline would do something with.
func servicePackets() [][]byte {
	var all [][]byte
	for _, f := range []struct{ service, node, out netip.Addr }{{serviceV4, nodeV4, outV4}, {serviceV6, nodeV6, netip.MustParseAddr("2001:db8::7")}} {
		for _, dst := range []netip.Addr{f.node, f.out} {
			all = append(all,
				tcpPacket(ap(f.service, 4000), ap(dst, 53), packet.TCPSyn, 1, 0),
				tcpPacket(ap(f.service, 4000), ap(dst, 53), packet.TCPAck, 1, 1),
				udpPacket(ap(f.service, 3478), ap(dst, 53), 64, []byte("question")),
				udpPacket(ap(f.service, 3478), ap(dst, 9), 1, nil), // no hop left
				echoPacket(f.service, dst, 1, 1, []byte("ping")),
			)
		}
	}
	bad := udpPacket(ap(serviceV4, 3478), ap(nodeV4, 53), 64, []byte("x"))
	bad[len(bad)-1] ^= 1
	return append(append(all, bad), fragments(udpPacket(ap(serviceV4, 3478), ap(nodeV4, 53), 64, make([]byte, 2000)))...)
}

func fragments(pkt []byte) (all [][]byte) {
	var f packet.Fragmenter
	for f.Reset(pkt, 1280, 1); f.Pending(); {
		b := make([]byte, 1280)
		all = append(all, b[:f.Next(b)])
	}
	return all
}

func TestTapTakesEverythingOfItsPeer(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(*filter.Config)
	}{
		{"a peer that the policy does not know", nil},
		{"inside the default route of a peer with every permission", allowAll},
	} {
		t.Run(c.name, func(t *testing.T) {
			n := newTestNet(t, testPolicy(t, c.change))
			got := tapped(n)
			w := newWire(n)
			pkts := servicePackets()
			if answers := w.send(pkts...); len(answers) > 0 {
				t.Errorf("the node answered %d packets of a tapped peer, the first %x", len(answers), answers[0])
			}
			if !slices.EqualFunc(*got, pkts, bytes.Equal) {
				t.Errorf("the tap got %d packets of %d, or not as they came", len(*got), len(pkts))
			}
			if n.Flows() != (Flows{}) {
				t.Errorf("flows of a tapped peer: %+v", n.Flows())
			}
			if d := n.Drops(); len(d) > 0 {
				t.Errorf("drops: %v", d)
			}
		})
	}
}

// TestTapLeavesOthersAlone has packets of the tapped peer and another in one batch, so that what is remembered of the one before is
// no use.
func TestTapLeavesOthersAlone(t *testing.T) {
	n := newTestNet(t, testPolicy(t, nil))
	got := tapped(n)
	w := newWire(n)
	ours := echoPacket(peerV4, nodeV4, 1, 1, []byte("ping"))
	service := echoPacket(serviceV4, nodeV4, 1, 1, []byte("ping"))
	stranger := echoPacket(netip.MustParseAddr("100.64.9.77"), nodeV4, 1, 1, nil)
	answers := w.send(service, ours, service, service, stranger, ours, service)
	if len(answers) != 2 {
		t.Errorf("%d answers, want those to the two requests of the other peer", len(answers))
	}
	for _, a := range answers {
		if p := one(t, [][]byte{a}); p.DstAddr() != peerV4 {
			t.Errorf("answered %v", p.DstAddr())
		}
	}
	if len(*got) != 4 {
		t.Errorf("the tap got %d packets, want 4", len(*got))
	}
}

func TestTapOfAPeerThatThePolicyKnows(t *testing.T) {
	n := newTestNet(t, testPolicy(t, nil))
	var got int
	n.SetTap(2, func([]byte) { got++ })
	w := newWire(n)
	request := echoPacket(otherV4, nodeV4, 1, 1, nil)
	if answers := w.send(request); len(answers) != 0 || got != 1 {
		t.Errorf("%d answers, %d packets in the tap, want 0 and 1", len(answers), got)
	}
	n.SetTap(2, nil)
	if answers := w.send(request); len(answers) != 1 || got != 1 {
		t.Errorf("without the tap: %d answers, %d packets in it, want 1 and 1", len(answers), got)
	}
	if n.taps.load() != nil {
		t.Error("the set is kept when there is no tap left")
	}
}

func TestSourceBelongsToTheTapOnly(t *testing.T) {
	n := newTestNet(t, testPolicy(t, nil))
	got := tapped(n)
	n.SetTap(nat.PeerService, func([]byte) { t.Error("the tap that was replaced was called") }, otherV4)
	n.SetTap(nat.PeerService, nil)
	w := newWire(n)
	if answers := w.send(echoPacket(serviceV4, nodeV4, 1, 1, nil)); len(answers) != 0 {
		t.Error("answered an address that belongs to nobody")
	}
	if len(*got) != 0 {
		t.Error("the first tap still gets packets")
	}
}

// TestTapMayChangeAnyTime is for the race detector.
func TestTapMayChangeAnyTime(t *testing.T) {
	n := newTestNet(t, testPolicy(t, nil))
	var wg sync.WaitGroup
	for _, src := range []netip.Addr{serviceV4, peerV4} {
		wg.Go(func() {
			bufs := [][]byte{append(make([]byte, 16), echoPacket(src, outV4, 1, 1, nil)...)}
			bufs[0][16+24] ^= 1 // a wrong checksum
			for range 2000 {
				n.dev.Write(bufs, 16)
			}
		})
	}
	var taken atomic.Int64
	for i := range uint16(200) {
		n.SetTap(nat.PeerService-i%3, func([]byte) { taken.Add(1) }, serviceV4)
		n.SetTap(nat.PeerService-(i+1)%3, nil)
	}
	wg.Wait()
}

// TestMappedAddressIsNoTappedOne: an IPv6 packet from ::ffff:100.64.0.4 is not one from 100.64.0.4.
func TestMappedAddressIsNoTappedOne(t *testing.T) {
	n := newTestNet(t, testPolicy(t, nil))
	got := tapped(n)
	b := echoPacket(serviceV6, nodeV6, 1, 1, nil)
	mapped := serviceV4.As16()
	copy(b[8:], mapped[:])
	newWire(n).send(b)
	if len(*got) != 0 {
		t.Error("the tap got a packet of the other family")
	}
}

func TestInject(t *testing.T) {
	n := newTestNet(t, testPolicy(t, nil))
	w := newWire(n)
	pkt := udpPacket(ap(nodeV6, 50000), ap(serviceV6, 3478), 64, []byte("request"))
	sent := bytes.Clone(pkt)
	if err := n.Inject(nat.PeerService, sent); err != nil {
		t.Fatal(err)
	}
	clear(sent) // it was copied
	if out := w.take(); len(out) != 1 || !bytes.Equal(out[0], pkt) {
		t.Errorf("got %x, want %x", out, pkt)
	}

	for name, bad := range map[string][]byte{
		"nothing":   nil,
		"a stump":   pkt[:30],
		"too large": udpPacket(ap(nodeV4, 1), ap(serviceV4, 1), 64, make([]byte, 1393)),
	} {
		if err := n.Inject(nat.PeerService, bad); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	if out := w.take(); len(out) != 0 {
		t.Errorf("%d packets left nevertheless", len(out))
	}

	full := false
	for range 100_000 {
		if full = n.Inject(nat.PeerService, pkt) != nil; full {
			break
		}
	}
	if !full {
		t.Error("the queue of a peer has no bound")
	}
	if err := n.Inject(1, pkt); err != nil {
		t.Errorf("another peer's queue is full as well: %v", err)
	}
	n.Close()
	if err := n.Inject(1, pkt); err == nil {
		t.Error("no error after Close")
	}
}

func TestTapsTakeNoAllocation(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector makes sync.Pool forget")
	}
	n := newTestNet(t, testPolicy(t, nil))
	count := 0
	n.SetTap(nat.PeerService, func([]byte) { count++ }, serviceV4)
	bufs := [][]byte{append(make([]byte, 16), udpPacket(ap(serviceV4, 3478), ap(nodeV4, 5), 64, make([]byte, 40))...)}
	if allocs := testing.AllocsPerRun(100, func() { n.dev.Write(bufs, 16) }); allocs > 0 {
		t.Errorf("%v allocations per batch of a tapped peer", allocs)
	}
	if count == 0 {
		t.Error("the tap got nothing")
	}
}

// BenchmarkTap compares what a packet costs that the pipeline only refuses, with and without a tap for another peer.
func BenchmarkTap(b *testing.B) {
	for _, tap := range []bool{false, true} {
		name := "none"
		if tap {
			name = "of another peer"
		}
		b.Run(name, func(b *testing.B) {
			n := newTestNet(b, testPolicy(b, nil))
			if tap {
				n.SetTap(nat.PeerService, func([]byte) {}, serviceV4, serviceV6)
			}
			bufs := make([][]byte, BatchSize)
			for i := range bufs {
				pkt := udpPacket(ap(peerV4, 5), ap(outV4, 80), 64, make([]byte, 64))
				pkt[len(pkt)-1] ^= 1 // a wrong checksum: it is attributed, and dropped
				bufs[i] = append(make([]byte, 16), pkt...)
			}
			for i := 0; i < b.N; i += len(bufs) {
				n.dev.Write(bufs, 16)
			}
		})
	}
}
