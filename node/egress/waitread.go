package egress

import (
	"net"
	"os"
	"syscall"

	"culvert.dev/culvert/internal/proxy"
	"culvert.dev/culvert/internal/stream"
)

// readWaiter can say that there is something to read, so that nobody needs a buffer to wait with: see proxy.PacketConn.
type readWaiter interface{ WaitRead() error }

// waitReadOf returns what waits until a socket has something to read: its own WaitRead, or that of its descriptor. Of others reading
// itself waits.
func waitReadOf(c any) func() error {
	switch c := c.(type) {
	case readWaiter:
		return c.WaitRead
	case syscall.Conn:
		if raw, err := c.SyscallConn(); err == nil {
			return func() error { return stream.AwaitReadable(raw) }
		}
	}
	return func() error { return nil }
}

// WaitRead implements what is optional of proxy.PacketConn.
func (c connEnd) WaitRead() error { return c.wait() }

// WaitRead implements what is optional of proxy.PacketConn.
func (p *exitPackets) WaitRead() error { return p.wait() }

// WaitRead implements what is optional of proxy.PacketConn, for all ends with a socket.
func (s socket) WaitRead() error { return s.wait() }

// roomy is a buffer for any datagram. As many are in use as datagrams are being read, and as there are sockets that cannot be waited for.
type roomy [datagramSize]byte

// oneReader reads one datagram, and says so if it was for nobody: a reader that goes on by itself waits with its buffer.
type oneReader interface {
	readOne(b []byte) (n int, from proxy.Target, ok bool, err error)
}

// receiveOne waits for a datagram and returns a copy in one of the buffers of the egress, nil if it was for nobody.
func (e *Egress) receiveOne(end proxy.PacketConn, wait func() error) (*datagram, error) {
	if err := wait(); err != nil {
		return nil, err
	}
	b := e.roomy.Get().(*roomy)
	defer e.roomy.Put(b)
	n, from, ok, err := 0, proxy.Target{}, true, error(nil)
	if r, can := end.(oneReader); can {
		n, from, ok, err = r.readOne(b[:])
	} else {
		n, from, err = end.ReadFrom(b[:])
	}
	if err != nil || !ok {
		return nil, err
	}
	d := e.buffers.Get().(*datagram)
	d.b, d.from = append(d.b[:0], b[:n]...), from
	return d, nil
}

// WaitRead implements what is optional of proxy.PacketConn. It is for the one who reads.
func (a *association) WaitRead() error {
	switch {
	case a.ctx.Err() != nil:
		return net.ErrClosed
	case a.next != nil:
		return nil
	}
	select {
	case <-a.ctx.Done():
		return net.ErrClosed
	case <-a.before.passed():
		return os.ErrDeadlineExceeded
	case a.next = <-a.in:
		return nil
	}
}
