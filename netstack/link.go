package netstack

import (
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

// link is gVisor's view of the Net: a link endpoint with segmentation offload whose wire is the queue towards the peers.
// (tun.Device and stack.LinkEndpoint differ in the types of MTU and Close, so that one type cannot be both.)
type link struct {
	out        *queue
	mtu        uint32
	gso        uint32
	dispatcher stack.NetworkDispatcher
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

func newLink(out *queue, mtu int) *link {
	return &link{out: out, mtu: uint32(mtu), gso: maxSegment(mtu)}
}

// WritePackets implements stack.LinkWriter: it queues the packets for the peers and waits for room.
func (l *link) WritePackets(pkts stack.PacketBufferList) (int, tcpip.Error) {
	n := 0
	for _, pkt := range pkts.AsSlice() {
		if toMulticast(pkt) { // IPv6's own chatter (MLD); a tunnel has no link to talk to
			n++
			continue
		}
		if !l.out.push(item{pkt: pkt.IncRef()}) {
			return n, &tcpip.ErrClosedForSend{}
		}
		n++
	}
	return n, nil
}

func toMulticast(pkt *stack.PacketBuffer) bool {
	h := pkt.NetworkHeader().Slice()
	switch {
	case len(h) >= header.IPv6MinimumSize && h[0]>>4 == 6:
		return h[24] == 0xff
	case len(h) >= header.IPv4MinimumSize:
		return h[16]>>4 == 0xe
	}
	return false
}

// Capabilities implements stack.NetworkLinkEndpoint. The pipeline has verified every checksum before gVisor sees a packet.
func (l *link) Capabilities() stack.LinkEndpointCapabilities {
	return stack.CapabilityRXChecksumOffload
}

// GSOMaxSize implements stack.GSOEndpoint.
func (l *link) GSOMaxSize() uint32 { return l.gso }

// SupportedGSO implements stack.GSOEndpoint: Device cuts the segments.
func (l *link) SupportedGSO() stack.SupportedGSO { return stack.HostGSOSupported }

// The rest of stack.LinkEndpoint has nothing to do on a link without a header or an address of its own.
func (l *link) MTU() uint32                             { return l.mtu }
func (l *link) SetMTU(uint32)                           {}
func (l *link) MaxHeaderLength() uint16                 { return 0 }
func (l *link) LinkAddress() tcpip.LinkAddress          { return "" }
func (l *link) SetLinkAddress(tcpip.LinkAddress)        {}
func (l *link) Attach(d stack.NetworkDispatcher)        { l.dispatcher = d }
func (l *link) IsAttached() bool                        { return l.dispatcher != nil }
func (l *link) Wait()                                   {}
func (l *link) ARPHardwareType() header.ARPHardwareType { return header.ARPHardwareNone }
func (l *link) AddHeader(*stack.PacketBuffer)           {}
func (l *link) ParseHeader(*stack.PacketBuffer) bool    { return true }
func (l *link) Close()                                  {}
func (l *link) SetOnCloseAction(func())                 {}
