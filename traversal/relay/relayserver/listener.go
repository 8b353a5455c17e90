package relayserver

import (
	"net"
	"net/netip"
	"sync"
)

// Listener returns a listener that takes connections from l and closes, before anything is read from them, those of addresses that
// have too many or come too often. TLS belongs on top of it. Connections from trusted proxies are not counted here; the Handler
// counts them by the addresses that the proxy tells. What is not TCP passes uncounted.
func (s *Server) Listener(l net.Listener) net.Listener { return &listener{l, s} }

type listener struct {
	net.Listener
	s *Server
}

// Accept waits for the next connection that is let in.
func (l *listener) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		tcp, ok := conn.(*net.TCPConn)
		if !ok {
			return conn, nil
		}
		tune(tcp)
		from := addressOf(tcp)
		if l.s.trusted(from) {
			return tcp, nil
		}
		h, why := l.s.accepts.open(from, l.s.now())
		if why == 0 {
			return &limitedConn{TCPConn: tcp, hold: h}, nil
		}
		l.s.refused[why].Add(1)
		tcp.SetLinger(0) // no TIME_WAIT, no goodbye
		tcp.Close()
	}
}

func addressOf(c *net.TCPConn) netip.Addr {
	a, ok := c.RemoteAddr().(*net.TCPAddr)
	if !ok {
		return netip.Addr{}
	}
	return a.AddrPort().Addr().Unmap().WithZone("")
}

// limitedConn gives its address's place back when it is closed.
type limitedConn struct {
	*net.TCPConn
	mu   sync.Mutex // guards hold
	hold hold
}

// Close closes the connection.
func (c *limitedConn) Close() error {
	c.mu.Lock()
	c.hold.release()
	c.mu.Unlock()
	return c.TCPConn.Close()
}

// established says that the connection is a client's.
func (c *limitedConn) established() {
	c.mu.Lock()
	c.hold.established()
	c.mu.Unlock()
}

// limitedOf returns the counted connection below conn, nil if there is none.
func limitedOf(conn net.Conn) *limitedConn {
	for {
		switch c := conn.(type) {
		case *limitedConn:
			return c
		case interface{ NetConn() net.Conn }:
			conn = c.NetConn()
		default:
			return nil
		}
	}
}
