package filter

import (
	"fmt"
	"net/netip"
	"slices"

	"culvert.dev/culvert/internal/packet"
)

// Policy is a compiled Config.
type Policy struct {
	peers    []*Peer // by ID; nil where there is none
	ports    map[port]Need
	routes4  table[uint16]
	routes6  table[uint16]
	classes4 table[class]
	classes6 table[class]
	rules    *ruleSet // nil: none
}

type port struct {
	proto uint8
	port  uint16
}

// New compiles cfg. An error names the peer or prefix that does not fit: an ID that is zero, used twice or unknown, a
// prefix of two peers, an address that cannot be a node's. What is wrong with a rule begins with its file and line.
func New(cfg Config) (*Policy, error) {
	p := &Policy{ports: map[port]Need{}}
	if err := p.setPeers(cfg.Peers); err != nil {
		return nil, err
	}
	for _, peer := range cfg.Peers {
		if peer.Upstream && !cfg.HasUpstream {
			return nil, fmt.Errorf("peer %s: its traffic is to leave through the upstream, and there is none", peer.Name)
		}
	}
	if err := p.checkAddresses(&cfg); err != nil {
		return nil, err
	}
	for _, s := range cfg.SelfPorts {
		if s.Proto != packet.ProtoTCP && s.Proto != packet.ProtoUDP {
			return nil, fmt.Errorf("self port %d: protocol %d has no ports", s.Port, s.Proto)
		}
		p.ports[port{s.Proto, s.Port}] = s.Need
	}
	var routes4, routes6 []entry[uint16]
	for _, r := range cfg.Routes {
		if r.Prefix.Addr().Is4() {
			routes4 = append(routes4, entry[uint16]{r.Prefix, r.Peer})
		} else {
			routes6 = append(routes6, entry[uint16]{r.Prefix, r.Peer})
		}
	}
	p.routes4, p.routes6 = longestMatch(routes4, 0), longestMatch(routes6, 0)
	p.classes4 = newClassifier(&cfg, true).table(true)
	p.classes6 = newClassifier(&cfg, false).table(false)
	var err error
	if p.rules, err = compileRules(&cfg, p); err != nil {
		return nil, err
	}
	return p, nil
}

func (p *Policy) setPeers(peers []Peer) error {
	for _, peer := range peers {
		if peer.ID == 0 {
			return fmt.Errorf("peer %s: the ID 0 means nobody", peer.Name)
		}
		if other := p.Peer(peer.ID); other != nil {
			return fmt.Errorf("peer %s: the ID %d belongs to %s", peer.Name, peer.ID, other.Name)
		}
		if n := int(peer.ID) + 1; len(p.peers) < n {
			p.peers = append(p.peers, make([]*Peer, n-len(p.peers))...)
		}
		peer.AllowPeers = slices.Clone(peer.AllowPeers)
		p.peers[peer.ID] = &peer
	}
	for _, peer := range peers {
		for _, id := range peer.AllowPeers {
			if p.Peer(id) == nil {
				return fmt.Errorf("peer %s: AllowPeers names the unknown ID %d", peer.Name, id)
			}
		}
	}
	return nil
}

func (p *Policy) checkAddresses(cfg *Config) error {
	for _, a := range cfg.Self {
		if !a.IsValid() || a.IsUnspecified() || a.IsLoopback() || a.IsMulticast() {
			return fmt.Errorf("own address %s: not an address that a node can have", a)
		}
	}
	for _, m := range cfg.Mesh {
		if !m.IsValid() || isDefault(m) {
			return fmt.Errorf("mesh network %s: must be a prefix, and not the whole internet", m)
		}
	}
	for what, list := range map[string][]netip.Prefix{
		"DenyTo": cfg.Deny, "AllowTo": cfg.Allow, "on-link network": cfg.Host.OnLink, "host network": cfg.Host.Local,
	} {
		for _, prefix := range list {
			if !prefix.IsValid() {
				return fmt.Errorf("%s: not a prefix", what)
			}
		}
	}
	for _, a := range cfg.Host.Addrs {
		if !a.IsValid() {
			return fmt.Errorf("host address: not an address")
		}
	}
	owner := map[netip.Prefix]uint16{}
	for _, r := range cfg.Routes {
		if !r.Prefix.IsValid() || p.Peer(r.Peer) == nil {
			return fmt.Errorf("route %s: not a prefix, or its peer %d is unknown", r.Prefix, r.Peer)
		}
		m := r.Prefix.Masked()
		if id, ok := owner[m]; ok && id != r.Peer {
			return fmt.Errorf("route %s: listed by the peers %s and %s", m, p.Peer(id).Name, p.Peer(r.Peer).Name)
		}
		owner[m] = r.Peer
	}
	return nil
}

// Peer returns the peer with that ID, or nil. It is shared: do not change it.
func (p *Policy) Peer(id uint16) *Peer {
	if int(id) < len(p.peers) {
		return p.peers[id]
	}
	return nil
}

// PeerOf returns the peer whose AllowedIPs hold src by longest prefix match, default routes included, or 0. A v4-mapped
// IPv6 address is an IPv6 address, as it is in a packet; a zone is ignored.
func (p *Policy) PeerOf(src netip.Addr) uint16 {
	if !src.IsValid() {
		return 0
	}
	v := uint8(6)
	if src.Is4() {
		v = 4
	}
	return p.PeerOfKey(src.As16(), v)
}

// PeerOfKey is PeerOf for an address as packet.Key has it, of family v.
func (p *Policy) PeerOfKey(a [16]byte, v uint8) uint16 {
	if v == 4 {
		return p.routes4.lookup(numberOf(&a, true))
	}
	return p.routes6.lookup(numberOf(&a, false))
}

// classOf looks an address up; an embedded IPv4 address is not resolved yet.
func (p *Policy) classOf(a *[16]byte, v uint8) class {
	if v == 4 {
		return p.classes4.lookup(numberOf(a, true))
	}
	return p.classes6.lookup(numberOf(a, false))
}
