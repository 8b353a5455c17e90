package config

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"culvert.dev/culvert/filter"
	"culvert.dev/culvert/internal/packet"
	"culvert.dev/culvert/nat"
)

// Filter is what the operator withdraws from what is otherwise permitted.
type Filter struct {
	Rules []filter.Rule // in the file's order; the names in them are known
	Sets  []filter.Set
}

// FilterConfig is what the configuration permits, in the terms of the filter; id numbers the peers. The host's own addresses
// are the caller's to add.
func (c *Config) FilterConfig(id func(*Peer) uint16) filter.Config {
	f := filter.Config{Deny: c.Exit.DenyTo, Allow: c.Exit.AllowTo, Rules: c.Filter.Rules, Sets: c.Filter.Sets, HasUpstream: c.Upstream != nil}
	for _, p := range c.Interface.Addresses {
		f.Self = append(f.Self, p.Addr())
		f.Mesh = append(f.Mesh, p.Masked())
	}
	byName := make(map[string]uint16, len(c.Peers))
	for i := range c.Peers {
		byName[c.Peers[i].Name] = id(&c.Peers[i])
	}
	for _, p := range c.Peers {
		peer := filter.Peer{ID: byName[p.Name], Name: p.Name, AllowInbound: p.Allow.Inbound, AllowRouting: p.Allow.Routing, AllowLAN: p.Allow.LAN}
		peer.Upstream = c.Upstream.uses(p.Name)
		for _, name := range p.AllowPeers {
			peer.AllowPeers = append(peer.AllowPeers, byName[name])
		}
		f.Peers = append(f.Peers, peer)
		for _, r := range p.AllowedIPs {
			f.Routes = append(f.Routes, filter.Route{Prefix: r, Peer: peer.ID})
		}
	}
	f.SelfPorts = c.selfPorts()
	return f
}

// selfPorts are the ports served at the mesh addresses.
func (c *Config) selfPorts() (list []filter.SelfPort) {
	serve := func(proto uint8, port uint16, need filter.Need) {
		list = append(list, filter.SelfPort{Proto: proto, Port: port, Need: need})
	}
	for _, proto := range []uint8{packet.ProtoUDP, packet.ProtoTCP} {
		if !c.Exit.DNS.Off {
			serve(proto, dnsPort, filter.NeedRouting)
		}
		if c.Exit.SOCKS5 {
			serve(proto, socksPort, filter.NeedRouting)
		}
	}
	for _, p := range c.Publishes {
		for _, network := range p.Networks {
			proto := map[string]uint8{"tcp": packet.ProtoTCP, "udp": packet.ProtoUDP}[network]
			for i := range p.Ports.Len() {
				serve(proto, p.Ports.First+uint16(i), filter.NeedInbound)
			}
		}
	}
	return list
}

// What this node serves at its mesh addresses, besides what is published there.
const (
	dnsPort   = 53
	socksPort = 1080
)

var filterKeys = []key[Filter]{
	{name: "Rule", doc: "a rule, such as reject from * to * tcp/25; the first that matches decides", list: true,
		set: func(l *loader, t *Filter, v value) error {
			rule, err := filter.ParseRule(v.text)
			if err != nil {
				return pointAt("Rule", v.text, err)
			}
			rule.File, rule.Line = l.standsAt(v.line)
			if v.variable != "" {
				rule.Text = "$" + v.variable
			}
			t.Rules = append(t.Rules, rule)
			return nil
		}},
	{name: "Set", doc: "a name for addresses in rules, such as db 10.8.0.5", list: true,
		set: func(l *loader, t *Filter, v value) error {
			set, err := filter.ParseSet(v.text)
			if err != nil {
				return pointAt("Set", v.text, err)
			}
			set.File, set.Line = l.standsAt(v.line)
			if v.variable != "" {
				set.Text = "$" + v.variable
			}
			t.Sets = append(t.Sets, set)
			return nil
		}},
}

// A pointer is a fault of a rule or set that shows its line with a mark under the word in question.
type pointer struct {
	*filter.Fault
	key, text string
}

func pointAt(key, text string, err error) error {
	fault, ok := err.(*filter.Fault)
	if !ok {
		return err
	}
	return &pointer{fault, key, text}
}

func (p *pointer) Error() string {
	const longest = 160 // a longer line would be broken, and the mark would stand anywhere
	odd := func(r rune) bool { return r < ' ' || r > '~' }
	for _, word := range strings.Fields(p.text) {
		if looksSecret(word) {
			return "this line does not belong here: it looks like a key"
		}
	}
	if len(p.text) > longest || strings.ContainsFunc(p.text, odd) {
		return p.Message
	}
	line := "  " + p.key + " = "
	mark := strings.Repeat(" ", len(line)+p.At) + "^" + strings.Repeat("~", max(0, p.Len-1))
	return p.Message + "\n" + line + p.text + "\n" + mark
}

// checkFilter looks up the names in rules, which may stand in front of what they name.
func (l *loader) checkFilter() {
	f := &l.cfg.Filter
	names := filterNames{peers: map[string]bool{}, sets: map[string]bool{}, peerList: l.peerNames()}
	for _, name := range names.peerList {
		names.peers[name] = true
	}
	for _, s := range f.Sets {
		switch {
		case names.sets[s.Name]:
			l.faultAt(s.File, s.Line, "Set: there is a set named %s already", s.Name)
		case names.peers[s.Name]:
			l.faultAt(s.File, s.Line, "Set: there is a peer named %s; give the set another name", s.Name)
		}
		names.sets[s.Name] = true
		names.setList = append(names.setList, s.Name)
	}
	hasUpstream := l.cfg.FilterConfig(func(*Peer) uint16 { return 0 }).HasUpstream
	for i := range f.Rules {
		r := &f.Rules[i]
		for _, fault := range names.unknown(r) {
			if strings.HasPrefix(r.Text, "$") {
				l.faultAt(r.File, r.Line, "Rule: the value of %s names a peer or set that does not exist", r.Text)
				break
			}
			l.faultAt(r.File, r.Line, "%v", pointAt("Rule", r.Text, fault))
		}
		if r.Via == filter.ViaUpstream && !hasUpstream {
			l.faultAt(r.File, r.Line, "Rule: %v", pointAt("Rule", r.Text, &filter.Fault{Span: r.ViaSpan(), Message: filter.NoUpstream}))
		}
	}
}

// warnFilter tells of rules and sets that do nothing. The configuration is complete and without faults by now.
func (l *loader) warnFilter() {
	if len(l.cfg.Filter.Rules) == 0 && len(l.cfg.Filter.Sets) == 0 {
		return
	}
	ids := map[*Peer]uint16{}
	for i := range l.cfg.Peers {
		ids[&l.cfg.Peers[i]] = uint16(i + 1)
	}
	list, err := filter.Lint(l.cfg.FilterConfig(func(p *Peer) uint16 { return ids[p] }))
	if err != nil {
		return // told where the policy is made
	}
	for _, w := range list {
		key := "Rule"
		if w.Set {
			key = "Set"
		}
		l.warnings = append(l.warnings, Diagnostic{w.File, w.Line, key + ": " + w.Message})
	}
	l.warnTranslated()
}

// warnTranslated tells of rules and sets that name addresses as peers know them, where rules are asked about the real ones.
func (l *loader) warnTranslated() {
	warn := func(file string, line int, key string, p netip.Prefix) {
		for _, m := range l.cfg.Netmap {
			inside := p.IsValid() && m.From.Bits() <= p.Bits() && m.From.Contains(p.Addr())
			if inside && !slices.ContainsFunc(l.cfg.Netmap, func(o nat.NetmapPrefix) bool { return o.To.Overlaps(p) }) {
				message := fmt.Sprintf("%s: [Netmap] translates %s to %s before rules are asked: name addresses of the latter", key, m.From, m.To)
				l.warnings = append(l.warnings, Diagnostic{file, line, message})
			}
		}
	}
	for _, r := range l.cfg.Filter.Rules {
		warn(r.File, r.Line, "Rule", r.To.Prefix)
	}
	for _, s := range l.cfg.Filter.Sets {
		for _, p := range s.Prefixes {
			warn(s.File, s.Line, "Set", p)
		}
	}
}

// filterNames is what the words of a rule may refer to.
type filterNames struct {
	peers, sets       map[string]bool
	peerList, setList []string
}

// unknown returns a fault for each name of a rule that means nothing.
func (n *filterNames) unknown(r *filter.Rule) (faults []*filter.Fault) {
	from, to := r.Spans()
	if name := r.From.Name; r.From.Kind == filter.TermName && !n.peers[name] {
		message := "unknown peer " + quote(name) + didYouMeanName(name, n.peerList)
		if n.sets[name] {
			message = quote(name) + " is a set, which can only be a destination"
		}
		faults = append(faults, &filter.Fault{Span: from, Message: message})
	}
	if name := r.To.Name; r.To.Kind == filter.TermName && !n.peers[name] && !n.sets[name] {
		all := append(append([]string(nil), n.setList...), n.peerList...)
		faults = append(faults, &filter.Fault{Span: to, Message: "unknown set or peer " + quote(name) + didYouMeanName(name, all)})
	}
	return faults
}

func didYouMeanName(name string, known []string) string {
	near := Nearest(name, known)
	if near == "" {
		return ""
	}
	return " (did you mean " + quote(near) + "?)"
}
