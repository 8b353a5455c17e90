package testnet

import (
	"fmt"
	"net/netip"

	"culvert.dev/culvert/internal/packet"
	"culvert.dev/culvert/nat"
)

// NATConfig says how a Gateway translates IPv4, in the terms of RFC 4787. The zero value is a NAT that a peer-to-peer
// application likes best: endpoint-independent in both respects, ports preserved where possible.
type NATConfig struct {
	Mapping, Filtering nat.Dependence
	Ports              nat.PortPolicy
	PortMin, PortMax   uint16 // of external ports; default 1024 to 65535

	// PortBlock gives every inside address so many consecutive ports of its own, as carriers do; 0: all share all. There
	// is no hairpinning between blocks.
	PortBlock int

	Hairpin       bool         // packets to the outer address reach inside ends
	StrictRefresh bool         // only packets from inside keep a mapping
	Timeouts      nat.Timeouts // the zero value: those of package nat
	MaxFlows      int          // of one inside address; default 16384

	// Netfilter replaces the engine by a model of what Linux's masquerade does, which no RFC 4787 type describes; see
	// there. Of the above only Timeouts counts then, with netfilter's defaults.
	Netfilter *NetfilterConfig
}

// newTranslator makes the NAT of a gateway, with nothing mapped.
func newTranslator(g *Gateway, cfg *NATConfig) Forwarder {
	var outer []netip.Addr
	for _, a := range g.cfg.WAN {
		if a.Is4() {
			outer = append(outer, a)
		}
	}
	if len(outer) == 0 {
		panic(fmt.Sprintf("testnet: %s translates IPv4, but has no such address outside", g.name))
	}
	seed := g.net.rng(fmt.Sprint("nat ", g.self.actor.id, " boot ", g.boots)).Uint64() | 1
	if cfg.Netfilter != nil {
		return newNetfilter(*cfg.Netfilter, cfg.Timeouts, outer, seed)
	}
	maxFlows := cfg.MaxFlows
	if maxFlows <= 0 {
		maxFlows = 16384
	}
	t := &translator{
		cfg: *cfg, outer: outer, seed: seed, born: g.net.now(), peers: map[netip.Addr]uint16{},
		table: nat.New(nat.Config{MaxPerPeer: maxFlows, Timeouts: cfg.Timeouts}),
	}
	if cfg.PortBlock == 0 {
		t.engines = []*nat.NAT{t.engine(cfg.PortMin, cfg.PortMax)}
	}
	return t
}

// translator is the product's NAT as a Forwarder. Every inside address is a peer of its flow table.
type translator struct {
	cfg     NATConfig
	outer   []netip.Addr
	seed    uint64
	born    int64 // when, in the network's time: the table's time starts at zero
	table   *nat.Table
	engines []*nat.NAT // one for all; or with PortBlock one for each inside address, at its peer number less one
	peers   map[netip.Addr]uint16
}

func (t *translator) engine(low, high uint16) *nat.NAT {
	n, err := nat.NewNAT(nat.NATConfig{
		Table: t.table, Outside: nat.PeerUpstream, Addrs: t.outer,
		Mapping: t.cfg.Mapping, Filtering: t.cfg.Filtering,
		Ports: t.cfg.Ports, PortMin: low, PortMax: high,
		Hairpin: t.cfg.Hairpin, StrictRefresh: t.cfg.StrictRefresh, Seed: t.seed + uint64(low),
	})
	if err != nil {
		panic(fmt.Sprintf("testnet: %v", err))
	}
	return n
}

// engineOf is the engine that serves an inside address, and that address's peer number; nil if no port block is left.
func (t *translator) engineOf(a netip.Addr) (*nat.NAT, uint16) {
	peer := t.peers[a]
	if peer == 0 {
		peer = uint16(len(t.peers) + 1)
		if size := t.cfg.PortBlock; size > 0 {
			first := max(int(t.cfg.PortMin), 1024) + (int(peer)-1)*size
			if first+size-1 > 65535 {
				return nil, 0
			}
			t.engines = append(t.engines, t.engine(uint16(first), uint16(first+size-1)))
		}
		t.peers[a] = peer
	}
	if t.cfg.PortBlock > 0 {
		return t.engines[peer-1], peer
	}
	return t.engines[0], peer
}

// Outbound implements Forwarder.
func (t *translator) Outbound(p *packet.Packet, now int64) Verdict {
	now -= t.born
	t.table.Expire(now)
	toSelf := t.own(p.DstAddr())
	n, peer := t.engineOf(p.SrcAddr())
	if n == nil {
		return Drop
	}
	p.Peer = peer
	switch v := n.Outbound(p, now); {
	case v == nat.Pass:
		return Pass
	case v == nat.Hairpinned:
		return Back
	case toSelf && !t.cfg.Hairpin && (v == nat.NoMapping || v == nat.Filtered):
		return Local
	}
	return Drop
}

// Inbound implements Forwarder.
func (t *translator) Inbound(p *packet.Packet, now int64) Verdict {
	now -= t.born
	t.table.Expire(now)
	for _, n := range t.engines {
		if n.Inbound(p, now) == nat.Pass {
			return Pass
		}
	}
	return Drop
}

func (t *translator) own(a netip.Addr) bool {
	for _, o := range t.outer {
		if a == o {
			return true
		}
	}
	return false
}

// Mappings is how many external ports are in use; of a gateway whose NAT is not Culvert's engine, 0.
func (g *Gateway) Mappings() (n int) {
	g.net.mu.Lock()
	defer g.net.mu.Unlock()
	if t, ok := g.nat.(*translator); ok {
		t.table.Expire(g.net.now() - t.born)
		for _, e := range t.engines {
			n += e.Mappings()
		}
	}
	return n
}
