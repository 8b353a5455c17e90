package attach

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"syscall"
	"time"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"

	"culvert.dev/culvert/internal/wgkey"
	"culvert.dev/culvert/internal/wguapi"
)

const (
	maxEchoed = 4 // addresses of a peer that are tried at once
	// echoTry is the time between two requests to an address. They are small, and one of them may be lost.
	echoTry = 250 * time.Millisecond
	// mutePeer is how long a peer has to answer no echo until what else came from it counts. The agent begins anew soon after.
	mutePeer = 400 * time.Millisecond
)

// errNoEcho is for a peer that has answered at none of its addresses.
var errNoEcho = errors.New("no answer inside the tunnel")

// echo asks a peer inside the tunnel for a sign of life by its direct path, and returns the round trip. An answer that came by relay
// is none: WireGuard may have been moved back there. A peer that answers no echo, or has no address to ask, has proven itself if
// WireGuard has received anything from it directly; the round trip is 0 then.
func (a *Attachment) echo(ctx context.Context, peer wgkey.Public) (time.Duration, error) {
	var before uint64
	var at wguapi.Peer
	ready := a.transport.await(ctx, peer, time.Time{}, func(l *link) bool {
		before, at = l.traffic.RxRoute, l.at
		return !l.pending
	})
	if !ready {
		return 0, fmt.Errorf("echo to peer %s: its endpoint could not be set", peer.Short())
	}
	mute, cancel := context.WithTimeout(ctx, mutePeer)
	defer cancel()
	seen := func(*link) bool { return true }
	fault := errNoEcho
	for mute.Err() == nil {
		rtt, err := echoAny(mute, a.cfg.Interface, echoAddrs(at, a.ownPrefixes()))
		if err != nil {
			fault = err
			break
		}
		if a.transport.await(ctx, peer, time.Now(), seen) && a.cameDirectly(peer, before) {
			return rtt, nil
		}
	}
	<-mute.Done() // whoever cannot be asked has as much time as the others
	if a.transport.await(ctx, peer, time.Now(), seen) && a.cameDirectly(peer, before) {
		return 0, nil
	}
	return 0, fmt.Errorf("echo to peer %s: %w", peer.Short(), fault)
}

// cameDirectly reports whether WireGuard has received more from a peer directly than that.
func (a *Attachment) cameDirectly(peer wgkey.Public, than uint64) bool {
	t, ok := a.transport.Traffic(peer)
	return ok && t.RxRoute > than
}

// echoAny sends echo requests to all addresses at once, and returns the first round trip.
func echoAny(ctx context.Context, device string, addrs []netip.Addr) (time.Duration, error) {
	if len(addrs) == 0 {
		return 0, errNoEcho
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	type answer struct {
		rtt time.Duration
		err error
	}
	answers := make(chan answer, len(addrs))
	for _, to := range addrs {
		go func() {
			rtt, err := echoTo(ctx, device, to)
			answers <- answer{rtt, err}
		}()
	}
	var first answer
	won := false
	for range addrs { // all of them, so that none is left behind
		r := <-answers
		if !won && (r.err == nil || first.err == nil || errors.Is(first.err, errNoEcho)) {
			first, won = r, r.err == nil
		}
		if won {
			cancel()
		}
	}
	return first.rtt, first.err
}

// echoAddrs returns where a peer may answer: the addresses that are its own, then the first of each network behind it; one that only
// has a default route is most likely the first address of the network that this end's own address is in. own are the addresses of
// this end with the lengths of their networks; a family that it lacks is left out.
func echoAddrs(p wguapi.Peer, own []netip.Prefix) (list []netip.Addr) {
	var networks []netip.Addr
	for _, a := range p.AllowedIPs {
		var mine []netip.Prefix
		for _, o := range own {
			if o.Addr().Is4() == a.Addr().Is4() {
				mine = append(mine, o)
			}
		}
		switch {
		case len(mine) == 0:
		case a.IsSingleIP():
			list = append(list, a.Addr())
		case a.Bits() > 0:
			networks = append(networks, a.Masked().Addr().Next())
		default:
			for _, o := range mine {
				if first := o.Masked().Addr().Next(); !o.IsSingleIP() && first != o.Addr() {
					networks = append(networks, first)
				}
			}
		}
	}
	list = append(list, networks...)
	return list[:min(len(list), maxEchoed)]
}

// echoTo sends echo requests to an address by an interface until there is a reply. Where the host lets nobody do that, a datagram
// to a port where nobody listens does: the peer refuses it.
func echoTo(ctx context.Context, device string, to netip.Addr) (time.Duration, error) {
	c, raw, err := listenEcho(device, to.Is4())
	if errors.Is(err, syscall.EACCES) || errors.Is(err, syscall.EPERM) || errors.Is(err, syscall.EPROTONOSUPPORT) {
		return refusal(ctx, device, to)
	}
	if err != nil {
		return 0, err
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { c.SetReadDeadline(time.Unix(1, 0)) })()
	var token [16]byte
	rand.Read(token[:]) // never fails
	request := icmp.Message{Type: ipv4.ICMPTypeEcho, Body: &icmp.Echo{ID: int(token[0])<<8 | int(token[1]), Seq: 1, Data: token[:]}}
	protocol := 1
	if to.Is6() {
		request.Type, protocol = ipv6.ICMPTypeEchoRequest, 58
	}
	msg, err := request.Marshal(nil)
	if err != nil {
		return 0, err
	}
	dst := net.Addr(&net.UDPAddr{IP: to.AsSlice()})
	if raw {
		dst = &net.IPAddr{IP: to.AsSlice()}
	}
	start := time.Now()
	reply := make([]byte, 256)
	for ctx.Err() == nil {
		if _, err := c.WriteTo(msg, dst); err != nil {
			return 0, err
		}
		sent := time.Now()
		for ctx.Err() == nil {
			c.SetReadDeadline(sent.Add(echoTry))
			if ctx.Err() != nil { // the deadline above may have come after that of ctx
				break
			}
			n, _, err := c.ReadFrom(reply)
			if err != nil {
				break
			}
			if isReply(protocol, reply[:n], token[:]) {
				return time.Since(start), nil
			}
		}
	}
	return 0, errNoEcho
}

// isReply reports whether an ICMP message is the reply to the request with that token. A raw socket sees the requests too.
func isReply(protocol int, b, token []byte) bool {
	m, err := icmp.ParseMessage(protocol, b)
	if err != nil || m.Type != ipv4.ICMPTypeEchoReply && m.Type != ipv6.ICMPTypeEchoReply {
		return false
	}
	e, ok := m.Body.(*icmp.Echo)
	return ok && bytes.Equal(e.Data, token)
}

// refusal has a peer refuse datagrams to a port where nobody listens.
func refusal(ctx context.Context, device string, to netip.Addr) (time.Duration, error) {
	const port = 33434 // of traceroute: the first that nobody listens at by convention
	d := net.Dialer{Control: bindTo(device)}
	c, err := d.DialContext(ctx, "udp", netip.AddrPortFrom(to, port).String())
	if err != nil {
		return 0, err
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { c.SetReadDeadline(time.Unix(1, 0)) })()
	start := time.Now()
	for b := make([]byte, 1); ctx.Err() == nil; {
		if _, err := c.Write(nil); err != nil && !refused(err) {
			return 0, err
		}
		c.SetReadDeadline(time.Now().Add(echoTry))
		if _, err := c.Read(b); refused(err) {
			return time.Since(start), nil
		}
	}
	return 0, errNoEcho
}

// refused reports whether an error is the peer's: that nobody listens, or that nobody may know. Others come from this host too.
func refused(err error) bool {
	return errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, syscall.EACCES)
}
