package packet

import "encoding/binary"

// Fragmenter cuts one packet after the other into fragments (RFC 791 section 3.2, RFC 8200 section 4.5). The zero value is
// ready for Reset. It refers to the packet until Next has returned 0, and is not safe for concurrent use.
//
//	for f.Reset(pkt, mtu, id); f.Pending(); {
//		n := f.Next(buf)
//		send(buf[:n])
//	}
type Fragmenter struct {
	pkt  []byte
	mtu  int
	id   uint32
	hdr  int // length of the header that every fragment repeats; for IPv6 without the fragment header
	data int // offset in pkt of the first byte not sent yet
	base int // where the fragment data begins in pkt

	// For IPv6, where the next-header field that comes to name the fragment header stands; unused for IPv4.
	nextAt int
	// A packet that is a fragment itself: its own offset and whether more follow. IPv4 only.
	off  int
	more bool
	// IPv4 options that later fragments repeat.
	opts    [40]byte
	optsLen int
}

// Reset starts on the valid packet pkt. Fragments are at most mtu bytes; id is their identification, of which IPv4 uses
// the low 16 bits, and which must differ between datagrams of the same addresses that are under way at once. A packet that
// fits is handed out as it is. An IPv4 fragment is cut further under its own identification; the DF flag is cleared, so
// the caller looks at Packet.DF first. Nothing is pending for a packet that cannot be cut: malformed, an IPv6 fragment, or
// an mtu without room for 8 bytes of data.
func (f *Fragmenter) Reset(pkt []byte, mtu int, id uint32) {
	*f = Fragmenter{mtu: mtu, id: id}
	var p Packet
	if Decode(&p, pkt) != FaultNone {
		return
	}
	f.pkt = pkt[:ipLen(pkt)]
	if len(f.pkt) <= mtu {
		return
	}
	if p.V == 4 {
		f.hdr = int(pkt[0]&15) * 4
		f.off, f.more = p.FragOff, p.FragMore
		if p.Frag != Whole {
			f.id = p.FragID
		}
		f.optsLen = copiedOptions(f.opts[:], pkt[header4Len:f.hdr])
	} else {
		if p.Frag != Whole {
			f.pkt = nil
			return
		}
		f.hdr, f.nextAt = unfragmentable(f.pkt)
	}
	f.base, f.data = f.hdr, f.hdr
	if f.room(mtu) < 8 {
		f.pkt = nil
	}
}

// Pending reports whether Next has another fragment.
func (f *Fragmenter) Pending() bool { return f.pkt != nil }

// Next writes the next fragment to dst and returns its length, or 0 when there is none. dst should hold the mtu; with
// less, fragments become smaller, and with less than a header and 8 bytes the rest is given up.
func (f *Fragmenter) Next(dst []byte) (n int) {
	if f.pkt == nil {
		return 0
	}
	if len(f.pkt) <= f.mtu {
		if len(dst) >= len(f.pkt) {
			n = copy(dst, f.pkt)
		}
		f.pkt = nil
		return n
	}
	room := f.room(min(f.mtu, len(dst)))
	if room < 8 {
		f.pkt = nil
		return 0
	}
	rest := f.pkt[f.data:]
	last := len(rest) <= room
	if !last {
		rest = rest[:room&^7]
	}
	if f.pkt[0]>>4 == 4 {
		n = f.put4(dst, rest, last)
	} else {
		n = f.put6(dst, rest, last)
	}
	f.data += len(rest)
	if last {
		f.pkt = nil
	}
	return n
}

// room returns how much data fits into a fragment of size bytes.
func (f *Fragmenter) room(size int) int {
	switch {
	case f.pkt[0]>>4 == 6:
		return size - f.hdr - headerFragLen
	case f.data == f.base:
		return size - f.hdr
	}
	return size - header4Len - f.optsLen
}

func (f *Fragmenter) put4(dst, data []byte, last bool) int {
	hdr := f.hdr
	copy(dst, f.pkt[:header4Len])
	if f.data == f.base {
		copy(dst[header4Len:], f.pkt[header4Len:hdr])
	} else {
		hdr = header4Len + copy(dst[header4Len:], f.opts[:f.optsLen])
	}
	n := hdr + copy(dst[hdr:], data)
	dst[0] = 4<<4 | uint8(hdr/4)
	binary.BigEndian.PutUint16(dst[offTotal4:], uint16(n))
	binary.BigEndian.PutUint16(dst[offID4:], uint16(f.id))
	field := uint16((f.off + f.data - f.base) / 8)
	if !last || f.more {
		field |= flagMF4
	}
	binary.BigEndian.PutUint16(dst[offFrag4:], field)
	setHeaderSum(dst[:hdr])
	return n
}

func (f *Fragmenter) put6(dst, data []byte, last bool) int {
	copy(dst, f.pkt[:f.hdr])
	h := dst[f.hdr:]
	h[0], h[1] = dst[f.nextAt], 0
	dst[f.nextAt] = extFragment
	field := uint16(f.data - f.base)
	if !last {
		field |= flagMore6
	}
	binary.BigEndian.PutUint16(h[2:], field)
	binary.BigEndian.PutUint32(h[4:], f.id)
	n := f.hdr + headerFragLen + copy(h[headerFragLen:], data)
	binary.BigEndian.PutUint16(dst[offPayload6:], uint16(n-header6Len))
	return n
}

// ipLen returns the length that the header of a valid packet states.
func ipLen(b []byte) int {
	if b[0]>>4 == 4 {
		return int(binary.BigEndian.Uint16(b[offTotal4:]))
	}
	return header6Len + int(binary.BigEndian.Uint16(b[offPayload6:]))
}

// copiedOptions writes the options that RFC 791 section 3.1 wants in every fragment to dst, padded to whole words, and
// returns their length. The list has been checked by Decode.
func copiedOptions(dst, opts []byte) (n int) {
	const copied = 0x80
	for len(opts) > 0 && opts[0] != optEnd {
		size := 1
		if opts[0] != optNop {
			size = int(opts[1])
		}
		if opts[0]&copied != 0 {
			n += copy(dst[n:], opts[:size])
		}
		opts = opts[size:]
	}
	for n%4 != 0 {
		dst[n] = optEnd
		n++
	}
	return n
}

// unfragmentable returns the length of the headers that every fragment repeats (RFC 8200 section 4.5: up to and including
// the hop-by-hop or routing header), and the offset of the next-header field that ends them. The chain has been checked by
// Decode.
func unfragmentable(b []byte) (size, nextAt int) {
	size, nextAt = header6Len, offNext6
	at, next := header6Len, b[offNext6]
	for isExtension(next) {
		n := (int(b[at+1]) + 1) * 8
		if next != extDestOpts {
			size, nextAt = at+n, at
		}
		next, at = b[at], at+n
	}
	return size, nextAt
}
