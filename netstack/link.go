package netstack

import (
	"net/netip"
	"sync/atomic"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"

	"culvert.dev/culvert/filter"
	"culvert.dev/culvert/internal/packet"
)

// link is gVisor's view of the Net: a link endpoint with segmentation offload whose wire is the queue towards the peers.
// (tun.Device and stack.LinkEndpoint differ in the types of MTU and Close, so that one type cannot be both.)
type link struct {
	out        *queue
	policy     *atomic.Pointer[filter.Policy] // knows whose address is whose
	mtu        uint32
	gso        uint32
	dispatcher stack.NetworkDispatcher
	count      func(pkt *stack.PacketBuffer, peer uint16) (goes bool) // told of each packet before it goes, unless it says no
}

var (
	_ stack.LinkEndpoint = (*link)(nil)
	_ stack.GSOEndpoint  = (*link)(nil)
)

// Datagrams of one UDP GSO message of the outer socket stay below this; above about 65,507 bytes a kernel segments every batch in
// software.
const outerBatch = 65000

// maxSegment is the GSO size for gVisor's TCP: a whole number of segments, so that none ends short in the middle of a stream, and as
// many as one outer UDP GSO message takes. gVisor reserves room for the largest option area in its MSS.
func maxSegment(mtu int) uint32 {
	mss := mtu - header.IPv4MinimumSize - header.TCPMinimumSize - maxTCPOptions
	const around = header.IPv4MinimumSize + header.TCPMinimumSize + 12 /* timestamps */ + 32 /* WireGuard */
	count := min(outerBatch/(mss+around), 64)
	size := min(max(count, 1)*mss, 65535-header.TCPTotalHeaderMaximumSize-1)
	return uint32(size) + header.TCPTotalHeaderMaximumSize + 1
}

// maxTCPOptions is what gVisor sets aside for options in every segment: timestamps and three SACK blocks.
const maxTCPOptions = 40

func newLink(out *queue, policy *atomic.Pointer[filter.Policy], mtu int) *link {
	return &link{out: out, policy: policy, mtu: uint32(mtu), gso: maxSegment(mtu)}
}

// WritePackets implements stack.LinkWriter: it queues the packets for the peers, by destination. It may wait for room.
func (l *link) WritePackets(pkts stack.PacketBufferList) (int, tcpip.Error) {
	var last, dst packet.Key // Dst, V and Peer only; the packets of one call go to one destination, nearly always
	policy := l.policy.Load()
	for i, pkt := range pkts.AsSlice() {
		dst.Dst, dst.V = destination(pkt)
		if dst.V == 0 || dst.V == 6 && dst.Dst[0] == 0xff {
			continue // IPv6's own chatter (MLD); a tunnel has no link to talk to
		}
		if dst.Dst != last.Dst || dst.V != last.V {
			last = dst
			last.Peer = policy.PeerOfKey(dst.Dst, dst.V)
		}
		if !l.count(pkt, last.Peer) {
			continue
		}
		if !l.out.push(item{pkt: pkt.IncRef(), peer: last.Peer}) {
			return i, &tcpip.ErrClosedForSend{}
		}
	}
	return pkts.Len(), nil
}

// destination reads where a packet goes, in the form that packet.Key has. The family is 0 for what is no unicast IPv4 or IPv6.
func destination(pkt *stack.PacketBuffer) (dst [16]byte, v uint8) {
	h := pkt.NetworkHeader().Slice()
	switch {
	case len(h) >= header.IPv6MinimumSize && h[0]>>4 == 6:
		return [16]byte(h[24:40]), 6
	case len(h) >= header.IPv4MinimumSize && h[16]>>4 != 0xe:
		return netip.AddrFrom4([4]byte(h[16:20])).As16(), 4
	}
	return dst, 0
}

// Capabilities implements stack.NetworkLinkEndpoint. The pipeline has verified every checksum before gVisor sees a packet.
func (l *link) Capabilities() stack.LinkEndpointCapabilities {
	return stack.CapabilityRXChecksumOffload
}

// GSOMaxSize implements stack.GSOEndpoint.
func (l *link) GSOMaxSize() uint32 { return l.gso }

// SupportedGSO implements stack.GSOEndpoint: Device cuts the segments.
func (l *link) SupportedGSO() stack.SupportedGSO { return stack.HostGSOSupported }

// Attach implements stack.NetworkLinkEndpoint. It keeps the dispatcher when the stack is destroyed: a packet may be on its way to it,
// and is dropped there.
func (l *link) Attach(d stack.NetworkDispatcher) {
	if d != nil {
		l.dispatcher = d
	}
}

// The rest of stack.LinkEndpoint has nothing to do on a link without a header or an address of its own.
func (l *link) MTU() uint32                             { return l.mtu }
func (l *link) SetMTU(uint32)                           {}
func (l *link) MaxHeaderLength() uint16                 { return 0 }
func (l *link) LinkAddress() tcpip.LinkAddress          { return "" }
func (l *link) SetLinkAddress(tcpip.LinkAddress)        {}
func (l *link) IsAttached() bool                        { return l.dispatcher != nil }
func (l *link) Wait()                                   {}
func (l *link) ARPHardwareType() header.ARPHardwareType { return header.ARPHardwareNone }
func (l *link) AddHeader(*stack.PacketBuffer)           {}
func (l *link) ParseHeader(*stack.PacketBuffer) bool    { return true }
func (l *link) Close()                                  {}
func (l *link) SetOnCloseAction(func())                 {}
