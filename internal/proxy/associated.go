package proxy

import (
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
)

// associated is this end of an association with a server.
type associated struct {
	control net.Conn
	relay   net.Conn // connected, so that nobody else's datagrams come in
	wait    func() error
	ended   atomic.Bool
	close   func() error
	done    chan struct{} // closed when control has ended
}

func newAssociated(control, relay net.Conn) *associated {
	a := &associated{control: control, relay: relay, wait: waitReadOf(relay), done: make(chan struct{})}
	a.close = sync.OnceValue(func() error {
		a.ended.Store(true)
		return errors.Join(control.Close(), relay.Close())
	})
	go a.watch()
	return a
}

// watch closes both when the server ends the association.
func (a *associated) watch() {
	defer close(a.done)
	var b [64]byte
	for {
		if _, err := a.control.Read(b[:]); err != nil {
			a.close()
			return
		}
	}
}

// Close ends the association.
func (a *associated) Close() error {
	err := a.close()
	<-a.done
	return err
}

// ReadFrom implements PacketConn. A buffer of 65535 bytes holds every datagram; with a smaller one the header takes room in
// it while the datagram is read, so that up to 262 bytes less of its end are kept.
func (a *associated) ReadFrom(b []byte) (int, Target, error) {
	for {
		n, err := a.relay.Read(b)
		switch {
		case a.ended.Load():
			return 0, Target{}, io.EOF
		case err != nil && isICMP(err):
			continue
		case err != nil:
			return 0, Target{}, err
		}
		from, payload, err := parseDatagram(b[:n])
		if err != nil {
			continue
		}
		return copy(b, payload), from, nil
	}
}

// WaitRead waits until there is something to read, as far as the socket can: see PacketConn.
func (a *associated) WaitRead() error {
	err := a.wait()
	switch {
	case a.ended.Load():
		return io.EOF
	case err != nil && isICMP(err):
		return nil
	}
	return err
}

// isICMP reports whether an error of a connected socket tells of a datagram that was sent, not of the socket.
func isICMP(err error) bool {
	for _, e := range []error{syscall.ECONNREFUSED, syscall.EHOSTUNREACH, syscall.ENETUNREACH, syscall.EMSGSIZE, syscall.EPROTO} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// WriteTo implements PacketConn.
func (a *associated) WriteTo(b []byte, to Target) error {
	buf := datagramBuffers.Get().(*[]byte)
	defer datagramBuffers.Put(buf)
	d := append(appendHeader((*buf)[:0], to), b...)
	if len(d) > maxDatagram {
		return &net.OpError{Op: "write", Net: "udp", Err: syscall.EMSGSIZE}
	}
	_, err := a.relay.Write(d)
	return err
}
