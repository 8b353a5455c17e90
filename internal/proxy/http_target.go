package proxy

import (
	"errors"
	"net"
	"strconv"
	"strings"
)

// authorityTarget reads host, host:port and [IPv6]:port. port is that of an authority without one; 0: it must have one.
func authorityTarget(authority string, port uint16) (Target, error) {
	if strings.Contains(authority, "@") {
		return Target{}, errors.New("a user name in the address: credentials belong into a header")
	}
	host, digits, err := splitAuthority(authority)
	switch {
	case err != nil:
		return Target{}, err
	case host == "":
		return Target{}, errors.New("no host")
	case digits == "" && port == 0:
		return Target{}, errors.New("no port")
	case digits == "":
		digits = strconv.Itoa(int(port))
	case strings.Trim(digits, "0123456789") != "":
		return Target{}, errors.New("the port is not a number")
	}
	t, err := ParseTarget(net.JoinHostPort(host, digits))
	if err == nil && t.Port == 0 {
		err = errors.New("port 0")
	}
	return t, err
}

// splitAuthority cuts at the colon of the port. The brackets of an IPv6 address are required and removed.
func splitAuthority(authority string) (host, port string, err error) {
	if literal, ok := strings.CutPrefix(authority, "["); ok {
		host, rest, ok := strings.Cut(literal, "]")
		port, colon := strings.CutPrefix(rest, ":")
		if !ok || !strings.Contains(host, ":") || strings.ContainsAny(host, "[%") || rest != "" && !colon {
			return "", "", errors.New("an IPv6 address is written [2001:db8::1]:port")
		}
		return host, port, nil
	}
	host, port, _ = strings.Cut(authority, ":")
	switch {
	case strings.Contains(port, ":"):
		return "", "", errors.New("an IPv6 address needs brackets, [2001:db8::1]:port")
	case strings.ContainsAny(host, "[]%"):
		return "", "", errors.New("the host has a character that names do not have")
	}
	return host, port, nil
}

// An httpAddress is what an absolute-form request asks for.
type httpAddress struct {
	target    Target
	authority string // for the Host field, as the client wrote it
	path      string // with the query: the request target for the server
}

var (
	errNotProxied = errors.New("not the address of something to proxy")
	errScheme     = errors.New("only http:// is proxied by request")
)

// absoluteAddress reads http://authority/path?query. errNotProxied: it is no URI with an authority; errScheme: of another scheme.
func absoluteAddress(uri, method string) (httpAddress, error) {
	scheme, rest, ok := strings.Cut(uri, "://")
	switch {
	case !ok || scheme == "" || strings.ContainsAny(scheme, "/?#"):
		return httpAddress{}, errNotProxied
	case !strings.EqualFold(scheme, "http"):
		return httpAddress{}, errScheme
	case strings.Contains(rest, "#"):
		return httpAddress{}, errors.New("a fragment in the address")
	}
	a := httpAddress{authority: rest}
	if i := strings.IndexAny(rest, "/?\\"); i >= 0 { // a backslash ends the authority for some programs: it may not hide a host from the rest
		a.authority, a.path = rest[:i], rest[i:]
	}
	switch {
	case strings.HasPrefix(a.path, `\`):
		return httpAddress{}, errors.New("a backslash in the address")
	case a.path == "" && method == "OPTIONS":
		a.path = "*" // RFC 9112 section 3.2.4
	case !strings.HasPrefix(a.path, "/"):
		a.path = "/" + a.path
	}
	var err error
	a.target, err = authorityTarget(a.authority, 80)
	a.authority = strings.TrimSuffix(a.authority, ":")
	return a, err
}
