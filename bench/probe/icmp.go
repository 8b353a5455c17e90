package probe

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
)

// HostEcho sends one ICMP echo request by an unprivileged ping socket of this host and waits for the answer, or until ctx ends. Linux
// lets the groups in net.ipv4.ping_group_range have such sockets; elsewhere, and on systems without them, it is an error.
func HostEcho(ctx context.Context, to netip.Addr) (time.Duration, error) {
	network, any := "udp4", "0.0.0.0"
	request, answer := icmp.Type(ipv4.ICMPTypeEcho), icmp.Type(ipv4.ICMPTypeEchoReply)
	protocol := 1 // ICMP
	if to = to.Unmap(); to.Is6() {
		network, any = "udp6", "::"
		request, answer = ipv6.ICMPTypeEchoRequest, ipv6.ICMPTypeEchoReply
		protocol = 58 // ICMPv6
	}
	c, err := icmp.ListenPacket(network, any)
	if err != nil {
		return 0, fmt.Errorf("echo to %s: %w", to, err)
	}
	defer c.Close()
	// The kernel gives the socket an identifier of its own and hands it only answers to that one. The data tells late answers of another
	// socket that had the same.
	data := make([]byte, 56)
	began := time.Now()
	binary.BigEndian.PutUint64(data, uint64(began.UnixNano()))
	message := icmp.Message{Type: request, Body: &icmp.Echo{Seq: 1, Data: data}}
	b, err := message.Marshal(nil)
	if err != nil {
		return 0, fmt.Errorf("echo to %s: %w", to, err)
	}
	stop := context.AfterFunc(ctx, func() { c.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	if _, err := c.WriteTo(b, net.UDPAddrFromAddrPort(netip.AddrPortFrom(to, 0))); err != nil {
		return 0, fmt.Errorf("echo to %s: %w", to, err)
	}
	in := make([]byte, 256)
	for {
		n, _, err := c.ReadFrom(in)
		at := time.Now()
		if err != nil {
			if ctx.Err() != nil {
				err = errors.Join(ctx.Err(), err)
			}
			return 0, fmt.Errorf("echo to %s: %w", to, err)
		}
		m, err := icmp.ParseMessage(protocol, in[:n])
		if err != nil || m.Type != answer {
			continue
		}
		if e, ok := m.Body.(*icmp.Echo); ok && string(e.Data) == string(data) {
			return at.Sub(began), nil
		}
	}
}
