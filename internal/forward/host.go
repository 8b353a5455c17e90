package forward

import (
	"context"
	"fmt"
	"io/fs"
	"net"
	"strings"
)

// unixPrefix marks the path of a unix socket in a target.
const unixPrefix = "unix:"

// DialHost opens a target on the host. The network is "tcp" or "udp"; the address is HOST:PORT, with a name resolved by
// the host's resolver, or unix:PATH, with a path that begins with @ for an abstract socket. A unix socket is one of streams
// for "tcp" and one of datagrams for "udp"; the latter can answer because this end has an address of its own.
func DialHost(ctx context.Context, network, address string) (net.Conn, error) {
	if network != "tcp" && network != "udp" {
		return nil, fmt.Errorf("dial %s %s: a target is reached by tcp or udp", network, address)
	}
	path, unix := strings.CutPrefix(address, unixPrefix)
	switch {
	case unix && path == "":
		return nil, fmt.Errorf("dial %s %s: the path is missing", network, address)
	case unix && network == "tcp":
		return new(net.Dialer).DialContext(ctx, "unix", path)
	case unix:
		return dialDatagram(ctx, path)
	}
	return new(net.Dialer).DialContext(ctx, network, address)
}

// ListenHost opens a listener on the host. The network is "tcp", with an address ADDRESS:PORT, or "unix", with the path of
// a socket; its file gets mode, where 0 means 0600, and is removed by Close. Such a listener has a method SetMode(fs.FileMode)
// error too. A socket that a dead process of the same user left is replaced.
func ListenHost(ctx context.Context, network, address string, mode fs.FileMode) (net.Listener, error) {
	switch network {
	case "tcp":
		return new(net.ListenConfig).Listen(ctx, network, address)
	case "unix":
		if mode == 0 {
			mode = 0o600
		}
		return listenUnix(ctx, address, mode)
	}
	return nil, fmt.Errorf("listen on %s %s: a listener is one of tcp, udp or unix", network, address)
}

// ListenPacketHost opens a UDP socket on the host, at ADDRESS:PORT.
func ListenPacketHost(ctx context.Context, address string) (net.PacketConn, error) {
	return new(net.ListenConfig).ListenPacket(ctx, "udp", address)
}
