package nat

import (
	"net/netip"
	"testing"

	"culvert.dev/culvert/internal/packet"
)

const (
	fFIN = packet.TCPFin
	fSYN = packet.TCPSyn
	fRST = packet.TCPRst
	fACK = packet.TCPAck
)

// conn is a TCP connection through a router, its packets given by hand. a is the side that Original packets come from.
type conn struct {
	*router
	a, b, ext netip.AddrPort // inside, outside, and what the outside sees of the inside
}

func newConn(t *testing.T, cfg NATConfig) *conn {
	return &conn{router: newRouter(t, cfg, Config{}), a: at(inner1, 5000), b: at(remote, 443), ext: at(ext4, 5000)}
}

func (c *conn) fromA(s segment) Verdict {
	c.t.Helper()
	_, v := c.out(peer1, tcpBytes(c.a, c.b, s))
	return v
}

func (c *conn) fromB(s segment) Verdict {
	c.t.Helper()
	_, v := c.in(tcpBytes(c.b, c.ext, s))
	return v
}

func (c *conn) flow() *Flow {
	k := packet.Key{Src: c.a.Addr().As16(), Dst: c.b.Addr().As16(), SrcPort: c.a.Port(), DstPort: c.b.Port(), Peer: peer1, Proto: packet.ProtoTCP, V: 4}
	f, _ := c.tab.Lookup(&k)
	return f
}

func (c *conn) state() TCPState {
	c.t.Helper()
	f := c.flow()
	if f == nil {
		c.t.Fatal("no flow")
	}
	return f.TCP()
}

// step is one packet of a connection and what must come of it.
type step struct {
	fromA bool
	s     segment
	want  Verdict
	state TCPState
}

func (c *conn) run(name string, steps []step) {
	c.t.Helper()
	for i, s := range steps {
		send := c.fromB
		if s.fromA {
			send = c.fromA
		}
		if v := send(s.s); v != s.want {
			c.t.Errorf("%s: packet %d: %v, want %v", name, i, v, s.want)
		}
		if got := c.state(); got != s.state {
			c.t.Errorf("%s: packet %d: state %v, want %v", name, i, got, s.state)
		}
	}
}

const isnB = 5000

var isnA uint32 = 0xfffffff0 // wraps during the connection

// handshake is the three-way handshake; afterwards A's next byte is isnA+1, B's isnB+1.
var handshake = []step{
	{true, segment{flags: fSYN, seq: isnA, win: 1000}, Pass, TCPSynSent},
	{false, segment{flags: fSYN | fACK, seq: isnB, ack: isnA + 1, win: 1000}, Pass, TCPSynRecv},
	{true, segment{flags: fACK, seq: isnA + 1, ack: isnB + 1, win: 1000}, Pass, TCPEstablished},
}

func TestRFC5382Mapping(t *testing.T) { // REQ-1, REQ-7: as for UDP, and of its own
	for _, mapping := range behaviours {
		r := newRouter(t, NATConfig{Mapping: mapping, Ports: PortSequential}, Config{})
		src := func(dst netip.AddrPort, peer uint16) netip.AddrPort {
			p, v := r.out(peer, tcpBytes(at(inner1, 5000), dst, segment{flags: fSYN, seq: 1}))
			if v != Pass {
				t.Fatalf("SYN to %v: %v", dst, v)
			}
			return p.SrcAddrPort()
		}
		first := src(at(remote, 80), peer1)
		if got := src(at(remote, 81), peer1); (got == first) != (mapping != AddressAndPortDependent) {
			t.Errorf("REQ-1: %v: another port: %v, %v", mapping, first, got)
		}
		if got := src(at(other, 80), peer1); (got == first) != (mapping == EndpointIndependent) {
			t.Errorf("REQ-1: %v: another host: %v, %v", mapping, first, got)
		}
		if got := src(at(remote, 80), peer2); got == first {
			t.Errorf("REQ-7: %v: two inner ends have %v", mapping, got)
		}
	}
}

func TestRFC5382Connections(t *testing.T) { // REQ-2
	t.Run("REQ-2: three-way handshake and close from the inside", func(t *testing.T) {
		c := newConn(t, NATConfig{})
		c.run("open", handshake)
		c.run("close", []step{
			{true, segment{flags: fACK, seq: isnA + 1, ack: isnB + 1, win: 1000, n: 100}, Pass, TCPEstablished},
			{false, segment{flags: fACK, seq: isnB + 1, ack: isnA + 101, win: 1000}, Pass, TCPEstablished},
			{true, segment{flags: fFIN | fACK, seq: isnA + 101, ack: isnB + 1, win: 1000}, Pass, TCPFinWait},
			{true, segment{flags: fACK, seq: isnA + 102, ack: isnB + 1, win: 1000}, Pass, TCPFinWait}, // own ACKs do not acknowledge it
			{false, segment{flags: fACK, seq: isnB + 1, ack: isnA + 101, win: 1000}, Pass, TCPFinWait},
			{false, segment{flags: fACK, seq: isnB + 1, ack: isnA + 102, win: 1000, n: 50}, Pass, TCPCloseWait}, // half-closed: B goes on
			{true, segment{flags: fACK, seq: isnA + 102, ack: isnB + 51, win: 1000}, Pass, TCPCloseWait},
			{false, segment{flags: fFIN | fACK, seq: isnB + 51, ack: isnA + 102, win: 1000}, Pass, TCPLastAck},
			{true, segment{flags: fACK, seq: isnA + 102, ack: isnB + 52, win: 1000}, Pass, TCPTimeWait},
			{false, segment{flags: fFIN | fACK, seq: isnB + 51, ack: isnA + 102, win: 1000}, Pass, TCPTimeWait}, // repeated
			{true, segment{flags: fACK, seq: isnA + 102, ack: isnB + 52, win: 1000}, Pass, TCPTimeWait},
		})
	})
	t.Run("REQ-2: close from the outside, FIN with data, both at once", func(t *testing.T) {
		c := newConn(t, NATConfig{})
		c.run("open", handshake)
		c.run("close", []step{
			{false, segment{flags: fFIN | fACK, seq: isnB + 1, ack: isnA + 1, win: 1000, n: 10}, Pass, TCPFinWait},
			{true, segment{flags: fFIN | fACK, seq: isnA + 1, ack: isnB + 1, win: 1000}, Pass, TCPLastAck},
			{true, segment{flags: fACK, seq: isnA + 2, ack: isnB + 12, win: 1000}, Pass, TCPLastAck},
			{false, segment{flags: fACK, seq: isnB + 12, ack: isnA + 2, win: 1000}, Pass, TCPTimeWait},
		})
	})
	t.Run("REQ-2 a: simultaneous open", func(t *testing.T) {
		c := newConn(t, NATConfig{})
		c.run("open", []step{
			{true, segment{flags: fSYN, seq: isnA, win: 1000}, Pass, TCPSynSent},
			{false, segment{flags: fSYN, seq: isnB, win: 1000}, Pass, TCPSynSent2},
			{true, segment{flags: fSYN | fACK, seq: isnA, ack: isnB + 1, win: 1000}, Pass, TCPSynRecv},
			{false, segment{flags: fSYN | fACK, seq: isnB, ack: isnA + 1, win: 1000}, Pass, TCPEstablished},
			{false, segment{flags: fACK, seq: isnB + 1, ack: isnA + 1, win: 1000, n: 5}, Pass, TCPEstablished},
		})
	})
	t.Run("REQ-2 b: the answer to a SYN may be an ACK of an old connection, and the SYN is repeated", func(t *testing.T) {
		c := newConn(t, NATConfig{})
		c.run("open", []step{
			{true, segment{flags: fSYN, seq: isnA, win: 1000}, Pass, TCPSynSent},
			{false, segment{flags: fACK, seq: 77, ack: 88, win: 1000}, Pass, TCPSynSent},
			{true, segment{flags: fSYN, seq: isnA, win: 1000}, Pass, TCPSynSent},
			{false, segment{flags: fSYN | fACK, seq: isnB, ack: isnA + 99, win: 1000}, Pass, TCPSynSent}, // of an old connection
			{false, segment{flags: fSYN | fACK, seq: isnB, ack: isnA + 1, win: 1000}, Pass, TCPSynRecv},
			{false, segment{flags: fSYN | fACK, seq: isnB, ack: isnA + 1, win: 1000}, Pass, TCPSynRecv},
			{true, segment{flags: fACK, seq: isnA + 1, ack: isnB + 1, win: 1000}, Pass, TCPEstablished},
		})
	})
	t.Run("REQ-2: data with the SYN (RFC 7413)", func(t *testing.T) {
		for _, ack := range []uint32{isnA + 1, isnA + 101} {
			c := newConn(t, NATConfig{})
			c.run("open", []step{
				{true, segment{flags: fSYN, seq: isnA, win: 1000, n: 100}, Pass, TCPSynSent},
				{false, segment{flags: fSYN | fACK, seq: isnB, ack: ack, win: 1000}, Pass, TCPSynRecv},
				{true, segment{flags: fACK, seq: isnA + 101, ack: isnB + 1, win: 1000}, Pass, TCPEstablished},
			})
		}
	})
	t.Run("a refused connection", func(t *testing.T) {
		c := newConn(t, NATConfig{})
		c.run("refused", []step{
			{true, segment{flags: fSYN, seq: isnA, win: 1000}, Pass, TCPSynSent},
			{false, segment{flags: fRST | fACK, ack: isnA + 1}, Pass, TCPClose},
			{true, segment{flags: fSYN, seq: isnA + 9, win: 1000}, Pass, TCPSynSent}, // tried again from the same port
		})
		if c.flow().State() != StateNew {
			t.Errorf("state %v after the second attempt", c.flow().State())
		}
	})
	t.Run("ports used again after TIME_WAIT", func(t *testing.T) {
		for _, fromA := range []bool{true, false} {
			c := newConn(t, NATConfig{})
			c.run("open", handshake)
			c.run("close", []step{
				{true, segment{flags: fFIN | fACK, seq: isnA + 1, ack: isnB + 1, win: 1000}, Pass, TCPFinWait},
				{false, segment{flags: fFIN | fACK, seq: isnB + 1, ack: isnA + 2, win: 1000}, Pass, TCPLastAck},
				{true, segment{flags: fACK, seq: isnA + 2, ack: isnB + 2, win: 1000}, Pass, TCPTimeWait},
			})
			want := TCPSynSent
			if !fromA {
				want = TCPSynSent2
			}
			c.run("again", []step{{fromA, segment{flags: fSYN, seq: 70000, win: 1000}, Pass, want}})
			if f := c.flow(); f.State() != StateNew || c.tab.Left(f, c.now).Seconds() != 240 {
				t.Errorf("state %v, %v left", f.State(), c.tab.Left(f, c.now))
			}
			c.run("again", []step{
				{!fromA, segment{flags: fSYN | fACK, seq: 90000, ack: 70001, win: 1000}, Pass, TCPSynRecv},
				{fromA, segment{flags: fACK, seq: 70001, ack: 90001, win: 1000}, Pass, TCPEstablished},
			})
			if f := c.flow(); f.State() != StateAssured || c.tab.Left(f, c.now).Seconds() != 7440 {
				t.Errorf("state %v, %v left", f.State(), c.tab.Left(f, c.now))
			}
		}
	})
}

func TestRFC5382ResetsMustFit(t *testing.T) { // RFC 5961 section 3, RFC 7857 section 2.2
	rows := []struct {
		name  string
		fromA bool
		s     segment
		want  Verdict
	}{
		{"at the next byte", false, segment{flags: fRST, seq: isnB + 1}, Pass},
		{"at the next byte, from the inside", true, segment{flags: fRST | fACK, seq: isnA + 1, ack: isnB + 1}, Pass},
		{"within the window", false, segment{flags: fRST, seq: isnB + 900}, Pass},
		{"behind the window", false, segment{flags: fRST, seq: isnB + 1100}, BadState},
		{"before the window", false, segment{flags: fRST, seq: isnB}, BadState},
		{"far off", false, segment{flags: fRST, seq: isnB + 1<<31}, BadState},
		{"with a zero sequence number, as if refusing a SYN", false, segment{flags: fRST | fACK, ack: isnA + 1}, BadState},
		{"from the inside, far off", true, segment{flags: fRST, seq: 12345}, BadState},
	}
	for _, row := range rows {
		c := newConn(t, NATConfig{})
		c.run(row.name, handshake)
		state := TCPEstablished
		if row.want == Pass {
			state = TCPClose
		}
		c.run(row.name, []step{{row.fromA, row.s, row.want, state}})
	}
	t.Run("a refusal must name the SYN", func(t *testing.T) {
		for _, ack := range []uint32{isnA, isnA + 2, 0} {
			c := newConn(t, NATConfig{})
			c.run("refused", []step{
				{true, segment{flags: fSYN, seq: isnA, win: 1000}, Pass, TCPSynSent},
				{false, segment{flags: fRST | fACK, ack: ack}, BadState, TCPSynSent},
				{false, segment{flags: fRST, seq: isnB}, BadState, TCPSynSent},
			})
		}
	})
	t.Run("windows are scaled if both sides want it", func(t *testing.T) {
		scale := func(n byte) []byte { return []byte{1, 3, 3, n} }
		for _, both := range []bool{true, false} {
			c := newConn(t, NATConfig{})
			opts := scale(0)
			if !both {
				opts = nil
			}
			c.run("open", []step{
				{true, segment{flags: fSYN, seq: isnA, win: 1000, opts: scale(7)}, Pass, TCPSynSent},
				{false, segment{flags: fSYN | fACK, seq: isnB, ack: isnA + 1, win: 1000, opts: opts}, Pass, TCPSynRecv},
				{true, segment{flags: fACK, seq: isnA + 1, ack: isnB + 1, win: 1000}, Pass, TCPEstablished},
			})
			want, state := Pass, TCPClose
			if !both {
				want, state = BadState, TCPEstablished
			}
			c.run("reset", []step{{false, segment{flags: fRST, seq: isnB + 100000}, want, state}})
		}
	})
	t.Run("segments outside the window change nothing", func(t *testing.T) {
		c := newConn(t, NATConfig{})
		c.run("open", handshake)
		c.run("blind", []step{
			{false, segment{flags: fFIN | fACK, seq: isnB + 50000, ack: isnA + 1, win: 1000}, Pass, TCPEstablished},
			{false, segment{flags: fFIN | fACK, seq: isnB + 1, ack: isnA + 70000, win: 1000}, Pass, TCPEstablished},
			{false, segment{flags: fACK, seq: isnB + 1 + 1<<30, ack: isnA + 1, win: 1000}, Pass, TCPEstablished},
			{false, segment{flags: fSYN, seq: 99, win: 1000}, Pass, TCPEstablished},
			{false, segment{flags: fRST, seq: isnB + 1 + 1<<30}, BadState, TCPEstablished},
			{false, segment{flags: fRST, seq: isnB + 1}, Pass, TCPClose},
		})
	})
	t.Run("flags that no connection sends", func(t *testing.T) {
		c := newConn(t, NATConfig{})
		c.run("open", handshake)
		for _, flags := range []uint8{0, fFIN, fSYN | fFIN, fSYN | fRST, fFIN | fRST | fACK, fSYN | fFIN | fACK, packet.TCPPsh} {
			c.run("odd", []step{{false, segment{flags: flags, seq: isnB + 1, ack: isnA + 1}, BadState, TCPEstablished}})
		}
	})
	t.Run("RFC 1337: a RST does not cut TIME_WAIT short", func(t *testing.T) {
		c := newConn(t, NATConfig{})
		c.run("open", handshake)
		c.run("close", []step{
			{true, segment{flags: fFIN | fACK, seq: isnA + 1, ack: isnB + 1, win: 1000}, Pass, TCPFinWait},
			{false, segment{flags: fFIN | fACK, seq: isnB + 1, ack: isnA + 2, win: 1000}, Pass, TCPLastAck},
			{true, segment{flags: fACK, seq: isnA + 2, ack: isnB + 2, win: 1000}, Pass, TCPTimeWait},
			{false, segment{flags: fRST, seq: isnB + 2}, Pass, TCPTimeWait},
		})
	})
}

func TestRFC5382FilteringAndUnsolicited(t *testing.T) {
	syn := segment{flags: fSYN, seq: 1, win: 1000}
	for _, row := range []struct {
		name      string
		filtering Dependence
		from      netip.AddrPort
		want      Verdict
	}{
		{"REQ-3: endpoint-independent", EndpointIndependent, at(other, 9), Pass},
		{"REQ-3 a: address-dependent, same host", AddressDependent, at(remote, 9), Pass},
		{"REQ-3 a: address-dependent, stranger", AddressDependent, at(other, 9), Filtered},
		{"REQ-3: address-and-port-dependent", AddressAndPortDependent, at(remote, 9), Filtered},
	} {
		c := newConn(t, NATConfig{Filtering: row.filtering})
		c.run(row.name, handshake)
		p, v := c.in(tcpBytes(row.from, c.ext, syn))
		if v != row.want || v == Pass && p.DstAddrPort() != c.a {
			t.Errorf("%s: %v to %v", row.name, v, p.DstAddrPort())
		}
	}
	t.Run("REQ-4: an unsolicited SYN is not answered, and matched with one from inside", func(t *testing.T) {
		c := newConn(t, NATConfig{Filtering: AddressAndPortDependent})
		c.run("mapping", handshake)
		c.b = at(other, 9)
		if v := c.fromB(syn); v != Filtered {
			t.Errorf("first SYN: %v", v)
		}
		c.wait(5)
		if v := c.fromA(segment{flags: fSYN, seq: 7, win: 1000}); v != Pass {
			t.Errorf("own SYN: %v", v)
		}
		if v := c.fromB(syn); v != Pass || c.state() != TCPSynSent2 {
			t.Errorf("SYN repeated: %v, %v", v, c.state())
		}
	})
	t.Run("a flow begins with a SYN", func(t *testing.T) {
		c := newConn(t, NATConfig{})
		for _, flags := range []uint8{fACK, fSYN | fACK, fRST, fFIN | fACK} {
			if v := c.fromA(segment{flags: flags, seq: 1, ack: 1}); v != NoMapping {
				t.Errorf("from inside, flags %#x: %v", flags, v)
			}
		}
		if c.Mappings() != 0 {
			t.Errorf("%d mappings", c.Mappings())
		}
		c.run("mapping", handshake)
		for _, flags := range []uint8{fACK, fSYN | fACK, fRST, fFIN | fACK} {
			if _, v := c.in(tcpBytes(at(other, 1), c.ext, segment{flags: flags, seq: 1, ack: 1})); v != NoMapping {
				t.Errorf("from outside, flags %#x: %v", flags, v)
			}
		}
	})
}

func TestRFC5382Timers(t *testing.T) { // REQ-5
	c := newConn(t, NATConfig{})
	c.run("open", handshake[:1])
	c.wait(239)
	c.run("open", handshake[1:])
	c.wait(7439)
	c.run("REQ-5: 2 h 4 min", []step{{false, segment{flags: fACK, seq: isnB + 1, ack: isnA + 1, win: 1000}, Pass, TCPEstablished}})
	c.run("close", []step{{false, segment{flags: fFIN | fACK, seq: isnB + 1, ack: isnA + 1, win: 1000}, Pass, TCPFinWait}})
	c.wait(239)
	c.run("REQ-5: 4 min transitory", []step{{true, segment{flags: fACK, seq: isnA + 1, ack: isnB + 2, win: 1000}, Pass, TCPCloseWait}})
	c.wait(242)
	if c.flow() != nil || c.Mappings() != 0 {
		t.Errorf("still there: %v, %d mappings", c.flow(), c.Mappings())
	}
}

func TestRFC7857RefusalsKeepNothingAlive(t *testing.T) { // section 8
	for _, cfg := range []NATConfig{{StrictRefresh: true}, {Filtering: AddressDependent}} {
		c := newConn(t, cfg)
		c.run("mapping", handshake)
		stranger := at(remote, 9)
		p, v := c.in(tcpBytes(stranger, c.ext, segment{flags: fSYN, seq: 7, win: 9}))
		if v != Pass {
			t.Fatal(v)
		}
		k := p.Key.Reverse()
		k.Peer = peer1
		f, _ := c.tab.Lookup(&k)
		for range 5 { // closed by the first, not kept by the others
			if _, v := c.out(peer1, tcpBytes(c.a, stranger, segment{flags: fRST | fACK, ack: 8})); v != Pass {
				t.Fatal(v)
			}
			c.wait(5)
		}
		if f.TCP() != TCPClose || f.Last() != 0 || f.extra.Load().answered.Load() {
			t.Errorf("%+v: %v, last at %d, counted as answered: %v", cfg, f.TCP(), f.Last(), f.extra.Load().answered.Load())
		}
		c.wait(6)
		if !f.Dead() {
			t.Errorf("%+v: refusals keep the flow", cfg)
		}
	}
}

func TestRFC5382ICMP(t *testing.T) {
	c := newConn(t, NATConfig{})
	c.run("open", handshake)
	quote := tcpBytes(c.ext, c.b, segment{flags: fACK, seq: isnA + 1, ack: isnB + 1})
	for _, e := range []packet.ICMP{packet.HostUnreachable(4), packet.TooBig(4, 1300), packet.PortUnreachable(4)} {
		p, v := c.in(errorBytes(other, ext4, e, quote))
		if k, ok := packet.Quoted(p); v != Pass || !ok || k.SrcAddrPort() != c.a || k.DstAddrPort() != c.b || p.DstAddr() != inner1 {
			t.Errorf("REQ-9: %v, quotes %v to %v, goes to %v", v, k.SrcAddrPort(), k.DstAddrPort(), p.DstAddr())
		}
		if c.state() != TCPEstablished || c.Mappings() != 1 {
			t.Errorf("REQ-10: state %v, %d mappings", c.state(), c.Mappings())
		}
	}
}

// Track serves flows without translation too, and such that were not seen from the start.
func TestTrackWithoutTranslation(t *testing.T) {
	tab := New(Config{})
	a, b := at(inner1, 5000), at(inner2, 80)
	mk := func(s segment, reply bool) (*packet.Packet, Dir) {
		if reply {
			return decode(t, tcpBytes(b, a, s)), Reply
		}
		return decode(t, tcpBytes(a, b, s)), Original
	}
	p, _ := mk(segment{flags: fACK, seq: 10, ack: 20, win: 1}, false)
	f := &Flow{Key: p.Key}
	f.Key.Peer = peer1
	if !tab.Insert(f, 0) {
		t.Fatal("refused")
	}
	for i, s := range []struct {
		s     segment
		reply bool
		ok    bool
		state TCPState
	}{
		{segment{flags: fACK, seq: 10, ack: 20, win: 1}, false, true, TCPEstablished},
		{segment{flags: fACK, seq: 20, ack: 10, win: 1, n: 9}, true, true, TCPEstablished},
		{segment{flags: fRST, seq: 20 + 1<<20}, true, false, TCPEstablished},
		{segment{flags: fFIN | fACK, seq: 29, ack: 10, win: 1}, true, true, TCPFinWait},
		{segment{flags: fACK, seq: 10, ack: 30, win: 1}, false, true, TCPCloseWait},
		{segment{flags: fRST | fACK, seq: 10, ack: 30, win: 1}, false, true, TCPClose},
	} {
		p, d := mk(s.s, s.reply)
		if ok := tab.Track(f, d, p, 0); ok != s.ok || f.TCP() != s.state {
			t.Errorf("packet %d: %v, state %v", i, ok, f.TCP())
		}
	}
	u := decode(t, udpBytes(a, b))
	if !tab.Track(&Flow{Key: u.Key}, Original, u, 0) {
		t.Error("UDP does not fit")
	}
}
