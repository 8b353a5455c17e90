package packet

import "encoding/binary"

// IPv6 next-header values that Decode walks over (RFC 8200 section 4).
const (
	extHopByHop = 0
	extRouting  = 43
	extFragment = 44
	extDestOpts = 60

	headerFragLen = 8
	maskOffset6   = 0xfff8 // in bytes, as it stands
	flagMore6     = 1
)

// maxExtensions bounds the walk; RFC 8200 section 4.1 knows an order with seven, and senders use one or two.
const maxExtensions = 8

func (p *Packet) decode6(b []byte) Fault {
	if len(b) < header6Len {
		return FaultShort
	}
	total := header6Len + int(binary.BigEndian.Uint16(b[offPayload6:]))
	if total > len(b) {
		return FaultBadIPLength
	}
	b = b[:total]
	p.V = 6
	p.Buf = b
	p.L4 = header6Len
	p.TOS = b[0]<<4 | b[1]>>4
	p.TTL = b[offHopLimit6]
	p.Proto = b[offNext6]
	p.Src = [16]byte(b[offSrc6:])
	p.Dst = [16]byte(b[offDst6:])
	p.DF = true
	p.Plain = true
	if isExtension(p.Proto) {
		p.Plain = false
		if f := p.extensions(b); f != FaultNone {
			return f
		}
	}
	return p.transport()
}

func isExtension(next uint8) bool {
	return next == extHopByHop || next == extRouting || next == extFragment || next == extDestOpts
}

// extensions moves L4 and Proto behind the extension headers. It stops at a header that it does not know, which then is
// the packet's protocol, and behind the fragment header of a later fragment, whose data is not a header.
func (p *Packet) extensions(b []byte) Fault {
	fragmented := false
	for n := 0; isExtension(p.Proto); n++ {
		h := b[p.L4:]
		if n == maxExtensions {
			return FaultBadExtension
		}
		if len(h) < 8 {
			return p.cut(FaultBadExtension)
		}
		size := (int(h[1]) + 1) * 8
		switch p.Proto {
		case extHopByHop:
			if p.L4 != header6Len { // RFC 8200 section 4.1: only directly behind the IPv6 header
				return FaultBadExtension
			}
		case extRouting:
			// While segments are left, the address in the header is not the destination; type 0 is refused in any case
			// (RFC 5095).
			if kind, left := h[2], h[3]; kind == 0 || left != 0 {
				return FaultBadExtension
			}
		case extFragment:
			if fragmented {
				return FaultBadExtension
			}
			fragmented = true
			size = headerFragLen
		}
		if size > len(h) {
			return p.cut(FaultBadExtension)
		}
		isFrag := p.Proto == extFragment
		p.Proto = h[0]
		p.L4 += size
		if !isFrag {
			continue
		}
		p.DF = false
		p.FragID = binary.BigEndian.Uint32(h[4:])
		field := binary.BigEndian.Uint16(h[2:])
		if f := p.fragment(int(field&maskOffset6), field&flagMore6 != 0); f != FaultNone || p.Frag == LaterFrag {
			return f
		}
	}
	return FaultNone
}
