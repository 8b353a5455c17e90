package wgstun

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"testing"

	pion "github.com/pion/stun/v3"

	"culvert.dev/culvert/internal/packet"
)

// TestEverythingElseIsSilence: no answer of any kind, and the reason is counted. The rows are per family.
func TestEverythingElseIsSilence(t *testing.T) {
	for _, e := range ends {
		msg := request(t).Raw
		req := udp(e.client, e.server, msg)
		ping := echo(e.client.Addr(), e.server.Addr(), 1, 1, []byte("ping"))
		v6 := e.client.Addr().Is6()
		icmp := uint8(packet.ProtoICMPv4)
		replyType, maskType := uint8(0), uint8(17)
		if v6 {
			icmp, replyType, maskType = packet.ProtoICMPv6, 129, 135 // the last: neighbour solicitation
		}
		other := netip.MustParseAddr("100.64.0.5")
		broadcast := netip.MustParseAddr("255.255.255.255")
		if v6 {
			other, broadcast = netip.MustParseAddr("fd74:656c:696f::5"), netip.MustParseAddr("ff02::1")
		}
		from := func(a netip.Addr) netip.AddrPort { return netip.AddrPortFrom(a, 50000) }
		to := func(a netip.Addr) netip.AddrPort { return netip.AddrPortFrom(a, Port) }
		tcp := make([]byte, 20)
		binary.BigEndian.PutUint16(tcp, 40000)
		binary.BigEndian.PutUint16(tcp[2:], Port)
		tcp[12], tcp[13] = 5<<4, packet.TCPSyn

		for _, c := range []struct {
			name, reason string
			pkt          []byte
		}{
			{"TCP SYN to the STUN port", "other-protocol", ipPacket(e.client.Addr(), e.server.Addr(), packet.ProtoTCP, tcp)},
			{"UDP to DNS", "other-port", udp(e.client, netip.AddrPortFrom(e.server.Addr(), 53), msg)},
			{"UDP to the port after", "other-port", udp(e.client, netip.AddrPortFrom(e.server.Addr(), Port+1), msg)},
			{"UDP from port zero", "other-port", udp(netip.AddrPortFrom(e.client.Addr(), 0), e.server, msg)},
			{"another address", "other-address", udp(e.client, to(other), msg)},
			{"the client's own address", "other-address", udp(e.client, to(e.client.Addr()), msg)},
			{"everybody", "other-address", udp(e.client, to(broadcast), msg)},
			{"echo to another address", "other-address", echo(e.client.Addr(), other, 1, 1, nil)},
			{"from the server's own address", "bad-source", udp(from(e.server.Addr()), e.server, msg)},
			{"from everybody", "bad-source", udp(from(broadcast), e.server, msg)},
			{"from the unspecified address", "bad-source", udp(from(unspecified(v6)), e.server, msg)},
			{"echo from everybody", "bad-source", echo(broadcast, e.server.Addr(), 1, 1, nil)},
			{"echo reply", "other-icmp", icmpPacket(e.client.Addr(), e.server.Addr(), replyType, 0)},
			{"another ICMP question", "other-icmp", icmpPacket(e.client.Addr(), e.server.Addr(), maskType, 0)},
			{"ICMP unreachable", "other-icmp", icmpPacket(e.client.Addr(), e.server.Addr(), 3, 3)},
			{"echo with a code", "other-icmp", icmpPacket(e.client.Addr(), e.server.Addr(), ping[len(ping)-12], 1)},
			{"ICMP of the other family", "malformed", ipPacket(e.client.Addr(), e.server.Addr(), packet.ProtoICMPv4+packet.ProtoICMPv6-icmp, make([]byte, 8))},
			{"GRE", "other-protocol", ipPacket(e.client.Addr(), e.server.Addr(), 47, make([]byte, 20))},
			{"SCTP", "other-protocol", ipPacket(e.client.Addr(), e.server.Addr(), 132, make([]byte, 20))},
			{"IP in IP", "other-protocol", ipPacket(e.client.Addr(), e.server.Addr(), 4, req)},
			{"no payload", "not-stun", udp(e.client, e.server, nil)},
			{"text", "not-stun", udp(e.client, e.server, []byte("GET / HTTP/1.1\r\n\r\n and some more of it"))},
			{"a WireGuard initiation", "not-stun", udp(e.client, e.server, append([]byte{1, 0, 0, 0}, make([]byte, 144)...))},
			{"a STUN response", "not-stun", udp(e.client, e.server, build(t, pion.TransactionID, pion.BindingSuccess))},
			{"a STUN indication", "not-stun", udp(e.client, e.server, build(t, pion.TransactionID, pion.NewType(pion.MethodBinding, pion.ClassIndication)))},
			{"a TURN request", "not-stun", udp(e.client, e.server, build(t, pion.TransactionID, pion.NewType(pion.MethodAllocate, pion.ClassRequest)))},
			{"a request with a wrong fingerprint", "not-stun", udp(e.client, e.server, corrupt(msg, len(msg)-1))},
			{"bad checksum", "bad-checksum", corrupt(req, len(req)-1)},
			{"echo with a bad checksum", "bad-checksum", corrupt(ping, len(ping)-1)},
			{"above the MTU", "too-long", udp(e.client, e.server, make([]byte, 1420))},
			{"echo above the MTU", "too-long", echo(e.client.Addr(), e.server.Addr(), 1, 1, make([]byte, 1420))},
			{"nothing", "malformed", nil},
			{"version 5", "malformed", append([]byte{0x50}, req[1:]...)},
		} {
			checkSilence(t, e.name+": "+c.name, c.reason, c.pkt)
		}
	}
}

func checkSilence(t *testing.T, name, reason string, pkt []byte) {
	t.Helper()
	r := newResponder(t, outerV4)
	if answers := exchange(r, pkt); len(answers) > 0 {
		t.Errorf("%s: answered with %x", name, answers[0])
	}
	s := r.Stats()
	if s.Dropped[reason] != 1 || len(s.Dropped) != 1 || s.STUN+s.Echo != 0 {
		t.Errorf("%s: counted %+v, want %q", name, s, reason)
	}
}

func unspecified(v6 bool) netip.Addr {
	if v6 {
		return netip.IPv6Unspecified()
	}
	return netip.IPv4Unspecified()
}

// icmpPacket is a message with a correct checksum.
func icmpPacket(src, dst netip.Addr, typ, code uint8) []byte {
	m := make([]byte, 28)
	m[0], m[1] = typ, code
	proto, pseudo := uint8(packet.ProtoICMPv4), uint16(0)
	if src.Is6() {
		proto = packet.ProtoICMPv6
		pseudo = packet.PseudoSum(6, src.As16(), dst.As16(), proto, len(m))
	}
	binary.BigEndian.PutUint16(m[2:], ^packet.Sum(m, pseudo))
	return ipPacket(src, dst, proto, m)
}

func build(t *testing.T, setters ...pion.Setter) []byte {
	t.Helper()
	m, err := pion.Build(setters...)
	if err != nil {
		t.Fatal(err)
	}
	return m.Raw
}

func corrupt(b []byte, at int) []byte {
	b = bytes.Clone(b)
	b[at] ^= 0x10
	return b
}

// TestOddHeadersAreSilence: what would be answered is not if the IP header has more than it needs.
func TestOddHeadersAreSilence(t *testing.T) {
	req4 := udp(ends[0].client, ends[0].server, request(t).Raw)
	req6 := udp(ends[1].client, ends[1].server, request(t).Raw)

	withOption := append(append(bytes.Clone(req4[:20]), 1, 1, 1, 1), req4[20:]...) // four times "no operation"
	withOption[0] = 0x46
	binary.BigEndian.PutUint16(withOption[2:], uint16(len(withOption)))
	fixHeader(withOption)

	first, later := bytes.Clone(req4), bytes.Clone(req4)
	first[6], later[7] = 0x20, 1
	first = first[:20+(len(first)-20)/8*8]
	binary.BigEndian.PutUint16(first[2:], uint16(len(first)))
	fixHeader(first)
	fixHeader(later)

	extended := func(next uint8, header ...byte) []byte {
		b := append(append(bytes.Clone(req6[:40]), header...), req6[40:]...)
		b[6] = next
		binary.BigEndian.PutUint16(b[4:], uint16(len(b)-40))
		return b
	}
	mapped := func(at int, a netip.Addr) []byte {
		b := bytes.Clone(req6)
		a16 := a.As16()
		copy(b[at:], a16[:])
		return b
	}
	jumbo := extended(0, packet.ProtoUDP, 0, 0xc2, 4, 0, 1, 0, 0) // RFC 2675: length 65536
	binary.BigEndian.PutUint16(jumbo[4:], 0)

	for _, c := range []struct {
		name, reason string
		pkt          []byte
	}{
		{"IPv4 options", "ip-options", withOption},
		{"first fragment", "fragment", first},
		{"later fragment", "fragment", later},
		{"hop-by-hop header", "ip-options", extended(0, packet.ProtoUDP, 0, 1, 4, 0, 0, 0, 0)},
		{"destination options", "ip-options", extended(60, packet.ProtoUDP, 0, 1, 4, 0, 0, 0, 0)},
		{"spent routing header", "ip-options", extended(43, packet.ProtoUDP, 0, 4, 0, 0, 0, 0, 0)},
		{"source route", "malformed", extended(43, packet.ProtoUDP, 0, 4, 1, 0, 0, 0, 0)},
		{"IPv6 first fragment", "fragment", extended(44, packet.ProtoUDP, 0, 0, 1, 0, 0, 0, 1)[:40+8+16]},
		{"atomic fragment", "fragment", extended(44, packet.ProtoUDP, 0, 0, 0, 0, 0, 0, 1)},
		{"to ::ffff:100.64.0.4", "other-address", mapped(24, ServerV4)},
		{"from ::ffff:100.64.1.7", "bad-source", mapped(8, clientV4)},
	} {
		if c.name == "IPv6 first fragment" {
			binary.BigEndian.PutUint16(c.pkt[4:], 8+16)
		}
		checkSilence(t, c.name, c.reason, c.pkt)
	}
	// The IPv6 header of a jumbogram says that there is nothing behind it.
	checkSilence(t, "jumbogram", "malformed", jumbo)
	checkSilence(t, "jumbogram without its option", "malformed", append(bytes.Clone(req6[:4]), append([]byte{0, 0}, req6[6:]...)...))
}

// TestTruncatedIsSilence: no prefix of a valid packet is answered, neither as it is nor with its length fields put right.
func TestTruncatedIsSilence(t *testing.T) {
	for _, e := range ends {
		for name, whole := range map[string][]byte{
			"STUN": udp(e.client, e.server, request(t).Raw),
			"echo": echo(e.client.Addr(), e.server.Addr(), 1, 1, []byte("0123456789abcdef")),
		} {
			r := newResponder(t, outerV4)
			for n := range len(whole) {
				if answers := exchange(r, whole[:n]); len(answers) > 0 {
					t.Errorf("%s over %s cut to %d bytes is answered", name, e.name, n)
				}
				if answers := exchange(r, shorten(whole, n)); len(answers) > 0 && name == "STUN" {
					t.Errorf("%s over %s shortened to %d bytes is answered", name, e.name, n)
				}
			}
			if n := len(exchange(r, whole)); n != 1 {
				t.Errorf("%s over %s whole: %d answers, want one", name, e.name, n)
			}
		}
	}
}

// shorten cuts a packet and makes its IP and UDP headers agree.
func shorten(b []byte, n int) []byte {
	b = bytes.Clone(b[:n])
	hlen := 20
	if b = b[:n]; n > 0 && b[0]>>4 == 6 {
		hlen = 40
	}
	if n < hlen+8 {
		return b
	}
	var src, dst [16]byte
	proto := b[6]
	v := uint8(6)
	if hlen == 20 {
		v, proto = 4, b[9]
		binary.BigEndian.PutUint16(b[2:], uint16(n))
		fixHeader(b)
		copy(src[12:], b[12:])
		copy(dst[12:], b[16:20])
	} else {
		binary.BigEndian.PutUint16(b[4:], uint16(n-40))
		copy(src[:], b[8:])
		copy(dst[:], b[24:40])
	}
	if proto == packet.ProtoUDP {
		u := b[hlen:]
		binary.BigEndian.PutUint16(u[4:], uint16(len(u)))
		u[6], u[7] = 0, 0
		binary.BigEndian.PutUint16(u[6:], ^packet.Sum(u, packet.PseudoSum(v, src, dst, proto, len(u))))
	}
	return b
}

// TestFlippedBitIsSilence: every bit of an IPv4 request is under a checksum.
func TestFlippedBitIsSilence(t *testing.T) {
	whole := udp(ends[0].client, ends[0].server, request(t).Raw)
	r := newResponder(t, outerV4)
	for i := range len(whole) * 8 {
		b := bytes.Clone(whole)
		b[i/8] ^= 0x80 >> (i % 8)
		if answers := exchange(r, b); len(answers) > 0 {
			t.Errorf("byte %d, bit %d flipped: answered", i/8, i%8)
		}
	}
}
