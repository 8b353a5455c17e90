package proxy

import (
	"net"
	"net/netip"
	"strconv"
	"strings"
	"unicode/utf8"
)

// maxNameLen is that of SOCKS5, which has one byte for the length.
const maxNameLen = 255

// Target is where a client wants to go.
type Target struct {
	Name string     // a host name in lower case and without a dot at its end, not resolved; "" if there is an address
	Addr netip.Addr // IPv4 is never mapped into IPv6, and there is no zone
	Port uint16
}

// ParseTarget parses "host:port" and "[v6]:port". The port is a number, not 0.
func ParseTarget(hostport string) (Target, error) {
	host, port, err := net.SplitHostPort(hostport)
	if err != nil {
		return Target{}, Fail(General, "target %q: %w", hostport, err)
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil || n == 0 {
		return Target{}, Fail(General, "target %q: the port is no number from 1 to 65535", hostport)
	}
	return targetOf(host, uint16(n))
}

// targetOf makes a target of a host as clients write it: a name or an address.
func targetOf(host string, port uint16) (Target, error) {
	addr, err := netip.ParseAddr(unbracket(host))
	switch {
	case err == nil && addr.Zone() != "":
		return Target{}, Fail(General, "target %q: an address with a zone means nothing elsewhere", host)
	case err == nil:
		return Target{Addr: addr.Unmap(), Port: port}, nil
	}
	name := strings.TrimSuffix(host, ".")
	if fault := faultOfName(name); fault != "" {
		return Target{}, Fail(NameNotFound, "target %q: %s", host, fault)
	}
	return Target{Name: lower(name), Port: port}, nil
}

func targetAt(a netip.AddrPort) Target {
	return Target{Addr: a.Addr().Unmap().WithZone(""), Port: a.Port()}
}

// unbracket takes the brackets off an IPv6 address, as some clients write it.
func unbracket(host string) string {
	if len(host) > 2 && host[0] == '[' && host[len(host)-1] == ']' && strings.Contains(host, ":") {
		return host[1 : len(host)-1]
	}
	return host
}

// faultOfName returns what is wrong with a name, "" for nothing. It is about safety: what a resolver or a log could read
// as something else. A name that ends in a number is one of the old ways to write an IPv4 address (127.1, 0x7f000001), which
// some resolvers take for one after all rules have been asked.
func faultOfName(name string) string {
	switch {
	case name == "":
		return "an empty name"
	case len(name) > maxNameLen:
		return "a name longer than 255 bytes"
	case !utf8.ValidString(name):
		return "a name that is no UTF-8"
	case name[0] == '.', name[len(name)-1] == '.', strings.Contains(name, ".."): // resolvers drop what rules would compare
		return "a name with an empty label"
	}
	for i := range len(name) {
		if c := name[i]; c <= ' ' || c == 0x7f || strings.IndexByte(`/\:@%?#[]"<>`, c) >= 0 {
			return "a name with a character that names do not have"
		}
	}
	if endsInNumber(name) {
		return "neither a name nor an address as RFC 3986 writes it"
	}
	return ""
}

// endsInNumber reports whether the last label is a number, decimal or with 0x. No top-level domain is.
func endsInNumber(name string) bool {
	last := name[strings.LastIndexByte(name, '.')+1:]
	if len(last) >= 2 && last[0] == '0' && last[1]|0x20 == 'x' {
		return strings.Trim(last[2:], "0123456789abcdefABCDEF") == ""
	}
	return last != "" && strings.Trim(last, "0123456789") == ""
}

// lower is for ASCII alone: the rest of a name is not ours to change.
func lower(s string) string {
	b := []byte(s)
	for i, c := range b {
		if 'A' <= c && c <= 'Z' {
			b[i] = c + 'a' - 'A'
		}
	}
	return string(b)
}

// Host returns the name, or the address without brackets.
func (t Target) Host() string {
	switch {
	case t.Name != "":
		return t.Name
	case t.Addr.IsValid():
		return t.Addr.String()
	default:
		return ""
	}
}

// String returns "host:port", with brackets around an IPv6 address; "" for the zero Target.
func (t Target) String() string {
	if t == (Target{}) {
		return ""
	}
	return net.JoinHostPort(t.Host(), strconv.Itoa(int(t.Port)))
}
