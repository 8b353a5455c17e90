package attach

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"

	"culvert.dev/culvert/internal/config"
	"culvert.dev/culvert/internal/wgkey"
	"culvert.dev/culvert/internal/wguapi"
	"culvert.dev/culvert/traversal/stun"
	"culvert.dev/culvert/traversal/wgstun"
)

// service is the WG-STUN server: a peer of the device, which sees where WireGuard's own socket is mapped to. It is asked by plain UDP
// through the tunnel.
type service struct {
	conf    config.WGSTUN
	self    wgkey.Public
	name    string // of the interface
	device  device
	resolve func(ctx context.Context, host string) ([]netip.Addr, error)
	own     func() []netip.Addr // addresses of the interface
	log     *slog.Logger

	mu    sync.Mutex // guards the following, and is held while the device is changed
	added bool       // the peer is of our making
}

// errRoute says that the host does not lead requests to the server into the tunnel.
var errRoute = errors.New("requests to it do not reach the tunnel")

// ensure makes the server a peer of the device, unless it is one.
func (s *service) ensure(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	d, err := s.device.Get(ctx)
	if err != nil {
		return err
	}
	i := slices.IndexFunc(d.Peers, func(p wguapi.Peer) bool { return p.PublicKey == s.conf.PublicKey })
	if i >= 0 {
		return s.lackOf(d.Peers[i])
	}
	for _, p := range d.Peers {
		for _, a := range s.prefixes() {
			if slices.Contains(p.AllowedIPs, a) {
				return fmt.Errorf("add the WG-STUN server to %s: %s is among the AllowedIPs of peer %s; set Address in [WGSTUN]", s.name, a, p.PublicKey.Short())
			}
		}
	}
	endpoint, err := s.endpoint(ctx)
	if err != nil {
		return err
	}
	err = s.device.Set(ctx, wguapi.PeerChange{PublicKey: s.conf.PublicKey, Endpoint: endpoint, AllowedIPs: s.prefixes()})
	if err != nil {
		return fmt.Errorf("add the WG-STUN server to %s: %w", s.name, err)
	}
	s.added = true
	s.log.Info("the WG-STUN server is a peer of the device until culvert ends", "interface", s.name, "endpoint", endpoint)
	return nil
}

// lackOf reports what a server that the operator has configured lacks. It stays as it is.
func (s *service) lackOf(p wguapi.Peer) error {
	for _, a := range s.prefixes() {
		if !slices.ContainsFunc(p.AllowedIPs, func(b netip.Prefix) bool { return b.Contains(a.Addr()) }) {
			if s.answersAt(p, a.Addr().Is4()) {
				continue // one family is enough
			}
			return fmt.Errorf("the WG-STUN server is a peer of %s without its address: wg set %[1]s peer %s allowed-ips +%s", s.name, p.PublicKey, a)
		}
	}
	return nil
}

// answersAt reports whether the server has an address of the other family among its AllowedIPs.
func (s *service) answersAt(p wguapi.Peer, notV4 bool) bool {
	return slices.ContainsFunc(s.conf.Addresses, func(a netip.Addr) bool {
		return a.Is4() != notV4 && slices.ContainsFunc(p.AllowedIPs, func(b netip.Prefix) bool { return b.Contains(a) })
	})
}

func (s *service) prefixes() (list []netip.Prefix) {
	for _, a := range s.conf.Addresses {
		list = append(list, netip.PrefixFrom(a, a.BitLen()))
	}
	return list
}

// endpoint resolves the server's.
func (s *service) endpoint(ctx context.Context) (netip.AddrPort, error) {
	host, port, err := net.SplitHostPort(s.conf.Endpoint)
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("WG-STUN server: %w", err)
	}
	n, err := net.DefaultResolver.LookupPort(ctx, "udp", port)
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("WG-STUN server: %w", err)
	}
	addrs := make([]netip.Addr, 1)
	if addrs[0], err = netip.ParseAddr(host); err != nil {
		if addrs, err = s.resolve(ctx, host); err == nil && len(addrs) == 0 {
			err = errors.New("no address")
		}
		if err != nil {
			return netip.AddrPort{}, fmt.Errorf("resolve WG-STUN server %s: %w", host, err)
		}
	}
	// IPv4 first: that is where the NATs are.
	if i := slices.IndexFunc(addrs, func(a netip.Addr) bool { return a.Unmap().Is4() }); i > 0 {
		addrs[0] = addrs[i]
	}
	return netip.AddrPortFrom(addrs[0].Unmap(), uint16(n)), nil
}

// query asks the server where it sees WireGuard's socket. It makes it a peer of the device first, and again if it is gone.
func (s *service) query(ctx context.Context) (wgstun.Answer, error) {
	if err := s.ensure(ctx); err != nil {
		return wgstun.Answer{}, err
	}
	from, to, err := s.ends()
	if err != nil {
		return wgstun.Answer{}, err
	}
	a, err := ask(ctx, s.name, from, to)
	if err == nil || ctx.Err() != nil {
		return a, err
	}
	s.moved(ctx)
	return a, s.explain(err, from, to)
}

// ends chooses an own address and one of the server's. The server knows each client by an address made of its key; an IPv4 address it
// knows only where its configuration has one for this client.
func (s *service) ends() (from, to netip.Addr, err error) {
	own := s.own()
	derived := wgstun.AddressOf(s.self)
	for _, server := range s.conf.Addresses {
		if server.Is6() && slices.Contains(own, derived) {
			return derived, server, nil
		}
	}
	for _, server := range s.conf.Addresses {
		i := slices.IndexFunc(own, netip.Addr.Is4)
		if server.Is4() && i >= 0 {
			return own[i], server, nil
		}
	}
	return from, to, fmt.Errorf("%w: %s has none of the addresses by which the server knows it:\n%s", errRoute, s.name, s.advice(derived))
}

// advice are the commands that let the host ask the server, those for its IPv6 address.
func (s *service) advice(derived netip.Addr) string {
	lines := []string{fmt.Sprintf("ip -6 address add %s/128 dev %s", derived, s.name)}
	for _, server := range s.conf.Addresses {
		if server.Is6() {
			lines = append(lines, fmt.Sprintf("ip -6 route add %s/128 dev %s", server, s.name))
		}
	}
	return strings.Join(lines, "\n")
}

// explain adds to an error of asking what the operator can do about it.
func (s *service) explain(err error, from, to netip.Addr) error {
	switch {
	case !s.routed(to):
		family := "-4"
		if to.Is6() {
			family = "-6"
		}
		return fmt.Errorf("%w; %w: ip %s route add %s/%d dev %s", err, errRoute, family, to, to.BitLen(), s.name)
	case from.Is4():
		return fmt.Errorf("%w; the server may know %s by another address only:\n%s", err, s.name, s.advice(wgstun.AddressOf(s.self)))
	}
	return err
}

// routed reports whether the host's routes lead to an address by the interface. Connecting a UDP socket asks for the route and sends
// nothing.
func (s *service) routed(to netip.Addr) bool {
	c, err := net.Dial("udp", netip.AddrPortFrom(to, wgstun.Port).String())
	if err != nil {
		return false
	}
	defer c.Close()
	return slices.Contains(s.own(), c.LocalAddr().(*net.UDPAddr).AddrPort().Addr().Unmap())
}

// moved looks up the name of a server that does not answer: it may be elsewhere by now.
func (s *service) moved(ctx context.Context) {
	s.mu.Lock()
	defer s.mu.Unlock()
	host, _, _ := net.SplitHostPort(s.conf.Endpoint)
	if _, err := netip.ParseAddr(host); err == nil || !s.added {
		return
	}
	endpoint, err := s.endpoint(ctx)
	if err != nil {
		return
	}
	if err := s.device.Set(ctx, wguapi.PeerChange{PublicKey: s.conf.PublicKey, UpdateOnly: true, Endpoint: endpoint}); err != nil {
		s.log.Debug("endpoint of the WG-STUN server", "err", err)
	}
}

// remove takes the server off the device if it was put there.
func (s *service) remove(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.added {
		return nil
	}
	if err := s.device.Set(ctx, wguapi.PeerChange{PublicKey: s.conf.PublicKey, Remove: true}); err != nil {
		return fmt.Errorf("remove the WG-STUN server from %s: %w", s.name, err)
	}
	s.added = false
	return nil
}

// ask sends STUN requests to a server inside the tunnel from a socket of the interface's.
func ask(ctx context.Context, name string, from, to netip.Addr) (wgstun.Answer, error) {
	lc := net.ListenConfig{Control: bindTo(name)}
	c, err := lc.ListenPacket(ctx, "udp", netip.AddrPortFrom(from, 0).String())
	if err != nil {
		return wgstun.Answer{}, fmt.Errorf("ask WG-STUN server %s: %w", to, err)
	}
	conn := c.(*net.UDPConn)
	client := stun.NewClient(func(msg []byte, to netip.AddrPort) error {
		_, err := conn.WriteToUDPAddrPort(msg, to)
		return err
	})
	done := make(chan struct{})
	go func() {
		defer close(done)
		b := make([]byte, datagramLen)
		for {
			n, from, err := conn.ReadFromUDPAddrPort(b)
			if err != nil {
				return
			}
			client.Handle(b[:n], netip.AddrPortFrom(from.Addr().Unmap(), from.Port()))
		}
	}()
	a, err := client.Bind(ctx, netip.AddrPortFrom(to, wgstun.Port))
	conn.Close()
	<-done
	if err != nil {
		return wgstun.Answer{}, fmt.Errorf("ask WG-STUN server %s: %w", to, err)
	}
	return wgstun.Answer{Mapped: a.Mapped, RTT: a.RTT}, nil
}
