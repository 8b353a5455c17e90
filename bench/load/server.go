//go:build linux

package load

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"time"
)

// Services of a Server's TCP port. A client's first byte names one; it is echoed by the echo services.
const (
	echoService  = 'e' // echoes until the client ends
	onceService  = 'c' // echoes the first byte and ends
	floodService = 'f' // one end of a flood
)

// Server is the far side of the generators: on one port it echoes datagrams and TCP connections, and takes part in floods. It
// holds connections for as long as clients do.
type Server struct {
	tcp *net.TCPListener
	udp *net.UDPConn
}

// Listen opens the TCP and the UDP port of a server. Name the address that clients use: answers to datagrams come from
// whichever the system chooses where it is unspecified. Port 0 is one that the system chooses.
func Listen(address string) (*Server, error) {
	at, err := target(address)
	if err != nil {
		return nil, err
	}
	const attempts = 10 // a port that the system chooses for TCP may be taken for UDP
	for i := 1; ; i++ {
		s, err := listen(at)
		if err == nil || at.Port() != 0 || i == attempts {
			return s, err
		}
	}
}

func listen(at netip.AddrPort) (*Server, error) {
	tcp, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(at))
	if err != nil {
		return nil, err
	}
	udp, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(tcp.Addr().(*net.TCPAddr).AddrPort()))
	if err != nil {
		tcp.Close()
		return nil, err
	}
	udp.SetReadBuffer(socketBuffer) // as much as there is
	return &Server{tcp, udp}, nil
}

// target reads an address with a port.
func target(address string) (netip.AddrPort, error) {
	a, err := netip.ParseAddrPort(address)
	if err != nil {
		return a, fmt.Errorf("address %q: an IP address with a port is needed: %w", address, err)
	}
	return a, nil
}

// Addr is where the server listens.
func (s *Server) Addr() netip.AddrPort { return unmapped(s.udp.LocalAddr().(*net.UDPAddr).AddrPort()) }

// Serve answers until ctx ends, and then ends all connections.
func (s *Server) Serve(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(ctx, func() { s.tcp.Close(); s.udp.Close() })()
	var wg sync.WaitGroup
	defer wg.Wait()
	var echoErr error
	wg.Go(func() {
		defer cancel()
		echoErr = s.echoDatagrams()
	})
	err := s.accept(ctx, &wg)
	cancel()
	wg.Wait()
	for _, err := range []error{err, echoErr} {
		if !errors.Is(err, net.ErrClosed) { // that is how both are told to end
			return err
		}
	}
	return nil
}

func (s *Server) echoDatagrams() error {
	b := make([]byte, messageLen)
	for {
		n, from, err := s.udp.ReadFromUDPAddrPort(b)
		if errors.Is(err, net.ErrClosed) {
			return err
		}
		if err == nil {
			s.udp.WriteToUDPAddrPort(b[:n], from) // what cannot be answered is lost, as on the way
		}
	}
}

func (s *Server) accept(ctx context.Context, wg *sync.WaitGroup) error {
	for {
		conn, err := s.tcp.AcceptTCP()
		switch {
		case errors.Is(err, net.ErrClosed):
			return err
		case err != nil: // a connection that ended before, or no file for it
			time.Sleep(time.Millisecond)
			continue
		}
		wg.Go(func() {
			defer conn.Close()
			stop := context.AfterFunc(ctx, func() { conn.Close() })
			defer stop()
			serveConn(ctx, conn)
		})
	}
}

func serveConn(ctx context.Context, conn *net.TCPConn) {
	var first [1]byte
	if _, err := io.ReadFull(conn, first[:]); err != nil {
		return
	}
	switch first[0] {
	case onceService:
		conn.Write(first[:])
	case echoService:
		echo(conn, first[0])
	case floodService:
		serveFlood(ctx, conn)
	}
}

// echo begins with a byte that has been read already.
func echo(conn net.Conn, first byte) {
	b, n := make([]byte, 4096), 1
	b[0] = first
	for {
		if _, err := conn.Write(b[:n]); err != nil {
			return
		}
		var err error
		if n, err = conn.Read(b); err != nil {
			return
		}
	}
}

// dialService connects to a server and names a service.
func dialService(ctx context.Context, to netip.AddrPort, service byte) (net.Conn, error) {
	d := net.Dialer{Timeout: talkLimit, KeepAlive: -1}
	conn, err := d.DialContext(ctx, "tcp", to.String())
	if err != nil {
		return nil, err
	}
	if _, err := conn.Write([]byte{service}); err != nil {
		conn.Close()
		return nil, err
	}
	return conn, nil
}
