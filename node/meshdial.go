package node

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"syscall"

	"culvert.dev/culvert/netstack"
)

// dialMesh connects to an address and port of a peer, through the tunnel; network is "tcp" or "udp". A UDP connection takes
// datagrams from that end only.
func (n *Node) dialMesh(ctx context.Context, network, address string) (net.Conn, error) {
	to, err := netip.ParseAddrPort(address)
	if err != nil {
		return nil, fmt.Errorf("dial %s in the mesh: %w", address, err)
	}
	switch network {
	case "tcp":
		c, err := n.net.DialTCP(ctx, to)
		if err != nil {
			return nil, err
		}
		return c, nil
	case "udp":
		pc, err := n.listenOwn(to.Addr())
		if err != nil {
			return nil, fmt.Errorf("dial %s in the mesh: %w", address, err)
		}
		return &meshUDP{PacketConn: pc, to: to}, nil
	}
	return nil, net.UnknownNetworkError(network)
}

// listenOwn opens a UDP socket at a free port of the node's own address of the family of like.
func (n *Node) listenOwn(like netip.Addr) (*netstack.PacketConn, error) {
	own := n.ownAddress(like.Is4())
	if !own.IsValid() {
		return nil, fmt.Errorf("this node has no address of that family: %w", syscall.EADDRNOTAVAIL)
	}
	return n.net.ListenPacket(netip.AddrPortFrom(own, 0))
}

// ownAddress is the node's first address of a family; the zero Addr if it has none.
func (n *Node) ownAddress(v4 bool) netip.Addr {
	for _, a := range n.id.addresses {
		if a.Is4() == v4 {
			return a
		}
	}
	return netip.Addr{}
}

// meshUDP is a UDP socket in the mesh that talks to one end.
type meshUDP struct {
	*netstack.PacketConn
	to netip.AddrPort
}

// Read waits for the next datagram of the far end.
func (c *meshUDP) Read(b []byte) (int, error) {
	for {
		n, from, err := c.ReadFromAddrPort(b)
		if err != nil || from == c.to {
			return n, err
		}
	}
}

func (c *meshUDP) Write(b []byte) (int, error) { return c.WriteToAddrPort(b, c.to) }

// RemoteAddr is the far end.
func (c *meshUDP) RemoteAddr() net.Addr { return net.UDPAddrFromAddrPort(c.to) }
