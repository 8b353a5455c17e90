package node

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/netip"
	"slices"
	"strings"
	"syscall"

	"culvert.dev/culvert/internal/config"
	"culvert.dev/culvert/internal/forward"
	"culvert.dev/culvert/internal/proxy"
	"culvert.dev/culvert/node/egress"
)

// proxyServices are those of [SOCKS5] and [HTTP].
func (n *Node) proxyServices(conf *config.Config) (list []wanted) {
	for _, p := range conf.Proxies {
		list = append(list, wanted{proxyKind(p), withoutPlace(p), func() (*localService, error) { return n.proxyService(p) }})
	}
	return list
}

// withoutPlace is a proxy's configuration without the lines where it stands.
func withoutPlace(p config.Proxy) config.Proxy {
	p.File, p.Line = "", 0
	p.Routes = slices.Clone(p.Routes)
	for i := range p.Routes {
		p.Routes[i].File, p.Routes[i].Line = "", 0
	}
	return p
}

// proxyKind is the name of a proxy's section.
func proxyKind(p config.Proxy) string {
	if p.SOCKS {
		return "SOCKS5"
	}
	return "HTTP"
}

func (n *Node) proxyService(p config.Proxy) (*localService, error) {
	kind, where := proxyKind(p), config.Position(p.File, p.Line)
	rules := egress.Rules{Exits: p.Exits, Routes: p.Routes}
	cfg := proxy.Config{
		Name: kind + " " + p.Listen[0].String(), SOCKS: p.SOCKS, HTTP: p.HTTP, UDP: p.UDP, AllowFrom: p.AllowFrom, Logger: n.log,
		Dialer: n.egress.Dialer(func() egress.Rules { return rules }),
	}
	for _, u := range p.Users {
		cfg.Users = append(cfg.Users, proxy.User{Name: u.Name, Password: u.Password})
	}
	server, err := proxy.New(cfg)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", where, err)
	}
	svc := &localService{handle: server.ServeConn, close: func() { server.Close() }, stats: func() ServiceStatus { return proxyStatus(server.Stats()) }}
	for _, l := range p.Listen {
		svc.sockets = append(svc.sockets, hostSockets(l, where+": ["+kind+"] Listen", p.MaxConnections)...)
		svc.listen = append(svc.listen, l.String())
	}
	return svc, nil
}

// hostSockets describes the sockets of this host that one Listen means: one for each port.
func hostSockets(l config.Listen, where string, most int) (list []socket) {
	first, last := int(l.Ports.First), int(l.Ports.Last)
	for port := first; port <= last; port++ {
		network, address := l.At(uint16(port))
		list = append(list, socket{
			key: network + " " + address, where: where, max: most, optional: l.Optional, mode: cmp.Or(l.Mode, socketMode),
			listen: func() (io.Closer, error) { return listenHost(network, address, l.Mode) },
		})
	}
	return list
}

// socketMode is that of unix sockets by default: the node's own user may connect.
const socketMode fs.FileMode = 0o600

// listenHost opens a socket of this host; mode is that of a unix socket.
func listenHost(network, address string, mode fs.FileMode) (io.Closer, error) {
	ctx := context.Background()
	switch {
	case network == "unix":
		return forward.ListenHost(ctx, network, address, cmp.Or(mode, socketMode))
	case strings.HasPrefix(network, "udp"):
		c, err := new(net.ListenConfig).ListenPacket(ctx, network, address)
		return c, privileged(err)
	}
	l, err := new(net.ListenConfig).Listen(ctx, network, address)
	return l, privileged(err)
}

// privileged says what to do about a port that only root may open.
func privileged(err error) error {
	if errors.Is(err, syscall.EACCES) {
		return fmt.Errorf("%w: ports below the sysctl net.ipv4.ip_unprivileged_port_start (1024) need privilege: take another", err)
	}
	return err
}

// exitProxyServices are the node's SOCKS5 at each of its mesh addresses, for peers with AllowRouting.
func (n *Node) exitProxyServices(conf *config.Config) (list []wanted) {
	routing := func(p config.Peer) bool { return p.Allow.Routing }
	if !conf.Exit.SOCKS5 || !slices.ContainsFunc(conf.Peers, routing) {
		return nil
	}
	for _, a := range n.id.addresses {
		list = append(list, wanted{"exit SOCKS5", a, func() (*localService, error) { return n.exitProxyService(a) }})
	}
	return list
}

// exitProxyService serves one address. The datagrams of all associations come to the port of the connections: it is the one by which
// peers are let in.
func (n *Node) exitProxyService(a netip.Addr) (*localService, error) {
	at := netip.AddrPortFrom(a, exitProxyPort)
	pc := newExitSocket(at)
	server, err := proxy.New(proxy.Config{
		Name: "exit SOCKS5", SOCKS: true, UDP: true, Reasons: true, PacketConn: pc, Dialer: n.exits, Logger: n.log,
	})
	if err != nil {
		pc.Close()
		return nil, err
	}
	where := "SOCKS5 for peers at " + at.String() + " ([Exit] SOCKS5 = no ends it)"
	return &localService{
		listen: []string{at.String()},
		sockets: []socket{
			{
				key: "mesh tcp " + at.String(), where: where, max: hostBudget().services,
				listen: func() (io.Closer, error) { return n.net.ListenTCP(at) },
			},
			{key: "mesh udp " + at.String(), where: where, listen: func() (io.Closer, error) { return n.net.ListenPacket(at) }},
		},
		handle:  server.ServeConn,
		packets: pc,
		close:   func() { server.Close() },
		stats:   func() ServiceStatus { return proxyStatus(server.Stats()) },
	}, nil
}
