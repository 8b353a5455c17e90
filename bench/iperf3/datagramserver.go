package iperf3

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"strconv"
	"sync"
	"time"
)

// datagramServer is the socket of a server for the datagrams of one test. All its streams share it and are told apart by where
// they come from. Only the host of the control connection opens streams: otherwise anyone could have a flood sent to somebody else.
type datagramServer struct {
	conn    net.PacketConn
	session *session
	client  netip.Addr
	opened  chan struct{} // one per stream
	reader  sync.WaitGroup

	mu      sync.RWMutex // guards the following
	streams map[netip.AddrPort]*stream
	order   []*stream
}

// listenDatagrams opens the socket, at the address at which the client has reached the server.
func (s *session) listenDatagrams(ctx context.Context) error {
	at, reached := endpointOf(addrText(s.listening)), endpointOf(addrText(s.control.LocalAddr()))
	if reached.Port == at.Port {
		at = reached
	}
	conn, err := s.Network.ListenPacket(ctx, "udp", net.JoinHostPort(at.Host, strconv.Itoa(at.Port)))
	if err != nil {
		return err
	}
	growReadBuffer(conn, s.params.Window)
	remote, _ := netip.ParseAddr(endpointOf(addrText(s.control.RemoteAddr())).Host)
	s.datagrams = &datagramServer{
		conn: conn, session: s, client: remote.WithZone(""), opened: make(chan struct{}, 2*maxStreams), streams: make(map[netip.AddrPort]*stream),
	}
	s.datagrams.reader.Go(s.datagrams.read)
	return nil
}

// haltDatagrams makes senders that wait for the socket give up.
func (s *session) haltDatagrams() {
	if s.datagrams != nil {
		s.datagrams.conn.SetWriteDeadline(time.Unix(1, 0))
	}
}

func (s *session) closeDatagrams() {
	if s.datagrams != nil {
		s.datagrams.conn.Close()
		s.datagrams.reader.Wait()
	}
}

// gather waits for all streams.
func (d *datagramServer) gather(said <-chan heard, late <-chan time.Time) error {
	for range d.session.params.connections() {
		select {
		case <-d.opened:
		case h := <-said:
			return d.session.left(h)
		case <-late:
			return errNoStreams
		}
	}
	d.mu.RLock()
	defer d.mu.RUnlock()
	d.session.test.streams = append(d.session.test.streams, d.order...)
	return nil
}

// maxReadErrors is how many errors in a row mean that a socket is of no more use.
const maxReadErrors = 16

// read takes in datagrams until the socket is closed. Some systems tell here that one that was sent did not arrive.
func (d *datagramServer) read() {
	read := readerFrom(d.conn)
	b := make([]byte, maxDatagram)
	for errs := 0; errs < maxReadErrors; {
		n, from, err := read(b)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			errs++
			continue
		}
		errs = 0
		d.take(b[:n], netip.AddrPortFrom(from.Addr().Unmap(), from.Port()))
	}
}

// take is given each datagram.
func (d *datagramServer) take(b []byte, from netip.AddrPort) {
	d.mu.RLock()
	s := d.streams[from]
	d.mu.RUnlock()
	switch {
	case isConnect(b):
		d.open(from, s)
	case s != nil && !s.sender:
		d.session.test.datagram(s, b)
	}
}

// open adds a stream, and answers.
func (d *datagramServer) open(from netip.AddrPort, known *stream) {
	if from.Addr().WithZone("") != d.client {
		return
	}
	write := writerTo(d.conn, from)
	if known != nil { // the answer was lost
		write(connectAnswer())
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	i := len(d.order)
	if i == d.session.params.connections() {
		return
	}
	s := &stream{id: streamID(i), sender: d.session.sends(i), send: write}
	s.ends = connected(s.id, d.conn.LocalAddr(), net.UDPAddrFromAddrPort(from))
	d.streams[from], d.order = s, append(d.order, s)
	write(connectAnswer())
	d.opened <- struct{}{}
}

// readerFrom returns the cheapest way to read from a socket.
func readerFrom(c net.PacketConn) func(b []byte) (int, netip.AddrPort, error) {
	switch c := c.(type) {
	case interface {
		ReadFromUDPAddrPort([]byte) (int, netip.AddrPort, error)
	}:
		return c.ReadFromUDPAddrPort
	case interface {
		ReadFromAddrPort([]byte) (int, netip.AddrPort, error)
	}:
		return c.ReadFromAddrPort
	}
	return func(b []byte) (int, netip.AddrPort, error) {
		n, a, err := c.ReadFrom(b)
		if err != nil {
			return 0, netip.AddrPort{}, err
		}
		if u, ok := a.(*net.UDPAddr); ok {
			return n, u.AddrPort(), nil
		}
		from, _ := netip.ParseAddrPort(addrText(a))
		return n, from, nil
	}
}

// writerTo returns the cheapest way to write to an address.
func writerTo(c net.PacketConn, to netip.AddrPort) func(b []byte) (int, error) {
	switch c := c.(type) {
	case interface {
		WriteToUDPAddrPort([]byte, netip.AddrPort) (int, error)
	}:
		return func(b []byte) (int, error) { return c.WriteToUDPAddrPort(b, to) }
	case interface {
		WriteToAddrPort([]byte, netip.AddrPort) (int, error)
	}:
		return func(b []byte) (int, error) { return c.WriteToAddrPort(b, to) }
	}
	addr := net.UDPAddrFromAddrPort(to)
	return func(b []byte) (int, error) { return c.WriteTo(b, addr) }
}
