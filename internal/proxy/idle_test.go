package proxy

import (
	"context"
	"io"
	"net"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// chanPacketConn is a socket whose datagrams come from a channel.
type chanPacketConn struct {
	net.PacketConn
	in     chan []byte
	from   netip.AddrPort
	closed chan struct{}
	close  func()
}

func newChanPacketConn(from string) *chanPacketConn {
	c := &chanPacketConn{in: make(chan []byte), from: netip.MustParseAddrPort(from), closed: make(chan struct{})}
	c.close = sync.OnceFunc(func() { close(c.closed) })
	return c
}

func (c *chanPacketConn) Close() error                              { c.close(); return nil }
func (c *chanPacketConn) LocalAddr() net.Addr                       { return &net.UDPAddr{Port: 1080} }
func (c *chanPacketConn) WriteTo(b []byte, _ net.Addr) (int, error) { return len(b), nil }

func (c *chanPacketConn) ReadFrom(b []byte) (int, net.Addr, error) {
	select {
	case d := <-c.in:
		return copy(b, d), net.UDPAddrFromAddrPort(c.from), nil
	case <-c.closed:
		return 0, nil, net.ErrClosed
	}
}

// chanOuter is an outer end whose datagrams come from the same.
type chanOuter struct{ *chanPacketConn }

func (c chanOuter) WriteTo([]byte, Target) error { return nil }

func (c chanOuter) ReadFrom(b []byte) (int, Target, error) {
	n, _, err := c.chanPacketConn.ReadFrom(b)
	return n, targetAt(c.from), err
}

// addressed is a pipe with the addresses of TCP.
type addressed struct {
	net.Conn
	local, remote string
}

func (a addressed) LocalAddr() net.Addr {
	return net.TCPAddrFromAddrPort(netip.MustParseAddrPort(a.local))
}
func (a addressed) RemoteAddr() net.Addr {
	return net.TCPAddrFromAddrPort(netip.MustParseAddrPort(a.remote))
}

// TestAssociationIdle: an association ends when nothing has moved for the time, and datagrams of either direction keep it.
func TestAssociationIdle(t *testing.T) {
	for _, c := range []struct {
		name string
		keep func(client, outer *chanPacketConn)
	}{
		{"nothing moves", nil},
		{"the client sends", func(client, _ *chanPacketConn) { client.in <- appendHeader(nil, Target{Name: "x", Port: 1}) }},
		{"somebody answers", func(_, outer *chanPacketConn) { outer.in <- []byte("x") }},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				client, outer := newChanPacketConn("192.0.2.1:999"), newChanPacketConn("198.51.100.1:53")
				d := &fakeDialer{listen: func(context.Context, *Request) (PacketConn, error) { return chanOuter{outer}, nil }}
				s, err := New(Config{SOCKS: true, UDP: true, Dialer: d, PacketConn: client})
				if err != nil {
					t.Fatal(err)
				}
				control, inner := net.Pipe()
				done := make(chan struct{})
				go func() {
					s.ServeConn(t.Context(), addressed{inner, "192.0.2.2:1080", "192.0.2.1:1"})
					close(done)
				}()
				go io.WriteString(control, hello+"\x05\x03\x00\x01\x00\x00\x00\x00\x00\x00")
				want := helloBack + "\x05\x00\x00\x01\xc0\x00\x02\x02\x04\x38" // the address by which it came, the port of the one socket
				got := make([]byte, len(want))
				if _, err := io.ReadFull(control, got); err != nil || string(got) != want {
					t.Fatalf("got %q, %v", got, err)
				}
				client.in <- appendHeader(nil, Target{Name: "x", Port: 1})
				if c.keep != nil {
					for range 10 {
						time.Sleep(DefaultUDPIdle - time.Second)
						c.keep(client, outer)
					}
				}
				synctest.Wait()
				begin := time.Now()
				<-done
				if took := time.Since(begin); took < DefaultUDPIdle-time.Second || took > DefaultUDPIdle*3/2 {
					t.Errorf("ended after %v", took)
				}
				if _, err := control.Read(make([]byte, 1)); err != io.EOF {
					t.Errorf("the control connection: %v", err)
				}
				synctest.Wait()
				select {
				case <-outer.closed:
				default:
					t.Error("the outer end is open")
				}
				s.Close()
			})
		})
	}
}
