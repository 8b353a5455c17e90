package node

import (
	"context"
	"net"
	"net/netip"
	"slices"
	"strconv"

	"culvert.dev/culvert/internal/config"
	"culvert.dev/culvert/internal/forward"
	"culvert.dev/culvert/internal/proxy"
	"culvert.dev/culvert/node/egress"
)

// newEgress makes what connects on behalf of local programs. It asks the configuration in force at each connection.
func (n *Node) newEgress() *egress.Egress {
	return egress.New(egress.Config{
		Mesh: meshDialer{n},
		Names: func(name string) ([]netip.Addr, string, bool) {
			h, known := n.present.Load().names.lookup(name)
			return h.addrs, h.peer, known
		},
		Routes: func(a netip.Addr) (string, int, bool) { return n.present.Load().routeTo(a) },
		Exit: func(peer string) ([]netip.Addr, bool) {
			conf := n.present.Load().conf
			i := slices.IndexFunc(conf.Peers, func(p config.Peer) bool { return p.Name == peer })
			if i < 0 {
				return nil, false
			}
			return ownAddresses(conf, &conf.Peers[i]), true
		},
		Resolve:  n.resolveBeyond,
		Self:     func(a netip.Addr) bool { return slices.Contains(n.id.addresses, a) },
		DialSelf: n.dialSelf,
		Logger:   n.log,
	})
}

// meshDialer is the tunnel as egress wants it.
type meshDialer struct{ n *Node }

// DialTCP implements egress.Mesh.
func (m meshDialer) DialTCP(ctx context.Context, to netip.AddrPort) (net.Conn, error) {
	return m.n.dialMesh(ctx, "tcp", to.String())
}

// ListenPacket implements egress.Mesh.
func (m meshDialer) ListenPacket(at netip.AddrPort) (net.PacketConn, error) {
	if at.Addr().IsUnspecified() {
		return m.n.listenOwn(at.Addr())
	}
	return m.n.net.ListenPacket(at)
}

// dialSelf connects to what the node publishes at a port of its own addresses, without a way through the tunnel.
func (n *Node) dialSelf(ctx context.Context, network string, port uint16) (net.Conn, error) {
	for _, p := range n.present.Load().conf.Publishes {
		if slices.Contains(p.Networks, network) && p.Ports.First <= port && port <= p.Ports.Last {
			c, err := dialPublished(ctx, network, p, port)
			if err != nil || !p.ProxyProtocol {
				return c, err
			}
			return withOwnHeader(c, network, n.id.addresses[0], port)
		}
	}
	return nil, proxy.Fail(proxy.Refused, "this node publishes nothing at its %s port %d", network, port)
}

// dialPublished connects to the service behind a published port.
func dialPublished(ctx context.Context, network string, p config.Publish, port uint16) (net.Conn, error) {
	if p.To.Path != "" {
		return forward.DialHost(ctx, network, "unix:"+p.To.Path)
	}
	to := p.To.Ports.First + (port - p.Ports.First)
	return forward.DialHost(ctx, network, hostPort(p.To.Host, strconv.Itoa(int(to))))
}
