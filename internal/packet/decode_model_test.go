package packet

import (
	"bytes"
	"math/rand/v2"
	"net/netip"
	"testing"

	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
)

// model is the slow and obvious decoder that Decode is compared with. It takes IP headers apart by golang.org/x/net and
// consumes the rest from the front.
type model struct {
	src, dst     netip.Addr
	proto        int
	sport, dport int
	l4, data     int
	size         int // of Buf
	frag         Frag
	off          int
	more         bool
	id           uint32
	ttl, tos     int
	df, plain    bool
	flags        int
	seq, ack     uint32
	typ, code    int
}

func number(b []byte) (n int) {
	for _, c := range b {
		n = n<<8 | int(c)
	}
	return n
}

// decodeModel returns false for anything that must be refused.
func decodeModel(b []byte) (m model, ok bool) {
	if len(b) == 0 {
		return m, false
	}
	var proto int
	var rest []byte // behind the headers read so far
	switch b[0] >> 4 {
	case 4:
		if len(b) < 20 {
			return m, false
		}
		ihl, total := int(b[0]&15)*4, number(b[2:4])
		if ihl < 20 || total < ihl || total > len(b) || naiveSum(b[:ihl], 0) != 0xffff {
			return m, false
		}
		h, err := ipv4.ParseHeader(b)
		if err != nil {
			return m, false
		}
		if !modelOptions(h.Options) {
			return m, false
		}
		m.src, _ = netip.AddrFromSlice(h.Src.To4())
		m.dst, _ = netip.AddrFromSlice(h.Dst.To4())
		m.ttl, m.tos, proto = h.TTL, h.TOS, h.Protocol
		m.df = h.Flags&ipv4.DontFragment != 0
		m.plain = h.Len == 20
		b = b[:h.TotalLen]
		rest = b[h.Len:]
		if more := h.Flags&ipv4.MoreFragments != 0; more || h.FragOff > 0 {
			m.plain = false
			m.off, m.more, m.id = h.FragOff*8, more, uint32(h.ID)
			if m.frag = LaterFrag; m.off == 0 {
				m.frag = FirstFrag
			}
		}
	case 6:
		h, err := ipv6.ParseHeader(b)
		if err != nil || len(b) < 40+h.PayloadLen {
			return m, false
		}
		m.src, _ = netip.AddrFromSlice(h.Src.To16())
		m.dst, _ = netip.AddrFromSlice(h.Dst.To16())
		m.ttl, m.tos, proto = h.HopLimit, h.TrafficClass, h.NextHeader
		m.df = true
		m.plain = proto != 0 && proto != 43 && proto != 44 && proto != 60
		b = b[:40+h.PayloadLen]
		if proto, rest, ok = m.chain(proto, b[40:]); !ok {
			return m, false
		}
	default:
		return m, false
	}
	m.proto, m.size = proto, len(b)
	m.l4 = len(b) - len(rest)
	m.data = m.l4
	if m.src.Is4() && m.frag != Whole && !modelFragment(m.off, m.more, rest) {
		return m, false
	}
	if m.frag == LaterFrag {
		return m, proto != 6 || m.off >= 20
	}
	return m, m.transport(rest)
}

func modelFragment(off int, more bool, data []byte) bool {
	return len(data) > 0 && off+len(data) <= 65535 && (!more || len(data)%8 == 0)
}

func modelOptions(o []byte) bool {
	for len(o) > 0 && o[0] != 0 {
		if o[0] == 1 {
			o = o[1:]
			continue
		}
		if o[0] == 131 || o[0] == 137 || len(o) == 1 || o[1] < 2 || int(o[1]) > len(o) {
			return false
		}
		o = o[o[1]:]
	}
	return true
}

// chain consumes extension headers.
func (m *model) chain(next int, b []byte) (proto int, rest []byte, ok bool) {
	seen := []int{}
	for next == 0 || next == 43 || next == 44 || next == 60 {
		if len(b) < 8 || len(seen) == 8 {
			return 0, nil, false
		}
		size := 8
		if next != 44 {
			size += 8 * int(b[1])
		}
		if size > len(b) {
			return 0, nil, false
		}
		if next == 0 && len(seen) > 0 || next == 43 && (b[2] == 0 || b[3] != 0) {
			return 0, nil, false
		}
		seen = append(seen, next)
		if next == 44 {
			for _, s := range seen[:len(seen)-1] {
				if s == 44 {
					return 0, nil, false
				}
			}
			m.df = false
			m.off, m.more, m.id = number(b[2:4])/8*8, b[3]&1 != 0, uint32(number(b[4:8]))
			if m.frag = LaterFrag; m.off == 0 {
				m.frag = FirstFrag
			}
			if !modelFragment(m.off, m.more, b[8:]) {
				return 0, nil, false
			}
		}
		next, b = int(b[0]), b[size:]
		if m.frag == LaterFrag {
			break
		}
	}
	return next, b, true
}

func (m *model) transport(b []byte) bool {
	v4 := m.src.Is4()
	switch m.proto {
	case 6:
		if len(b) < 20 || int(b[12]>>4) < 5 || int(b[12]>>4)*4 > len(b) {
			return false
		}
		m.sport, m.dport = number(b[:2]), number(b[2:4])
		m.seq, m.ack, m.flags = uint32(number(b[4:8])), uint32(number(b[8:12])), int(b[13])
		m.data += int(b[12]>>4) * 4
	case 17:
		if len(b) < 8 || number(b[4:6]) < 8 {
			return false
		}
		if m.frag == Whole {
			if number(b[4:6]) > len(b) {
				return false
			}
			m.size -= len(b) - number(b[4:6])
		}
		m.sport, m.dport = number(b[:2]), number(b[2:4])
		m.data += 8
	case 1, 58:
		if v4 != (m.proto == 1) || len(b) < 8 {
			return false
		}
		m.typ, m.code = int(b[0]), int(b[1])
		m.data += 8
		if v4 && m.typ == 8 || !v4 && m.typ == 128 {
			m.sport = number(b[4:6])
		}
		if v4 && m.typ == 0 || !v4 && m.typ == 129 {
			m.dport = number(b[4:6])
		}
	}
	return true
}

// compareWithModel fails the test if Decode and the model do not agree on b, or if an accepted packet has an offset
// outside its buffer.
func compareWithModel(t *testing.T, b []byte) {
	t.Helper()
	p := Packet{Key: Key{Peer: 3}, FragOff: 5, FragMore: true, FragID: 5, Seq: 5, Ack: 5, TCPFlags: 5, ICMPType: 5, ICMPCode: 5}
	before := bytes.Clone(b)
	f := Decode(&p, b)
	if !bytes.Equal(b, before) {
		t.Fatalf("Decode changed its input")
	}
	m, ok := decodeModel(b)
	if (f == FaultNone) != ok {
		t.Fatalf("Decode: %v; the model takes it: %v\n% x", f, ok, b)
	}
	if !ok {
		return
	}
	if p.L4 > p.Data || p.Data > len(p.Buf) || len(p.Buf) > len(b) {
		t.Fatalf("offsets out of order: L4 %d, Data %d, Buf %d of %d\n% x", p.L4, p.Data, len(p.Buf), len(b), b)
	}
	got := model{
		src: p.SrcAddr(), dst: p.DstAddr(), proto: int(p.Proto), sport: int(p.SrcPort), dport: int(p.DstPort), l4: p.L4, data: p.Data,
		size: len(p.Buf), frag: p.Frag, off: p.FragOff, more: p.FragMore, id: p.FragID, ttl: int(p.TTL), tos: int(p.TOS), df: p.DF,
		plain: p.Plain, flags: int(p.TCPFlags), seq: p.Seq, ack: p.Ack, typ: int(p.ICMPType), code: int(p.ICMPCode),
	}
	if got != m {
		t.Fatalf("Decode %+v\nmodel  %+v\n% x", got, m, b)
	}
	if p.Peer != 0 {
		t.Fatalf("Peer %d is left over", p.Peer)
	}
	p.ChecksumOK() // must not read out of bounds
}

func FuzzDecode(f *testing.F) {
	for _, b := range pathPackets() {
		f.Add(b, false)
	}
	f.Fuzz(func(t *testing.T, b []byte, fix bool) {
		if fix && len(b) >= 20 && b[0]>>4 == 4 && int(b[0]&15)*4 <= len(b) && b[0]&15 >= 5 {
			fixHeader4(b) // a fuzzer does not find checksums
		}
		compareWithModel(t, b)
	})
}

// Random damage to good packets reaches the deep cases without a fuzzer.
func TestDecodeAgreesWithModelOnDamagedPackets(t *testing.T) {
	r := rand.New(rand.NewPCG(7, 8))
	seeds := pathPackets()
	interesting := []byte{0, 1, 4, 6, 8, 17, 43, 44, 58, 59, 60, 0x45, 0x46, 0x60, 0x80, 0xff}
	accepted := 0
	for _, name := range []string{"tcp4", "options4", "ext6", "first4", "later4", "first6", "later6", "atomic6", "error6", "udp6", "surplus4"} {
		for range 4000 {
			b := bytes.Clone(seeds[name])
			for range 1 + r.IntN(3) {
				at := r.IntN(min(len(b), 100))
				b[at] = interesting[r.IntN(len(interesting))]
				if r.IntN(3) == 0 {
					b[at] = byte(r.Uint32())
				}
			}
			if b[0]>>4 == 4 && b[0]&15 >= 5 && int(b[0]&15)*4 <= len(b) {
				fixHeader4(b)
			}
			compareWithModel(t, b)
			var p Packet
			if Decode(&p, b) == FaultNone {
				accepted++
			}
		}
	}
	if accepted < 10000 {
		t.Errorf("only %d packets survived the damage: the test does not test much", accepted)
	}
}
