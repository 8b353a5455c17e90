package node

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"culvert.dev/culvert/internal/config"
	"culvert.dev/culvert/nat"
	"culvert.dev/culvert/traversal/gather"
	"culvert.dev/culvert/traversal/wgstun"
	"culvert.dev/culvert/tunnel"
)

// service is the WG-STUN server as configured, and the client that asks it.
type service struct {
	conf   config.WGSTUN
	source gather.Service
	client *wgstun.Client
	fault  error // why there is no client
}

// serviceName is the WG-STUN server's in status and logs.
const serviceName = "wg-stun"

// servicePeers returns the WG-STUN server as the tunnel needs it, after the configured peers: none if w is nil. It needs no
// keepalive, since it is asked more often than a NAT forgets.
func servicePeers(w *config.WGSTUN) []tunnel.Peer {
	if w == nil {
		return nil
	}
	p := tunnel.Peer{Name: serviceName, PublicKey: w.PublicKey, Endpoint: w.Endpoint}
	for _, a := range w.Addresses {
		p.AllowedIPs = append(p.AllowedIPs, netip.PrefixFrom(a, a.BitLen()))
	}
	return []tunnel.Peer{p}
}

// expect makes sure that what a WG-STUN server sends gets into the pipeline at no time: it is to be called before w becomes a peer of
// the tunnel, and setServers after that. If the tunnel does not take w, nothing needs to be undone.
func (o *outer) expect(w *config.WGSTUN) {
	if w == nil {
		return
	}
	o.mu.Lock()
	now := o.service
	o.mu.Unlock()
	if now == nil {
		o.mesh.SetTap(nat.PeerService, ignore, w.Addresses...)
		return
	}
	o.mesh.SetTap(nat.PeerService, now.receive, slices.Concat(now.conf.Addresses, w.Addresses)...)
}

func ignore([]byte) {}

func (o *outer) newService(w *config.WGSTUN) *service {
	s := &service{conf: *w}
	s.source = gather.Service{Name: serviceName, Query: s.query}
	s.client, s.fault = o.newClient(w)
	return s
}

// receive takes a packet from the server's tunnel. Without a client it is dropped.
func (s *service) receive(b []byte) {
	if s.client != nil {
		s.client.Receive(b)
	}
}

// newClient makes the client for w. By IPv6 the server knows every key's address; by IPv4 it knows those it was told, and the
// node's own is the one it can have been told.
func (o *outer) newClient(w *config.WGSTUN) (*wgstun.Client, error) {
	for _, server := range w.Addresses {
		if server.Is6() {
			return o.newClientAt(wgstun.AddressOf(o.key), server)
		}
	}
	for _, server := range w.Addresses {
		for _, self := range o.addrs {
			if self.Is4() {
				return o.newClientAt(self, server)
			}
		}
	}
	return nil, errors.New("the server has only an IPv4 address, and this node has none in the mesh: give [WGSTUN] an IPv6 Address")
}

func (o *outer) newClientAt(self, server netip.Addr) (*wgstun.Client, error) {
	return wgstun.NewClient(wgstun.ClientConfig{
		Self: self, Server: server,
		Send: func(b []byte) error { return o.mesh.Inject(nat.PeerService, b) },
	})
}

// query asks the server.
func (s *service) query(ctx context.Context) (wgstun.Answer, error) {
	if s.fault != nil {
		return wgstun.Answer{}, s.fault
	}
	a, err := s.client.Query(ctx)
	if err != nil {
		return wgstun.Answer{}, fmt.Errorf("%s: %w", s.conf.Endpoint, err)
	}
	return a, nil
}
