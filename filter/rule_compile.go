package filter

import (
	"errors"
	"fmt"
	"math"
	"net/netip"

	"culvert.dev/culvert/internal/packet"
)

// ruleSet is the compiled form of Config.Rules. A rule matches if its source, its destination and its service do; for each
// there is a table that yields the rules which do not stand in the way.
type ruleSet struct {
	rules []Rule
	rows  *rows

	from4, from6 table[uint32] // by address: rules from it, from the peer that owns it, and from anywhere
	fromNobody   []uint32      // by ID, where there is no source: rules from that peer, from anywhere, and denials from some address

	toPeer   []uint32             // by ID: rules to that peer, and to anywhere
	toPlace  [Internet + 1]uint32 // rules to self, lan, internet, each with those to anywhere
	to4, to6 table[uint32]        // rules to an address
	services table[uint32]        // by serviceOf
}

// serviceOf numbers what a rule may say of family, protocol and port.
func serviceOf(v, proto uint8, port uint16) number {
	return number{lo: uint64(v)<<24 | uint64(proto)<<16 | uint64(port)}
}

// compileRules returns nil where there are no rules. An error begins with the file and line it is about.
func compileRules(cfg *Config, p *Policy) (*ruleSet, error) {
	c := &ruleCompiler{
		rules: cfg.Rules,
		peers: map[string]uint16{},
		sets:  map[string][]netip.Prefix{},
		from:  map[Term][]int{},
		to:    map[Term][]int{},

		upstream: cfg.HasUpstream,
	}
	for _, peer := range cfg.Peers {
		if other, ok := c.peers[peer.Name]; ok && len(cfg.Rules) > 0 {
			return nil, fmt.Errorf("peers %d and %d: both are named %s, so that rules cannot tell them apart", other, peer.ID, peer.Name)
		}
		c.peers[peer.Name] = peer.ID
	}
	for _, s := range cfg.Sets {
		if _, ok := c.sets[s.Name]; ok {
			return nil, fmt.Errorf("%s: there is a set named %s already", place(s.File, s.Line), s.Name)
		}
		if _, ok := c.peers[s.Name]; ok {
			return nil, fmt.Errorf("%s: there is a peer named %s already; give the set another name", place(s.File, s.Line), s.Name)
		}
		c.sets[s.Name] = s.Prefixes
	}
	for i := range c.rules {
		if err := c.group(i); err != nil {
			return nil, fmt.Errorf("%s: %w", c.rules[i].Place(), err)
		}
	}
	if len(c.rules) == 0 {
		return nil, nil
	}
	return c.compile(p), nil
}

// ruleCompiler groups rules by their terms, so that a set which many rules name is expanded once.
type ruleCompiler struct {
	rules    []Rule
	peers    map[string]uint16
	sets     map[string][]netip.Prefix
	from, to map[Term][]int
	upstream bool
}

// NoUpstream is what is wrong with a rule that ends in "via upstream" where there is none.
const NoUpstream = "via upstream needs a section [Upstream], and there is none"

func (c *ruleCompiler) group(i int) error {
	r := &c.rules[i]
	for _, t := range []Term{r.From, r.To} {
		if t.Kind == TermPrefix && (!t.Prefix.IsValid() || t.Prefix != t.Prefix.Masked()) {
			return fmt.Errorf("%s is not a masked prefix", t.Prefix)
		}
	}
	if k := r.From.Kind; k != TermAny && k != TermPrefix && k != TermName {
		return fmt.Errorf("%s cannot be a source", r.From)
	}
	if _, ok := c.peers[r.From.Name]; r.From.Kind == TermName && !ok {
		return fmt.Errorf("unknown peer %q", r.From.Name)
	}
	_, isSet := c.sets[r.To.Name]
	if _, isPeer := c.peers[r.To.Name]; r.To.Kind == TermName && !isPeer && !isSet {
		return fmt.Errorf("unknown set or peer %q", r.To.Name)
	}
	if r.Proto > ProtoICMP {
		return fmt.Errorf("%d is not a protocol", r.Proto)
	}
	for _, p := range r.Ports {
		if p.First > p.Last {
			return fmt.Errorf("the range %s ends before it begins", p)
		}
	}
	switch {
	case r.Via > ViaUpstream || r.Via != ViaDefault && r.Action != Accept:
		return fmt.Errorf("%s rules have no way out", r.Action)
	case r.Via == ViaUpstream && !c.upstream:
		return errors.New(NoUpstream)
	}
	if len(r.Ports) > 0 && r.Proto != packet.ProtoTCP && r.Proto != packet.ProtoUDP {
		return fmt.Errorf("protocol %s has no ports", r.Proto)
	}
	c.from[r.From] = append(c.from[r.From], i)
	c.to[r.To] = append(c.to[r.To], i)
	return nil
}

func (c *ruleCompiler) compile(p *Policy) *ruleSet {
	n := len(c.rules)
	s := &ruleSet{rules: append([]Rule(nil), c.rules...), rows: newRows(n)}
	from := func(v4 bool, routes table[uint16]) table[uint32] {
		everywhere := interval{number{}, number{^uint64(0), ^uint64(0)}, c.from[Term{}]}
		return s.rows.sweep(n, append(append(c.addresses(c.from, v4), c.owned(p, routes)...), everywhere))
	}
	s.from4, s.from6 = from(true, p.routes4), from(false, p.routes6)
	s.to4, s.to6 = s.rows.sweep(n, c.addresses(c.to, true)), s.rows.sweep(n, c.addresses(c.to, false))
	s.services = s.rows.sweep(n, c.services())
	s.fromNobody, s.toPeer = c.byPeer(s.rows, c.from, p, c.deniesByAddress()), c.byPeer(s.rows, c.to, p, nil)
	for where, kind := range map[Where]TermKind{Self: TermSelf, LAN: TermLAN, Internet: TermInternet} {
		s.toPlace[where] = s.rows.add(c.bits(c.to[Term{Kind: kind}], c.to[Term{}]))
	}
	s.rows.built()
	return s
}

// addresses returns what prefixes and sets mean in one family.
func (c *ruleCompiler) addresses(terms map[Term][]int, v4 bool) (list []interval) {
	for t, rules := range terms {
		var prefixes []netip.Prefix
		switch t.Kind {
		case TermPrefix:
			prefixes = []netip.Prefix{t.Prefix}
		case TermName: // a peer has no set of its name
			prefixes = c.sets[t.Name]
		}
		for _, p := range ofFamily(prefixes, v4) {
			first, last := span(p)
			list = append(list, interval{first, last, rules})
		}
	}
	return list
}

// owned returns what peers mean as sources in one family: the addresses that are theirs.
func (c *ruleCompiler) owned(p *Policy, routes table[uint16]) (list []interval) {
	for i, id := range routes.values {
		peer := p.Peer(id)
		if peer == nil {
			continue
		}
		rules := c.from[Term{Kind: TermName, Name: peer.Name}]
		if len(rules) == 0 {
			continue
		}
		last := number{^uint64(0), ^uint64(0)}
		if i+1 < len(routes.starts) {
			last = routes.starts[i+1].prev()
		}
		list = append(list, interval{routes.starts[i], last, rules})
	}
	return list
}

func (c *ruleCompiler) services() (list []interval) {
	for i, r := range c.rules {
		for _, v := range []uint8{4, 6} {
			protos := [2]uint8{uint8(r.Proto), uint8(r.Proto)}
			switch r.Proto {
			case ProtoAny:
				protos[1] = math.MaxUint8
			case ProtoICMP:
				protos = [2]uint8{packet.ProtoICMPv4, packet.ProtoICMPv4}
				if v == 6 {
					protos = [2]uint8{packet.ProtoICMPv6, packet.ProtoICMPv6}
				}
			}
			ports := r.Ports
			if len(ports) == 0 {
				ports = []Ports{{0, math.MaxUint16}}
			}
			for _, p := range ports {
				list = append(list, interval{serviceOf(v, protos[0], p.First), serviceOf(v, protos[1], p.Last), []int{i}})
			}
		}
	}
	return list
}

// byPeer returns, by ID, the row of the rules that name a peer or anything at all, and of more.
func (c *ruleCompiler) byPeer(r *rows, terms map[Term][]int, p *Policy, more []int) []uint32 {
	out := make([]uint32, len(p.peers))
	for name, id := range c.peers {
		out[id] = r.add(c.bits(terms[Term{Kind: TermName, Name: name}], terms[Term{}], more))
	}
	return out
}

func (c *ruleCompiler) deniesByAddress() (list []int) {
	for i, r := range c.rules {
		if r.From.Kind == TermPrefix && r.Action != Accept {
			list = append(list, i)
		}
	}
	return list
}

func (c *ruleCompiler) bits(lists ...[]int) bitset {
	b := newBitset(len(c.rules))
	for _, rules := range lists {
		for _, i := range rules {
			b.set(i)
		}
	}
	return b
}
