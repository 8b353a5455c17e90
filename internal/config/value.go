package config

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"unicode"

	"golang.org/x/net/idna"

	"culvert.dev/culvert/nat"
)

// A rejection says why one element of a value is not acceptable. It is kept apart from the reason so that a value
// from the environment, or one that looks like a key, can stay out of messages.
type rejection struct{ element, reason string }

func (r *rejection) Error() string { return quote(r.element) + " " + r.reason }

func reject(element, format string, args ...any) error {
	return &rejection{element, fmt.Sprintf(format, args...)}
}

// quote shows a piece of a file in a message, unless it could be a key that landed in the wrong place.
func quote(s string) string {
	const longest = 64 // more says nothing
	if slices.ContainsFunc(strings.FieldsFunc(s, notBase64), looksSecret) {
		return "(hidden, looks like a key)"
	}
	if len(s) > longest {
		s = s[:longest] + "…"
	}
	return strconv.Quote(s)
}

// looksSecret also catches a key that lost a few characters.
func looksSecret(s string) bool {
	return len(s) > 36 && len(s) < 50 && !strings.ContainsFunc(s, notBase64)
}

func notBase64(r rune) bool {
	return !(r < unicode.MaxASCII && (unicode.IsLetter(r) || unicode.IsDigit(r)) || r == '+' || r == '/' || r == '=')
}

// splitList splits at commas and white space, as wg-quick does; empty elements vanish.
func splitList(s string) []string {
	return strings.FieldsFunc(s, func(r rune) bool { return r == ',' || unicode.IsSpace(r) })
}

// parsePrefix reads an address with or without a length and keeps the host bits.
func parsePrefix(s string) (netip.Prefix, error) {
	var p netip.Prefix
	if a, err := netip.ParseAddr(s); err == nil && a.Zone() == "" {
		p = netip.PrefixFrom(a, a.BitLen())
	} else if p, err = netip.ParsePrefix(s); err != nil {
		return p, reject(s, "is not an address or prefix such as 10.0.0.2/32 or fd00::2/128")
	}
	if p.Addr().Is4In6() {
		return p, reject(s, "is an IPv4-mapped IPv6 address: write it as IPv4")
	}
	return p, nil
}

// parsePrefixes reads a list of prefixes and masks them, as wg does.
func parsePrefixes(s string) ([]netip.Prefix, error) {
	var list []netip.Prefix
	for _, element := range splitList(s) {
		p, err := parsePrefix(element)
		if err != nil {
			return nil, err
		}
		list = append(list, p.Masked())
	}
	return list, nil
}

// parseDependence reads a behaviour of RFC 4787 by its name there.
func parseDependence(s string) (nat.Dependence, error) {
	for _, d := range []nat.Dependence{nat.EndpointIndependent, nat.AddressDependent, nat.AddressAndPortDependent} {
		if strings.EqualFold(s, d.String()) {
			return d, nil
		}
	}
	return 0, reject(s, "is not endpoint-independent, address-dependent or address-and-port-dependent")
}

// parseOwnAddress reads one element of Interface.Address.
func parseOwnAddress(s string) (netip.Prefix, error) {
	p, err := parsePrefix(s)
	if a := p.Addr(); err == nil && (a.IsUnspecified() || a.IsMulticast() || a.IsLoopback()) {
		return p, reject(s, "cannot be a node's address")
	}
	return p, err
}

// parseRange reads a decimal number within [low, high]; what completes "is not".
func parseRange(s, what string, low, high int) (int, error) {
	n, err := strconv.ParseUint(s, 10, 32)
	if err != nil || int(n) < low || int(n) > high {
		return 0, reject(s, "is not %s (%d to %d)", what, low, high)
	}
	return int(n), nil
}

func parseBool(s string) (bool, error) {
	switch strings.ToLower(s) {
	case "yes", "true", "on":
		return true, nil
	case "no", "false", "off":
		return false, nil
	}
	return false, reject(s, "is neither yes nor no")
}

// ParseName reads a name of a node or peer: a DNS label (RFC 1123 section 2.1), which is lowered.
func ParseName(s string) (string, error) {
	name := strings.ToLower(s)
	if name == "" || len(name) > 63 || name[0] == '-' || name[len(name)-1] == '-' || strings.ContainsFunc(name, notLabel) {
		return "", reject(s, "is not a name: want 1 to 63 of a-z, 0-9 and -, with no - at either end")
	}
	return name, nil
}

func notLabel(r rune) bool { return (r < 'a' || r > 'z') && (r < '0' || r > '9') && r != '-' }

// parseEndpoint reads "host:port" and returns it with the brackets an IPv6 address needs.
func parseEndpoint(s string) (string, error) {
	host, port, err := net.SplitHostPort(s)
	if err != nil {
		if strings.Count(s, ":") > 1 && !strings.Contains(s, "[") {
			return "", reject(s, "is not host:port: an IPv6 address stands in brackets, as in [2001:db8::1]:51820")
		}
		return "", reject(s, "is not host:port")
	}
	if _, err := parseRange(port, "a port", 1, 65535); err != nil {
		return "", reject(s, "is not host:port: the port is a number from 1 to 65535")
	}
	if err := checkHost(host); err != nil {
		return "", err
	}
	return net.JoinHostPort(host, strings.TrimLeft(port, "0")), nil
}

// checkHost accepts an IP address or what may be a DNS name.
func checkHost(host string) error {
	if _, err := netip.ParseAddr(host); err == nil {
		return nil
	}
	odd := func(r rune) bool { return notLabel(r) && (r < 'A' || r > 'Z') && r != '.' && r != '_' }
	if host == "" || len(host) > 253 || strings.ContainsFunc(host, odd) {
		return reject(host, "is neither an IP address nor a host name")
	}
	return nil
}

// parseDomainName reads a DNS name, which is lowered, put into ASCII, and loses a dot at its end. What looks like an address is none.
func parseDomainName(s string) (string, error) {
	bad := reject(s, "is not a domain such as corp.example")
	name := strings.ToLower(s)
	if strings.ContainsFunc(name, func(r rune) bool { return r > unicode.MaxASCII }) {
		ascii, err := idna.Lookup.ToASCII(name)
		if err != nil {
			return "", bad
		}
		name = ascii
	}
	name = strings.TrimSuffix(name, ".")
	if _, err := netip.ParseAddr(name); err == nil || checkHost(name) != nil || looksSecret(s) {
		return "", bad
	}
	labels := strings.Split(name, ".")
	for _, label := range labels {
		if label == "" || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' {
			return "", bad
		}
	}
	if !strings.ContainsFunc(labels[len(labels)-1], func(r rune) bool { return r < '0' || r > '9' }) {
		return "", bad
	}
	return name, nil
}

// parseResolver reads one element of Exit.DNS.
func parseResolver(s string) (netip.AddrPort, error) {
	const dnsPort = 53
	if a, err := netip.ParseAddr(strings.Trim(s, "[]")); err == nil {
		return netip.AddrPortFrom(a, dnsPort), nil
	}
	ap, err := netip.ParseAddrPort(s)
	if err != nil || ap.Port() == 0 {
		return ap, reject(s, "is not a resolver: want system, off, or IP addresses with an optional port")
	}
	return ap, nil
}

// parseListen reads the address and port of a listener on this host; :PORT is every address, as 0.0.0.0 is to the net package.
func parseListen(s string) (netip.AddrPort, error) {
	text := s
	if strings.HasPrefix(s, ":") {
		text = "0.0.0.0" + s
	}
	a, err := netip.ParseAddrPort(text)
	if err != nil || a.Port() == 0 || a.Addr().Is4In6() {
		return netip.AddrPort{}, reject(s, "is not an address and port such as 127.0.0.1:9090 or [::1]:9090")
	}
	return a, nil
}

// ParseAllow reads permissions as a list such as "inbound,routing,lan"; "none" and nothing are none.
func ParseAllow(list string) (a Allow, err error) {
	for word := range strings.SplitSeq(list, ",") {
		switch strings.ToLower(strings.TrimSpace(word)) {
		case "inbound":
			a.Inbound = true
		case "routing":
			a.Routing = true
		case "lan":
			a.LAN = true
		case "none", "":
		default:
			return a, fmt.Errorf("%q is none of inbound, routing, lan", word)
		}
	}
	return a, nil
}
