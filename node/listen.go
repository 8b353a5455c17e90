package node

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"

	"culvert.dev/culvert/filter"
	"culvert.dev/culvert/internal/packet"
	"culvert.dev/culvert/netstack"
)

// Listen serves TCP on the node's mesh addresses. The address is ":80" for all of them, or one with its port; port 0 takes a free
// one. Peers with AllowInbound get through to it, for as long as it is open.
func (n *Node) Listen(network, address string) (net.Listener, error) {
	kind, at, err := n.listenAddresses(network, address, "tcp")
	if err != nil {
		return nil, &net.OpError{Op: "listen", Net: network, Addr: meshAddr(address), Err: err}
	}
	l, err := n.listenAll(at)
	for tries := 1; errors.Is(err, syscall.EADDRINUSE) && at[0].Port() == 0 && tries < 8; tries++ { // another address has that port taken
		l, err = n.listenAll(at)
	}
	if err != nil {
		return nil, err
	}
	port := l.all[0].Addr().(*net.TCPAddr).AddrPort().Port()
	if l.unserve, err = n.serve(kind, port); err != nil {
		l.Close()
		return nil, &net.OpError{Op: "listen", Net: network, Addr: meshAddr(address), Err: err}
	}
	l.run()
	return l, nil
}

// listenAll listens at all addresses, where none is given at the port that the first one gets.
func (n *Node) listenAll(at []netip.AddrPort) (*meshListener, error) {
	at = slices.Clone(at)
	l := &meshListener{accepted: make(chan net.Conn), closed: make(chan struct{})}
	l.users.Store(1)
	for i := range at {
		one, err := n.net.ListenTCP(at[i])
		if err != nil {
			l.Close()
			return nil, err
		}
		l.all = append(l.all, one)
		port := one.Addr().(*net.TCPAddr).AddrPort().Port()
		for j := i + 1; j < len(at) && at[j].Port() == 0; j++ {
			at[j] = netip.AddrPortFrom(at[j].Addr(), port)
		}
	}
	return l, nil
}

// ListenPacket serves UDP on one of the node's mesh addresses; ":53" is the first. Peers with AllowInbound get through to it, for
// as long as it is open; answers to what is sent by it come in from any peer.
func (n *Node) ListenPacket(network, address string) (net.PacketConn, error) {
	kind, at, err := n.listenAddresses(network, address, "udp")
	if err != nil {
		return nil, &net.OpError{Op: "listen", Net: network, Addr: meshAddr(address), Err: err}
	}
	c, err := n.net.ListenPacket(at[0])
	if err != nil {
		return nil, err
	}
	unserve, err := n.serve(kind, c.LocalAddr().(*net.UDPAddr).AddrPort().Port())
	if err != nil {
		c.Close()
		return nil, &net.OpError{Op: "listen", Net: network, Addr: meshAddr(address), Err: err}
	}
	return &servedPacketConn{PacketConn: c, unserve: unserve}, nil
}

// listenAddresses are the own addresses that a listener's address means.
func (n *Node) listenAddresses(network, address, want string) (kind string, at []netip.AddrPort, err error) {
	kind, v, err := splitNetwork(network)
	if err == nil && kind != want {
		err = net.UnknownNetworkError(network)
	}
	if err != nil {
		return "", nil, err
	}
	host, service, err := net.SplitHostPort(address)
	if err != nil {
		return "", nil, err
	}
	port, err := strconv.ParseUint(service, 10, 16)
	if err != nil {
		return "", nil, fmt.Errorf("%q is not a port", service)
	}
	wanted, _ := netip.ParseAddr(host)
	for _, a := range n.id.addresses {
		if (v == 0 || a.Is4() == (v == 4)) && (host == "" || wanted == a) {
			at = append(at, netip.AddrPortFrom(a, uint16(port)))
		}
	}
	if len(at) == 0 {
		return "", nil, errors.New("this is none of the node's mesh addresses")
	}
	return kind, at, nil
}

// servedPort is one that the embedding program listens on.
type servedPort struct {
	proto uint8
	port  uint16
}

// serve opens a port of the node's own to the peers that may; the function that it returns closes it.
func (n *Node) serve(kind string, port uint16) (unserve func(), err error) {
	s := servedPort{packet.ProtoTCP, port}
	if kind == "udp" {
		s.proto = packet.ProtoUDP
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.ctx.Err() != nil {
		return nil, net.ErrClosed
	}
	if n.served == nil {
		n.served = make(map[servedPort]int)
	}
	n.served[s]++
	if n.served[s] == 1 {
		if err := n.applyPolicyLocked(); err != nil {
			delete(n.served, s)
			return nil, err
		}
	}
	return sync.OnceFunc(func() {
		n.mu.Lock()
		defer n.mu.Unlock()
		if n.served[s]--; n.served[s] > 0 {
			return
		}
		delete(n.served, s)
		if n.ctx.Err() == nil {
			n.applyPolicyLocked() // it was compiled with the port before
		}
	}), nil
}

// addServed adds what the embedding program listens on to what the configuration permits.
func (n *Node) addServed(c *filter.Config) {
	for s := range n.served {
		c.SelfPorts = append(c.SelfPorts, filter.SelfPort{Proto: s.proto, Port: s.port, Need: filter.NeedInbound})
	}
}

// meshListener accepts on several of the node's addresses. Its port stays open to peers until the last connection is closed too, as
// policy cuts what it does not permit.
type meshListener struct {
	all      []net.Listener
	accepted chan net.Conn
	closed   chan struct{}
	once     sync.Once
	wg       sync.WaitGroup
	users    atomic.Int64 // the listener and its connections
	unserve  func()
}

func (l *meshListener) release() {
	if l.users.Add(-1) == 0 && l.unserve != nil {
		l.unserve()
	}
}

// acceptedConn is a connection of a meshListener.
type acceptedConn struct {
	*netstack.Conn
	release func() // once
}

// Close implements net.Conn.
func (c *acceptedConn) Close() error {
	defer c.release()
	return c.Conn.Close()
}

// Abort closes the connection by a reset.
func (c *acceptedConn) Abort() error {
	defer c.release()
	return c.Conn.Abort()
}

func (l *meshListener) run() {
	for _, one := range l.all {
		l.wg.Go(func() {
			for {
				c, err := one.Accept()
				if err != nil {
					return
				}
				if n, ok := c.(*netstack.Conn); ok {
					l.users.Add(1)
					c = &acceptedConn{n, sync.OnceFunc(l.release)}
				}
				select {
				case l.accepted <- c:
				case <-l.closed:
					c.Close()
					return
				}
			}
		})
	}
}

// Accept implements net.Listener.
func (l *meshListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.accepted:
		return c, nil
	case <-l.closed:
		return nil, &net.OpError{Op: "accept", Net: "tcp", Addr: l.Addr(), Err: net.ErrClosed}
	}
}

// Addr is the first of the addresses.
func (l *meshListener) Addr() net.Addr { return l.all[0].Addr() }

// Close ends it; accepted connections go on.
func (l *meshListener) Close() error {
	l.once.Do(func() {
		close(l.closed)
		for _, one := range l.all {
			one.Close()
		}
		l.wg.Wait()
		l.release()
	})
	return nil
}

// servedPacketConn is a socket whose port peers may write to while it is open.
type servedPacketConn struct {
	net.PacketConn
	unserve func()
}

// Close implements net.PacketConn.
func (c *servedPacketConn) Close() error {
	err := c.PacketConn.Close()
	c.unserve()
	return err
}
