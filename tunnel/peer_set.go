package tunnel

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"

	"culvert.dev/culvert/internal/wgkey"
)

// peerSet is a list of peers that go together, with what finds them.
type peerSet struct {
	list  []*Peer // as configured; the peers themselves are not changed any more
	byKey map[wgkey.Public]*Peer
	owner map[netip.Prefix]*Peer // by prefixes in canonical form
}

// newPeerSet checks peers and copies them.
func newPeerSet(self wgkey.Public, peers []Peer) (peerSet, error) {
	s := peerSet{
		list:  make([]*Peer, 0, len(peers)),
		byKey: make(map[wgkey.Public]*Peer, len(peers)),
		owner: make(map[netip.Prefix]*Peer, len(peers)),
	}
	for i := range peers {
		p := &peers[i]
		if other := s.byKey[p.PublicKey]; other != nil {
			return peerSet{}, fmt.Errorf("peer %s: same public key as peer %s", p.label(), other.label())
		}
		if err := s.check(self, p); err != nil {
			return peerSet{}, err
		}
		s.put(p.canonical())
	}
	return s, nil
}

// check finds what wireguard-go would refuse or silently resolve in its own way if p were put into the set, in the place of
// the one with its key.
func (s *peerSet) check(self wgkey.Public, p *Peer) error {
	switch {
	case p.PublicKey.IsZero():
		return fmt.Errorf("peer %s: no public key", p.label())
	case p.PublicKey == self:
		return fmt.Errorf("peer %s: its public key is this node's own", p.label())
	case p.Keepalive < 0 || p.Keepalive > 65535:
		return fmt.Errorf("peer %s: keepalive %d s: want 0 to 65535", p.label(), p.Keepalive)
	}
	if _, err := parseHostPort(p.Endpoint); err != nil {
		return fmt.Errorf("peer %s: endpoint %q: %w", p.label(), p.Endpoint, err)
	}
	for _, prefix := range p.AllowedIPs {
		if !prefix.IsValid() {
			return fmt.Errorf("peer %s: invalid prefix in AllowedIPs", p.label())
		}
		prefix = prefix.Masked()
		if other := s.owner[prefix]; other != nil && other.PublicKey != p.PublicKey {
			return fmt.Errorf("peer %s: AllowedIPs %s belongs to peer %s", p.label(), prefix, other.label())
		}
	}
	return nil
}

// put adds a peer that has been checked and made canonical, in the place of the one with its key.
func (s *peerSet) put(n *Peer) {
	if old := s.byKey[n.PublicKey]; old == nil {
		s.list = append(s.list, n)
	} else {
		s.disown(old)
		s.list[slices.Index(s.list, old)] = n
	}
	s.byKey[n.PublicKey] = n
	for _, prefix := range n.AllowedIPs {
		s.owner[prefix] = n
	}
}

// remove takes the peer with a key out and returns it, nil if there is none.
func (s *peerSet) remove(key wgkey.Public) *Peer {
	old := s.byKey[key]
	if old == nil {
		return nil
	}
	s.disown(old)
	delete(s.byKey, key)
	i := slices.Index(s.list, old)
	s.list = slices.Delete(s.list, i, i+1)
	return old
}

func (s *peerSet) disown(p *Peer) {
	for _, prefix := range p.AllowedIPs {
		delete(s.owner, prefix)
	}
}

// canonical returns a copy of p whose prefixes are masked and not repeated.
func (p *Peer) canonical() *Peer {
	c := *p
	c.AllowedIPs = canonical(p.AllowedIPs)
	return &c
}

func canonical(prefixes []netip.Prefix) []netip.Prefix {
	seen := make(map[netip.Prefix]bool, len(prefixes))
	out := make([]netip.Prefix, 0, len(prefixes))
	for _, p := range prefixes {
		p = p.Masked()
		if !seen[p] {
			seen[p] = true
			out = append(out, p)
		}
	}
	return out
}

func (p *Peer) label() string {
	if p.Name != "" {
		return p.Name
	}
	return p.PublicKey.Short()
}

// hostPort is a parsed Endpoint: a literal address, or a host name, or neither if there is none.
type hostPort struct {
	literal netip.AddrPort
	host    string
	port    uint16
}

func parseHostPort(s string) (hostPort, error) {
	if s == "" {
		return hostPort{}, nil
	}
	host, service, err := net.SplitHostPort(s)
	if err != nil {
		return hostPort{}, errors.New("want host:port, an IPv6 address in brackets")
	}
	n, err := strconv.ParseUint(service, 10, 16)
	if err != nil || n == 0 {
		return hostPort{}, errors.New("want a port from 1 to 65535")
	}
	port := uint16(n)
	if a, err := netip.ParseAddr(host); err == nil {
		return hostPort{literal: netip.AddrPortFrom(a.Unmap(), port), port: port}, nil
	}
	if host == "" {
		return hostPort{}, errors.New("no host")
	}
	return hostPort{host: host, port: port}, nil
}
