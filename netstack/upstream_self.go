package netstack

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"syscall"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"

	"culvert.dev/culvert/internal/packet"
	"culvert.dev/culvert/nat"
)

// The node's own traffic through the upstream comes from a gVisor stack of its own, which has nothing but dummy addresses. Its
// packets are flows of nat.PeerSelf, translated as those of any peer; what comes out of the tunnel reaches no other stack.
var (
	upstreamSelf4 = netip.AddrFrom4([4]byte{192, 0, 0, 2})        // RFC 6333 section 5.7: the inner end of a tunnel
	upstreamSelf6 = netip.AddrFrom16([16]byte{0: 0x01, 15: 0x02}) // RFC 6666: never on any wire
)

func (u *Upstream) openStack() (err error) {
	u.link = &upstreamLink{link: link{mtu: uint32(min(u.cfg.MTU, u.n.cfg.MTU))}, u: u}
	u.stack, err = newStack(u.link, []netip.Addr{upstreamSelf4, upstreamSelf6})
	return err
}

// Dial connects to an address and port behind the tunnel. network is "udp" or "tcp"; a UDP connection takes datagrams from that
// end only. The connection ends with the Upstream.
func (u *Upstream) Dial(ctx context.Context, network, address string) (net.Conn, error) {
	to, err := netip.ParseAddrPort(address)
	if err != nil {
		return nil, fmt.Errorf("dial %s through the upstream: %w", address, err)
	}
	if _, refused := u.refuses(to.Addr(), u.n.table.Now()); refused {
		return nil, fmt.Errorf("dial %s through the upstream: %w", address, syscall.ENETUNREACH)
	}
	remote, proto := fullAddress(to)
	from := upstreamSelf6
	if to.Addr().Is4() {
		from = upstreamSelf4
	}
	var c net.Conn
	switch network {
	case "tcp":
		local, _ := fullAddress(netip.AddrPortFrom(from, 0))
		c, err = gonet.DialTCPWithBind(ctx, u.stack, local, remote, proto)
	case "udp":
		c, err = u.dialUDP(from, remote, proto)
	default:
		err = net.UnknownNetworkError(network)
	}
	if err != nil {
		return nil, fmt.Errorf("dial %s through the upstream: %w", address, err)
	}
	return c, nil
}

// dialUDP takes a port that nobody can guess (RFC 5452 section 9.2); the translation keeps it where it is free, else draws another.
func (u *Upstream) dialUDP(from netip.Addr, remote tcpip.FullAddress, proto tcpip.NetworkProtocolNumber) (c net.Conn, err error) {
	const low, tries = 1024, 8
	for range tries {
		var b [4]byte
		rand.Read(b[:])
		port := low + binary.BigEndian.Uint32(b[:])%(1<<16-low)
		local, _ := fullAddress(netip.AddrPortFrom(from, uint16(port)))
		var udp *gonet.UDPConn
		if udp, err = gonet.DialUDP(u.stack, &local, &remote, proto); err == nil {
			return udp, nil
		}
	}
	return nil, err
}

// upstreamLink is the wire of that stack: its other end is the translation.
type upstreamLink struct {
	link
	u *Upstream
}

var _ stack.LinkEndpoint = (*upstreamLink)(nil)

// SupportedGSO implements stack.GSOEndpoint: there is none, what the node sends itself is little.
func (l *upstreamLink) SupportedGSO() stack.SupportedGSO { return stack.GSONotSupported }

// GSOMaxSize implements stack.GSOEndpoint.
func (l *upstreamLink) GSOMaxSize() uint32 { return 0 }

// WritePackets implements stack.LinkWriter. It never waits.
func (l *upstreamLink) WritePackets(pkts stack.PacketBufferList) (int, tcpip.Error) {
	var p packet.Packet
	for _, pkt := range pkts.AsSlice() {
		v := pkt.ToView()
		if packet.Decode(&p, v.AsSlice()) == packet.FaultNone {
			p.Peer = nat.PeerSelf
			l.u.sendOwn(&p)
		}
		v.Release()
	}
	return pkts.Len(), nil
}

// sendOwn sends a packet of the node's own into the tunnel, opening its flow if there is none.
func (u *Upstream) sendOwn(p *packet.Packet) {
	n := u.n
	if p.V == 6 && p.Dst[0] == 0xff || p.Proto != packet.ProtoTCP && p.Proto != packet.ProtoUDP {
		return // a stack's own chatter
	}
	now := n.table.Now()
	f, d := n.table.Lookup(&p.Key)
	if f == nil {
		f, d = &nat.Flow{Key: p.Key, Owner: u}, nat.Original
		f.Generation.Store(n.policyN.Load())
		if v := u.nat.Open(f, now); v != nat.Pass {
			n.counters.drop(dropOf(v))
			return
		}
	}
	if f.Owner != any(u) {
		n.counters.drop(dropUpstreamDown)
		return
	}
	f.Touch(now)
	f.Count(d, 1, len(p.Buf))
	u.send(p, f, d, now)
}

// deliver gives a translated packet to the stack.
func (l *upstreamLink) deliver(p *packet.Packet) {
	proto := tcpip.NetworkProtocolNumber(header.IPv4ProtocolNumber)
	if p.V == 6 {
		proto = header.IPv6ProtocolNumber
	}
	pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithData(p.Buf)})
	l.dispatcher.DeliverNetworkPacket(proto, pkt)
	pkt.DecRef()
}
