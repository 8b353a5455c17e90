package egress

import (
	"net"
	"sync"
	"sync/atomic"

	"culvert.dev/culvert/internal/proxy"
	"culvert.dev/culvert/internal/stream"
)

// exitConn is a connection through an exit, counted until it is closed. It has what stream.Relay looks for.
type exitConn struct {
	net.Conn
	once sync.Once
	open *atomic.Int64
}

// splicedConn is one whose connection copies by itself.
type splicedConn struct {
	*exitConn
	stream.Splicer
}

// lazyConn is one whose connection needs no goroutine to wait for something to copy.
type lazyConn struct {
	*exitConn
	stream.LazySplicer
}

// counted counts a connection among the exit's.
func (x *exit) counted(c net.Conn) net.Conn {
	x.conns.Add(1)
	e := &exitConn{Conn: c, open: &x.conns}
	switch s := c.(type) {
	case stream.LazySplicer:
		return lazyConn{e, s}
	case stream.Splicer:
		return splicedConn{e, s}
	}
	return e
}

func (c *exitConn) gone() { c.once.Do(func() { c.open.Add(-1) }) }

// NetConn returns the connection to the exit.
func (c *exitConn) NetConn() net.Conn { return c.Conn }

// Close implements net.Conn.
func (c *exitConn) Close() error {
	c.gone()
	return c.Conn.Close()
}

// Abort closes the connection by a reset, where it can be.
func (c *exitConn) Abort() error {
	c.gone()
	switch a := c.Conn.(type) {
	case interface{ Abort() error }:
		return a.Abort()
	case interface{ SetLinger(int) error }:
		a.SetLinger(0) // if it fails the connection is closed already
	}
	return c.Conn.Close()
}

// CloseWrite ends one direction; a connection that cannot do that is closed.
func (c *exitConn) CloseWrite() error {
	if w, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return w.CloseWrite()
	}
	return c.Close()
}

// exitPackets is an association at an exit, counted like a connection.
type exitPackets struct {
	proxy.PacketConn
	wait func() error
	once sync.Once
	open *atomic.Int64
}

// Close implements proxy.PacketConn.
func (p *exitPackets) Close() error {
	p.once.Do(func() { p.open.Add(-1) })
	return p.PacketConn.Close()
}
