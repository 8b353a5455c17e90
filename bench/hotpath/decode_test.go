package hotpath

import (
	"net/netip"
	"testing"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"

	"culvert.dev/culvert/internal/packet"
)

// gvisorFacts are what a router wants to know of a packet, as gVisor's types have it.
type gvisorFacts struct {
	src, dst         tcpip.Address
	srcPort, dstPort uint16
	proto            tcpip.TransportProtocolNumber
	flags            header.TCPFlags
	seq, ack         uint32
	data             int // where the payload begins
}

// parse reads a packet by gVisor's header types, with the checks that these offer. As in culvert's, the checksum of the IPv4 header is one
// of them, that of the transport header is not.
func (f *gvisorFacts) parse(b []byte) bool {
	var l4 []byte
	switch header.IPVersion(b) {
	case 4:
		ip := header.IPv4(b)
		if !ip.IsValid(len(b)) || !ip.IsChecksumValid() || ip.More() || ip.FragmentOffset() != 0 {
			return false
		}
		f.src, f.dst, f.proto = ip.SourceAddress(), ip.DestinationAddress(), ip.TransportProtocol()
		l4 = ip.Payload()
	case 6:
		ip := header.IPv6(b)
		if !ip.IsValid(len(b)) {
			return false
		}
		f.src, f.dst, f.proto = ip.SourceAddress(), ip.DestinationAddress(), ip.TransportProtocol()
		l4 = ip.Payload()
	default:
		return false
	}
	f.data = len(b) - len(l4)
	switch f.proto {
	case header.TCPProtocolNumber:
		if len(l4) < header.TCPMinimumSize {
			return false
		}
		tcp := header.TCP(l4)
		size := int(tcp.DataOffset())
		if size < header.TCPMinimumSize || size > len(l4) {
			return false
		}
		f.srcPort, f.dstPort, f.flags = tcp.SourcePort(), tcp.DestinationPort(), tcp.Flags()
		f.seq, f.ack = tcp.SequenceNumber(), tcp.AckNumber()
		f.data += size
	case header.UDPProtocolNumber:
		if len(l4) < header.UDPMinimumSize {
			return false
		}
		udp := header.UDP(l4)
		if int(udp.Length()) > len(l4) || udp.Length() < header.UDPMinimumSize {
			return false
		}
		f.srcPort, f.dstPort = udp.SourcePort(), udp.DestinationPort()
		f.data += header.UDPMinimumSize
	}
	return true
}

func TestDecodersAgree(t *testing.T) {
	for _, s := range samples() {
		p := decode(t, s.b)
		var f gvisorFacts
		if !f.parse(s.b) {
			t.Fatalf("%s: gVisor finds it malformed", s.name)
		}
		src, _ := netip.AddrFromSlice(f.src.AsSlice())
		dst, _ := netip.AddrFromSlice(f.dst.AsSlice())
		if at(src, f.srcPort) != p.SrcAddrPort() || at(dst, f.dstPort) != p.DstAddrPort() || uint8(f.proto) != p.Proto ||
			uint8(f.flags) != p.TCPFlags || f.seq != p.Seq || f.ack != p.Ack || f.data != p.Data {
			t.Errorf("%s: culvert reads %+v, gVisor %+v", s.name, p, f)
		}
	}
}

func BenchmarkDecode(b *testing.B) {
	for _, s := range samples() {
		b.Run(s.name+"/by=culvert", func(b *testing.B) {
			b.SetBytes(int64(len(s.b)))
			b.ReportAllocs()
			var p packet.Packet
			for b.Loop() {
				if packet.Decode(&p, s.b) != packet.FaultNone {
					b.Fatal("malformed")
				}
			}
			rate(b, int64(b.N))
		})
		b.Run(s.name+"/by=gvisor", func(b *testing.B) {
			b.SetBytes(int64(len(s.b)))
			b.ReportAllocs()
			var f gvisorFacts
			for b.Loop() {
				if !f.parse(s.b) {
					b.Fatal("malformed")
				}
			}
			rate(b, int64(b.N))
		})
	}
}

// BenchmarkChecksum is what follows decoding: WireGuard vouches for who sent a packet, not for its checksums.
func BenchmarkChecksum(b *testing.B) {
	for _, s := range samples() {
		p := decode(b, s.b)
		b.Run(s.name+"/by=culvert", func(b *testing.B) {
			b.SetBytes(int64(len(s.b)))
			b.ReportAllocs()
			for b.Loop() {
				if !p.ChecksumOK() {
					b.Fatal("wrong")
				}
			}
			rate(b, int64(b.N))
		})
		b.Run(s.name+"/by=gvisor", func(b *testing.B) {
			var f gvisorFacts
			f.parse(s.b)
			b.SetBytes(int64(len(s.b)))
			b.ReportAllocs()
			for b.Loop() {
				if !f.checksumOK(s.b) {
					b.Fatal("wrong")
				}
			}
			rate(b, int64(b.N))
		})
	}
}

// checksumOK verifies the checksum of the transport header.
func (f *gvisorFacts) checksumOK(b []byte) bool {
	l4 := b[header.IPv6MinimumSize:]
	if header.IPVersion(b) == 4 {
		l4 = header.IPv4(b).Payload()
	}
	if f.proto == header.TCPProtocolNumber {
		tcp := header.TCP(l4)
		data := tcp.Payload()
		return tcp.IsChecksumValid(f.src, f.dst, checksumOf(data), uint16(len(data)))
	}
	udp := header.UDP(l4)
	return udp.IsChecksumValid(f.src, f.dst, checksumOf(udp.Payload()))
}
