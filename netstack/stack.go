package netstack

import (
	"errors"
	"fmt"
	"net/netip"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv6"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"
)

const (
	nic = 1

	// A window of 8 MiB carries 800 Mbit/s over a round trip of 40 ms; gVisor advertises half its buffer.
	tcpMaxBuffer     = 8 << 20
	tcpDefaultBuffer = 1 << 20
	tcpMinBuffer     = 4 << 10

	// What a connection of the node itself may hold that nobody has read begins small, as Linux has it, and grows with how fast it is read: thousands that
	// nobody reads are to hold little. Those of the exit begin with gVisor's 1 MiB. Buffers for sending begin large: their users bound them.
	tcpReceiveBuffer = 128 << 10

	// How long gVisor keeps a closed connection of the node itself, or one whose ends closed at the same moment; for those of the exit see
	// late.go. It need not be 2 MSL: the tunnel reorders little, and peers reuse ports.
	tcpLinger = 2 * time.Second

	// A peer that does not complete its handshake holds a socket of the host; with this many repetitions for 31 s.
	tcpSynRetries = 4
)

// newStack builds the gVisor stack that terminates the peers' TCP and serves the node's own addresses. Packets for any
// other address come to it only if the pipeline has let them pass.
func newStack(l stack.LinkEndpoint, self []netip.Addr) (*stack.Stack, error) {
	s := stack.New(stack.Options{
		NetworkProtocols: []stack.NetworkProtocolFactory{
			ipv4.NewProtocol,
			// No neighbour or router discovery, no MLD: a tunnel has no neighbours.
			ipv6.NewProtocolWithOptions(ipv6.Options{DADConfigs: stack.DADConfigurations{DupAddrDetectTransmits: 0}}),
		},
		// NewReno: gVisor's CUBIC leaves slow start when the round-trip time rises (HyStart), which on a busy host it does at
		// once, while packets wait for a processor, and then hardly grows: a fifth less on one download.
		TransportProtocols: []stack.TransportProtocolFactory{tcp.NewProtocol, udp.NewProtocol},
		HandleLocal:        false, // true would short-cut packets to the node's own addresses
	})
	err := errors.Join(
		tcpOption(s, "SACK", new(tcpip.TCPSACKEnabled(true))),
		// RACK retransmits spuriously without loss here (slow readers, several flows).
		tcpOption(s, "RACK", new(tcpip.TCPRecovery(0))),
		tcpOption(s, "receive buffer", &tcpip.TCPReceiveBufferSizeRangeOption{Min: tcpMinBuffer, Default: tcpReceiveBuffer, Max: tcpMaxBuffer}),
		tcpOption(s, "send buffer", &tcpip.TCPSendBufferSizeRangeOption{Min: tcpMinBuffer, Default: tcpDefaultBuffer, Max: tcpMaxBuffer}),
		tcpOption(s, "receive buffer tuning", new(tcpip.TCPModerateReceiveBufferOption(true))),
		tcpOption(s, "time wait", new(tcpip.TCPTimeWaitTimeoutOption(tcpLinger))),
		tcpOption(s, "SYN retries", new(tcpip.TCPSynRetriesOption(tcpSynRetries))),
		stackError("set TCP ports", s.SetPortRange(firstPort, 65535)),
		stackError("create interface", s.CreateNIC(nic, l)),
		stackError("promiscuous mode", s.SetPromiscuousMode(nic, true)),
		stackError("spoofing", s.SetSpoofing(nic, true)),
	)
	for _, a := range self {
		full, proto := fullAddress(netip.AddrPortFrom(a, 0))
		err = errors.Join(err, stackError("add address "+a.String(),
			s.AddProtocolAddress(nic, protocolAddress(proto, full.Addr), stack.AddressProperties{})))
	}
	s.SetRouteTable(defaultRoutes())
	if err != nil {
		s.Destroy()
		return nil, err
	}
	return s, nil
}

func protocolAddress(proto tcpip.NetworkProtocolNumber, a tcpip.Address) tcpip.ProtocolAddress {
	return tcpip.ProtocolAddress{Protocol: proto, AddressWithPrefix: a.WithPrefix()}
}

// defaultRoutes send everything through the link.
func defaultRoutes() []tcpip.Route {
	return []tcpip.Route{{Destination: header.IPv4EmptySubnet, NIC: nic}, {Destination: header.IPv6EmptySubnet, NIC: nic}}
}

func tcpOption(s *stack.Stack, name string, o tcpip.SettableTransportProtocolOption) error {
	return stackError("set TCP "+name, s.SetTransportProtocolOption(tcp.ProtocolNumber, o))
}

// stackError turns gVisor's kind of error into Go's.
func stackError(op string, err tcpip.Error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %s", op, err)
}

// fullAddress is a in gVisor's form.
func fullAddress(a netip.AddrPort) (tcpip.FullAddress, tcpip.NetworkProtocolNumber) {
	proto := header.IPv4ProtocolNumber
	if a.Addr().Is6() {
		proto = header.IPv6ProtocolNumber
	}
	return tcpip.FullAddress{NIC: nic, Addr: tcpip.AddrFromSlice(a.Addr().AsSlice()), Port: a.Port()}, proto
}

// addrOf is gVisor's address as a netip.Addr.
func addrOf(a tcpip.Address) netip.Addr {
	addr, _ := netip.AddrFromSlice(a.AsSlice())
	return addr
}
