package proxy

import (
	"errors"
	"net"
	"net/netip"
	"sync"
	"time"
)

// datagramBuffers hold a datagram of the largest size behind a header of the largest size. They are a cache: nothing depends
// on what is in it.
var datagramBuffers = sync.Pool{New: func() any {
	b := make([]byte, maxHeaderLen+65535)
	return &b
}}

// packetSocket is a net.PacketConn that speaks netip, without allocating where the socket can do so.
type packetSocket struct {
	net.PacketConn
	wait func() error // until there is something to read, where that needs no buffer
}

func newPacketSocket(c net.PacketConn) *packetSocket {
	return &packetSocket{PacketConn: c, wait: waitReadOf(c)}
}

func (p *packetSocket) readFrom(b []byte) (n int, from netip.AddrPort, err error) {
	switch c := p.PacketConn.(type) {
	case interface {
		ReadFromUDPAddrPort([]byte) (int, netip.AddrPort, error)
	}:
		n, from, err = c.ReadFromUDPAddrPort(b)
	case interface {
		ReadFromAddrPort([]byte) (int, netip.AddrPort, error)
	}:
		n, from, err = c.ReadFromAddrPort(b)
	default:
		var a net.Addr
		if n, a, err = c.ReadFrom(b); err == nil {
			from = addrPortOf(a)
		}
	}
	return n, netip.AddrPortFrom(from.Addr().Unmap().WithZone(""), from.Port()), err
}

func (p *packetSocket) writeTo(b []byte, to netip.AddrPort) error {
	var err error
	switch c := p.PacketConn.(type) {
	case interface {
		WriteToUDPAddrPort([]byte, netip.AddrPort) (int, error)
	}:
		_, err = c.WriteToUDPAddrPort(b, to)
	case interface {
		WriteToAddrPort([]byte, netip.AddrPort) (int, error)
	}:
		_, err = c.WriteToAddrPort(b, to)
	default:
		_, err = c.WriteTo(b, net.UDPAddrFromAddrPort(to))
	}
	return err
}

// receive hands every datagram over until the socket is closed or done is. Errors in between, which ICMP causes, end nothing;
// the pause is for one that stays. The bytes are valid during the call.
func (p *packetSocket) receive(done <-chan struct{}, handle func(b []byte, from netip.AddrPort)) {
	failures := 0
	for {
		err := p.receiveOne(handle)
		switch {
		case err == nil:
			failures = 0
			continue
		case errors.Is(err, net.ErrClosed):
			return
		}
		if failures++; failures < 16 {
			continue
		}
		t := time.NewTimer(100 * time.Millisecond)
		select {
		case <-t.C:
		case <-done:
			t.Stop()
			return
		}
	}
}

// receiveOne waits, where it can, before it takes a buffer.
func (p *packetSocket) receiveOne(handle func(b []byte, from netip.AddrPort)) error {
	if err := p.wait(); err != nil {
		return err
	}
	buf := datagramBuffers.Get().(*[]byte)
	defer datagramBuffers.Put(buf)
	n, from, err := p.readFrom(*buf)
	if err != nil {
		return err
	}
	handle((*buf)[:n], from)
	return nil
}
