package testnet

import (
	"net/netip"

	"culvert.dev/culvert/internal/packet"
)

// ICMP types that a host acts on: RFC 792, RFC 4443.
const (
	unreachable4  = 3
	needsFragment = 4 // code of unreachable4
	echoRequest4  = 8
	exceeded4     = 11
	unreachable6  = 1
	tooBig6       = 2
	exceeded6     = 3
	echoRequest6  = 128
)

// receive implements node: a packet has arrived that may be for h.
func (h *Host) receive(in *port, b []byte) {
	if h.router == nil {
		h.net.trace(h.name, "in", b)
	}
	var p packet.Packet
	if f := packet.Decode(&p, b); f != packet.FaultNone {
		h.net.trace(h.name, f.String(), b)
		return
	}
	if h.find(p.DstAddr()) < 0 && !p.DstAddr().IsMulticast() { // groups need no joining: ports tell them apart
		h.net.trace(h.name, "not for this host", b)
		return
	}
	if p.Frag != packet.Whole {
		whole, f := h.frags.Add(&p, h.net.time())
		if f != packet.FaultNone {
			h.net.trace(h.name, f.String(), b)
		}
		if whole == nil || packet.Decode(&p, whole) != packet.FaultNone {
			return
		}
	}
	if !p.ChecksumOK() {
		h.net.trace(h.name, packet.FaultBadChecksum.String(), b)
		return
	}
	switch p.Proto {
	case packet.ProtoUDP:
		h.receiveUDP(&p)
	case packet.ProtoTCP:
		h.receiveTCP(&p)
	case packet.ProtoICMPv4, packet.ProtoICMPv6:
		h.receiveICMP(&p)
	}
}

func (h *Host) receiveUDP(p *packet.Packet) {
	if s := h.socketFor(p.DstAddrPort()); s != nil {
		s.enqueue(datagram{from: p.SrcAddrPort(), b: append([]byte(nil), p.Buf[p.Data:]...)})
		return
	}
	h.unwanted(p)
}

// socketFor finds the socket that is bound to an address of the host: one bound to it alone, else one bound to all.
func (h *Host) socketFor(to netip.AddrPort) *Socket {
	if s := h.sockets[to]; s != nil {
		return s
	}
	if to.Addr().Is4() {
		if s := h.sockets[netip.AddrPortFrom(netip.IPv4Unspecified(), to.Port())]; s != nil {
			return s
		}
	}
	return h.sockets[netip.AddrPortFrom(netip.IPv6Unspecified(), to.Port())]
}

// wants reports whether a socket, stream or listener waits for a packet.
func (h *Host) wants(p *packet.Packet) bool {
	switch p.Proto {
	case packet.ProtoUDP:
		return h.socketFor(p.DstAddrPort()) != nil
	case packet.ProtoTCP:
		return h.streams[streamKey{p.DstAddrPort(), p.SrcAddrPort()}] != nil || h.listenerFor(p.DstAddrPort()) != nil
	case packet.ProtoICMPv4, packet.ProtoICMPv6:
		k, ok := packet.Quoted(p)
		return ok && k.Proto == packet.ProtoUDP && h.socketFor(k.SrcAddrPort()) != nil
	}
	return false
}

// unwanted answers what nobody here waits for.
func (h *Host) unwanted(p *packet.Packet) {
	h.net.trace(h.name, "nobody listens", p.Buf)
	if h.silent {
		return
	}
	var b []byte
	if p.Proto == packet.ProtoTCP {
		b = packet.AppendReset(nil, p)
	} else {
		b = packet.AppendICMPError(nil, p, p.DstAddr(), packet.PortUnreachable(p.V))
	}
	if len(b) > 0 {
		h.output(b)
	}
}

func (h *Host) receiveICMP(p *packet.Packet) {
	if p.V == 4 && p.ICMPType == echoRequest4 || p.V == 6 && p.ICMPType == echoRequest6 {
		if !h.silent {
			packet.EchoReplyInPlace(p.Buf, p)
			h.output(p.Buf)
		}
		return
	}
	k, ok := packet.Quoted(p)
	if !ok {
		return
	}
	e := packet.ICMP{Type: p.ICMPType, Code: p.ICMPCode, Info: info(p)}
	if mtu := announcedMTU(p.V, e); mtu > 0 {
		dst := k.DstAddr()
		h.pathMTU[dst] = pathMTU{min(mtu, h.mtuTo(k.SrcAddr(), dst)), h.net.now() + int64(pathMTULife)}
	}
	switch k.Proto {
	case packet.ProtoUDP:
		if s := h.socketFor(k.SrcAddrPort()); s != nil && s.reportErrors {
			s.enqueue(datagram{err: &ICMPError{From: p.SrcAddr(), To: k.DstAddrPort(), Family: int(p.V), ICMP: e}})
		}
	case packet.ProtoTCP:
		if s := h.streams[streamKey{k.SrcAddrPort(), k.DstAddrPort()}]; s != nil {
			s.icmp(p.V, e)
		}
	}
}

// info is bytes 4 to 8 of an ICMP message.
func info(p *packet.Packet) uint32 {
	m := p.Buf[p.L4:]
	return uint32(m[4])<<24 | uint32(m[5])<<16 | uint32(m[6])<<8 | uint32(m[7])
}

// announcedMTU is the MTU that a packet-too-big message tells, never less than the family's minimum; 0 for other messages.
func announcedMTU(v uint8, e packet.ICMP) int {
	switch {
	case v == 4 && e.Type == unreachable4 && e.Code == needsFragment:
		return max(int(e.Info&0xffff), 576)
	case v == 6 && e.Type == tooBig6:
		return max(int(e.Info), 1280)
	}
	return 0
}
