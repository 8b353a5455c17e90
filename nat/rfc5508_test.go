package nat

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"testing"

	"culvert.dev/culvert/internal/packet"
)

// family is one IP version's share of the test addresses.
type family struct {
	v                    uint8
	inner, inner2        netip.Addr
	ext, remote, another netip.Addr
}

var families = []family{
	{4, inner1, inner2, ext4, remote, other},
	{6, inner6, inner6b, ext6, remote6, other6},
}

func TestRFC5508Queries(t *testing.T) {
	for _, a := range families {
		r := newRouter(t, NATConfig{Filtering: AddressDependent}, Config{})
		ping := func(peer uint16, src, dst netip.Addr, id uint16) uint16 {
			t.Helper()
			p, v := r.out(peer, echoBytes(src, dst, id, false))
			if v != Pass || p.SrcAddr() != a.ext || p.DstAddr() != dst {
				t.Fatalf("REQ-1 a: %v, %v to %v", v, p.SrcAddr(), p.DstAddr())
			}
			return p.SrcPort
		}
		id := ping(peer1, a.inner, a.remote, 77)
		if id != 77 {
			t.Errorf("identifier 77 became %d though it was free", id)
		}
		if again := ping(peer1, a.inner, a.another, 77); again != id {
			t.Errorf("REQ-1 b: endpoint-independent: %d, then %d", id, again)
		}
		id2 := ping(peer2, a.inner2, a.remote, 77)
		if id2 == id {
			t.Errorf("two hosts have identifier %d", id)
		}
		for _, want := range []struct {
			id   uint16
			host netip.Addr
			peer uint16
		}{{id, a.inner, peer1}, {id2, a.inner2, peer2}} {
			p, v := r.in(echoBytes(a.remote, a.ext, want.id, true))
			if v != Pass || p.DstAddr() != want.host || p.DstPort != 77 || p.Peer != want.peer {
				t.Errorf("REQ-1: reply: %v, to %v id %d peer %d", v, p.DstAddr(), p.DstPort, p.Peer)
			}
		}
		if _, v := r.in(echoBytes(a.remote, a.ext, 4711, true)); v != NoMapping {
			t.Errorf("reply to nobody: %v", v)
		}
		if _, v := r.in(echoBytes(a.remote, a.ext, id, false)); v != NoMapping {
			t.Errorf("request to the router itself: %v", v)
		}
		if _, v := r.out(peer1, echoBytes(a.inner, a.remote, 9, true)); v != NoMapping {
			t.Errorf("reply without request: %v", v)
		}
		if p, v := r.out(peer1, echoBytes(a.inner, a.remote, 0, false)); v != Pass || p.SrcPort == 0 {
			t.Errorf("identifier zero: %v, %d", v, p.SrcPort)
		}
		r.wait(59)
		if _, v := r.in(echoBytes(a.remote, a.ext, id2, true)); v != Pass {
			t.Errorf("REQ-2: after 59 s: %v", v)
		}
		r.wait(62)
		if _, v := r.in(echoBytes(a.remote, a.ext, id2, true)); v != NoMapping || r.Mappings() != 0 {
			t.Errorf("REQ-2: after another 62 s: %v, %d mappings", v, r.Mappings())
		}
	}
}

// errorCase is a packet that has been translated, whose error comes back, or which an inside end complains about.
type errorCase struct {
	name string
	sent func(a family) []byte // from inner
}

var errorCases = []errorCase{
	{"UDP", func(a family) []byte { return udpBytes(at(a.inner, 5000), at(a.remote, 80)) }},
	{"TCP", func(a family) []byte {
		return tcpBytes(at(a.inner, 5000), at(a.remote, 80), segment{flags: fSYN, seq: 7, win: 100})
	}},
	{"echo", func(a family) []byte { return echoBytes(a.inner, a.remote, 5000, false) }},
}

func TestRFC5508ErrorsFromOutside(t *testing.T) { // REQ-4
	for _, a := range families {
		for _, c := range errorCases {
			for _, cut := range []int{0, 8, 12, 16} { // bytes of the transport header quoted; 0: all
				r := newRouter(t, NATConfig{Ports: PortRandom}, Config{})
				sent := c.sent(a)
				p, v := r.out(peer1, bytes.Clone(sent))
				if v != Pass {
					t.Fatalf("%s: %v", c.name, v)
				}
				quote, inner := bytes.Clone(p.Buf), sent
				if cut > 0 && cut < len(quote)-p.L4 {
					quote, inner = quote[:p.L4+cut], inner[:p.L4+cut]
				}
				for _, from := range []netip.Addr{a.another, a.remote} { // a router on the way, the remote end itself
					e := packet.HostUnreachable(a.v)
					b := errorBytes(from, a.ext, e, quote)
					before := r.tab.Len()
					p, v = r.in(b)
					if v != Pass || p.Peer != peer1 {
						t.Errorf("REQ-4: IPv%d %s: %v for peer %d", a.v, c.name, v, p.Peer)
						continue
					}
					if want := errorBytes(from, a.inner, e, inner); !bytes.Equal(p.Buf, want) {
						t.Errorf("REQ-4: IPv%d %s, %d bytes quoted:\n% x, want\n% x", a.v, c.name, cut, p.Buf, want)
					}
					if r.tab.Len() != before {
						t.Error("the error opened a flow")
					}
				}
			}
		}
	}
}

func TestRFC5508ErrorsFromInside(t *testing.T) { // REQ-5
	for _, a := range families {
		r := newRouter(t, NATConfig{}, Config{})
		router := map[uint8]netip.Addr{4: netip.MustParseAddr("10.9.9.9"), 6: netip.MustParseAddr("fd00:9::9")}[a.v]
		p, _ := r.out(peer1, udpBytes(at(a.inner, 5000), at(a.remote, 80)))
		ext := p.SrcAddrPort()
		answer := udpBytes(at(a.remote, 80), ext)
		p, v := r.in(bytes.Clone(answer))
		if v != Pass {
			t.Fatal(v)
		}
		inside := bytes.Clone(p.Buf)
		for _, from := range []netip.Addr{a.inner, router} {
			e := packet.PortUnreachable(a.v)
			p, v := r.out(peer1, errorBytes(from, a.remote, e, inside))
			want := errorBytes(a.ext, a.remote, e, answer) // REQ-5 a: as the remote end sent it; b: type and code; c: the own address
			if v != Pass || p.Peer != outside || !bytes.Equal(p.Buf, want) {
				t.Errorf("REQ-5: IPv%d from %v: %v\n% x, want\n% x", a.v, from, v, p.Buf, want)
			}
		}
		if _, v := r.out(peer1, errorBytes(a.inner, a.another, packet.PortUnreachable(a.v), inside)); v != NoMapping {
			t.Errorf("to one whom it does not concern: %v", v)
		}
		if _, v := r.out(peer2, errorBytes(a.inner, a.remote, packet.PortUnreachable(a.v), inside)); v != NoMapping {
			t.Errorf("REQ-5: from another peer: %v", v)
		}
	}
}

func TestRFC5508ErrorsRefused(t *testing.T) {
	for _, a := range families {
		r := newRouter(t, NATConfig{}, Config{})
		p, _ := r.out(peer1, udpBytes(at(a.inner, 5000), at(a.remote, 80)))
		ext := p.SrcAddrPort()
		e := packet.HostUnreachable(a.v)
		good := errorBytes(a.another, a.ext, e, udpBytes(ext, at(a.remote, 80)))
		damaged := bytes.Clone(good)
		damaged[len(damaged)-1] ^= 1
		rows := []struct {
			name string
			b    []byte
			want Verdict
		}{
			{"REQ-3: outer checksum wrong", damaged, BadPacket},
			{"REQ-4: about a packet never sent", errorBytes(a.another, a.ext, e, udpBytes(ext, at(a.remote, 81))), NoMapping},
			{"REQ-4: about one of another protocol", errorBytes(a.another, a.ext, e, tcpBytes(ext, at(a.remote, 80), segment{flags: fSYN})), NoMapping},
			{"about a packet that the remote end sent", errorBytes(a.another, a.remote, e, udpBytes(at(a.remote, 80), ext)), NoMapping},
			{"about a packet as it was inside", errorBytes(a.another, a.inner, e, udpBytes(at(a.inner, 5000), at(a.remote, 80))), NoMapping},
			{"about an error", errorBytes(a.another, a.ext, e, good), BadPacket},
		}
		if a.v == 4 {
			badQuote := udpBytes(ext, at(a.remote, 80))
			badQuote[8]-- // a TTL without its checksum
			rows = append(rows, struct {
				name string
				b    []byte
				want Verdict
			}{"REQ-3 a: checksum of the quoted header wrong", errorBytes(a.another, a.ext, e, badQuote), BadPacket})
		}
		for _, row := range rows {
			before := bytes.Clone(row.b)
			if p, v := r.inUnchecked(row.b); v != row.want || !bytes.Equal(p.Buf, before) {
				t.Errorf("IPv%d: %s: %v, want %v; packet changed: %v", a.v, row.name, v, row.want, !bytes.Equal(p.Buf, before))
			}
		}
	}
}

// inUnchecked is in for packets that are damaged.
func (r *router) inUnchecked(b []byte) (*packet.Packet, Verdict) {
	p := decode(r.t, b)
	return p, r.Inbound(p, r.now)
}

func TestRFC5508QuoteWithOptions(t *testing.T) { // REQ-3 b
	r := newRouter(t, NATConfig{Ports: PortRandom}, Config{})
	p, _ := r.out(peer1, udpBytes(at(inner1, 5000), at(remote, 80)))
	withOptions := func(b []byte) []byte { // a router has recorded its route
		opts := []byte{7, 7, 8, 192, 0, 2, 1, 0}
		b = append(append(append([]byte(nil), b[:20]...), opts...), b[20:]...)
		b[0] = 0x47
		binary.BigEndian.PutUint16(b[2:], uint16(len(b)))
		b[10], b[11] = 0, 0
		binary.BigEndian.PutUint16(b[10:], ^packet.Sum(b[:28], 0))
		return b
	}
	e := packet.TimeExceeded(4)
	q, v := r.in(errorBytes(other, ext4, e, withOptions(p.Buf)))
	want := errorBytes(other, inner1, e, withOptions(udpBytes(at(inner1, 5000), at(remote, 80))))
	if v != Pass || !bytes.Equal(q.Buf, want) {
		t.Errorf("REQ-3 b: %v\n% x, want\n% x", v, q.Buf, want)
	}
}

func TestRFC5508ErrorsDoNotRefresh(t *testing.T) { // REQ-6
	r := newRouter(t, NATConfig{}, Config{})
	p, _ := r.out(peer1, echoBytes(inner1, remote, 77, false))
	quote := bytes.Clone(p.Buf)
	r.wait(50)
	if _, v := r.in(errorBytes(other, ext4, packet.HostUnreachable(4), quote)); v != Pass || r.Mappings() != 1 {
		t.Errorf("REQ-6: %v, %d mappings: deleted", v, r.Mappings())
	}
	r.wait(12)
	if r.Mappings() != 0 {
		t.Error("REQ-6: refreshed")
	}
}

func TestRFC5508HairpinnedError(t *testing.T) { // REQ-7
	for _, a := range families {
		r := newRouter(t, NATConfig{Hairpin: true, Ports: PortRandom}, Config{})
		x1, x2 := at(a.inner, 5000), at(a.inner2, 6000)
		ext2 := r.send(peer2, x2, at(a.remote, 80))
		sent := udpBytes(x1, ext2)
		p, v := r.out(peer1, bytes.Clone(sent))
		if v != Hairpinned || p.Peer != peer2 {
			t.Fatalf("%v to peer %d", v, p.Peer)
		}
		e := packet.PortUnreachable(a.v)
		p, v = r.out(peer2, errorBytes(a.inner2, a.ext, e, bytes.Clone(p.Buf)))
		want := errorBytes(a.ext, a.inner, e, sent) // REQ-7 a: nothing of the inside of the other end shows
		if v != Hairpinned || p.Peer != peer1 || !bytes.Equal(p.Buf, want) {
			t.Errorf("REQ-7: IPv%d: %v to peer %d\n% x, want\n% x", a.v, v, p.Peer, p.Buf, want)
		}
	}
}

// REQ-8 is the caller's: the verdicts say what to answer.
func TestRFC5508ResourcesRunOut(t *testing.T) {
	r := newRouter(t, NATConfig{PortMin: 100, PortMax: 101}, Config{})
	for i := range uint16(3) {
		want := Pass
		if i == 2 {
			want = NoPort
		}
		if _, v := r.out(peer1, echoBytes(inner1, remote, 1+i, false)); v != want {
			t.Errorf("REQ-8: ping %d: %v, want %v", i, v, want)
		}
	}
	r = newRouter(t, NATConfig{}, Config{Max: 1, MaxPerPeer: 1})
	p, _ := r.out(peer1, udpBytes(at(inner1, 1), at(remote, 2)))
	r.in(udpBytes(at(remote, 2), p.SrcAddrPort()))
	if _, v := r.out(peer1, udpBytes(at(inner1, 2), at(remote, 2))); v != NoRoom || r.Mappings() != 1 {
		t.Errorf("REQ-8: table full: %v, %d mappings", v, r.Mappings())
	}
}

func TestOtherICMPIsNotTranslated(t *testing.T) { // REQ-11: may be dropped
	r := newRouter(t, NATConfig{}, Config{})
	timestamp := put(inner1, remote, packet.ProtoICMPv4, 2, []byte{13, 0, 0, 0, 0, 1, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0})
	if _, v := r.out(peer1, timestamp); v != NoMapping {
		t.Errorf("timestamp: %v", v)
	}
	redirect := errorBytes(other, ext4, packet.ICMP{Type: 5}, udpBytes(at(ext4, 1), at(remote, 2)))
	if _, v := r.in(redirect); v != BadPacket {
		t.Errorf("redirect: %v", v)
	}
}

func TestOtherProtocolsByAddressAlone(t *testing.T) {
	gre := func(src, dst netip.Addr) []byte { return put(src, dst, 47, -1, []byte{0, 0, 8, 0, 1, 2, 3, 4}) }
	for _, a := range families {
		r := newRouter(t, NATConfig{}, Config{})
		p, v := r.out(peer1, gre(a.inner, a.remote))
		if v != Pass || p.SrcAddr() != a.ext {
			t.Fatalf("%v from %v", v, p.SrcAddr())
		}
		if _, v := r.out(peer2, gre(a.inner2, a.remote)); v != NoPort {
			t.Errorf("a second host to the same remote: %v", v)
		}
		if _, v := r.out(peer2, gre(a.inner2, a.another)); v != Pass {
			t.Errorf("a second host to another remote: %v", v)
		}
		if p, v := r.in(gre(a.remote, a.ext)); v != Pass || p.DstAddr() != a.inner || p.Peer != peer1 {
			t.Errorf("answer: %v to %v", v, p.DstAddr())
		}
		if _, v := r.in(gre(a.inner2, a.ext)); v != NoMapping {
			t.Errorf("stranger: %v", v)
		}
		if _, v := r.out(peer1, put(a.inner, a.remote, 136, -1, make([]byte, 16))); v != NoMapping {
			t.Errorf("UDP-Lite, whose checksum covers the addresses: %v", v)
		}
	}
}
