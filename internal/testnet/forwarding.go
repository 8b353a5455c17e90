package testnet

import (
	"net/netip"

	"culvert.dev/culvert/internal/packet"
)

// forwards are the static port forwards of a gateway, as a user or a port mapping protocol has set them up. What comes to
// an external port goes to an inside end, whoever sent it; what that end sends leaves by the external port.
type forwards struct {
	inner map[protoPort]netip.AddrPort
	port  map[protoEnd]uint16
}

type protoPort struct {
	proto uint8
	port  uint16
}

type protoEnd struct {
	proto uint8
	end   netip.AddrPort
}

// Forward sends what comes to a port of the first outer IPv4 address to an inside end; proto is packet.ProtoUDP or
// packet.ProtoTCP. It survives a Reboot, and SetWAN, until remove is called. Hosts inside do not reach it by the outer
// address.
func (g *Gateway) Forward(proto uint8, port uint16, to netip.AddrPort) (remove func()) {
	g.net.mu.Lock()
	defer g.net.mu.Unlock()
	f := &g.forwards
	if f.inner == nil {
		*f = forwards{map[protoPort]netip.AddrPort{}, map[protoEnd]uint16{}}
	}
	outer, inner := protoPort{proto, port}, protoEnd{proto, to}
	f.inner[outer], f.port[inner] = to, port
	return func() {
		g.net.mu.Lock()
		defer g.net.mu.Unlock()
		delete(f.inner, outer)
		delete(f.port, inner)
	}
}

// inbound translates a packet to a forwarded port.
func (f *forwards) inbound(p *packet.Packet, wan netip.Addr) bool {
	if p.DstAddr() != wan {
		return false
	}
	to, ok := f.inner[protoPort{p.Proto, p.DstPort}]
	if !ok {
		return false
	}
	k := p.Key
	k.Dst, k.DstPort = to.Addr().As16(), to.Port()
	packet.Rewrite(p, &k)
	return true
}

// outbound translates a packet from an inside end that has a forwarded port.
func (f *forwards) outbound(p *packet.Packet, wan netip.Addr) bool {
	port, ok := f.port[protoEnd{p.Proto, p.SrcAddrPort()}]
	if !ok || p.DstAddr() == wan {
		return false
	}
	k := p.Key
	k.Src, k.SrcPort = wan.As16(), port
	packet.Rewrite(p, &k)
	return true
}
