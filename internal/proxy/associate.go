package proxy

import (
	"context"
	"fmt"
	"net"
	"net/netip"
)

// Associate asks the SOCKS5 server at the other end of control to carry datagrams, and returns what carries them. It owns
// control from then on, also after an error: the association lives as long as it.
//
// dial opens the socket for the datagrams, connected to the address it is given. It is called first with the server's address
// and the port of control, where a server with one port for everything expects them, so that the request can name this end's
// port: by that a server tells several associations of one host apart. Only if the reply names another address is it called
// again, after the first socket has been closed, and should then use the same local port, as others may be dropped.
func Associate(ctx context.Context, control net.Conn, dial func(ctx context.Context, relay netip.AddrPort) (net.Conn, error)) (PacketConn, error) {
	server := addrPortOf(control.RemoteAddr())
	a, err := associate(ctx, control, server, dial)
	if err != nil {
		control.Close()
		return nil, fmt.Errorf("socks5 associate %s: %w", server, err)
	}
	return a, nil
}

func associate(ctx context.Context, control net.Conn, server netip.AddrPort, dial func(context.Context, netip.AddrPort) (net.Conn, error)) (*associated, error) {
	c, err := dial(ctx, server)
	if err != nil {
		return nil, err
	}
	own := netip.AddrPortFrom(netip.IPv4Unspecified(), addrPortOf(c.LocalAddr()).Port())
	bound, err := request(ctx, control, commandAssociate, targetAt(own), nil)
	if err != nil {
		c.Close()
		return nil, err
	}
	relay := netip.AddrPortFrom(bound.Addr, bound.Port)
	if !bound.Addr.IsValid() || bound.Addr.IsUnspecified() { // it does not know: where its other port is
		relay = netip.AddrPortFrom(server.Addr(), bound.Port)
	}
	if relay.Port() == 0 {
		c.Close()
		return nil, Fail(General, "the server names no port for datagrams")
	}
	if relay != server {
		c.Close()
		if c, err = dial(ctx, relay); err != nil {
			return nil, err
		}
	}
	return newAssociated(control, c), nil
}
