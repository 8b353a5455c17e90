package config

import (
	"strings"

	"culvert.dev/culvert/filter"
)

// Filter is what the operator withdraws from what is otherwise permitted.
type Filter struct {
	Rules []filter.Rule // in the file's order; the names in them are known
	Sets  []filter.Set
}

var filterKeys = []key[Filter]{
	{name: "Rule", list: true, set: func(l *loader, t *Filter, v value) error {
		rule, err := filter.ParseRule(v.text)
		if err != nil {
			return pointAt("Rule", v.text, err)
		}
		rule.File, rule.Line = l.file, v.line
		if v.variable != "" {
			rule.Text = "$" + v.variable
		}
		t.Rules = append(t.Rules, rule)
		return nil
	}},
	{name: "Set", list: true, set: func(l *loader, t *Filter, v value) error {
		set, err := filter.ParseSet(v.text)
		if err != nil {
			return pointAt("Set", v.text, err)
		}
		set.File, set.Line = l.file, v.line
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
	for i := range f.Rules {
		r := &f.Rules[i]
		for _, fault := range names.unknown(r) {
			if strings.HasPrefix(r.Text, "$") {
				l.faultAt(r.File, r.Line, "Rule: the value of %s names a peer or set that does not exist", r.Text)
				break
			}
			l.faultAt(r.File, r.Line, "%v", pointAt("Rule", r.Text, fault))
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
