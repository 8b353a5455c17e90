package filter

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"unicode"

	"culvert.dev/culvert/internal/packet"
)

// Span is a piece of a line, in bytes.
type Span struct{ At, Len int }

// Fault is what is wrong with a rule or set, and where in its text. The message is one line and quotes words of the text.
type Fault struct {
	Span
	Message string
}

func (f *Fault) Error() string { return f.Message }

// word is a piece of a line between white space.
type word struct {
	text string
	at   int
}

func (w word) span() Span { return Span{w.at, len(w.text)} }

func (w word) is(keyword string) bool { return strings.EqualFold(w.text, keyword) }

// quote shows the word, or the start of one that is too long for a message.
func (w word) quote() string {
	const longest = 64
	if len(w.text) > longest {
		return strconv.Quote(w.text[:longest]) + "…"
	}
	return strconv.Quote(w.text)
}

func (w word) fault(format string, args ...any) error {
	return &Fault{w.span(), fmt.Sprintf(format, args...)}
}

// part returns the piece of w from i to j, in its place.
func (w word) part(i, j int) word { return word{w.text[i:j], w.at + i} }

func words(text string) (list []word) {
	start := -1
	for i, r := range text {
		switch space := unicode.IsSpace(r); {
		case space && start >= 0:
			list = append(list, word{text[start:i], start})
			start = -1
		case !space && start < 0:
			start = i
		}
	}
	if start >= 0 {
		list = append(list, word{text[start:], start})
	}
	return list
}

// ruleReader takes the words of a line one by one. Behind the last one it yields empty words at the end of the line.
type ruleReader struct {
	rest []word
	end  int
}

func newReader(text string) *ruleReader {
	return &ruleReader{words(text), len(text)}
}

func (r *ruleReader) peek() word {
	if len(r.rest) == 0 {
		return word{"", r.end}
	}
	return r.rest[0]
}

func (r *ruleReader) next() word {
	w := r.peek()
	if len(r.rest) > 0 {
		r.rest = r.rest[1:]
	}
	return w
}

// skip takes the next word if it is the keyword.
func (r *ruleReader) skip(keyword string) bool {
	if !r.peek().is(keyword) {
		return false
	}
	r.next()
	return true
}

func (r *ruleReader) expect(keyword string) error {
	w := r.next()
	switch {
	case w.text == "":
		return w.fault("%q is missing", keyword)
	case !w.is(keyword):
		return w.fault("%s stands where %q belongs", w.quote(), keyword)
	}
	return nil
}

// ParseRule reads a rule; an error is a *Fault. The grammar, whose keywords may be of either case:
//
//	accept|reject|drop [log] from WHO to WHERE [PROTO[/PORTS] | icmp [TYPE]] [via VIA]
//
//	WHO    a peer's name, an address, a prefix, *
//	WHERE  a set's or peer's name, an address, a prefix, self, lan, internet, *
//	PROTO  tcp, udp, or a number from 1 to 255
//	PORTS  22,443,8000-8099; for TCP and UDP
//	TYPE   echo-request, or its number: 8 for IPv4 alone, 128 for IPv6 alone
//	VIA    host, upstream: how accepted traffic to the internet leaves; not with reject or drop
//
// Names are not looked up here: New does that.
func ParseRule(text string) (rule Rule, err error) {
	rule.Text = text
	r := newReader(text)
	switch w := r.next(); {
	case w.is("accept"):
		rule.Action = Accept
	case w.is("reject"):
		rule.Action = Reject
	case w.is("drop"):
		rule.Action = Drop
	case w.text == "":
		return rule, w.fault("the rule is empty")
	default:
		return rule, w.fault("unknown action %s: want accept, reject or drop", w.quote())
	}
	rule.Log = r.skip("log")
	if err := r.expect("from"); err != nil {
		return rule, err
	}
	if rule.From, err = parseTerm(r.next(), false); err != nil {
		return rule, err
	}
	if err := r.expect("to"); err != nil {
		return rule, err
	}
	if rule.To, err = parseTerm(r.next(), true); err != nil {
		return rule, err
	}
	if err := r.service(&rule); err != nil {
		return rule, err
	}
	if err := r.via(&rule); err != nil {
		return rule, err
	}
	if w := r.next(); w.text != "" {
		return rule, w.fault("unexpected %s behind the end of the rule", w.quote())
	}
	return rule, nil
}

func parseTerm(w word, destination bool) (t Term, err error) {
	for kind, keyword := range termWords {
		if !w.is(keyword) {
			continue
		}
		if !destination && kind != TermAny {
			return t, w.fault("%s cannot be a source: want a peer, an address, a prefix or *", w.quote())
		}
		return Term{Kind: kind}, nil
	}
	switch {
	case w.text == "" && destination:
		return t, w.fault("the destination is missing")
	case w.text == "":
		return t, w.fault("the source is missing")
	case strings.ContainsAny(w.text, "./:"):
		t.Kind = TermPrefix
		t.Prefix, err = parsePrefix(w)
		return t, err
	}
	t.Kind = TermName
	t.Name, err = parseName(w)
	return t, err
}

func parsePrefix(w word) (p netip.Prefix, err error) {
	if a, err := netip.ParseAddr(w.text); err == nil && a.Zone() == "" {
		p = netip.PrefixFrom(a, a.BitLen())
	} else if p, err = netip.ParsePrefix(w.text); err != nil {
		return p, w.fault("%s is neither an address nor a prefix", w.quote())
	}
	if p.Addr().Is4In6() {
		return p, w.fault("%s is an IPv4-mapped IPv6 address: write it as IPv4", w.quote())
	}
	return p.Masked(), nil
}

// parseName reads a name of a peer or set: a DNS label (RFC 1123 section 2.1), which is lowered.
func parseName(w word) (string, error) {
	name := strings.ToLower(w.text)
	odd := func(r rune) bool { return (r < 'a' || r > 'z') && (r < '0' || r > '9') && r != '-' }
	if name == "" || len(name) > 63 || name[0] == '-' || name[len(name)-1] == '-' || strings.ContainsFunc(name, odd) {
		return "", w.fault("%s is not a name: want 1 to 63 of a-z, 0-9 and -, with no - at either end", w.quote())
	}
	return name, nil
}

// service reads the protocol and what depends on it, if there is any.
func (r *ruleReader) service(rule *Rule) error {
	if r.peek().text == "" || r.peek().is("via") {
		return nil
	}
	w := r.next()
	name, _, hasPorts := strings.Cut(w.text, "/")
	switch proto := w.part(0, len(name)); {
	case proto.is("tcp"):
		rule.Proto = packet.ProtoTCP
	case proto.is("udp"):
		rule.Proto = packet.ProtoUDP
	case proto.is("icmp") && !hasPorts:
		return r.icmpType(rule)
	case proto.is("icmp"):
		return w.fault("icmp has no ports")
	default:
		n, err := strconv.ParseUint(name, 10, 8)
		if err != nil || n == 0 {
			return proto.fault("%s is not a protocol: want tcp, udp, icmp or a number from 1 to 255", proto.quote())
		}
		rule.Proto = Proto(n)
	}
	if !hasPorts {
		return nil
	}
	if rule.Proto != packet.ProtoTCP && rule.Proto != packet.ProtoUDP {
		return w.fault("protocol %s has no ports", rule.Proto)
	}
	return parsePorts(rule, w.part(len(name)+1, len(w.text)))
}

func (r *ruleReader) icmpType(rule *Rule) error {
	rule.Proto = ProtoICMP
	if r.peek().is("via") {
		return nil
	}
	switch w := r.next(); {
	case w.text == "", w.is("echo-request"):
	case w.text == "8":
		rule.Proto = packet.ProtoICMPv4
	case w.text == "128":
		rule.Proto = packet.ProtoICMPv6
	default:
		return w.fault("ICMP type %s cannot be filtered: echo-request alone begins a flow; replies and errors belong to one, "+
			"and no other type passes at all", w.quote())
	}
	return nil
}

// via reads how accepted traffic leaves, if that is said.
func (r *ruleReader) via(rule *Rule) error {
	keyword := r.peek()
	if !r.skip("via") {
		return nil
	}
	switch w := r.next(); {
	case rule.Action != Accept:
		return keyword.fault("%s sends nothing anywhere: %s belongs to accept", rule.Action, keyword.quote())
	case w.is("host"):
		rule.Via = ViaHost
	case w.is("upstream"):
		rule.Via = ViaUpstream
	case w.text == "":
		return w.fault("host or upstream is missing behind %s", keyword.quote())
	default:
		return w.fault("%s is not a way out: want host or upstream", w.quote())
	}
	return nil
}

func parsePorts(rule *Rule, w word) error {
	for at := 0; at <= len(w.text); {
		end := len(w.text)
		if i := strings.IndexByte(w.text[at:], ','); i >= 0 {
			end = at + i
		}
		element := w.part(at, end)
		first, last, isRange := strings.Cut(element.text, "-")
		if !isRange {
			last = first
		}
		lo, err1 := strconv.ParseUint(first, 10, 16)
		hi, err2 := strconv.ParseUint(last, 10, 16)
		switch {
		case err1 != nil || err2 != nil || lo == 0 || hi == 0:
			return element.fault("%s is neither a port (1 to 65535) nor a range such as 8000-8099", element.quote())
		case lo > hi:
			return element.fault("the range %s ends before it begins", element.quote())
		}
		rule.Ports = append(rule.Ports, Ports{uint16(lo), uint16(hi)})
		at = end + 1
	}
	return nil
}

// ParseSet reads "NAME PREFIX…"; an error is a *Fault.
func ParseSet(text string) (set Set, err error) {
	set.Text = text
	r := newReader(text)
	w := r.next()
	if w.text == "" {
		return set, w.fault("the set is empty: want a name and addresses or prefixes")
	}
	for _, keyword := range termWords {
		if w.is(keyword) {
			return set, w.fault("%s has a meaning of its own and cannot name a set", w.quote())
		}
	}
	if set.Name, err = parseName(w); err != nil {
		return set, err
	}
	for w := r.next(); ; w = r.next() {
		if w.text == "" && len(set.Prefixes) > 0 {
			return set, nil
		}
		if w.text == "" {
			return set, w.fault("the set %s is empty: want addresses or prefixes behind its name", set.Name)
		}
		p, err := parsePrefix(w)
		if err != nil {
			return set, err
		}
		set.Prefixes = append(set.Prefixes, p)
	}
}
