package tunnel

import (
	"encoding/binary"
	"unsafe"

	"golang.org/x/sys/unix"
)

// mmsghdr is struct mmsghdr; Go pads it as C does.
type mmsghdr struct {
	hdr unix.Msghdr
	n   uint32
}

// control holds the control messages of one datagram: the local address and the segment size. The largest pair takes 64
// bytes; the rest is room for what a kernel may add.
type control struct {
	_ [0]uint64 // control messages are aligned to a word
	b [128]byte
}

// put appends a control message at offset at and returns the offset behind it.
func (c *control) put(at int, level, typ int32, data []byte) int {
	h := (*unix.Cmsghdr)(unsafe.Pointer(&c.b[at]))
	h.Level, h.Type = level, typ
	h.SetLen(unix.CmsgLen(len(data)))
	copy(c.b[at+unix.CmsgLen(0):], data)
	return at + unix.CmsgSpace(len(data))
}

// putSegment asks the kernel to cut the message into datagrams of size bytes.
func (c *control) putSegment(at int, size uint16) int {
	var b [2]byte
	binary.NativeEndian.PutUint16(b[:], size)
	return c.put(at, unix.IPPROTO_UDP, unix.UDP_SEGMENT, b[:])
}

// putSource makes the datagram leave from src.
func (c *control) putSource(at int, v4 bool, src *source) int {
	if v4 {
		info := unix.Inet4Pktinfo{Ifindex: int32(src.ifindex), Spec_dst: [4]byte(src.addr[:4])}
		b := (*[unix.SizeofInet4Pktinfo]byte)(unsafe.Pointer(&info))
		return c.put(at, unix.IPPROTO_IP, unix.IP_PKTINFO, b[:])
	}
	info := unix.Inet6Pktinfo{Addr: src.addr, Ifindex: src.ifindex}
	b := (*[unix.SizeofInet6Pktinfo]byte)(unsafe.Pointer(&info))
	return c.put(at, unix.IPPROTO_IPV6, unix.IPV6_PKTINFO, b[:])
}

// parse reads the first n bytes as received control messages. segment is zero unless the message is a run of datagrams.
func (c *control) parse(n int) (src source, segment int) {
	rest := c.b[:min(n, len(c.b))]
	for len(rest) >= unix.SizeofCmsghdr {
		h, data, next, err := unix.ParseOneSocketControlMessage(rest)
		if err != nil {
			break
		}
		switch {
		case h.Level == unix.IPPROTO_IP && h.Type == unix.IP_PKTINFO && len(data) >= unix.SizeofInet4Pktinfo:
			src.ifindex = binary.NativeEndian.Uint32(data)
			copy(src.addr[:4], data[4:8])
		case h.Level == unix.IPPROTO_IPV6 && h.Type == unix.IPV6_PKTINFO && len(data) >= unix.SizeofInet6Pktinfo:
			copy(src.addr[:], data)
			src.ifindex = binary.NativeEndian.Uint32(data[16:])
		case h.Level == unix.IPPROTO_UDP && h.Type == unix.UDP_GRO && len(data) >= 4:
			segment = int(int32(binary.NativeEndian.Uint32(data)))
		}
		rest = next
	}
	return src, max(segment, 0)
}
