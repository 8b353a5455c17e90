package relayd

import (
	"errors"
	"net"
	"net/netip"
	"sync"

	"golang.zx2c4.com/wireguard/conn"

	"culvert.dev/culvert/internal/config"
)

// listenWireGuard returns what WireGuard receives on. One port on all addresses, the usual case, is left to the tunnel's own
// sockets, which are the fastest: bind is nil then.
func listenWireGuard(addrs []config.ListenAddr) (bind conn.Bind, port uint16, err error) {
	if len(addrs) == 1 && !addrs[0].Addr.IsValid() && addrs[0].Port != 0 {
		return nil, addrs[0].Port, nil
	}
	b := &wgBind{}
	for _, a := range addrs {
		s, err := net.ListenPacket("udp", a.String())
		if err != nil {
			b.closeSockets()
			return nil, 0, explainListen("listen on UDP "+a.String(), wgstunListen, err)
		}
		b.sockets = append(b.sockets, s.(*net.UDPConn))
	}
	return b, b.port(), nil
}

// wgBind is a conn.Bind of sockets that are open already, at addresses of the operator's choice. An answer leaves by the socket
// that its question came in by. It can be opened once; its sockets live until it is closed.
type wgBind struct {
	sockets []*net.UDPConn

	mu     sync.Mutex // guards the following
	opened bool
	closed bool
}

// wgEndpoint is where a client is and the socket that it talks to.
type wgEndpoint struct {
	addr   netip.AddrPort
	socket *net.UDPConn // nil: not known
}

func (b *wgBind) port() uint16 { return b.sockets[0].LocalAddr().(*net.UDPAddr).AddrPort().Port() }

// Open implements conn.Bind. The port is the one of the sockets, whatever is asked for.
func (b *wgBind) Open(uint16) ([]conn.ReceiveFunc, uint16, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.opened {
		return nil, 0, conn.ErrBindAlreadyOpen
	}
	b.opened = true
	var list []conn.ReceiveFunc
	for _, s := range b.sockets {
		list = append(list, func(bufs [][]byte, sizes []int, eps []conn.Endpoint) (int, error) {
			n, from, err := s.ReadFromUDPAddrPort(bufs[0])
			if err != nil {
				return 0, err
			}
			sizes[0] = n
			eps[0] = &wgEndpoint{netip.AddrPortFrom(from.Addr().Unmap(), from.Port()), s}
			return 1, nil
		})
	}
	return list, b.port(), nil
}

// Close implements conn.Bind. WireGuard closes a bind before it opens it: that is let be.
func (b *wgBind) Close() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.opened || b.closed {
		return nil
	}
	b.closed = true
	return b.closeSockets()
}

func (b *wgBind) closeSockets() error {
	var errs []error
	for _, s := range b.sockets {
		errs = append(errs, s.Close())
	}
	return errors.Join(errs...)
}

// SetMark implements conn.Bind: there is no routing by marks here.
func (b *wgBind) SetMark(uint32) error { return nil }

// Send implements conn.Bind.
func (b *wgBind) Send(bufs [][]byte, to conn.Endpoint) error {
	e, ok := to.(*wgEndpoint)
	if !ok || e.socket == nil {
		return conn.ErrWrongEndpointType
	}
	for _, buf := range bufs {
		if _, err := e.socket.WriteToUDPAddrPort(buf, e.addr); err != nil {
			return err
		}
	}
	return nil
}

// ParseEndpoint implements conn.Bind. Clients call first, so that no endpoint is ever configured.
func (b *wgBind) ParseEndpoint(s string) (conn.Endpoint, error) {
	a, err := netip.ParseAddrPort(s)
	return &wgEndpoint{addr: a}, err
}

// BatchSize implements conn.Bind.
func (b *wgBind) BatchSize() int { return 1 }

func (e *wgEndpoint) ClearSrc()           {}
func (e *wgEndpoint) SrcToString() string { return "" }
func (e *wgEndpoint) DstToString() string { return e.addr.String() }
func (e *wgEndpoint) DstToBytes() []byte  { b, _ := e.addr.MarshalBinary(); return b }
func (e *wgEndpoint) DstIP() netip.Addr   { return e.addr.Addr() }
func (e *wgEndpoint) SrcIP() netip.Addr   { return netip.Addr{} }
