package node

import (
	"net"
	"time"

	"culvert.dev/culvert/internal/proxy"
)

// association is a UDP association with one destination, as a connection. Who answers is the association's to check: what it has not
// written to cannot.
type association struct {
	proxy.PacketConn
	to proxy.Target
}

// Read implements net.Conn.
func (a *association) Read(b []byte) (int, error) {
	n, _, err := a.ReadFrom(b)
	return n, err
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

// Deadlines are not had; Close ends a Read.
func (a *association) SetDeadline(time.Time) error      { return errNoDeadline }
func (a *association) SetReadDeadline(time.Time) error  { return errNoDeadline }
func (a *association) SetWriteDeadline(time.Time) error { return errNoDeadline }
