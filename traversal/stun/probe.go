package stun

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"time"
)

// probe is a socket of Discover's with a client on it, and a goroutine that reads.
type probe struct {
	conn   net.PacketConn
	client *Client
	found  chan hairpinned // requests that are no answers of a server's; one is kept
	done   chan struct{}
}

// hairpinned is a request of another probe's that has arrived.
type hairpinned struct {
	id   [idLen]byte
	from netip.AddrPort
}

func newProbe(c net.PacketConn) *probe {
	p := &probe{conn: c, found: make(chan hairpinned, 8), done: make(chan struct{})}
	p.client = NewClient(p.send)
	go p.read()
	return p
}

func (p *probe) send(msg []byte, to netip.AddrPort) error {
	_, err := p.conn.WriteTo(msg, net.UDPAddrFromAddrPort(to))
	return err
}

// port is the socket's own.
func (p *probe) port() uint16 { return addrPortOf(p.conn.LocalAddr()).Port() }

func (p *probe) close() {
	p.conn.Close()
	<-p.done
}

// read ends when the socket is closed, or is of no more use.
func (p *probe) read() {
	defer close(p.done)
	buf := make([]byte, maxMessage)
	for failures := 0; failures < maxFailures; {
		n, addr, err := p.conn.ReadFrom(buf)
		switch {
		case errors.Is(err, net.ErrClosed):
			return
		case err != nil: // what an ICMP error has left behind
			failures++
			continue
		}
		failures = 0
		from := addrPortOf(addr)
		if p.client.Handle(buf[:n], from) || !Is(buf[:n]) || binary.BigEndian.Uint16(buf) != bindingRequest {
			continue
		}
		select {
		case p.found <- hairpinned{[idLen]byte(buf[headerLen-idLen:]), from}:
		default:
		}
	}
}

func addrPortOf(a net.Addr) netip.AddrPort {
	u, ok := a.(*net.UDPAddr)
	if !ok {
		return netip.AddrPort{}
	}
	at := u.AddrPort()
	return netip.AddrPortFrom(at.Addr().Unmap(), at.Port())
}

const (
	hairpinRounds = 3
	hairpinWait   = 200 * time.Millisecond
)

// hairpin has two sockets send to each other's outer address, as seen by the server, so that filters are open on both sides
// (RFC 4787 section 6). Where mappings depend on the destination, these are not the ones that the two have for each other; then
// only a NAT without filtering lets them meet.
func (d *discovery) hairpin(ctx context.Context) Hairpin {
	var probes [2]*probe
	var outer [2]netip.AddrPort
	for i := range probes {
		p, err := d.open()
		if err != nil {
			return HairpinUnknown
		}
		answer, err := p.client.do(ctx, &exchange{server: d.cfg.Server, tries: quickTries})
		if err != nil {
			return HairpinUnknown
		}
		probes[i], outer[i] = p, answer.Mapped
	}
	var id [idLen]byte
	rand.Read(id[:])
	for range hairpinRounds {
		for i, p := range probes {
			if p.send(buildRequest(id, 0), outer[1-i]) != nil {
				return HairpinUnknown
			}
		}
		if h := meet(ctx, probes, outer, id); h != HairpinNone {
			return h
		}
	}
	return HairpinNone
}

// meet waits for one of the two to hear of the other.
func meet(ctx context.Context, probes [2]*probe, outer [2]netip.AddrPort, id [idLen]byte) Hairpin {
	timer := time.NewTimer(hairpinWait)
	defer timer.Stop()
	for {
		var got hairpinned
		var sender netip.AddrPort
		select {
		case got = <-probes[0].found:
			sender = outer[1]
		case got = <-probes[1].found:
			sender = outer[0]
		case <-timer.C:
			return HairpinNone
		case <-ctx.Done():
			return HairpinUnknown
		}
		switch {
		case got.id != id: // somebody else's
		case got.from.Addr() == sender.Addr():
			return HairpinExternal
		default:
			return HairpinInternal
		}
	}
}
