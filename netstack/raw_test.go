package netstack

import (
	"encoding/binary"
	"math/rand/v2"
	"net"
	"net/netip"
	"testing"
	"time"

	"culvert.dev/culvert/filter"
	"culvert.dev/culvert/internal/packet"
)

// wire feeds packets to a node as WireGuard would, and takes what it has for the peers without waiting.
type wire struct {
	n     *Net
	bufs  [][]byte
	sizes []int
}

func newWire(n *Net) *wire {
	w := &wire{n: n, bufs: make([][]byte, BatchSize), sizes: make([]int, BatchSize)}
	for i := range w.bufs {
		w.bufs[i] = make([]byte, 65535)
	}
	return w
}

// send gives the node one batch and returns its answers so far.
func (w *wire) send(pkts ...[]byte) [][]byte {
	bufs := make([][]byte, len(pkts))
	for i, p := range pkts {
		bufs[i] = append(make([]byte, 16), p...)
	}
	w.n.dev.Write(bufs, 16)
	return w.take()
}

func (w *wire) take() [][]byte {
	var out [][]byte
	for {
		w.n.out.mu.Lock()
		empty := w.n.out.n == 0 && w.n.dev.cur == (item{})
		w.n.out.mu.Unlock()
		if empty {
			return out
		}
		k, err := w.n.dev.Read(w.bufs, w.sizes, 16)
		if err != nil {
			return out
		}
		for i := range k {
			out = append(out, append([]byte(nil), w.bufs[i][16:16+w.sizes[i]]...))
		}
	}
}

// one decodes the single packet that is expected.
func one(t *testing.T, pkts [][]byte) *packet.Packet {
	t.Helper()
	if len(pkts) != 1 {
		t.Fatalf("%d packets, want one", len(pkts))
	}
	var p packet.Packet
	if f := packet.Decode(&p, pkts[0]); f != packet.FaultNone {
		t.Fatalf("malformed answer: %v", f)
	}
	if !p.ChecksumOK() {
		t.Fatal("the answer's checksum is wrong")
	}
	return &p
}

func udpPacket(src, dst netip.AddrPort, ttl uint8, data []byte) []byte {
	h := packet.MakeUDPHeader(src, dst)
	b := append(make([]byte, h.Len()), data...)
	h.Put(b, len(data), ttl, 7)
	return b
}

func tcpPacket(src, dst netip.AddrPort, flags uint8, seq, ack uint32) []byte {
	l3 := 20
	if src.Addr().Is6() {
		l3 = 40
	}
	b := make([]byte, l3+20)
	if l3 == 20 {
		b[0], b[8], b[9] = 0x45, 64, packet.ProtoTCP
		binary.BigEndian.PutUint16(b[2:], uint16(len(b)))
		copy(b[12:], src.Addr().AsSlice())
		copy(b[16:], dst.Addr().AsSlice())
		binary.BigEndian.PutUint16(b[10:], ^packet.Sum(b[:20], 0))
	} else {
		b[0], b[6], b[7] = 0x60, packet.ProtoTCP, 64
		binary.BigEndian.PutUint16(b[4:], 20)
		copy(b[8:], src.Addr().AsSlice())
		copy(b[24:], dst.Addr().AsSlice())
	}
	h := b[l3:]
	binary.BigEndian.PutUint16(h[0:], src.Port())
	binary.BigEndian.PutUint16(h[2:], dst.Port())
	binary.BigEndian.PutUint32(h[4:], seq)
	binary.BigEndian.PutUint32(h[8:], ack)
	h[12], h[13] = 0x50, flags
	finishTCP(b, l3)
	return b
}

func echoPacket(src, dst netip.Addr, id, seq uint16, data []byte) []byte {
	hlen, typ := 28, uint8(icmp4Echo)
	if src.Is6() {
		hlen, typ = 48, icmp6Echo
	}
	b := append(make([]byte, hlen), data...)
	packet.PutICMPEcho(b, src, dst, typ, id, seq, len(data), 64, 1)
	return b
}

func ap(a netip.Addr, port uint16) netip.AddrPort { return netip.AddrPortFrom(a, port) }

var (
	outV4 = netip.MustParseAddr("198.51.100.7")
	outV6 = netip.MustParseAddr("2001:db8::7")
)

func TestSpoofedSourceIsDropped(t *testing.T) {
	n := newTestNet(t, testPolicy(t, nil))
	w := newWire(n)
	for _, src := range []string{"100.64.9.77", "198.51.100.1", "127.0.0.1", "0.0.0.0", "100.64.9.1"} {
		if got := w.send(udpPacket(ap(netip.MustParseAddr(src), 5), ap(outV4, 6), 64, nil)); len(got) != 0 {
			t.Errorf("source %s was answered", src)
		}
	}
	if d := n.Drops(); d["spoofed-source"] != 5 || n.table.Len() != 0 {
		t.Errorf("drops %v, %d flows", d, n.table.Len())
	}
}

func TestNodeAnswersEcho(t *testing.T) {
	w := newWire(newTestNet(t, testPolicy(t, func(c *filter.Config) { c.Peers[0] = filter.Peer{ID: 1} })))
	for _, c := range []struct{ src, dst netip.Addr }{{peerV4, nodeV4}, {peerV6, nodeV6}} {
		p := one(t, w.send(echoPacket(c.src, c.dst, 77, 3, randomBytes(100))))
		if p.SrcAddr() != c.dst || p.DstAddr() != c.src || p.DstPort != 77 || len(p.Buf)-p.Data != 100 {
			t.Errorf("%v: reply %+v", c.dst, p.Key)
		}
	}
}

func TestNodeAnswersFragmentedEcho(t *testing.T) {
	w := newWire(newTestNet(t, testPolicy(t, nil)))
	for _, c := range []struct{ src, dst netip.Addr }{{peerV4, nodeV4}, {peerV6, nodeV6}} {
		var f packet.Fragmenter
		f.Reset(echoPacket(c.src, c.dst, 5, 1, randomBytes(5000)), 1280, 99)
		var parts [][]byte
		for f.Pending() {
			b := make([]byte, 2000)
			parts = append(parts, b[:f.Next(b)])
		}
		got := w.send(parts...)
		r := packet.NewReassembler(packet.ReassemblerConfig{})
		var whole []byte
		for _, b := range got {
			if len(b) > 1420 {
				t.Errorf("a fragment of %d bytes exceeds the MTU", len(b))
			}
			var p packet.Packet
			if f := packet.Decode(&p, b); f != packet.FaultNone {
				t.Fatal(f)
			}
			p.Peer = 1
			whole, _ = r.Add(&p, time.Now())
		}
		var p packet.Packet
		if len(got) < 4 || packet.Decode(&p, whole) != packet.FaultNone || !p.ChecksumOK() || len(p.Buf)-p.Data != 5000 {
			t.Errorf("%v: %d fragments do not make the reply", c.dst, len(got))
		}
	}
}

func TestHopLimitEndsHere(t *testing.T) {
	n := newTestNet(t, testPolicy(t, nil))
	w := newWire(n)
	p := one(t, w.send(udpPacket(ap(peerV4, 5), ap(outV4, 33434), 1, []byte("x"))))
	if p.Proto != packet.ProtoICMPv4 || p.ICMPType != icmp4TimeExceeded || p.SrcAddr() != nodeV4 {
		t.Errorf("IPv4: %+v", p)
	}
	p = one(t, w.send(udpPacket(ap(peerV6, 5), ap(outV6, 33434), 1, []byte("x"))))
	if p.Proto != packet.ProtoICMPv6 || p.ICMPType != 3 || p.SrcAddr() != nodeV6 {
		t.Errorf("IPv6: %+v", p)
	}
	if n.table.Len() != 0 {
		t.Error("it opened a flow")
	}
}

func TestOtherPeersAreOutOfReach(t *testing.T) {
	n := newTestNet(t, testPolicy(t, nil))
	w := newWire(n)
	p := one(t, w.send(tcpPacket(ap(peerV4, 5), ap(otherV4, 22), packet.TCPSyn, 100, 0)))
	if p.Proto != packet.ProtoTCP || p.TCPFlags != packet.TCPRst|packet.TCPAck || p.Ack != 101 || p.DstAddr() != peerV4 {
		t.Errorf("SYN: %+v", p)
	}
	p = one(t, w.send(udpPacket(ap(peerV4, 5), ap(otherV4, 9), 64, []byte("x"))))
	if p.Proto != packet.ProtoICMPv4 || p.ICMPType != icmp4Unreachable || p.ICMPCode != 13 {
		t.Errorf("UDP: %+v", p)
	}
	p = one(t, w.send(echoPacket(peerV4, otherV4, 1, 1, nil)))
	if p.ICMPType != icmp4Unreachable || p.DstAddr() != peerV4 {
		t.Errorf("echo: %+v", p)
	}
	for _, b := range w.send(tcpPacket(ap(peerV4, 5), ap(otherV4, 22), packet.TCPAck, 1, 1), tcpPacket(ap(peerV4, 5), ap(otherV4, 22), packet.TCPRst, 1, 1)) {
		var p packet.Packet
		if packet.Decode(&p, b); p.DstAddr() != peerV4 {
			t.Errorf("%v came through", p.Key)
		}
	}
	if n.table.Len() != 0 || n.Drops()["other-peer"] != 5 {
		t.Errorf("%d flows, drops %v", n.table.Len(), n.Drops())
	}
}

func TestAllowPeersOpensOneDirection(t *testing.T) {
	n := newTestNet(t, testPolicy(t, func(c *filter.Config) { c.Peers[0].AllowPeers = []uint16{2} }))
	w := newWire(n)
	there := udpPacket(ap(peerV4, 5), ap(otherV4, 9), 64, []byte("ping"))
	p := one(t, w.send(there))
	if p.DstAddr() != otherV4 || p.TTL != 63 {
		t.Fatalf("forwarded as %+v", p)
	}
	back := udpPacket(ap(otherV4, 9), ap(peerV4, 5), 64, []byte("pong"))
	if p = one(t, w.send(back)); p.DstAddr() != peerV4 || string(p.Buf[p.Data:]) != "pong" {
		t.Errorf("the reply: %+v", p)
	}
	// A new flow the other way, and one that only looks like the reply, are refused.
	for _, c := range [][]byte{
		udpPacket(ap(otherV4, 9), ap(peerV4, 6), 64, nil),
		tcpPacket(ap(otherV4, 9), ap(peerV4, 5), packet.TCPSyn, 1, 0),
		tcpPacket(ap(otherV4, 9), ap(peerV4, 5), packet.TCPAck, 1, 1),
		echoPacket(otherV4, peerV4, 1, 1, nil),
	} {
		if p = one(t, w.send(c)); p.DstAddr() != otherV4 {
			t.Errorf("%+v came through", p)
		}
	}
	n.SetPolicy(testPolicy(t, nil))
	if p = one(t, w.send(back)); p.DstAddr() != otherV4 || p.ICMPType != icmp4Unreachable {
		t.Errorf("after the permission is gone the reply goes to %v", p.DstAddr())
	}
	if n.table.Len() != 0 {
		t.Errorf("%d flows left", n.table.Len())
	}
}

func TestTooBigBetweenPeers(t *testing.T) {
	n := newTestNet(t, testPolicy(t, func(c *filter.Config) { c.Peers[0].AllowPeers = []uint16{2} }))
	w := newWire(n)
	big := udpPacket(ap(peerV4, 5), ap(otherV4, 9), 64, make([]byte, 1472))
	binary.BigEndian.PutUint16(big[6:], 0x4000) // don't fragment
	binary.BigEndian.PutUint16(big[10:], 0)
	binary.BigEndian.PutUint16(big[10:], ^packet.Sum(big[:20], 0))
	p := one(t, w.send(big))
	if p.ICMPType != icmp4Unreachable || p.ICMPCode != icmp4FragNeeded || binary.BigEndian.Uint16(p.Buf[p.L4+6:]) != 1420 {
		t.Errorf("%+v", p)
	}
	if got := w.send(udpPacket(ap(peerV4, 5), ap(otherV4, 9), 64, make([]byte, 1472))); len(got) != 2 {
		t.Errorf("without DF: %d packets, want two fragments", len(got))
	}
}

func TestStraySegmentIsReset(t *testing.T) {
	w := newWire(newTestNet(t, testPolicy(t, nil)))
	p := one(t, w.send(tcpPacket(ap(peerV4, 5), ap(outV4, 80), packet.TCPAck, 1000, 2000)))
	if p.TCPFlags != packet.TCPRst || p.Seq != 2000 || p.SrcAddrPort() != ap(outV4, 80) {
		t.Errorf("%+v", p)
	}
}

func TestUnknownProtocolIsRefused(t *testing.T) {
	w := newWire(newTestNet(t, testPolicy(t, nil)))
	b := udpPacket(ap(peerV4, 5), ap(outV4, 80), 64, []byte("xxxx"))
	b[9] = 47 // GRE
	binary.BigEndian.PutUint16(b[10:], 0)
	binary.BigEndian.PutUint16(b[10:], ^packet.Sum(b[:20], 0))
	if p := one(t, w.send(b)); p.ICMPType != icmp4Unreachable || p.ICMPCode != 2 {
		t.Errorf("%+v", p)
	}
}

func TestAnswersAreRateLimited(t *testing.T) {
	n := newTestNet(t, testPolicy(t, nil))
	w := newWire(n)
	answers := 0
	for i := range 1000 {
		answers += len(w.send(udpPacket(ap(peerV4, uint16(i+1)), ap(otherV4, 9), 64, nil)))
	}
	if answers < rejectBurst || answers > 900 || n.Drops()["reject-limit"] == 0 {
		t.Errorf("%d answers to 1000 refused packets; drops %v", answers, n.Drops())
	}
}

func TestGarbageDoesNoHarm(t *testing.T) {
	n := newTestNet(t, testPolicy(t, func(c *filter.Config) { // nothing goes outside
		c.Peers[0] = filter.Peer{ID: 1, AllowInbound: true, AllowPeers: []uint16{2}}
	}))
	w := newWire(n)
	rnd := rand.New(rand.NewPCG(3, 4))
	seeds := [][]byte{
		udpPacket(ap(peerV4, 5), ap(otherV4, 9), 64, randomBytes(50)), tcpPacket(ap(peerV4, 5), ap(otherV4, 9), packet.TCPSyn, 1, 0),
		tcpPacket(ap(peerV6, 5), ap(nodeV6, 53), packet.TCPSyn, 1, 0), echoPacket(peerV6, nodeV6, 1, 2, randomBytes(30)),
		udpPacket(ap(peerV4, 5), ap(nodeV4, 53), 64, randomBytes(30)),
	}
	for range 20000 {
		b := append([]byte(nil), seeds[rnd.IntN(len(seeds))]...)
		for range 1 + rnd.IntN(4) {
			b[rnd.IntN(len(b))] = byte(rnd.Uint32())
		}
		if b[0]>>4 == 4 && rnd.IntN(2) == 0 && len(b) > 20 { // let some pass the first checksum
			b[10], b[11] = 0, 0
			binary.BigEndian.PutUint16(b[10:], ^packet.Sum(b[:20], 0))
		}
		w.send(b[:rnd.IntN(len(b)+1)])
	}
}

func TestEstablishedUDPDoesNotAllocate(t *testing.T) {
	if raceEnabled {
		t.Skip("allocations cannot be counted under the race detector")
	}
	host := hostAddr(t)
	u, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(ap(host, 0)))
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	n := newTestNet(t, testPolicy(t, nil))
	to := u.LocalAddr().(*net.UDPAddr).AddrPort()
	bufs := make([][]byte, 64)
	for i := range bufs {
		bufs[i] = append(make([]byte, 16), udpPacket(ap(peerV4, 5), to, 64, make([]byte, 1000))...)
	}
	n.dev.Write(bufs, 16)
	if a := testing.AllocsPerRun(100, func() { n.dev.Write(bufs, 16) }); a >= 1 {
		t.Errorf("%v allocations per batch of %d", a, len(bufs))
	}
}
