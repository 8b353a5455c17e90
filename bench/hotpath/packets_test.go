package hotpath

import (
	"encoding/binary"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"

	"culvert.dev/culvert/internal/packet"
)

// The mesh of the benchmarks: the node, and its peers 1 and 2.
var (
	nodeAddr = netip.MustParseAddr("100.64.9.1")
	peerAddr = netip.MustParseAddr("100.64.9.2")
	internet = netip.MustParseAddr("198.51.100.7")

	peerAddr6 = netip.MustParseAddr("fd7a:9::2")
	internet6 = netip.MustParseAddr("2001:db8::7")
)

var update = flag.Bool("update", false, "write testdata/packets.txt anew")

// mtu is the tunnel's, and the size of full packets.
const mtu = 1420

func at(a netip.Addr, port uint16) netip.AddrPort { return netip.AddrPortFrom(a, port) }

// udpPacket is a datagram that makes an IP packet of size bytes.
func udpPacket(src, dst netip.AddrPort, size int) []byte {
	h := packet.MakeUDPHeader(src, dst)
	b := make([]byte, size)
	pattern(b[h.Len():])
	h.Put(b, size-h.Len(), 64, 7)
	return b
}

// tcpPacket is a segment, without options, that makes an IP packet of size bytes.
func tcpPacket(src, dst netip.AddrPort, flags uint8, seq, ack uint32, size int) []byte {
	b := make([]byte, size)
	v, l4 := uint8(4), 20
	s, d := src.Addr().As16(), dst.Addr().As16()
	if src.Addr().Is6() {
		v, l4 = 6, 40
		b[0], b[6], b[7] = 0x60, packet.ProtoTCP, 64
		binary.BigEndian.PutUint16(b[4:], uint16(size-l4))
		copy(b[8:], s[:])
		copy(b[24:], d[:])
	} else {
		b[0], b[8], b[9] = 0x45, 64, packet.ProtoTCP
		binary.BigEndian.PutUint16(b[2:], uint16(size))
		copy(b[12:], s[12:])
		copy(b[16:], d[12:])
		binary.BigEndian.PutUint16(b[10:], ^packet.Sum(b[:l4], 0))
	}
	t := b[l4:]
	binary.BigEndian.PutUint16(t, src.Port())
	binary.BigEndian.PutUint16(t[2:], dst.Port())
	binary.BigEndian.PutUint32(t[4:], seq)
	binary.BigEndian.PutUint32(t[8:], ack)
	t[12], t[13] = 5<<4, flags
	binary.BigEndian.PutUint16(t[14:], 65535)
	pattern(t[20:])
	binary.BigEndian.PutUint16(t[16:], ^packet.Sum(t, packet.PseudoSum(v, s, d, packet.ProtoTCP, len(t))))
	return b
}

func pattern(b []byte) {
	for i := range b {
		b[i] = byte(i*7 + i>>8)
	}
}

// samples are one packet of each kind, by name.
func samples() []sample {
	return []sample{
		{"udp4", udpPacket(at(peerAddr, 40000), at(internet, 5001), 64)},
		{"udp6", udpPacket(at(peerAddr6, 40000), at(internet6, 5001), 64)},
		{"tcp4", tcpPacket(at(peerAddr, 40000), at(internet, 5001), packet.TCPAck, 100, 200, mtu)},
		{"tcp6", tcpPacket(at(peerAddr6, 40000), at(internet6, 5001), packet.TCPAck, 100, 200, mtu)},
	}
}

type sample struct {
	name string
	b    []byte
}

// decode decodes a packet that is good.
func decode(t testing.TB, b []byte) packet.Packet {
	t.Helper()
	var p packet.Packet
	if f := packet.Decode(&p, b); f != packet.FaultNone {
		t.Fatalf("decode: %v", f)
	}
	if !p.ChecksumOK() {
		t.Fatal("decode: the checksum is wrong")
	}
	return p
}

// buffers are n packets of the same bytes, with room in front of and behind them as WireGuard has it.
func buffers(n int, b []byte) [][]byte {
	all := make([][]byte, n)
	for i := range all {
		all[i] = append(make([]byte, headroom, headroom+len(b)+headroom), b...)
	}
	return all
}

// headroom is what WireGuard leaves free in front of a packet.
const headroom = 16

// rate reports how many packets were handled a second, given how many there were.
func rate(b *testing.B, packets int64) {
	b.ReportMetric(float64(packets)/b.Elapsed().Seconds(), "packets/s")
}

// The module in baseline reads the samples from a file, as it cannot share code with this one.
func TestSamplesAreThoseOfTheBaseline(t *testing.T) {
	var want strings.Builder
	for _, s := range samples() {
		fmt.Fprintf(&want, "%s %x\n", s.name, s.b)
	}
	got, err := os.ReadFile("testdata/packets.txt")
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	if string(got) == want.String() {
		return
	}
	if *update {
		if err := os.WriteFile("testdata/packets.txt", []byte(want.String()), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	t.Error("testdata/packets.txt is not what the benchmarks use: run go test -run Samples -update ./bench/hotpath")
}
