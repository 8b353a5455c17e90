package netstack

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"syscall"

	"culvert.dev/culvert/internal/packet"
	"culvert.dev/culvert/nat"
	"culvert.dev/culvert/netstack/hostsock"
)

const icmpHeader = 8

// pingMapping carries the echo requests of one inner address and identifier through one ping socket of the host, whose
// kernel gives them an identifier of its own (RFC 5508 section 3). It is the socket's Receiver.
type pingMapping struct {
	mapping
	ping *hostsock.Ping
	end  netip.Addr // the inner address
}

// openPing makes the mapping of an echo identifier. Where the host forbids ping sockets the peer is told so.
func (n *Net) openPing(p *packet.Packet, key mapKey) carrier {
	m := &pingMapping{end: p.SrcAddr()}
	m.init(n, key)
	sock, err := n.poller.OpenPing(p.V, m)
	switch {
	case errors.Is(err, hostsock.ErrPingForbidden):
		n.counters.drop(dropEchoForbidden)
		n.answerICMP(p, packet.Prohibited(p.V))
		return nil
	case err != nil:
		n.counters.drop(dropSocketLimit)
		n.log.Debug("open ping socket", "err", err)
		return nil
	}
	m.sock, m.ping = sock, sock
	return m
}

// send passes one echo request on, to the address that its destination is outside.
func (m *pingMapping) send(p *packet.Packet, to netip.Addr) {
	n := m.n
	seq := binary.BigEndian.Uint16(p.Buf[p.L4+6:])
	err := m.ping.Send(to, seq, p.Buf[p.Data:], p.TTL-1, p.DF)
	var errno syscall.Errno
	switch {
	case err == nil:
	case errors.Is(err, syscall.EMSGSIZE):
		n.counters.drop(dropTooBig)
		if n.mayAnswer(p) { // asked first: finding the MTU costs a socket
			if mtu := m.ping.MTUTo(to); mtu > 0 && mtu < len(p.Buf) {
				n.sendICMP(p, packet.TooBig(p.V, mtu))
			}
		}
	case errors.As(err, &errno):
		n.counters.drop(dropHostSend)
		if icmp, ok := refusal(p.V, errno); ok {
			n.answerICMP(p, icmp)
		}
	default:
		n.counters.drop(dropHostSend)
	}
}

// Datagrams implements hostsock.Receiver: each is an ICMP message. Replies go to the peer under its own identifier if the
// peer has asked their sender.
func (m *pingMapping) Datagrams(in []hostsock.Inbound) {
	now := m.n.table.Now()
	for i := range in {
		m.reply(&in[i], now)
		in[i].Buf.Release()
	}
}

func (m *pingMapping) reply(d *hostsock.Inbound, now int64) {
	n := m.n
	msg := d.Buf.B[:d.N]
	if len(msg) < icmpHeader || m.key.v == 4 && msg[0] != 0 || m.key.v == 6 && msg[0] != icmp6EchoReply {
		return
	}
	f, from, _ := m.received(netip.AddrPortFrom(d.From.Addr(), 0))
	if f == nil {
		n.counters.drop(dropUnsolicited)
		return
	}
	n.flowAnswered(f, now)
	data := msg[icmpHeader:]
	hlen := header4 + icmpHeader
	if m.key.v == 6 {
		hlen = header6 + icmpHeader
	}
	f.Count(nat.Reply, 1, hlen+len(data))
	raw := newRaw(hlen + len(data))
	raw.b = raw.b[:hlen+len(data)]
	copy(raw.b[hlen:], data)
	packet.PutICMPEcho(raw.b, from.Addr(), m.end, msg[0], m.key.port, binary.BigEndian.Uint16(msg[6:]), len(data), hopsLeft(d.TTL), 0)
	n.toPeer(m.key.peer, raw)
}

// SocketError implements hostsock.Receiver: an error about an echo request goes to the peer that sent it, with the
// request as the peer knows it.
func (m *pingMapping) SocketError(e *hostsock.ICMPError) {
	if !e.To.IsValid() || len(e.Payload) < icmpHeader {
		return
	}
	k := m.keyOfError(netip.AddrPortFrom(e.To.Addr(), 0))
	l4 := append([]byte(nil), e.Payload...)
	sum, was := binary.BigEndian.Uint16(l4[2:]), binary.BigEndian.Uint16(l4[4:])
	binary.BigEndian.PutUint16(l4[4:], k.SrcPort)
	binary.BigEndian.PutUint16(l4[2:], packet.UpdateSum16(sum, was, k.SrcPort))
	m.n.hostError(&k, e, l4, len(l4))
}
