package filter

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"culvert.dev/culvert/internal/packet"
)

// Rule is one rule of the operator. Rules come after the built-in denials and the first that matches ends the search: reject
// and drop withdraw what is otherwise permitted, accept protects from the rules behind it. No rule permits anything.
type Rule struct {
	Action Action
	Log    bool
	From   Term // any, an address range, a peer
	To     Term
	Proto  Proto
	Ports  []Ports // destination ports; none: all. For TCP and UDP only
	Via    Via     // with Accept: how traffic to the internet leaves; without effect on anything else

	// Where it stands, for errors and explanations.
	Text string // as written
	File string
	Line int
}

// Term is one end of a rule. Prefix is valid, and masked, with TermPrefix; Name, in lower case, with TermName.
type Term struct {
	Kind   TermKind
	Prefix netip.Prefix
	Name   string // of a peer; at the destination, of a set or a peer
}

// TermKind tells what a Term stands for.
type TermKind uint8

const (
	TermAny TermKind = iota
	TermPrefix
	TermName
	TermSelf     // this node's mesh addresses
	TermLAN      // the host's local networks
	TermInternet // everything else
)

var termWords = map[TermKind]string{TermAny: "*", TermSelf: "self", TermLAN: "lan", TermInternet: "internet"}

// Proto is an IP protocol number from 1 to 255, or one of the following.
type Proto uint16

const (
	ProtoAny  Proto = 0
	ProtoICMP Proto = 256 // ICMP over IPv4, ICMPv6 over IPv6
)

// Ports is a range of ports, both ends included.
type Ports struct{ First, Last uint16 }

// Set is a named list of destinations.
type Set struct {
	Name     string // in lower case
	Prefixes []netip.Prefix

	// Where it stands, for errors.
	Text string
	File string
	Line int
}

// String returns the rule in the words of its grammar.
func (r *Rule) String() string {
	var b strings.Builder
	b.WriteString(r.Action.String())
	if r.Log {
		b.WriteString(" log")
	}
	fmt.Fprintf(&b, " from %s to %s", r.From, r.To)
	if r.Proto != ProtoAny {
		b.WriteString(" " + r.Proto.String())
	}
	for i, p := range r.Ports {
		b.WriteByte("/,"[min(i, 1)])
		b.WriteString(p.String())
	}
	if r.Via != ViaDefault {
		b.WriteString(" via " + r.Via.String())
	}
	return b.String()
}

// String returns the word that stands for the term.
func (t Term) String() string {
	switch t.Kind {
	case TermPrefix:
		return prefixWord(t.Prefix)
	case TermName:
		return t.Name
	}
	return termWords[t.Kind]
}

// String returns tcp, udp, icmp, a number, or * for any.
func (p Proto) String() string {
	switch p {
	case ProtoAny:
		return "*"
	case packet.ProtoTCP:
		return "tcp"
	case packet.ProtoUDP:
		return "udp"
	case ProtoICMP:
		return "icmp"
	}
	return strconv.Itoa(int(p))
}

// String returns "22" or "8000-8099".
func (p Ports) String() string {
	if p.First == p.Last {
		return strconv.Itoa(int(p.First))
	}
	return fmt.Sprintf("%d-%d", p.First, p.Last)
}

// String returns the set in the words of its grammar.
func (s *Set) String() string {
	words := []string{s.Name}
	for _, p := range s.Prefixes {
		words = append(words, prefixWord(p))
	}
	return strings.Join(words, " ")
}

func prefixWord(p netip.Prefix) string {
	if p.IsSingleIP() {
		return p.Addr().String()
	}
	return p.String()
}

// Spans returns where in Text the words of From and To stand.
func (r *Rule) Spans() (from, to Span) {
	who := 2 // action, from
	if r.Log {
		who++
	}
	if w := words(r.Text); len(w) > who+2 {
		from, to = w[who].span(), w[who+2].span()
	}
	return from, to
}

// ViaSpan returns where in Text the word behind via stands.
func (r *Rule) ViaSpan() (s Span) {
	if w := words(r.Text); r.Via != ViaDefault && len(w) > 0 {
		s = w[len(w)-1].span()
	}
	return s
}

// Place returns "FILE:LINE".
func (r *Rule) Place() string { return place(r.File, r.Line) }

// place returns "FILE:LINE", or what stands for a file, such as a variable, which has no line.
func place(file string, line int) string {
	if line == 0 {
		return file
	}
	return fmt.Sprintf("%s:%d", file, line)
}
