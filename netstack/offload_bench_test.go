package netstack

import (
	"encoding/binary"
	"fmt"
	"testing"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/header/parse"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/stack/gro"

	"culvert.dev/culvert/internal/packet"
)

// The stages between gVisor and WireGuard by themselves; what they are part of is in bench/hotpath.

// run45 is what a full UDP GSO message of the tunnel's brings: 45 segments of one connection, each an IP packet of 1420 bytes.
const (
	run45      = 45
	runSegment = 1380
)

// segmentRun are consecutive segments of a connection.
func segmentRun(n int) [][]byte {
	var out [][]byte
	for i := range n {
		b := append(tcpPacket(ap(peerV4, 40000), ap(outV4, 443), packet.TCPAck, uint32(1000+i*runSegment), 500), make([]byte, runSegment)...)
		binary.BigEndian.PutUint16(b[2:], uint16(len(b)))
		b[10], b[11] = 0, 0
		binary.BigEndian.PutUint16(b[10:], ^packet.Sum(b[:20], 0))
		finishTCP(b, 20)
		out = append(out, b)
	}
	return out
}

// collector is what packets are given to in place of gVisor's stack. It counts them, and their bytes.
type collector struct{ packets, bytes int }

func (c *collector) DeliverNetworkPacket(_ tcpip.NetworkProtocolNumber, pkt *stack.PacketBuffer) {
	c.packets++
	c.bytes += pkt.Size()
}
func (*collector) DeliverLinkPacket(tcpip.NetworkProtocolNumber, *stack.PacketBuffer) {}

// BenchmarkGRO puts 45 segments together and hands them over as one packet of gVisor's, copied out of WireGuard's buffers. ns/op is per
// segment. by=gvisor is gVisor's own receive offload on the same segments; a packet of its own for each is where that begins. by=floor is
// the copying.
func BenchmarkGRO(b *testing.B) {
	raw := segmentRun(run45)
	whole := 40 + run45*runSegment
	perRun := func(b *testing.B, fn func()) {
		b.SetBytes(int64(len(raw[0])))
		b.ReportAllocs()
		b.ResetTimer()
		for left := b.N; left > 0; left -= run45 {
			fn()
		}
		b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "packets/s")
	}
	b.Run("45x1420B/by=culvert", func(b *testing.B) {
		var c collector
		g := tcpGroups{n: &Net{link: &link{dispatcher: &c}}}
		var segs [run45]packet.Packet
		for i := range segs {
			if f := packet.Decode(&segs[i], raw[i]); f != packet.FaultNone {
				b.Fatal(f)
			}
		}
		perRun(b, func() {
			c = collector{}
			for i := range segs {
				g.add(&segs[i])
			}
			g.flush()
			if c.packets != 1 || c.bytes != whole {
				b.Fatalf("%d packets of %d bytes", c.packets, c.bytes)
			}
		})
	})
	b.Run("45x1420B/by=gvisor", func(b *testing.B) {
		var c collector
		var g gro.GRO
		g.Init(true)
		g.Dispatcher = &c
		perRun(b, func() {
			c = collector{}
			for _, s := range raw {
				pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithData(s)})
				pkt.NetworkProtocolNumber = header.IPv4ProtocolNumber
				pkt.RXChecksumValidated = true
				g.Enqueue(pkt)
				pkt.DecRef()
			}
			g.Flush()
			if c.bytes < run45*runSegment {
				b.Fatalf("%d packets of %d bytes", c.packets, c.bytes)
			}
		})
		b.ReportMetric(float64(c.packets), "packets-out")
	})
	b.Run("45x1420B/by=floor", func(b *testing.B) {
		out := make([]byte, 0, whole)
		perRun(b, func() {
			out = append(out[:0], raw[0]...)
			for _, s := range raw[1:] {
				out = append(out, s[40:]...)
			}
		})
	})
}

// BenchmarkGSO cuts a segment of 64 KiB into packets in WireGuard's buffers. ns/op is per packet. by=floor is the copying and the TCP
// checksum of the data, without any header.
func BenchmarkGSO(b *testing.B) {
	const payload = run45 * runSegment
	bufs, sizes := make([][]byte, BatchSize), make([]int, BatchSize)
	for i := range bufs {
		bufs[i] = make([]byte, 2048)
	}
	perSegment := func(b *testing.B, fn func()) {
		b.SetBytes(40 + runSegment)
		b.ReportAllocs()
		b.ResetTimer()
		for left := b.N; left > 0; left -= run45 {
			fn()
		}
		b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "packets/s")
	}
	b.Run(fmt.Sprintf("64KiB/%dB/by=culvert", 40+runSegment), func(b *testing.B) {
		pkt := largeSegment(payload)
		defer pkt.DecRef()
		d := &Device{n: &Net{cfg: Config{MTU: 1420}}}
		perSegment(b, func() {
			d.cur, d.off, d.seg = item{pkt: pkt}, 0, 0
			if n, done := d.emitSegments(bufs, sizes, 16, 0); n != run45 || !done {
				b.Fatalf("%d packets", n)
			}
		})
		var p packet.Packet
		if f := packet.Decode(&p, bufs[7][16:16+sizes[7]]); f != packet.FaultNone || !p.ChecksumOK() || p.Seq != 1000+7*runSegment {
			b.Errorf("packet 7 is %+v, %v", p, f)
		}
	})
	b.Run(fmt.Sprintf("64KiB/%dB/by=floor", 40+runSegment), func(b *testing.B) {
		data := make([]byte, payload)
		sum := uint16(0)
		perSegment(b, func() {
			for i := range run45 {
				out := bufs[i][56:][:runSegment]
				copy(out, data[i*runSegment:])
				sum += packet.Sum(out, 0)
			}
		})
		if sum != 0 {
			b.Error("zeroes do not sum to zero")
		}
	})
}

// largeSegment is what gVisor's TCP gives to a link that segments, with so many bytes of data.
func largeSegment(payload int) *stack.PacketBuffer {
	head := tcpPacket(ap(outV4, 443), ap(peerV4, 40000), packet.TCPAck, 1000, 500)
	binary.BigEndian.PutUint16(head[2:], uint16(len(head)+payload)) // by which gVisor finds the data
	buf := buffer.MakeWithData(head)
	data := buffer.MakeWithData(make([]byte, payload))
	buf.Merge(&data)
	pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buf})
	parse.IPv4(pkt)
	parse.TCP(pkt)
	pkt.GSOOptions = stack.GSO{Type: stack.GSOTCPv4, NeedsCsum: true, CsumOffset: 16, MSS: runSegment, L3HdrLen: 20, MaxSize: 65535}
	return pkt
}
