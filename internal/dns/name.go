package dns

import (
	"net/netip"
	"slices"
	"strings"

	"golang.org/x/net/dns/dnsmessage"
)

const (
	maxLabelLen = 63  // RFC 1035 section 2.3.4
	maxLabels   = 127 // of a name of maxNameLen bytes
)

// qname is the name of a question, with the places of its labels. Labels are compared byte by byte, so that one with a dot in it is
// never taken for two.
type qname struct {
	wire   []byte           // uncompressed, with the root's length byte
	starts [maxLabels]uint8 // of each label's length byte
	n      int
}

// nameOf reads the name of a query's question, which parse has found to be sound.
func nameOf(query *message) (n qname) {
	q := query.question()
	n.wire = q[:len(q)-4]
	for at := 0; n.wire[at] != 0; at += 1 + int(n.wire[at]) {
		n.starts[n.n] = uint8(at)
		n.n++
	}
	return n
}

// label returns a label without its length, in the case in which it was asked.
func (n *qname) label(i int) []byte {
	at := int(n.starts[i])
	return n.wire[at+1 : at+1+int(n.wire[at])]
}

// under reports whether the name is domain or lies below it, and how many labels domain has.
func (n *qname) under(domain string) (labels int, ok bool) {
	domain = strings.TrimSuffix(domain, ".")
	i := n.n
	for domain != "" {
		dot := strings.LastIndexByte(domain, '.')
		if i--; i < 0 || !equalLabel(n.label(i), domain[dot+1:]) {
			return 0, false
		}
		domain = domain[:max(dot, 0)]
	}
	return n.n - i, true
}

func equalLabel(a []byte, b string) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if lower(a[i]) != lower(b[i]) {
			return false
		}
	}
	return true
}

// reverse reads a name of in-addr.arpa or ip6.arpa (RFC 1035 section 3.5, RFC 3596 section 2.5): the addresses that its labels stand
// for, and how many labels lie below those. A whole name of one address has a prefix of one address and none below.
func (n *qname) reverse() (p netip.Prefix, below int, ok bool) {
	var a [16]byte
	if _, v4 := n.under("in-addr.arpa"); v4 {
		i := n.n - 2
		octets := 0
		for ; i > 0 && octets < 4; i-- {
			v, sound := octet(n.label(i - 1))
			if !sound {
				break
			}
			a[octets] = v
			octets++
		}
		return netip.PrefixFrom(netip.AddrFrom4([4]byte(a[:4])), 8*octets), i, true
	}
	if _, v6 := n.under("ip6.arpa"); !v6 {
		return p, 0, false
	}
	i, nibbles := n.n-2, 0
	for ; i > 0 && nibbles < 32; i-- {
		l := n.label(i - 1)
		v, sound := nibble(l)
		if !sound {
			break
		}
		a[nibbles/2] |= v << (4 * (1 - nibbles%2))
		nibbles++
	}
	return netip.PrefixFrom(netip.AddrFrom16(a), 4*nibbles), i, true
}

// octet reads 0 to 255 without leading zeros: other spellings are other names.
func octet(label []byte) (v byte, ok bool) {
	if len(label) == 0 || len(label) > 3 || len(label) > 1 && label[0] == '0' {
		return 0, false
	}
	sum := 0
	for _, c := range label {
		if c < '0' || c > '9' {
			return 0, false
		}
		sum = 10*sum + int(c-'0')
	}
	return byte(sum), sum <= 255
}

func nibble(label []byte) (v byte, ok bool) {
	if len(label) != 1 {
		return 0, false
	}
	switch c := lower(label[0]); {
	case '0' <= c && c <= '9':
		return c - '0', true
	case 'a' <= c && c <= 'f':
		return c - 'a' + 10, true
	}
	return 0, false
}

// covering returns how many labels the reverse zone has by which one of the prefixes holds all of p. A prefix that ends within a label
// is as many zones as its last label has values (RFC 6303 section 4.3).
func covering(prefixes []netip.Prefix, p netip.Prefix) (labels int, ok bool) {
	step := 8
	if p.Addr().Is6() {
		step = 4
	}
	i := slices.IndexFunc(prefixes, func(z netip.Prefix) bool {
		return z.Contains(p.Addr()) && (z.Bits()+step-1)/step <= p.Bits()/step
	})
	if i < 0 {
		return 0, false
	}
	return 2 + (prefixes[i].Bits()+step-1)/step, true
}

// appendName encodes a name in lower case, of which ok says whether it is one: labels of letters, digits, "-" and "_".
func appendName(b []byte, name string) (_ []byte, ok bool) {
	name = strings.TrimSuffix(name, ".")
	start := len(b)
	for label := range strings.SplitSeq(name, ".") {
		if len(label) == 0 || len(label) > maxLabelLen {
			return b, false
		}
		b = append(b, byte(len(label)))
		for i := range len(label) {
			c := lower(label[i])
			if !('a' <= c && c <= 'z' || '0' <= c && c <= '9' || c == '-' || c == '_') {
				return b, false
			}
			b = append(b, c)
		}
	}
	b = append(b, 0)
	return b, len(b)-start <= maxNameLen
}

// newQuestion makes a query for one type of a name's records.
func newQuestion(name string, typ dnsmessage.Type) (query message, ok bool) {
	b := make([]byte, headerLen, headerLen+maxNameLen+4+optRecordLen)
	b[2], b[5], b[11] = flagRD>>8, 1, 1
	if b, ok = appendName(b, name); !ok {
		return message{}, false
	}
	b = append(b, byte(typ>>8), byte(typ), 0, byte(dnsmessage.ClassINET))
	b = appendOPT(b, 0)
	return parse(b)
}
