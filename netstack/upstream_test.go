package netstack

import (
	"encoding/binary"
	"net/netip"
	"runtime"
	"testing"
	"time"

	"culvert.dev/culvert/filter"
	"culvert.dev/culvert/internal/packet"
	"culvert.dev/culvert/nat"
)

var (
	upV4    = netip.MustParseAddr("10.64.3.2")
	upV6    = netip.MustParseAddr("fc00:bbbb::2")
	allV4   = netip.MustParsePrefix("0.0.0.0/0")
	allV6   = netip.MustParsePrefix("::/0")
	upAddrs = []netip.Addr{upV4, upV6}
)

// upstreamPolicy sends what peer 1 does on the internet through the upstream.
func upstreamPolicy(t testing.TB, change func(*filter.Config)) *filter.Policy {
	return testPolicy(t, func(c *filter.Config) {
		c.HasUpstream = true
		c.Peers[0].Upstream = true
		if change != nil {
			change(c)
		}
	})
}

// hub is the far end of an upstream.
type hub struct {
	u     *Upstream
	bufs  [][]byte
	sizes []int
}

// newUpstreamNet starts a data path with an upstream in use; the test is both tunnels.
func newUpstreamNet(t testing.TB, cfg UpstreamConfig) (*Net, *wire, *hub) {
	t.Helper()
	n := newTestNet(t, upstreamPolicy(t, nil))
	h := openHub(t, n, cfg)
	n.SetUpstream(h.u)
	return n, newWire(n), h
}

func openHub(t testing.TB, n *Net, cfg UpstreamConfig) *hub {
	t.Helper()
	if cfg.MTU == 0 {
		cfg.MTU = 1420
	}
	if cfg.Addrs == nil {
		cfg.Addrs = upAddrs
	}
	if cfg.Routes == nil {
		cfg.Routes = []netip.Prefix{allV4, allV6}
	}
	u, err := n.NewUpstream(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(u.Close)
	h := &hub{u: u, bufs: make([][]byte, BatchSize), sizes: make([]int, BatchSize)}
	for i := range h.bufs {
		h.bufs[i] = make([]byte, 65535)
	}
	return h
}

// take returns what the upstream was sent so far.
func (h *hub) take() (out [][]byte) {
	for {
		h.u.out.mu.Lock()
		empty := h.u.out.n == 0 && !h.u.dev.frags.Pending()
		h.u.out.mu.Unlock()
		if empty {
			return out
		}
		k, err := h.u.dev.Read(h.bufs, h.sizes, 16)
		if err != nil {
			return out
		}
		for i := range k {
			out = append(out, append([]byte(nil), h.bufs[i][16:16+h.sizes[i]]...))
		}
	}
}

// send lets packets come out of the upstream.
func (h *hub) send(pkts ...[]byte) {
	bufs := make([][]byte, len(pkts))
	for i, p := range pkts {
		bufs[i] = append(make([]byte, 16), p...)
	}
	h.u.dev.Write(bufs, 16)
}

// upFamily is a row of nearly every table here.
type upFamily struct {
	name           string
	peer, up, out  netip.Addr
	self, icmpFrom netip.Addr
	public         netip.Addr // one of the upstream's that is no private one
	unreachable    packet.ICMP
}

var upFamilies = []upFamily{
	{"IPv4", peerV4, upV4, outV4, nodeV4, netip.MustParseAddr("10.64.0.1"), netip.MustParseAddr("198.51.100.99"), packet.NetUnreachable(4)},
	{"IPv6", peerV6, upV6, outV6, nodeV6, netip.MustParseAddr("fc00:bbbb::1"), netip.MustParseAddr("2001:db8::99"), packet.NetUnreachable(6)},
}

func bothUpFamilies(t *testing.T, fn func(t *testing.T, f upFamily)) {
	for _, f := range upFamilies {
		t.Run(f.name, func(t *testing.T) { fn(t, f) })
	}
}

func TestUpstreamTranslatesThereAndBack(t *testing.T) {
	bothUpFamilies(t, func(t *testing.T, f upFamily) {
		n, w, h := newUpstreamNet(t, UpstreamConfig{})
		in, to := ap(f.peer, 40000), ap(f.out, 443)
		for _, c := range []struct {
			name  string
			there []byte
			back  func(ext netip.AddrPort) []byte
		}{
			{"UDP", udpPacket(in, to, 9, []byte("ping")), func(ext netip.AddrPort) []byte { return udpPacket(to, ext, 9, []byte("pong!")) }},
			{"TCP", tcpPacket(in, to, packet.TCPSyn, 1, 0), func(ext netip.AddrPort) []byte {
				return tcpPacket(to, ext, packet.TCPSyn|packet.TCPAck, 7, 2)
			}},
		} {
			if got := w.send(c.there); len(got) != 0 {
				t.Fatalf("%s: the peer was answered: %x", c.name, got)
			}
			p := one(t, h.take())
			if p.SrcAddrPort() != ap(f.up, 40000) || p.DstAddrPort() != to {
				t.Errorf("%s there: %v to %v", c.name, p.SrcAddrPort(), p.DstAddrPort())
			}
			if c.name == "UDP" && p.TTL != 8 {
				t.Errorf("%s: TTL %d, want one less than 9", c.name, p.TTL)
			}
			h.send(c.back(p.SrcAddrPort()))
			if q := one(t, w.take()); q.SrcAddrPort() != to || q.DstAddrPort() != in {
				t.Errorf("%s back: %v to %v", c.name, q.SrcAddrPort(), q.DstAddrPort())
			}
		}
		w.send(echoPacket(f.peer, f.out, 77, 1, []byte("echo")))
		p := one(t, h.take())
		reply := append([]byte(nil), p.Buf...)
		packet.EchoReplyInPlace(reply, p)
		h.send(reply)
		if q := one(t, w.take()); q.SrcAddr() != f.out || q.DstAddr() != f.peer || q.DstPort != 77 {
			t.Errorf("echo back: %+v", q.Key)
		}
		if h.u.Flows() != 3 {
			t.Errorf("%d flows, want 3", h.u.Flows())
		}
		if d := n.Drops(); len(d) != 0 {
			t.Errorf("drops %v", d)
		}
	})
}

// Whatever state the upstream is in, nothing of its flows goes another way, and the application is told at once.
func TestUpstreamIsAKillSwitch(t *testing.T) {
	bothUpFamilies(t, func(t *testing.T, f upFamily) {
		for _, c := range []struct {
			name    string
			prepare func(n *Net, h *hub)
			to      netip.Addr
			drop    string
		}{
			{"there is none", func(n *Net, _ *hub) { n.SetUpstream(nil) }, f.out, "upstream-down"},
			{"it is closed", func(_ *Net, h *hub) { h.u.Close() }, f.out, "upstream-down"},
			{"it is down", func(n *Net, h *hub) { h.u.SetDown(true); h.u.mayProbe(n.table.Now()) }, f.out, "upstream-down"},
			{"its own address", func(*Net, *hub) {}, f.public, "upstream-route"},
		} {
			n, w, h := newUpstreamNet(t, UpstreamConfig{Addrs: append([]netip.Addr{upFamilies[0].public, upFamilies[1].public}, upAddrs...)})
			c.prepare(n, h)
			for _, pkt := range [][]byte{
				udpPacket(ap(f.peer, 40000), ap(c.to, 53), 64, []byte("?")),
				tcpPacket(ap(f.peer, 40000), ap(c.to, 443), packet.TCPSyn, 1, 0),
				echoPacket(f.peer, c.to, 7, 1, nil),
			} {
				p := one(t, w.send(pkt))
				if got := (packet.ICMP{Type: p.ICMPType, Code: p.ICMPCode}); got != f.unreachable || p.SrcAddr() != f.self {
					t.Errorf("%s: answer %+v from %v, want network unreachable", c.name, got, p.SrcAddr())
				}
			}
			if len(h.take()) != 0 || n.table.Len() != 0 || n.Drops()[c.drop] != 3 {
				t.Errorf("%s: %d flows, drops %v", c.name, n.table.Len(), n.Drops())
			}
		}
	})
}

// A family without an address, and a destination outside the AllowedIPs, are refused rather than sent by the host.
func TestUpstreamRefusesWhatItDoesNotLeadTo(t *testing.T) {
	_, w, h := newUpstreamNet(t, UpstreamConfig{Addrs: []netip.Addr{upV4}, Routes: []netip.Prefix{netip.MustParsePrefix("198.51.100.0/24"), allV6}})
	for _, c := range []struct {
		src, dst netip.Addr
		passes   bool
	}{{peerV4, outV4, true}, {peerV4, netip.MustParseAddr("203.0.113.7"), false}, {peerV6, outV6, false}} {
		answer := w.send(udpPacket(ap(c.src, 1234), ap(c.dst, 53), 64, nil))
		if out := h.take(); (len(out) == 1) != c.passes || (len(answer) == 0) != c.passes {
			t.Errorf("to %s: %d packets left, %d answers", c.dst, len(out), len(answer))
		}
	}
}

// A tunnel that is down is tried by one flow every few seconds, or it would never come back.
func TestUpstreamThatIsDownIsProbed(t *testing.T) {
	_, w, h := newUpstreamNet(t, UpstreamConfig{})
	h.u.SetDown(true)
	passed := 0
	for port := range uint16(20) {
		if len(w.send(udpPacket(ap(peerV4, 3000+port), ap(outV4, 53), 64, nil))) == 0 {
			passed++
		}
	}
	if passed != 1 || len(h.take()) != 1 {
		t.Errorf("%d of 20 flows may try, want one", passed)
	}
	h.send(udpPacket(ap(outV4, 53), ap(upV4, 3000), 64, nil)) // an answer says that it is back
	one(t, w.take())
	if len(w.send(udpPacket(ap(peerV4, 2000), ap(outV4, 53), 64, nil))) != 0 {
		t.Error("refused though the upstream is back")
	}
}

// Nothing behind the upstream opens a flow: not to the peer, its mapped ports, the node, or the upstream's own address.
func TestNothingComesInByTheUpstream(t *testing.T) {
	bothUpFamilies(t, func(t *testing.T, f upFamily) {
		n, w, h := newUpstreamNet(t, UpstreamConfig{})
		w.send(udpPacket(ap(f.peer, 40000), ap(f.out, 443), 64, nil))
		one(t, h.take())
		stranger := f.icmpFrom
		pkts := [][]byte{
			udpPacket(ap(f.out, 444), ap(f.up, 40000), 64, nil),    // another port of a known address
			udpPacket(ap(stranger, 443), ap(f.up, 40000), 64, nil), // another address
			udpPacket(ap(f.out, 443), ap(f.up, 40001), 64, nil),    // another port here
			udpPacket(ap(f.out, 443), ap(f.peer, 40000), 64, nil),  // the peer's own address
			udpPacket(ap(f.peer, 40000), ap(f.out, 443), 64, nil),  // as if it were the peer
			tcpPacket(ap(stranger, 5), ap(f.self, 53), packet.TCPSyn, 1, 0),
			tcpPacket(ap(stranger, 5), ap(f.up, 53), packet.TCPSyn, 1, 0),
			udpPacket(ap(stranger, 5), ap(f.self, 53), 64, nil),
			echoPacket(stranger, f.up, 1, 1, nil),
			echoPacket(stranger, f.self, 1, 1, nil),
			echoPacket(stranger, f.peer, 1, 1, nil),
		}
		h.send(pkts...)
		if got := w.take(); len(got) != 0 {
			t.Errorf("%d packets reached the peer", len(got))
		}
		if got := h.take(); len(got) != 0 {
			t.Errorf("%d packets were answered", len(got))
		}
		if d := n.Drops()["upstream-unsolicited"]; d != uint64(len(pkts)) || n.table.Len() != 1 {
			t.Errorf("%d of %d counted, %d flows: %v", d, len(pkts), n.table.Len(), n.Drops())
		}
	})
}

// A flow ends with the permission of whoever opened it, with the way it takes, and with the tunnel.
func TestUpstreamFlowsAreCut(t *testing.T) {
	for _, c := range []struct {
		name string
		do   func(t *testing.T, n *Net, h *hub)
	}{
		{"routing is withdrawn", func(t *testing.T, n *Net, _ *hub) {
			n.SetPolicy(upstreamPolicy(t, func(c *filter.Config) { c.Peers[0].AllowRouting = false }))
		}},
		{"the peer leaves by the host now", func(t *testing.T, n *Net, _ *hub) { n.SetPolicy(testPolicy(t, nil)) }},
		{"another tunnel takes its place", func(t *testing.T, n *Net, _ *hub) { n.SetUpstream(openHub(t, n, UpstreamConfig{}).u) }},
		{"the tunnel is closed", func(_ *testing.T, _ *Net, h *hub) { h.u.Close() }},
	} {
		t.Run(c.name, func(t *testing.T) {
			n, w, h := newUpstreamNet(t, UpstreamConfig{})
			w.send(udpPacket(ap(peerV4, 40000), ap(outV4, 443), 64, nil))
			one(t, h.take())
			c.do(t, n, h)
			if n.table.Len() != 0 {
				t.Errorf("%d flows are left", n.table.Len())
			}
			h.send(udpPacket(ap(outV4, 443), ap(upV4, 40000), 64, nil))
			if len(w.take()) != 0 {
				t.Error("an answer still reaches the peer")
			}
		})
	}
	t.Run("opened while the tunnel was replaced", func(t *testing.T) {
		n, w, h := newUpstreamNet(t, UpstreamConfig{})
		w.send(udpPacket(ap(peerV4, 40000), ap(outV4, 443), 64, nil))
		one(t, h.take())
		other := openHub(t, n, UpstreamConfig{})
		n.upstream.Store(other.u)
		w.send(udpPacket(ap(peerV4, 40000), ap(outV4, 443), 64, nil))
		if n.table.Len() != 0 || len(h.take()) != 0 || len(other.take()) != 0 {
			t.Error("the flow goes on")
		}
		w.send(udpPacket(ap(peerV4, 40000), ap(outV4, 443), 64, nil))
		one(t, other.take())
	})
	t.Run("a permission that stays", func(t *testing.T) {
		n, w, h := newUpstreamNet(t, UpstreamConfig{})
		w.send(udpPacket(ap(peerV4, 40000), ap(outV4, 443), 64, nil))
		one(t, h.take())
		n.SetPolicy(upstreamPolicy(t, nil))
		h.send(udpPacket(ap(outV4, 443), ap(upV4, 40000), 64, nil))
		one(t, w.take())
	})
}

// A flow by the host is not carried on when its peer is sent through the upstream.
func TestHostFlowsAreCutByAnUpstream(t *testing.T) {
	n := newTestNet(t, testPolicy(t, nil))
	f := &nat.Flow{
		Key:   packet.Key{Src: peerV4.As16(), Dst: outV4.As16(), SrcPort: 40000, DstPort: 9, Peer: 1, Proto: packet.ProtoUDP, V: 4},
		Owner: &udpMapping{},
	}
	if !n.stillAllowed(f, testPolicy(t, nil), 2) {
		t.Error("the flow is not allowed in the first place")
	}
	if n.stillAllowed(f, upstreamPolicy(t, nil), 3) {
		t.Error("the flow goes on by the host")
	}
}

func TestUpstreamICMPErrors(t *testing.T) {
	bothUpFamilies(t, func(t *testing.T, f upFamily) {
		n, w, h := newUpstreamNet(t, UpstreamConfig{})
		w.send(udpPacket(ap(f.peer, 40000), ap(f.out, 443), 64, make([]byte, 100)))
		sent := one(t, h.take())
		v := sent.V

		// From a router behind the upstream, about the peer's packet as it was there.
		h.send(packet.AppendICMPErrorQuote(nil, f.icmpFrom, f.up, packet.TooBig(v, 1300), sent.Buf))
		p := one(t, w.take())
		quoted, ok := packet.Quoted(p)
		if !ok || p.SrcAddr() != f.icmpFrom || p.DstAddr() != f.peer || quoted.SrcAddrPort() != ap(f.peer, 40000) || quoted.DstAddrPort() != ap(f.out, 443) {
			t.Errorf("error to the peer: %+v about %+v", p.Key, quoted)
		}
		if binary.BigEndian.Uint16(p.Buf[p.L4+6:]) != 1300 {
			t.Error("the MTU is lost")
		}

		// From the peer, about an answer.
		h.send(udpPacket(ap(f.out, 443), ap(f.up, 40000), 64, []byte("answer")))
		answer := one(t, w.take())
		w.send(packet.AppendICMPErrorQuote(nil, f.peer, f.out, packet.PortUnreachable(v), answer.Buf))
		p = one(t, h.take())
		quoted, ok = packet.Quoted(p)
		if !ok || p.SrcAddr() != f.up || p.DstAddr() != f.out || quoted.SrcAddrPort() != ap(f.out, 443) || quoted.DstAddrPort() != ap(f.up, 40000) {
			t.Errorf("error to the server: %+v about %+v", p.Key, quoted)
		}

		// About nothing that is known.
		stray := udpPacket(ap(f.up, 5), ap(f.out, 6), 64, nil)
		h.send(packet.AppendICMPErrorQuote(nil, f.icmpFrom, f.up, packet.PortUnreachable(v), stray))
		if len(w.take()) != 0 || n.Drops()["icmp-error"] != 1 {
			t.Errorf("a stray error: %v", n.Drops())
		}
	})
}

func TestUpstreamHopLimitAndSize(t *testing.T) {
	bothUpFamilies(t, func(t *testing.T, f upFamily) {
		_, w, h := newUpstreamNet(t, UpstreamConfig{MTU: 1300})
		in, to := ap(f.peer, 40000), ap(f.out, 443)
		v := uint8(4)
		if f.peer.Is6() {
			v = 6
		}
		want := packet.TimeExceeded(v)
		if p := one(t, w.send(udpPacket(in, to, 1, nil))); p.ICMPType != want.Type || p.SrcAddr() != f.self {
			t.Errorf("TTL 1 from the peer: %+v", p)
		}
		w.send(udpPacket(in, to, 64, nil))
		one(t, h.take())
		h.send(udpPacket(to, ap(f.up, 40000), 1, nil))
		if p := one(t, h.take()); p.ICMPType != want.Type || p.SrcAddr() != f.up || p.DstAddr() != f.out {
			t.Errorf("TTL 1 from outside: %+v", p)
		}

		big := udpPacket(in, to, 64, make([]byte, 1350))
		want = packet.TooBig(v, 1300)
		if v == 4 {
			h.sendsInPieces(t, w, big, 1300)
			big[6] |= 0x40 // do not fragment
			big[10], big[11] = 0, 0
			binary.BigEndian.PutUint16(big[10:], ^packet.Sum(big[:20], 0))
		}
		if p := one(t, w.send(big)); p.ICMPType != want.Type || p.ICMPCode != want.Code || binary.BigEndian.Uint16(p.Buf[p.L4+6:]) != 1300 {
			t.Errorf("too big: %+v", p)
		}
		if len(h.take()) != 0 {
			t.Error("what is too big left all the same")
		}
	})
}

// sendsInPieces checks that pkt leaves in fragments of at most mtu bytes that make the whole.
func (h *hub) sendsInPieces(t *testing.T, w *wire, pkt []byte, mtu int) {
	t.Helper()
	w.send(pkt)
	r := packet.NewReassembler(packet.ReassemblerConfig{})
	var whole []byte
	pieces := h.take()
	for _, b := range pieces {
		var p packet.Packet
		if packet.Decode(&p, b) != packet.FaultNone || len(b) > mtu {
			t.Fatalf("a piece of %d bytes: %x", len(b), b)
		}
		whole, _ = r.Add(&p, time.Now())
	}
	var p packet.Packet
	if len(pieces) < 2 || packet.Decode(&p, whole) != packet.FaultNone || !p.ChecksumOK() || len(p.Buf) != len(pkt) {
		t.Errorf("%d pieces make %d bytes of %d", len(pieces), len(whole), len(pkt))
	}
}

// Answers in fragments are put together before they are translated.
func TestUpstreamFragmentedAnswer(t *testing.T) {
	bothUpFamilies(t, func(t *testing.T, f upFamily) {
		_, w, h := newUpstreamNet(t, UpstreamConfig{})
		w.send(udpPacket(ap(f.peer, 40000), ap(f.out, 443), 64, nil))
		one(t, h.take())
		var fr packet.Fragmenter
		data := randomBytes(4000)
		for fr.Reset(udpPacket(ap(f.out, 443), ap(f.up, 40000), 64, data), 1300, 9); fr.Pending(); {
			b := make([]byte, 1300)
			h.send(b[:fr.Next(b)])
		}
		r := packet.NewReassembler(packet.ReassemblerConfig{})
		var whole []byte
		for _, b := range w.take() {
			var p packet.Packet
			packet.Decode(&p, b)
			whole, _ = r.Add(&p, time.Now())
		}
		var p packet.Packet
		if packet.Decode(&p, whole) != packet.FaultNone || !p.ChecksumOK() || p.DstAddrPort() != ap(f.peer, 40000) || string(p.Buf[p.Data:]) != string(data) {
			t.Errorf("the answer came as %d bytes, %+v", len(whole), p.Key)
		}
	})
}

func TestUpstreamClampsMSS(t *testing.T) {
	_, w, h := newUpstreamNet(t, UpstreamConfig{MTU: 1300})
	syn := tcpPacket(ap(peerV4, 40000), ap(outV4, 443), packet.TCPSyn, 1, 0)
	syn = append(syn, 2, 4, 0x05, 0xb4) // MSS 1460
	syn[32] = 6 << 4
	binary.BigEndian.PutUint16(syn[2:], uint16(len(syn)))
	syn[10], syn[11] = 0, 0
	binary.BigEndian.PutUint16(syn[10:], ^packet.Sum(syn[:20], 0))
	finishTCP(syn, 20)
	w.send(syn)
	p := one(t, h.take())
	if mss := binary.BigEndian.Uint16(p.Buf[p.L4+22:]); mss != 1260 {
		t.Errorf("MSS %d, want 1260", mss)
	}
}

// Rules choose the way too.
func TestRulesChooseTheUpstream(t *testing.T) {
	rule, err := filter.ParseRule("accept from laptop to " + outV4.String() + " udp/53 via host")
	if err != nil {
		t.Fatal(err)
	}
	p := upstreamPolicy(t, func(c *filter.Config) { c.Rules = []filter.Rule{rule} })
	for port, want := range map[uint16]bool{53: false, 443: true} {
		k := packet.Key{Src: peerV4.As16(), Dst: outV4.As16(), SrcPort: 1, DstPort: port, Proto: packet.ProtoUDP, V: 4}
		if d := p.Decide(1, &k); viaUpstream(&d) != want {
			t.Errorf("port %d: %+v", port, d)
		}
	}
}

func TestUpstreamPathDoesNotAllocate(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector allocates")
	}
	n, w, h := newUpstreamNet(t, UpstreamConfig{})
	there := udpPacket(ap(peerV4, 40000), ap(outV4, 443), 64, make([]byte, 1000))
	w.send(there)
	h.take()
	back := udpPacket(ap(outV4, 443), ap(upV4, 40000), 64, make([]byte, 1000))
	buf := make([][]byte, 1)
	room := make([]byte, 16+len(there))
	run := func(dev interface {
		Write([][]byte, int) (int, error)
	}, read func(), pkt []byte) float64 {
		return testing.AllocsPerRun(200, func() {
			copy(room[16:], pkt)
			buf[0] = room
			dev.Write(buf, 16)
			read()
		})
	}
	if a := run(n.dev, func() { h.u.dev.Read(h.bufs, h.sizes, 16) }, there); a > 0 {
		t.Errorf("%v allocations there", a)
	}
	if a := run(h.u.dev, func() { n.dev.Read(w.bufs, w.sizes, 16) }, back); a > 0 {
		t.Errorf("%v allocations back", a)
	}
}

// An upstream leaves nothing behind when it is closed.
func TestUpstreamEndsItsGoroutines(t *testing.T) {
	n := newTestNet(t, upstreamPolicy(t, nil))
	before := runtime.NumGoroutine()
	for range 10 {
		h := openHub(t, n, UpstreamConfig{})
		n.SetUpstream(h.u)
		c, err := h.u.Dial(t.Context(), "udp", "10.64.0.1:53")
		if err != nil {
			t.Fatal(err)
		}
		c.Write([]byte("?"))
		h.u.Close()
	}
	for range 200 {
		if runtime.NumGoroutine() <= before {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	if now := runtime.NumGoroutine(); now > before || n.table.Len() != 0 {
		t.Errorf("%d goroutines where there were %d, %d flows", now, before, n.table.Len())
	}
}

// BenchmarkUpstream is the price of a packet of 1380 bytes, in batches of 128, through both devices.
func BenchmarkUpstream(b *testing.B) {
	_, w, h := newUpstreamNet(b, UpstreamConfig{})
	for _, c := range []struct {
		name string
		pkt  []byte
		from interface {
			Write([][]byte, int) (int, error)
		}
		read func() int
	}{
		{"there", udpPacket(ap(peerV4, 40000), ap(outV4, 443), 64, make([]byte, 1352)), w.n.dev, func() int {
			k, _ := h.u.dev.Read(h.bufs, h.sizes, 16)
			return k
		}},
		{"back", udpPacket(ap(outV4, 443), ap(upV4, 40000), 64, make([]byte, 1352)), h.u.dev, func() int {
			k, _ := w.n.dev.Read(w.bufs, w.sizes, 16)
			return k
		}},
	} {
		bufs := make([][]byte, BatchSize)
		for i := range bufs {
			bufs[i] = make([]byte, 16+len(c.pkt))
		}
		b.Run(c.name, func(b *testing.B) {
			b.SetBytes(int64(len(c.pkt)))
			b.ReportAllocs()
			for n := 0; n < b.N; n += BatchSize {
				for i := range bufs {
					copy(bufs[i][16:], c.pkt)
				}
				c.from.Write(bufs, 16)
				for got := 0; got < BatchSize; {
					got += c.read()
				}
			}
		})
	}
}

func TestUpstreamConfigIsChecked(t *testing.T) {
	n := newTestNet(t, upstreamPolicy(t, nil))
	for _, c := range []UpstreamConfig{
		{MTU: 1279, Addrs: upAddrs}, {MTU: 1420}, {MTU: 1420, Addrs: []netip.Addr{upV4, upV4}}, {MTU: 1420, Addrs: []netip.Addr{netip.IPv4Unspecified()}},
	} {
		if u, err := n.NewUpstream(c); err == nil {
			u.Close()
			t.Errorf("%+v is accepted", c)
		}
	}
	if n.upstream.Load() != nil {
		t.Error("a faulty upstream is in use")
	}
}
