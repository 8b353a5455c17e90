package node

import (
	"context"
	"io"
	"net"
	"net/netip"
	"strconv"

	"culvert.dev/culvert/internal/config"
	"culvert.dev/culvert/internal/forward"
	"culvert.dev/culvert/internal/proxy"
	"culvert.dev/culvert/node/egress"
)

// forwardServices are those of [Forward]: from sockets of this host to one target in the mesh, or beyond it.
func (n *Node) forwardServices(conf *config.Config) (list []wanted) {
	for _, f := range conf.Forwards {
		bare := f
		bare.File, bare.Line = "", 0
		list = append(list, wanted{"Forward", bare, func() (*localService, error) { return n.forwardService(f), nil }})
	}
	return list
}

func (n *Node) forwardService(f config.Forward) *localService {
	where := config.Position(f.File, f.Line) + ": [Forward] Listen"
	to := hostPort(f.Host, f.Ports.String())
	rules := egress.Rules{Exits: f.Exits}
	d := &forwardDialer{n: n, f: f, out: n.egress.Dialer(func() egress.Rules { return rules })}
	engine := newEngines("to "+to, f.AllowFrom, false, d.tcp, d.udp, n)
	svc := engine.service(to)
	for _, l := range f.Listen {
		svc.sockets = append(svc.sockets, hostSockets(l, where, 0)...)
		svc.listen = append(svc.listen, l.String())
	}
	return svc
}

// forwardDialer opens the target of a forward.
type forwardDialer struct {
	n   *Node
	f   config.Forward
	out proxy.Dialer
}

// target is where a client of a listener's port is led.
func (d *forwardDialer) target(from forward.Origin) (proxy.Target, error) {
	port := d.f.Ports.First
	if d.f.Ports.Len() > 1 {
		for _, l := range d.f.Listen {
			if a := l.Addr.Addr(); l.Path != "" || a.IsValid() && !a.IsUnspecified() && a != from.Local.Addr() {
				continue // the same port of another address may mean another one of the target
			}
			r := forward.Range{First: l.Ports.First, Last: l.Ports.Last, To: d.f.Ports.First}
			if p, ok := r.Target(from.Local.Port()); ok {
				port = p
				break
			}
		}
	}
	return proxy.ParseTarget(hostPort(d.f.Host, strconv.Itoa(int(port))))
}

func (d *forwardDialer) request(from forward.Origin) (*proxy.Request, error) {
	t, err := d.target(from)
	return &proxy.Request{Protocol: "forward", Client: from.Client, Target: t}, err
}

func (d *forwardDialer) tcp(ctx context.Context, from forward.Origin) (net.Conn, error) {
	r, err := d.request(from)
	if err != nil {
		return nil, err
	}
	return d.out.Dial(ctx, r)
}

func (d *forwardDialer) udp(ctx context.Context, from forward.Origin) (net.Conn, error) {
	r, err := d.request(from)
	if err != nil {
		return nil, err
	}
	return d.n.dialDatagrams(ctx, d.out, r)
}

// publishServices are those of [Publish]: from ports of the node's mesh addresses to services of this host.
func (n *Node) publishServices(conf *config.Config) (list []wanted) {
	for _, p := range conf.Publishes {
		bare := p
		bare.File, bare.Line = "", 0
		list = append(list, wanted{"Publish", bare, func() (*localService, error) { return n.publishService(p), nil }})
	}
	return list
}

func (n *Node) publishService(p config.Publish) *localService {
	where := config.Position(p.File, p.Line) + ": [Publish] Listen"
	to := hostPort(p.To.Host, p.To.Ports.String())
	if p.To.Path != "" {
		to = "unix:" + p.To.Path
	}
	dial := func(network string) forward.Dial {
		return func(ctx context.Context, from forward.Origin) (net.Conn, error) {
			return dialPublished(ctx, network, p, from.Local.Port())
		}
	}
	engine := newEngines("to "+to, nil, p.ProxyProtocol, dial("tcp"), dial("udp"), n)
	svc := engine.service(to)
	for _, network := range p.Networks {
		for _, a := range n.id.addresses {
			svc.sockets = append(svc.sockets, n.meshSockets(network, a, p.Ports, where)...)
		}
		svc.listen = append(svc.listen, p.Ports.String()+"/"+network)
	}
	return svc
}

// meshSockets describes the sockets of one of the node's mesh addresses: one for each port.
func (n *Node) meshSockets(network string, a netip.Addr, ports config.PortRange, where string) (list []socket) {
	for port := int(ports.First); port <= int(ports.Last); port++ {
		at := netip.AddrPortFrom(a, uint16(port))
		list = append(list, socket{key: "mesh " + network + " " + at.String(), where: where, listen: func() (io.Closer, error) {
			if network == "udp" {
				return n.net.ListenPacket(at)
			}
			return n.net.ListenTCP(at)
		}})
	}
	return list
}

// engines carry what arrives at the sockets of a forward or a published port.
type engines struct {
	tcp *forward.TCP
	udp *forward.UDP
}

func newEngines(name string, from []netip.Prefix, header bool, tcp, udp forward.Dial, n *Node) *engines {
	return &engines{
		tcp: forward.NewTCP(forward.TCPConfig{Name: name, Dial: tcp, ProxyProtocol: header, AllowFrom: from, Logger: n.log}),
		udp: forward.NewUDP(forward.UDPConfig{Name: name, Dial: udp, ProxyProtocol: header, AllowFrom: from, Logger: n.log}),
	}
}

// service is one that has these engines, without its sockets.
func (e *engines) service(to string) *localService {
	return &localService{
		handle: e.tcp.Handle, packets: e.udp, close: func() { e.udp.Close() },
		stats: func() ServiceStatus { return forwardStatus(to, e.tcp.Stats(), e.udp.Stats()) },
	}
}

// hostPort joins a host and its port or ports.
func hostPort(host, ports string) string { return net.JoinHostPort(host, ports) }
