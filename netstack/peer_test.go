package netstack

import (
	"context"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/link/channel"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv6"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"

	"culvert.dev/culvert/filter"
	"culvert.dev/culvert/internal/packet"
)

var (
	nodeV4  = netip.MustParseAddr("100.64.9.1")
	nodeV6  = netip.MustParseAddr("fd7a:9::1")
	peerV4  = netip.MustParseAddr("100.64.9.2")
	peerV6  = netip.MustParseAddr("fd7a:9::2")
	otherV4 = netip.MustParseAddr("100.64.9.3")
)

// testPolicy lets peer 1 route everywhere, and gives peer 2 an address. The host's own addresses are left out, so that a
// test may use them as the outside.
func testPolicy(t testing.TB, change func(*filter.Config)) *filter.Policy {
	c := filter.Config{
		Self: []netip.Addr{nodeV4, nodeV6},
		Mesh: []netip.Prefix{netip.MustParsePrefix("100.64.9.0/24"), netip.MustParsePrefix("fd7a:9::/64")},
		Routes: []filter.Route{
			{Prefix: netip.PrefixFrom(peerV4, 32), Peer: 1}, {Prefix: netip.PrefixFrom(peerV6, 128), Peer: 1},
			{Prefix: netip.PrefixFrom(otherV4, 32), Peer: 2},
		},
		Peers: []filter.Peer{
			{ID: 1, Name: "laptop", AllowRouting: true, AllowLAN: true, AllowInbound: true},
			{ID: 2, Name: "phone"},
		},
		SelfPorts: []filter.SelfPort{{Proto: packet.ProtoTCP, Port: 53, Need: filter.NeedRouting}, {Proto: packet.ProtoUDP, Port: 53, Need: filter.NeedRouting}},
	}
	if change != nil {
		change(&c)
	}
	p, err := filter.New(c)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// newTestNet starts a data path without a tunnel; its Device is the test's.
func newTestNet(t testing.TB, p *filter.Policy) *Net {
	n, err := New(Config{MTU: 1420, Self: []netip.Addr{nodeV4, nodeV6}, Policy: p})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(n.Close)
	return n
}

// hostAddr is an address of this machine that is not loopback: the outside, for a node that does not know its host.
func hostAddr(t testing.TB) netip.Addr {
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range addrs {
		p, err := netip.ParsePrefix(a.String())
		if err == nil && p.Addr().Is4() && p.Addr().IsGlobalUnicast() {
			return p.Addr()
		}
	}
	t.Skip("this machine has no IPv4 address but loopback, which an exit never reaches")
	return netip.Addr{}
}

// testPeer is a peer's own TCP/IP stack, wired to the node's Device in place of WireGuard.
type testPeer struct {
	stack *stack.Stack
	wg    sync.WaitGroup
}

func newTestPeer(t testing.TB, n *Net) *testPeer {
	ep := channel.New(4096, 1420, "")
	s := stack.New(stack.Options{
		NetworkProtocols:   []stack.NetworkProtocolFactory{ipv4.NewProtocol, ipv6.NewProtocol},
		TransportProtocols: []stack.TransportProtocolFactory{tcp.NewProtocol, udp.NewProtocol},
	})
	if err := s.CreateNIC(nic, ep); err != nil {
		t.Fatal(err)
	}
	for _, a := range []netip.Addr{peerV4, peerV6} {
		full, proto := fullAddress(netip.AddrPortFrom(a, 0))
		if err := s.AddProtocolAddress(nic, protocolAddress(proto, full.Addr), stack.AddressProperties{}); err != nil {
			t.Fatal(err)
		}
	}
	s.SetRouteTable(defaultRoutes())
	p := &testPeer{stack: s}
	ctx, cancel := context.WithCancel(context.Background())
	p.wg.Go(func() {
		for {
			pkt := ep.ReadContext(ctx)
			if pkt == nil {
				return
			}
			b := pkt.ToView().ToSlice()
			pkt.DecRef()
			n.dev.Write([][]byte{append(make([]byte, 16), b...)}, 16)
		}
	})
	p.wg.Go(func() {
		bufs, sizes := make([][]byte, BatchSize), make([]int, BatchSize)
		for i := range bufs {
			bufs[i] = make([]byte, 65535)
		}
		for {
			k, err := n.dev.Read(bufs, sizes, 16)
			if err != nil {
				return
			}
			for i := range k {
				b := append([]byte(nil), bufs[i][16:16+sizes[i]]...)
				pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithData(b)})
				if b[0]>>4 == 6 {
					ep.InjectInbound(header.IPv6ProtocolNumber, pkt)
				} else {
					ep.InjectInbound(header.IPv4ProtocolNumber, pkt)
				}
				pkt.DecRef()
			}
		}
	})
	t.Cleanup(func() {
		cancel()
		n.Close()
		p.wg.Wait()
		s.Destroy()
	})
	return p
}

func (p *testPeer) dial(t testing.TB, to netip.AddrPort) (*gonet.TCPConn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	full, proto := fullAddress(to)
	return gonet.DialContextTCP(ctx, p.stack, full, proto)
}

func (p *testPeer) udp(t testing.TB, port uint16) *gonet.UDPConn {
	full, proto := fullAddress(netip.AddrPortFrom(peerV4, port))
	c, err := gonet.DialUDP(p.stack, &full, nil, proto)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}
