package filter

import (
	"fmt"
	"net/netip"
	"slices"
)

// Warning is about a rule or set that does nothing.
type Warning struct {
	File    string
	Line    int
	Set     bool   // it is about a set
	Message string // one line, without the place
}

// Lint finds rules that never decide, because an earlier one covers them or because all they name is denied before rules are
// asked; accept rules for what the peers in question may not reach; sets that no rule names; and ways out without effect.
//
// It finds many of these, not all, and is never wrong about one. cfg.Host need not be known: a host's own addresses and
// networks make less reachable, never more. An error is that of New.
func Lint(cfg Config) ([]Warning, error) {
	rules := cfg.Rules
	cfg.Rules = nil
	p, err := New(cfg)
	if err != nil {
		return nil, err
	}
	l := newLinter(&cfg, p)
	earlier := newCoverIndex(l, rules)
	for i := range rules {
		r := &rules[i]
		if message := l.idle(r, earlier); message != "" {
			l.warnings = append(l.warnings, Warning{File: r.File, Line: r.Line, Message: message})
		}
		earlier.add(i)
	}
	for i := range cfg.Sets {
		s := &cfg.Sets[i]
		if !slices.ContainsFunc(rules, func(r Rule) bool { return r.To.Kind == TermName && r.To.Name == s.Name }) {
			l.warnings = append(l.warnings, Warning{s.File, s.Line, true, "no rule names the set " + s.Name})
		}
	}
	return l.warnings, nil
}

// maxLintSteps bounds the work, to a few tenths of a second. Ten thousand rules about different hosts need a hundredth of it;
// of as many about one destination, the last ones go unchecked.
const maxLintSteps = 1 << 24

// linter knows what the words of rules mean.
type linter struct {
	cfg      *Config
	p        *Policy // without rules
	all      []*Peer
	peers    map[string]*Peer
	sets     map[string]*Set
	routes   map[uint16][]netip.Prefix // by peer, masked
	steps    int                       // left of maxLintSteps
	warnings []Warning
}

func newLinter(cfg *Config, p *Policy) *linter {
	l := &linter{cfg: cfg, p: p, peers: map[string]*Peer{}, sets: map[string]*Set{}, routes: map[uint16][]netip.Prefix{}, steps: maxLintSteps}
	for i := range cfg.Sets {
		l.sets[cfg.Sets[i].Name] = &cfg.Sets[i]
	}
	for _, peer := range cfg.Peers {
		l.all = append(l.all, p.Peer(peer.ID))
		l.peers[peer.Name] = p.Peer(peer.ID)
	}
	for _, r := range cfg.Routes {
		l.routes[r.Peer] = append(l.routes[r.Peer], r.Prefix.Masked())
	}
	return l
}

// spend takes steps from what is left and reports whether there were enough.
func (l *linter) spend(steps int) bool {
	l.steps = max(l.steps-steps, 0)
	return l.steps > 0
}

// idle returns what is wrong with a rule, "" if nothing is.
func (l *linter) idle(r *Rule, earlier *coverIndex) string {
	if reason := l.unreachable(r); reason != ReasonNone {
		return fmt.Sprintf("has no effect: what it names is denied before rules are asked (%s: %s)", reason, reason.Explain())
	}
	if senders, certain := l.senders(r); certain && len(senders) == 0 && len(l.cfg.Peers) > 0 {
		return fmt.Sprintf("never matches: no peer has an address in %s", r.From)
	}
	if by := earlier.covering(r); by != nil {
		where := by.Place()
		if by.File == r.File {
			where = fmt.Sprintf("line %d", by.Line)
		}
		return fmt.Sprintf("never matches: the rule on %s decides all that this one names", where)
	}
	if r.Via == ViaUpstream && (r.To.Kind == TermSelf || r.To.Kind == TermLAN || r.To.Kind == TermName && l.peers[r.To.Name] != nil) {
		return "via upstream has no effect: only traffic to the internet leaves through the upstream"
	}
	return ""
}

// senders returns the peers that a rule may apply to. certain is false where it may apply to others too: a rule that denies
// by address also meets what this node does on behalf of a peer, which has no address.
func (l *linter) senders(r *Rule) (list []*Peer, certain bool) {
	switch {
	case r.From.Kind == TermAny:
		return l.all, true
	case r.From.Kind == TermName:
		return []*Peer{l.peers[r.From.Name]}, true
	case r.Action != Accept || !l.spend(len(l.cfg.Routes)):
		return l.all, false
	case r.From.Prefix.IsSingleIP():
		if owner := l.p.Peer(l.p.PeerOf(r.From.Prefix.Addr())); owner != nil {
			list = append(list, owner)
		}
		return list, true
	}
	for _, peer := range l.all {
		if slices.ContainsFunc(l.routes[peer.ID], r.From.Prefix.Overlaps) {
			list = append(list, peer)
		}
	}
	return list, true
}

// unreachable returns why nothing that a rule names is ever permitted, or ReasonNone. A denial for want of a permission is
// told of accept rules only: they show that the operator means to permit it, others are a second lock.
func (l *linter) unreachable(r *Rule) Reason {
	senders, _ := l.senders(r)
	if len(senders) == 0 {
		return ReasonNone
	}
	why := ReasonNone
	for _, c := range l.classes(&r.To) {
		for _, peer := range senders {
			reason := l.denies(c, peer)
			if reason == ReasonNone || !l.spend(1) {
				return ReasonNone
			}
			why = reason
		}
	}
	switch why {
	case ReasonNoRouting, ReasonNoLAN, ReasonOtherPeer, ReasonSamePeer:
		if r.Action != Accept {
			return ReasonNone
		}
	}
	return why
}

// classes returns what is known of the destinations of a term; never nothing for one that may be reached.
func (l *linter) classes(t *Term) (list []class) {
	switch t.Kind {
	case TermAny, TermSelf:
		return []class{{kind: kindSelf}}
	case TermLAN:
		return []class{{kind: kindExit, where: LAN}}
	case TermInternet:
		return []class{{kind: kindExit, where: Internet}}
	}
	if peer := l.peers[t.Name]; peer != nil && t.Kind == TermName {
		return []class{{kind: kindPeer, peer: peer.ID}}
	}
	embedded := slices.ContainsFunc(l.cfg.Allow, func(p netip.Prefix) bool { return p.Addr().Is6() })
	for _, prefix := range l.prefixes(t) {
		first, last := span(prefix)
		classes, v4 := &l.p.classes6, prefix.Addr().Is4()
		if v4 {
			classes = &l.p.classes4
		}
		for c := range classes.within(first, last) {
			if v4 && embedded && c.kind == kindSoft { // AllowTo may permit an IPv6 address that leads here
				c = class{kind: kindEmbedded}
			}
			list = append(list, c)
		}
	}
	return list
}

// denies returns why a peer cannot reach a destination of a class, or ReasonNone if perhaps it can.
func (l *linter) denies(c class, peer *Peer) Reason {
	switch c.kind {
	case kindHard, kindSoft:
		return c.reason
	case kindSelf: // echo, at least
		return ReasonNone
	case kindPeer:
		return decidePeer(peer, c.peer).Reason
	case kindEmbedded: // in the LAN or not
		return decideExit(peer, Internet).Reason
	}
	return decideExit(peer, c.where).Reason
}
