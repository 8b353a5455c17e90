package hotpath

import (
	"encoding/binary"
	"net/netip"
	"sync/atomic"
	"testing"

	"culvert.dev/culvert/internal/packet"
	"culvert.dev/culvert/netstack"
)

// segmenter is a peer's TCP connection without a peer's TCP: packets written straight to the exit's device, and read from it. Nothing is
// lost in between, so that it knows no repetition; it allocates nothing once the connection stands, and costs little. It follows the
// window, and acknowledges what one call of Read has brought by one segment.
type segmenter struct {
	dev      *netstack.Device
	src, dst netip.AddrPort
	bufs     [][]byte // to be written
	in       [][]byte // read
	sizes    []int

	seq    uint32
	next   atomic.Uint32 // what is expected of the other end
	acked  atomic.Uint32 // of what was sent
	window atomic.Uint32 // bytes
	shift  uint8         // of the other end's window
	moved  chan struct{} // one fits: acked or window have changed
}

const (
	fullSegment = mtu - 40
	scale       = 9 // of the own window, which is then 32 MiB
)

// connect performs the handshake with the exit, which connects to dst.
func connect(t testing.TB, n *netstack.Net, dst netip.AddrPort) *segmenter {
	t.Helper()
	s := &segmenter{
		dev: n.Device(), src: at(peerAddr, 40000), dst: dst, seq: 1000, moved: make(chan struct{}, 1),
		in: buffers(netstack.BatchSize, make([]byte, mtu+64)), sizes: make([]int, netstack.BatchSize),
	}
	syn := tcpPacket(s.src, dst, packet.TCPSyn, s.seq, 0, 40)
	syn = append(syn, 2, 4, fullSegment>>8, fullSegment&0xff, 3, 3, scale, 0) // MSS, window scale
	binary.BigEndian.PutUint16(syn[2:], uint16(len(syn)))
	syn[32] = 7 << 4
	resum(syn, len(syn))
	s.dev.Write(buffers(1, syn), headroom)
	k, err := s.dev.Read(s.in, s.sizes, headroom)
	if err != nil || k != 1 {
		t.Fatalf("%d answers to the SYN, %v", k, err)
	}
	p := decode(t, s.in[0][headroom:headroom+s.sizes[0]])
	if p.TCPFlags != packet.TCPSyn|packet.TCPAck {
		t.Fatalf("the SYN was answered by flags %#x", p.TCPFlags)
	}
	s.seq++
	s.next.Store(p.Seq + 1)
	s.acked.Store(s.seq)
	s.window.Store(uint32(binary.BigEndian.Uint16(p.Buf[p.L4+14:])))
	s.shift = windowScale(p.Buf[p.L4+20 : p.Data])
	s.bufs = buffers(netstack.BatchSize, make([]byte, mtu))
	for i := range s.bufs {
		copy(s.bufs[i][headroom:], tcpPacket(s.src, dst, packet.TCPAck, s.seq, p.Seq+1, 40))
	}
	s.write(s.bufs[:1], 0)
	return s
}

// windowScale finds the option in a SYN (RFC 7323 section 2.2); zero without one.
func windowScale(options []byte) uint8 {
	for len(options) > 1 {
		size := int(options[1])
		switch options[0] {
		case 0:
			return 0
		case 1:
			size = 1
		case 3:
			return options[2]
		}
		options = options[size:]
	}
	return 0
}

// resum sets the checksums of an IPv4 segment whose bytes behind upTo are zero.
func resum(b []byte, upTo int) {
	b[10], b[11], b[36], b[37] = 0, 0, 0, 0
	binary.BigEndian.PutUint16(b[10:], ^packet.Sum(b[:20], 0))
	var pseudo [12]byte
	copy(pseudo[:8], b[12:20])
	pseudo[9] = packet.ProtoTCP
	binary.BigEndian.PutUint16(pseudo[10:], uint16(len(b)-20))
	binary.BigEndian.PutUint16(b[36:], ^packet.Sum(b[20:upTo], packet.Sum(pseudo[:], 0)))
}

// write sends segments of size zero bytes each.
func (s *segmenter) write(bufs [][]byte, size int) {
	for i := range bufs {
		bufs[i] = bufs[i][:headroom+40+size]
		b := bufs[i][headroom:]
		binary.BigEndian.PutUint16(b[2:], uint16(len(b)))
		binary.BigEndian.PutUint32(b[24:], s.seq)
		binary.BigEndian.PutUint32(b[28:], s.next.Load())
		resum(b, 40)
		s.seq += uint32(size)
	}
	s.dev.Write(bufs, headroom)
}

// send writes full segments, in batches as large as the window permits.
func (s *segmenter) send(segments int) {
	for segments > 0 {
		room := int(int32(s.acked.Load()+s.window.Load()-s.seq)) / fullSegment
		if room <= 0 {
			<-s.moved
			continue
		}
		k := min(segments, room, len(s.bufs))
		s.write(s.bufs[:k], fullSegment)
		segments -= k
	}
}

// note takes in the k packets that were read. It returns how many bore data that comes next.
func (s *segmenter) note(k int) (segments int) {
	for i := range k {
		l4 := s.in[i][headroom+20 : headroom+s.sizes[i]]
		if data := len(l4) - int(l4[12]>>4)*4; data > 0 && binary.BigEndian.Uint32(l4[4:]) == s.next.Load() {
			s.next.Add(uint32(data))
			segments++
		}
		s.acked.Store(binary.BigEndian.Uint32(l4[8:]))
		s.window.Store(uint32(binary.BigEndian.Uint16(l4[14:])) << s.shift)
	}
	select {
	case s.moved <- struct{}{}:
	default:
	}
	return segments
}
