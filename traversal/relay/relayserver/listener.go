package relayserver

import (
	"container/list"
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
			c := &limitedConn{TCPConn: tcp, room: &l.s.waiting, hold: h}
			if oldest := l.s.waiting.enter(c); oldest != nil {
				l.s.refused[refusedHalfOpen].Add(1)
				oldest.SetLinger(0)
				oldest.TCPConn.Close() // who reads from it then closes the rest
			}
			return c, nil
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
	room  *waitingRoom
	place *list.Element // in room; guarded by it
	ahead ahead         // of its one reader

	mu   sync.Mutex // guards hold
	hold hold
}

// Read reads what has arrived.
func (c *limitedConn) Read(b []byte) (int, error) { return c.ahead.read(c.TCPConn, b) }

// Close closes the connection.
func (c *limitedConn) Close() error {
	c.room.leave(c)
	c.mu.Lock()
	c.hold.release()
	c.mu.Unlock()
	return c.TCPConn.Close()
}

// established says that the connection is a client's.
func (c *limitedConn) established() {
	c.room.leave(c)
	c.mu.Lock()
	c.hold.established()
	c.mu.Unlock()
}

// waitingRoom holds the connections that are not yet a client's, of all addresses together. When it is full the oldest has to go:
// an honest client is through in a moment, so that it takes very many connections per second to keep it out, and none to keep the
// memory bounded.
type waitingRoom struct {
	max int

	mu    sync.Mutex // guards the following
	queue list.List  // of *limitedConn, the oldest first
}

// enter takes a connection in, and returns the one that has to go for it.
func (w *waitingRoom) enter(c *limitedConn) (oldest *limitedConn) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.queue.Len() >= w.max {
		oldest = w.queue.Remove(w.queue.Front()).(*limitedConn)
		oldest.place = nil
	}
	c.place = w.queue.PushBack(c)
	return oldest
}

// leave lets a connection out that has become a client's, or has ended.
func (w *waitingRoom) leave(c *limitedConn) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if c.place != nil {
		w.queue.Remove(c.place)
		c.place = nil
	}
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
