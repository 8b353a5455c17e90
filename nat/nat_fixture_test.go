package nat

import (
	"encoding/binary"
	"net/netip"
	"testing"

	"culvert.dev/culvert/internal/packet"
)

// Ends of test traffic. Hosts 1 and 2 are inside, R1 and R2 outside; odd peers are v4 and v6 of the same inside realm.
var (
	inner1 = netip.MustParseAddr("10.0.0.1")
	inner2 = netip.MustParseAddr("10.0.0.2")
	ext4   = netip.MustParseAddr("203.0.113.1")
	ext4b  = netip.MustParseAddr("203.0.113.2")
	remote = netip.MustParseAddr("198.51.100.7")
	other  = netip.MustParseAddr("192.0.2.9")

	inner6  = netip.MustParseAddr("fd00::1")
	inner6b = netip.MustParseAddr("fd00::2")
	ext6    = netip.MustParseAddr("2001:db8:1::1")
	remote6 = netip.MustParseAddr("2001:db8:2::7")
	other6  = netip.MustParseAddr("2001:db8:3::9")
)

const outside = PeerUpstream

// peers of the inside hosts.
const (
	peer1 uint16 = 1
	peer2 uint16 = 2
)

func at(a netip.Addr, port uint16) netip.AddrPort { return netip.AddrPortFrom(a, port) }

// put builds an IP packet around the transport header and payload l4, whose checksum at offset sum it fills in.
func put(src, dst netip.Addr, proto uint8, sum int, l4 []byte) []byte {
	var b []byte
	v := uint8(6)
	if src.Is4() {
		v = 4
		b = append(b, 0x45, 0, 0, 0, 0, 7, 0, 0, 64, proto, 0, 0)
		binary.BigEndian.PutUint16(b[2:], uint16(20+len(l4)))
	} else {
		b = append(b, 0x60, 0, 0, 0, 0, 0, proto, 64)
		binary.BigEndian.PutUint16(b[4:], uint16(len(l4)))
	}
	b = append(append(append(b, src.AsSlice()...), dst.AsSlice()...), l4...)
	if v == 4 {
		binary.BigEndian.PutUint16(b[10:], ^packet.Sum(b[:20], 0))
	}
	initial := packet.PseudoSum(v, src.As16(), dst.As16(), proto, len(l4))
	if proto == packet.ProtoICMPv4 {
		initial = 0
	}
	if sum >= 0 {
		l4 = b[len(b)-len(l4):]
		binary.BigEndian.PutUint16(l4[sum:], ^packet.Sum(l4, initial))
	}
	return b
}

func udpBytes(src, dst netip.AddrPort) []byte {
	l4 := []byte{0, 0, 0, 0, 0, 16, 0, 0, 'd', 'a', 't', 'a', 'g', 'r', 'a', 'm'}
	binary.BigEndian.PutUint16(l4, src.Port())
	binary.BigEndian.PutUint16(l4[2:], dst.Port())
	return put(src.Addr(), dst.Addr(), packet.ProtoUDP, 6, l4)
}

// segment is a TCP segment to be built.
type segment struct {
	flags    uint8
	seq, ack uint32
	win      uint16
	opts     []byte
	n        int // bytes of payload
}

func tcpBytes(src, dst netip.AddrPort, s segment) []byte {
	l4 := make([]byte, 20, 60)
	binary.BigEndian.PutUint16(l4, src.Port())
	binary.BigEndian.PutUint16(l4[2:], dst.Port())
	binary.BigEndian.PutUint32(l4[4:], s.seq)
	binary.BigEndian.PutUint32(l4[8:], s.ack)
	l4[12], l4[13] = byte(5+len(s.opts)/4)<<4, s.flags
	binary.BigEndian.PutUint16(l4[14:], s.win)
	l4 = append(append(l4, s.opts...), make([]byte, s.n)...)
	return put(src.Addr(), dst.Addr(), packet.ProtoTCP, 16, l4)
}

func echoBytes(src, dst netip.Addr, id uint16, reply bool) []byte {
	types, proto := [2]byte{echoRequest4, echoReply4}, uint8(packet.ProtoICMPv4)
	if src.Is6() {
		types, proto = [2]byte{echoRequest6, echoReply6}, packet.ProtoICMPv6
	}
	l4 := []byte{types[0], 0, 0, 0, byte(id >> 8), byte(id), 0, 1, 'p', 'i', 'n', 'g'}
	if reply {
		l4[0] = types[1]
	}
	return put(src, dst, proto, 2, l4)
}

// errorBytes is an ICMP error that quotes the whole of quote.
func errorBytes(from, to netip.Addr, e packet.ICMP, quote []byte) []byte {
	return packet.AppendICMPErrorQuote(nil, from, to, e, quote)
}

func decode(t testing.TB, b []byte) *packet.Packet {
	t.Helper()
	p := new(packet.Packet)
	if f := packet.Decode(p, b); f != packet.FaultNone {
		t.Fatalf("Decode: %v\n% x", f, b)
	}
	return p
}

// router is a NAT with a table and a clock.
type router struct {
	*NAT
	t   testing.TB
	tab *Table
	now int64
}

func newRouter(t testing.TB, cfg NATConfig, tc Config) *router {
	t.Helper()
	if tc.Max == 0 {
		tc.Max, tc.MaxPerPeer = 1<<17, 1<<17
	}
	tab := New(tc)
	cfg.Table, cfg.Outside = tab, outside
	if cfg.Addrs == nil {
		cfg.Addrs = []netip.Addr{ext4, ext6}
	}
	if cfg.Seed == 0 {
		cfg.Seed = 1
	}
	n, err := NewNAT(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return &router{NAT: n, t: t, tab: tab}
}

// wait lets time pass.
func (r *router) wait(seconds float64) {
	for end := r.now + sec(seconds); r.now < end; {
		r.now = min(r.now+sec(1), end)
		r.tab.Expire(r.now)
	}
}

// out sends b from an inside peer and returns the packet that comes out, checked.
func (r *router) out(peer uint16, b []byte) (*packet.Packet, Verdict) {
	r.t.Helper()
	p := decode(r.t, b)
	p.Peer = peer
	v := r.Outbound(p, r.now)
	return r.check(p, v), v
}

// in sends b from outside.
func (r *router) in(b []byte) (*packet.Packet, Verdict) {
	r.t.Helper()
	p := decode(r.t, b)
	v := r.Inbound(p, r.now)
	return r.check(p, v), v
}

// check compares p with what its bytes say.
func (r *router) check(p *packet.Packet, v Verdict) *packet.Packet {
	r.t.Helper()
	q := decode(r.t, p.Buf)
	q.Peer = p.Peer
	if q.Key != p.Key || !q.ChecksumOK() {
		r.t.Fatalf("%v: key %+v, the bytes say %+v, checksum right: %v", v, p.Key, q.Key, q.ChecksumOK())
	}
	return p
}

// send is out for a UDP datagram that must pass; it returns the external end.
func (r *router) send(peer uint16, src, dst netip.AddrPort) netip.AddrPort {
	r.t.Helper()
	p, v := r.out(peer, udpBytes(src, dst))
	if v != Pass || p.DstAddrPort() != dst || p.Peer != outside {
		r.t.Fatalf("%v to %v: %v, %v to %v for peer %d", src, dst, v, p.SrcAddrPort(), p.DstAddrPort(), p.Peer)
	}
	return p.SrcAddrPort()
}

// receive is in for a UDP datagram; it returns where it went.
func (r *router) receive(src, dst netip.AddrPort) (netip.AddrPort, Verdict) {
	r.t.Helper()
	p, v := r.in(udpBytes(src, dst))
	if v == Pass && p.SrcAddrPort() != src {
		r.t.Fatalf("source %v became %v", src, p.SrcAddrPort())
	}
	return p.DstAddrPort(), v
}

// arrives checks that a datagram from outside reaches to, or does not, with the verdict given.
func (r *router) arrives(src, dst, to netip.AddrPort, want Verdict) {
	r.t.Helper()
	got, v := r.receive(src, dst)
	if v != want || v == Pass && got != to {
		r.t.Errorf("%v to %v: %v at %v, want %v at %v", src, dst, v, got, want, to)
	}
}
