package packet

import (
	"net/netip"
	"strconv"
	"testing"
)

func BenchmarkDecode(b *testing.B) {
	packets := pathPackets()
	for _, name := range []string{"tcp4", "tcp6", "udp4", "udp6", "icmp4", "ext6", "later4"} {
		b.Run(name, func(b *testing.B) {
			buf := packets[name]
			var p Packet
			for b.Loop() {
				if Decode(&p, buf) != FaultNone {
					b.Fatal(name)
				}
			}
		})
	}
}

func BenchmarkSum(b *testing.B) {
	for _, n := range []int{20, 64, 576, 1420, 65535} {
		b.Run(strconv.Itoa(n), func(b *testing.B) {
			buf := pattern(n)
			b.SetBytes(int64(n))
			var s uint16
			for b.Loop() {
				s += Sum(buf, 0)
			}
			_ = s
		})
	}
}

func BenchmarkUDPHeaderPut(b *testing.B) {
	buf := make([]byte, 1500)
	for _, ends := range [][2]netip.Addr{{b4, a4}, {b6, a6}} {
		h := MakeUDPHeader(netip.AddrPortFrom(ends[0], 53), netip.AddrPortFrom(ends[1], 40000))
		for _, n := range []int{64, 1372} {
			b.Run(strconv.Itoa(h.Len())+"+"+strconv.Itoa(n), func(b *testing.B) {
				b.SetBytes(int64(n))
				for b.Loop() {
					h.Put(buf, n, 64, 1)
				}
			})
		}
	}
}

func BenchmarkChecksumOK(b *testing.B) {
	p := must(b, ip4(a4, b4, 6, nil, 1, 0, tcp(a4, b4, TCPAck, nil, pattern(1380))))
	b.SetBytes(int64(len(p.Buf)))
	for b.Loop() {
		p.ChecksumOK()
	}
}

func BenchmarkReassemble(b *testing.B) {
	whole := ip4(a4, b4, 17, nil, 7, 0, udp(a4, b4, pattern(8000)))
	frags := cutUp2(whole, 1420)
	re := NewReassembler(ReassemblerConfig{})
	b.SetBytes(int64(len(whole)))
	b.ReportAllocs()
	for b.Loop() {
		for _, f := range frags {
			var p Packet
			Decode(&p, f)
			re.Add(&p, start)
		}
	}
}
