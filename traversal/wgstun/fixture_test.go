package wgstun

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"testing"

	pion "github.com/pion/stun/v3"

	"culvert.dev/culvert/internal/packet"
)

var (
	clientV4 = netip.MustParseAddr("100.64.1.7")
	clientV6 = netip.MustParseAddr("fd74:656c:696f:1::7")
	outerV4  = netip.MustParseAddrPort("203.0.113.5:40123")
	outerV6  = netip.MustParseAddrPort("[2001:db8::5]:40124")
)

// ends are the client's and the server's end of a request, in each family.
var ends = []struct {
	name           string
	client, server netip.AddrPort
}{
	{"IPv4", netip.AddrPortFrom(clientV4, 50000), netip.AddrPortFrom(ServerV4, Port)},
	{"IPv6", netip.AddrPortFrom(clientV6, 50000), netip.AddrPortFrom(ServerV6, Port)},
}

// always is an Origin that knows one answer.
func always(ep netip.AddrPort) func([]byte) (netip.AddrPort, bool) {
	return func([]byte) (netip.AddrPort, bool) { return ep, true }
}

// newResponder makes one that sees everybody at ep and answers any number of questions. Its Read belongs to exchange.
func newResponder(t testing.TB, ep netip.AddrPort) *Responder {
	r := NewResponder(ResponderConfig{Origin: always(ep), Rate: -1})
	t.Cleanup(func() { r.Close() })
	return r
}

// offset is the headroom that wireguard-go leaves in front of a packet.
const offset = 16

func write(r *Responder, pkts ...[]byte) {
	bufs := make([][]byte, len(pkts))
	for i, p := range pkts {
		bufs[i] = append(make([]byte, offset), p...)
	}
	r.Write(bufs, offset)
}

// exchange writes packets and returns the answers, which are there when Write returns.
func exchange(r *Responder, pkts ...[]byte) [][]byte {
	write(r, pkts...)
	return drain(r)
}

func drain(r *Responder) (out [][]byte) {
	bufs, sizes := [][]byte{make([]byte, 2048)}, make([]int, 1)
	for waiting(r) > 0 {
		if _, err := r.Read(bufs, sizes, offset); err != nil {
			return out
		}
		out = append(out, bytes.Clone(bufs[0][offset:offset+sizes[0]]))
	}
	return out
}

func waiting(r *Responder) int {
	r.queue.mu.Lock()
	defer r.queue.mu.Unlock()
	return r.queue.n
}

func udp(src, dst netip.AddrPort, data []byte) []byte {
	h := packet.MakeUDPHeader(src, dst)
	b := append(make([]byte, h.Len()), data...)
	h.Put(b, len(data), 64, 7)
	return b
}

func echo(src, dst netip.Addr, id, seq uint16, data []byte) []byte {
	n, typ := 28, uint8(8)
	if src.Is6() {
		n, typ = 48, 128
	}
	b := append(make([]byte, n), data...)
	packet.PutICMPEcho(b, src, dst, typ, id, seq, len(data), 64, 1)
	return b
}

// ipPacket puts any transport payload behind an IP header, its checksum being the caller's care.
func ipPacket(src, dst netip.Addr, proto uint8, l4 []byte) []byte {
	if src.Is4() {
		b := make([]byte, 20, 20+len(l4))
		b[0], b[8], b[9] = 0x45, 64, proto
		binary.BigEndian.PutUint16(b[2:], uint16(20+len(l4)))
		copy(b[12:], src.AsSlice())
		copy(b[16:], dst.AsSlice())
		fixHeader(b)
		return append(b, l4...)
	}
	b := make([]byte, 40, 40+len(l4))
	b[0], b[6], b[7] = 0x60, proto, 64
	binary.BigEndian.PutUint16(b[4:], uint16(len(l4)))
	copy(b[8:], src.AsSlice())
	copy(b[24:], dst.AsSlice())
	return append(b, l4...)
}

// fixHeader computes an IPv4 header checksum anew.
func fixHeader(b []byte) {
	n := int(b[0]&15) * 4
	b[10], b[11] = 0, 0
	binary.BigEndian.PutUint16(b[10:], ^packet.Sum(b[:n], 0))
}

// request is a Binding request as a stock STUN library makes it.
func request(t testing.TB) *pion.Message {
	t.Helper()
	m, err := pion.Build(pion.TransactionID, pion.BindingRequest, pion.NewSoftware("test"), pion.Fingerprint)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// decode checks what holds for every packet that may leave: it is well formed and has correct checksums.
func decode(t testing.TB, b []byte) *packet.Packet {
	t.Helper()
	var p packet.Packet
	if f := packet.Decode(&p, b); f != packet.FaultNone {
		t.Fatalf("malformed answer: %v: %x", f, b)
	}
	if !p.ChecksumOK() || len(p.Buf) != len(b) {
		t.Fatalf("the answer's checksum or length is wrong: %x", b)
	}
	return &p
}

// mapped reads the address out of a STUN answer with a stock library, and checks that it answers req.
func mapped(t testing.TB, msg []byte, req *pion.Message) netip.AddrPort {
	t.Helper()
	m := &pion.Message{Raw: msg}
	if err := m.Decode(); err != nil {
		t.Fatalf("not a STUN message: %v", err)
	}
	if m.Type != pion.BindingSuccess || m.TransactionID != req.TransactionID {
		t.Fatalf("got %v, want a success response to %x", m, req.TransactionID)
	}
	var a pion.XORMappedAddress
	if err := a.GetFrom(m); err != nil {
		t.Fatal(err)
	}
	addr, _ := netip.AddrFromSlice(a.IP)
	return netip.AddrPortFrom(addr.Unmap(), uint16(a.Port))
}
