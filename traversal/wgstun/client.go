package wgstun

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"time"

	"culvert.dev/culvert/internal/packet"
	"culvert.dev/culvert/traversal/stun"
)

// ClientConfig says who asks whom. All fields are required.
type ClientConfig struct {
	Self   netip.Addr // our inner address, as the server knows us: AddressOf our key, or an IPv4 address that it has for us
	Server netip.Addr // of the server inside the tunnel, in the family of Self

	// Send puts a whole IP packet into the tunnel, towards the server. It must not keep the packet.
	Send func(packet []byte) error
}

// Client asks a WG-STUN server for our outer endpoint, without a socket: it makes whole IP packets and takes whole IP packets.
// Retransmission and transactions are those of stun.Client.
type Client struct {
	self, server netip.AddrPort
	send         func(packet []byte) error
	stun         *stun.Client
	header       packet.UDPHeader
}

// NewClient makes a Client. It has no goroutine.
func NewClient(cfg ClientConfig) (*Client, error) {
	switch {
	case !isHost(cfg.Self):
		return nil, fmt.Errorf("WG-STUN client: own address %s: not an address of a host", cfg.Self)
	case !isHost(cfg.Server) || cfg.Server == cfg.Self:
		return nil, fmt.Errorf("WG-STUN client: server address %s: not an address of another host", cfg.Server)
	case cfg.Self.Is4() != cfg.Server.Is4():
		return nil, fmt.Errorf("WG-STUN client: own address %s and server address %s differ in family", cfg.Self, cfg.Server)
	case cfg.Send == nil:
		return nil, errors.New("WG-STUN client: no way to send")
	}
	c := &Client{
		self:   netip.AddrPortFrom(cfg.Self, uint16(firstPort+rand.IntN(1<<16-firstPort))),
		server: netip.AddrPortFrom(cfg.Server, Port),
		send:   cfg.Send,
	}
	c.header = packet.MakeUDPHeader(c.self, c.server)
	c.stun = stun.NewClient(c.wrap)
	return c, nil
}

// firstPort is where the dynamic ports begin (RFC 6335 section 6).
const firstPort = 49152

// Answer is what a server says.
type Answer struct {
	Mapped netip.AddrPort // where the server sees our WireGuard socket
	RTT    time.Duration  // through the tunnel
}

// Query asks the server and waits for the answer. The tunnel makes its handshake first, if it has no session. It returns when
// ctx ends, or when the last retransmission was not answered.
func (c *Client) Query(ctx context.Context) (Answer, error) {
	a, err := c.stun.Bind(ctx, c.server)
	if err != nil {
		return Answer{}, fmt.Errorf("ask WG-STUN server %s: %w", c.server.Addr(), err)
	}
	return Answer{Mapped: a.Mapped, RTT: a.RTT}, nil
}

// wrap sends a STUN message inside IP and UDP. The identification of an IPv4 header is zero: the packet is far below any MTU
// (RFC 6864 section 4.1).
func (c *Client) wrap(msg []byte, _ netip.AddrPort) error {
	b := make([]byte, c.header.Len()+len(msg))
	copy(b[c.header.Len():], msg)
	c.header.Put(b, len(msg), answerTTL, 0)
	return c.send(b)
}

// Receive takes a packet from the server's tunnel; it reports whether that was the answer to a request of ours. Everything else
// is forgotten: what is malformed, fragmented, has options or a wrong checksum, or is not between the two ends. It does not keep the
// packet, and does not block.
func (c *Client) Receive(b []byte) bool {
	var p packet.Packet
	switch {
	case packet.Decode(&p, b) != packet.FaultNone,
		p.Proto != packet.ProtoUDP, p.Frag != packet.Whole, !p.Plain,
		p.SrcAddrPort() != c.server, p.DstAddrPort() != c.self,
		!p.ChecksumOK():
		return false
	}
	return c.stun.Handle(p.Buf[p.Data:], c.server)
}
