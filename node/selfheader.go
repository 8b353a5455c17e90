package node

import (
	"encoding/binary"
	"net"
	"net/netip"
)

// withOwnHeader makes a connection to a published service one of this node's own: in the header of the PROXY protocol, version 2, which
// the service expects, it is the client. Without one a local program could write a header itself and be any peer. A datagram
// connection has it in front of each datagram.
func withOwnHeader(c net.Conn, network string, own netip.Addr, port uint16) (net.Conn, error) {
	h := ownHeader(network, own, addressPort(c.LocalAddr()), port)
	if network == "udp" {
		return &headedDatagrams{c, h}, nil
	}
	if _, err := c.Write(h); err != nil { // goes into the socket's empty buffer
		c.Close()
		return nil, err
	}
	return c, nil
}

// ownHeader is laid out as haproxy's proxy-protocol.txt says in section 2.2: signature, version and command (PROXY), family and
// transport, length, both addresses, both ports.
func ownHeader(network string, own netip.Addr, from, to uint16) []byte {
	kind, size := byte(0x10), 2*4+4
	if own.Is6() {
		kind, size = 0x20, 2*16+4
	}
	if kind |= 1; network == "udp" {
		kind++
	}
	b := append([]byte("\r\n\r\n\x00\r\nQUIT\n"), 0x21, kind, 0, byte(size))
	b = append(append(b, own.AsSlice()...), own.AsSlice()...)
	return binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(b, from), to)
}

// addressPort is the port of an address, 0 if it has none.
func addressPort(a net.Addr) uint16 {
	if p, ok := a.(interface{ AddrPort() netip.AddrPort }); ok {
		return p.AddrPort().Port()
	}
	return 0
}

// headedDatagrams puts a header in front of each datagram.
type headedDatagrams struct {
	net.Conn
	header []byte
}

// Write implements net.Conn.
func (c *headedDatagrams) Write(b []byte) (int, error) {
	n, err := c.Conn.Write(append(c.header[:len(c.header):len(c.header)], b...))
	return max(0, n-len(c.header)), err
}
