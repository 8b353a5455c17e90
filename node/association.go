package node

import (
	"net"
	"time"

	"culvert.dev/culvert/internal/proxy"
)

// association is a UDP association with one destination, as a connection. Which hosts answer is the association's to check: those it has
// not written to cannot.
type association struct {
	proxy.PacketConn
	to proxy.Target
}

// Read implements net.Conn.
func (a *association) Read(b []byte) (int, error) {
	for {
		n, from, err := a.ReadFrom(b)
		if err != nil || from.Port == a.to.Port { // another port of the host is another end
			return n, err
		}
	}
}

// WaitRead waits until there is something to read, where the association can tell; elsewhere reading itself waits.
func (a *association) WaitRead() error {
	if w, ok := a.PacketConn.(interface{ WaitRead() error }); ok {
		return w.WaitRead()
	}
	return nil
}

// Write implements net.Conn.
func (a *association) Write(b []byte) (int, error) {
	if err := a.WriteTo(b, a.to); err != nil {
		return 0, err
	}
	return len(b), nil
}

// LocalAddr is not known: the association has a port wherever its datagrams leave.
func (a *association) LocalAddr() net.Addr { return meshAddr("") }

// RemoteAddr implements net.Conn.
func (a *association) RemoteAddr() net.Addr { return meshAddr(a.to.String()) }

// SetDeadline implements net.Conn.
func (a *association) SetDeadline(t time.Time) error { return a.SetReadDeadline(t) }

// SetReadDeadline implements net.Conn.
func (a *association) SetReadDeadline(t time.Time) error {
	if d, ok := a.PacketConn.(interface{ SetReadDeadline(time.Time) error }); ok {
		return d.SetReadDeadline(t)
	}
	return errNoDeadline
}

// SetWriteDeadline implements net.Conn. Writing never waits.
func (a *association) SetWriteDeadline(time.Time) error { return nil }
