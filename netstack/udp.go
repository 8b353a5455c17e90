package netstack

import (
	"encoding/binary"
	"net/netip"
	"syscall"

	"culvert.dev/culvert/internal/packet"
	"culvert.dev/culvert/nat"
	"culvert.dev/culvert/netstack/hostsock"
)

const (
	header4   = 20 // without options
	header6   = 40
	udpHeader = 8
)

// udpMapping carries all UDP of one inner address and port through one host socket. It is the socket's Receiver.
type udpMapping struct {
	mapping
	udp *hostsock.UDP
	end netip.AddrPort // the inner address and port
}

// openUDP makes the mapping of a source, on the same port on the host if that is free (RFC 4787 section 4.2.1).
func (n *Net) openUDP(p *packet.Packet, key mapKey) carrier {
	m := &udpMapping{end: p.SrcAddrPort()}
	m.init(n, key)
	sock, err := n.poller.OpenUDP(p.V, p.SrcPort, m)
	if err != nil {
		n.counters.drop(dropSocketLimit)
		n.log.Debug("open udp socket", "err", err)
		return nil
	}
	m.sock, m.udp = sock, sock
	return m
}

// send gives datagrams of one batch to the host's kernel, in order, and answers for those that it refuses. pkts are the
// packets they came in.
func (m *udpMapping) send(out []hostsock.Datagram, pkts [][]byte, df bool) {
	m.udp.SetDF(df)
	sent, _ := m.udp.Send(out)
	if sent == len(out) {
		return
	}
	for i := range out {
		if errno := out[i].Err; errno != 0 {
			m.refused(pkts[i], out[i].To.Addr(), errno)
		}
	}
}

// refused answers for a datagram that the host's kernel did not take.
func (m *udpMapping) refused(pkt []byte, to netip.Addr, errno syscall.Errno) {
	n := m.n
	why := dropHostSend
	if errno == syscall.EMSGSIZE {
		why = dropTooBig
	}
	n.counters.drop(why)
	var p packet.Packet
	if packet.Decode(&p, pkt) != packet.FaultNone { // bytes behind the datagram were cut off: it cannot be quoted
		return
	}
	p.Peer = m.key.peer
	if why == dropTooBig {
		if !n.mayAnswer(&p) { // asked first: finding the MTU costs a socket
			return
		}
		if mtu := m.udp.MTUTo(to); mtu > 0 && mtu < len(pkt) {
			n.sendICMP(&p, packet.TooBig(p.V, mtu))
		}
		return
	}
	if icmp, ok := refusal(p.V, errno); ok {
		n.answerICMP(&p, icmp)
	}
}

// Datagrams implements hostsock.Receiver: what arrived goes to the peer if the peer has written to its sender.
func (m *udpMapping) Datagrams(in []hostsock.Inbound) {
	n := m.n
	now := n.table.Now()
	for i := range in {
		d := &in[i]
		f, from, known := m.received(d.From)
		if !known {
			n.counters.drop(dropUnsolicited)
			d.Buf.Release()
			continue
		}
		if f != nil {
			n.flowAnswered(f, now)
			m.countReply(f, d)
		}
		r := udpReplies.Get().(*udpReply)
		*r = udpReply{hdr: packet.MakeUDPHeader(from, m.end), buf: d.Buf, n: d.N, gso: max(d.GSO, 1), ttl: hopsLeft(d.TTL)}
		n.out.push(item{reply: r, peer: m.key.peer}) // may wait; the kernel drops what comes in meanwhile
	}
}

// countReply counts datagrams to the peer, with the headers they get.
func (m *udpMapping) countReply(f *nat.Flow, d *hostsock.Inbound) {
	gso, headers := max(d.GSO, 1), header4+udpHeader
	if m.key.v == 6 {
		headers = header6 + udpHeader
	}
	packets := max(1, (d.N+gso-1)/gso)
	f.Count(nat.Reply, packets, d.N+packets*headers)
}

// hopsLeft is the time to live of a forwarded packet that arrived with ttl; zero means unknown.
func hopsLeft(ttl uint8) uint8 {
	if ttl == 0 {
		return 64
	}
	return max(ttl-1, 1)
}

// SocketError implements hostsock.Receiver: an ICMP error about a datagram of the peer's is the peer's.
func (m *udpMapping) SocketError(e *hostsock.ICMPError) {
	if !e.To.IsValid() || e.Local && e.Errno == syscall.EMSGSIZE { // the send has reported that
		return
	}
	k := m.keyOfError(e.To)
	size := udpHeader + len(e.Payload)
	l4 := make([]byte, size)
	binary.BigEndian.PutUint16(l4[0:], k.SrcPort)
	binary.BigEndian.PutUint16(l4[2:], k.DstPort)
	binary.BigEndian.PutUint16(l4[4:], uint16(size))
	copy(l4[udpHeader:], e.Payload)
	m.n.hostError(&k, e, l4, size)
}
