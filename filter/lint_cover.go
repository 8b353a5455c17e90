package filter

import (
	"net/netip"
	"slices"
)

// coverIndex finds those among the rules so far that may cover another: their destination is anything, or the same, or holds
// the first address of the other's.
type coverIndex struct {
	l       *linter
	rules   []Rule
	to      map[Term][]int          // rules so far by destination, in order
	around  map[netip.Prefix][]Term // destinations of these that have this prefix
	lengths map[lengthOf]struct{}   // of the prefixes in around
}

type lengthOf struct {
	v4   bool
	bits int
}

func newCoverIndex(l *linter, rules []Rule) *coverIndex {
	return &coverIndex{l: l, rules: rules, to: map[Term][]int{}, around: map[netip.Prefix][]Term{}, lengths: map[lengthOf]struct{}{}}
}

func (x *coverIndex) add(rule int) {
	to := x.rules[rule].To
	if _, known := x.to[to]; !known {
		for _, p := range x.l.prefixes(&to) {
			p = p.Masked()
			x.around[p] = append(x.around[p], to)
			x.lengths[lengthOf{p.Addr().Is4(), p.Bits()}] = struct{}{}
		}
	}
	x.to[to] = append(x.to[to], rule)
}

// covering returns the first rule that decides all that r names, or nil if there is none or the steps are spent.
func (x *coverIndex) covering(r *Rule) *Rule {
	first := len(x.rules)
	for _, t := range x.candidates(&r.To) {
		for _, i := range x.to[t] {
			if i >= first || !x.l.spend(1) {
				break
			}
			if earlier := &x.rules[i]; coversService(earlier, r) && x.l.coversFrom(earlier, r) {
				first = i
			}
		}
	}
	if first == len(x.rules) {
		return nil
	}
	return &x.rules[first]
}

// candidates returns the destinations of rules so far that cover one.
func (x *coverIndex) candidates(to *Term) []Term {
	list := []Term{{}}
	if to.Kind != TermAny {
		list = append(list, *to)
	}
	targets := x.l.targets(to)
	if len(targets) == 0 {
		return list
	}
	anchor := targets[0]
	for length := range x.lengths {
		if length.v4 != anchor.Addr().Is4() || length.bits > anchor.Bits() {
			continue
		}
		for _, t := range x.around[netip.PrefixFrom(anchor.Addr(), length.bits).Masked()] {
			wide := x.l.prefixes(&t)
			if t != *to && x.l.spend(len(wide)*len(targets)) && holds(wide, targets) {
				list = append(list, t)
			}
		}
	}
	return list
}

// coversFrom reports whether a applies to whatever b applies to, as far as the source goes.
func (l *linter) coversFrom(a, b *Rule) bool {
	switch {
	case a.From.Kind == TermAny:
		return true
	case a.From.Kind == TermName:
		return a.From == b.From
	case a.Action == Accept && (b.From.Kind != TermPrefix || b.Action != Accept):
		return false // where there is no source, an address accepts nothing, but a denial or a name applies
	case b.From.Kind == TermPrefix:
		return holds([]netip.Prefix{a.From.Prefix}, []netip.Prefix{b.From.Prefix})
	case b.From.Kind == TermName:
		return holds([]netip.Prefix{a.From.Prefix}, l.routes[l.peers[b.From.Name].ID])
	}
	return false
}

func coversService(a, b *Rule) bool {
	switch {
	case a.Proto == ProtoAny:
		return true
	case a.Proto != b.Proto:
		return false
	case len(a.Ports) == 0:
		return true
	}
	for _, p := range b.Ports {
		if !slices.ContainsFunc(a.Ports, func(q Ports) bool { return q.First <= p.First && p.Last <= q.Last }) {
			return false
		}
	}
	return len(b.Ports) > 0
}

// prefixes returns what a term names by address: itself or a set.
func (l *linter) prefixes(t *Term) []netip.Prefix {
	switch t.Kind {
	case TermPrefix:
		return []netip.Prefix{t.Prefix}
	case TermName:
		if s := l.sets[t.Name]; s != nil {
			return s.Prefixes
		}
	}
	return nil
}

// targets returns the addresses that a flow to t can be to, nil where these are not known.
func (l *linter) targets(t *Term) []netip.Prefix {
	if peer := l.peers[t.Name]; t.Kind == TermName && peer != nil {
		return slices.DeleteFunc(slices.Clone(l.routes[peer.ID]), isDefault)
	}
	return l.prefixes(t)
}

// holds reports whether each of list, of which there must be one, lies within one of wide.
func holds(wide, list []netip.Prefix) bool {
	for _, p := range list {
		if !slices.ContainsFunc(wide, func(w netip.Prefix) bool { return w.Bits() <= p.Bits() && w.Contains(p.Addr()) }) {
			return false
		}
	}
	return len(list) > 0
}
