package iperf3

import (
	"context"
	"net"
	"syscall"
)

// Network makes the connections of a test. Networks are "tcp" and "udp". What DialContext returns for "udp" must take datagrams from
// the address it was given only.
type Network interface {
	DialContext(ctx context.Context, network, address string) (net.Conn, error)
	Listen(ctx context.Context, network, address string) (net.Listener, error)
	ListenPacket(ctx context.Context, network, address string) (net.PacketConn, error)
}

// Host is the network of this host.
type Host struct{}

// DialContext implements Network.
func (Host) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	return new(net.Dialer).DialContext(ctx, network, address)
}

// Listen implements Network.
func (Host) Listen(ctx context.Context, network, address string) (net.Listener, error) {
	return new(net.ListenConfig).Listen(ctx, network, address)
}

// ListenPacket implements Network.
func (Host) ListenPacket(ctx context.Context, network, address string) (net.PacketConn, error) {
	return new(net.ListenConfig).ListenPacket(ctx, network, address)
}

// dialTuned is DialContext with options that a socket needs before it connects.
func (Host) dialTuned(ctx context.Context, network, address string, tune func(fd uintptr)) (net.Conn, error) {
	d := net.Dialer{Control: func(_, _ string, c syscall.RawConn) error { return c.Control(tune) }}
	return d.DialContext(ctx, network, address)
}

// tunedNetwork is a Network of sockets.
type tunedNetwork interface {
	dialTuned(ctx context.Context, network, address string, tune func(fd uintptr)) (net.Conn, error)
}
