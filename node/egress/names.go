package egress

import (
	"net/netip"
	"strings"

	"golang.org/x/net/idna"

	"culvert.dev/culvert/internal/proxy"
)

// destination is a target whose spelling is settled: a name that is safe to compare and to ask for, or an address.
type destination struct {
	name string     // ASCII, lower case, without a dot at the end; "" for an address
	addr netip.Addr // IPv4 or IPv6, never mapped, without zone
	port uint16
	kind special
}

// special are destinations that mean this host, or no single host.
type special uint8

const (
	ordinary special = iota
	loopback
	unspecified
	multicast
	broadcast
	zoned
)

// String returns what the destination is.
func (s special) String() string {
	return [...]string{"", "the loopback of this host", "no destination", "a multicast group", "a broadcast", "an address with a zone, which means something on one host only"}[s]
}

// String returns the host as it is shown.
func (d destination) String() string {
	if d.name != "" {
		return d.name
	}
	return d.addr.String()
}

// target returns the destination as it is told to an exit.
func (d destination) target() proxy.Target {
	return proxy.Target{Name: d.name, Addr: d.addr, Port: d.port}
}

// lookup turns names into the form that resolvers know. Labels may hold an underscore, which is no host name but is in use.
var lookup = idna.New(idna.MapForLookup(), idna.BidiRule(), idna.Transitional(false), idna.StrictDomainName(false))

// settle brings a target into one spelling, or says why it is none. A name that is an address is one; a name that some resolvers read
// as an address, such as 127.1 or 0x7f000001, is refused: it would pass a rule for addresses unseen.
func settle(t proxy.Target) (destination, error) {
	d := destination{port: t.Port}
	if t.Name != "" {
		name, err := canonical(t.Name)
		if err != nil {
			return d, err
		}
		if a, err := netip.ParseAddr(name); err == nil {
			t.Addr = a
		} else {
			d.name = name
		}
	}
	switch {
	case d.port == 0:
		return d, proxy.Fail(proxy.NotAllowed, "connect to %s: there is no port 0", t.Host())
	case d.name == "localhost" || strings.HasSuffix(d.name, ".localhost"):
		d.kind = loopback // RFC 6761 section 6.3
	case d.name == "" && !t.Addr.IsValid():
		return d, proxy.Fail(proxy.NotAllowed, "the target has neither a name nor an address")
	case d.name == "":
		d.addr = t.Addr.Unmap()
		d.kind = kindOf(d.addr)
	}
	return d, nil
}

// canonical returns a host name in the form in which names are compared: ASCII, lower case, no dot at the end.
func canonical(name string) (string, error) {
	plain, ascii := strings.ToLower(strings.TrimSuffix(name, ".")), true
	for i := range len(plain) {
		ascii = ascii && plain[i] < 0x80
	}
	if !ascii {
		a, err := lookup.ToASCII(plain)
		if err != nil {
			return "", proxy.Fail(proxy.NameNotFound, "%q is no host name: %w", name, err)
		}
		plain = strings.TrimSuffix(a, ".") // of an ideographic full stop
	}
	if fault := faultOf(plain); fault != "" {
		return "", proxy.Fail(proxy.NameNotFound, "%q is no host name: %s", name, fault)
	}
	return plain, nil
}

// faultOf returns what keeps an ASCII name from being a host name or an address, "" if nothing does.
func faultOf(name string) string {
	const nameLen, labelLen = 253, 63 // RFC 1035 section 2.3.4, without the length of the first label and the root
	if a, err := netip.ParseAddr(name); err == nil {
		if a.Zone() != "" {
			return "an address with a zone means something on one host only"
		}
		return ""
	}
	if name == "" || len(name) > nameLen {
		return "it is empty or too long"
	}
	last := ""
	for label := range strings.SplitSeq(name, ".") {
		if label == "" || len(label) > labelLen {
			return "one of its labels is empty or too long"
		}
		for i := range len(label) {
			if c := label[i]; !('a' <= c && c <= 'z' || '0' <= c && c <= '9' || c == '-' || c == '_') {
				return "it has a character that host names do not have"
			}
		}
		last = label
	}
	if numeric(last) {
		return "it looks like an address in a short or foreign form, such as 127.1"
	}
	return ""
}

// numeric reports whether programs take a name that ends in the label for an IPv4 address: decimal or octal digits, or hexadecimal ones
// after 0x. No top-level domain is like that.
func numeric(label string) bool {
	digits, set := label, "0123456789"
	if hex, ok := strings.CutPrefix(label, "0x"); ok {
		digits, set = hex, "0123456789abcdef"
	}
	return strings.Trim(digits, set) == ""
}

var (
	thisNetwork = netip.MustParsePrefix("0.0.0.0/8") // RFC 1122 section 3.2.1.3; 0.0.0.0 itself is this host to many systems
	compatible  = netip.MustParsePrefix("::/96")     // IPv4 in IPv6 of old, RFC 4291 section 2.5.5.1
	translated  = netip.MustParsePrefix("64:ff9b::/96")
	allHosts    = netip.AddrFrom4([4]byte{255, 255, 255, 255})
)

// kindOf tells special addresses. An IPv6 address that carries an IPv4 one for a translator is what that one is.
func kindOf(a netip.Addr) special {
	switch {
	case a.Zone() != "":
		return zoned
	case a.IsLoopback():
		return loopback
	case a.IsMulticast():
		return multicast
	case a == allHosts:
		return broadcast
	case thisNetwork.Contains(a), compatible.Contains(a):
		return unspecified
	case translated.Contains(a):
		b := a.As16()
		return kindOf(netip.AddrFrom4([4]byte(b[12:])))
	}
	return ordinary
}
