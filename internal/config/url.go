package config

import (
	"cmp"
	"errors"
	"net"
	"net/netip"
	"net/url"
	"strings"
)

// parseRelayURL reads where a relay is and returns it in one spelling: no trailing slash, no port that the scheme has anyway.
func parseRelayURL(s string) (string, error) {
	u, err := url.Parse(s)
	if err != nil || u.User != nil {
		return "", errors.New("not a relay's URL: want https://HOST or https://HOST:PORT") // not shown: it may hold a password
	}
	u.Scheme = strings.ToLower(u.Scheme)
	switch {
	case u.Scheme != "https" && u.Scheme != "http" || u.Opaque != "":
		return "", reject(s, "is not a relay's URL: want https://HOST or https://HOST:PORT")
	case strings.Trim(u.Path, "/") != "" || strings.ContainsAny(s, "?#"):
		return "", reject(s, "is not a relay's URL: nothing follows the host and its port")
	}
	host, err := urlHost(u)
	if err != nil {
		return "", err
	}
	return u.Scheme + "://" + host, nil
}

// urlHost checks and returns the host and port of a URL, in one spelling.
func urlHost(u *url.URL) (string, error) {
	host, port := strings.ToLower(u.Hostname()), u.Port()
	if err := checkHost(host); err != nil || strings.Contains(host, "%") { // a zone means nothing to others
		return "", cmp.Or(err, reject(host, "is neither an IP address nor a host name"))
	}
	if port != "" || strings.HasSuffix(u.Host, ":") {
		if _, err := parseRange(port, "a port", 1, 65535); err != nil {
			return "", err
		}
	}
	port = strings.TrimLeft(port, "0")
	if port == "" || u.Scheme == "https" && port == "443" || u.Scheme == "http" && port == "80" {
		if a, err := netip.ParseAddr(host); err == nil && a.Is6() {
			return "[" + host + "]", nil
		}
		return host, nil
	}
	return net.JoinHostPort(host, port), nil
}

var errProxy = errors.New("not a proxy: want none, http://HOST:PORT or https://HOST:PORT, with USER:PASSWORD@ before the host where it asks for one")

// parseProxy reads the proxy on the way to a relay. A password that is $VAR or ${VAR} as a whole is looked up, unless lookup is nil;
// one that stands there itself is to be percent-encoded as in any URL, and secret is true then. No error shows the text.
func parseProxy(s string, lookup func(string) (string, bool)) (proxy string, secret bool, err error) {
	if strings.EqualFold(s, ProxyNone) {
		return ProxyNone, false, nil
	}
	scheme, rest, ok := strings.Cut(s, "://")
	if scheme = strings.ToLower(scheme); !ok || scheme != "http" && scheme != "https" {
		return "", false, errProxy
	}
	var user *url.Userinfo
	if i := strings.LastIndexByte(rest, '@'); i >= 0 {
		if user, secret, err = parseUser(rest[:i], lookup); err != nil {
			return "", secret, err
		}
		rest = rest[i+1:]
	}
	u, err := url.Parse(scheme + "://" + rest)
	if err != nil || strings.Trim(u.Path, "/") != "" || strings.ContainsAny(rest, "?#@") {
		return "", secret, errProxy
	}
	if u.Host, err = urlHost(u); err != nil {
		return "", secret, errProxy
	}
	u.User, u.Path = user, ""
	return u.String(), secret, nil
}

// parseUser reads USER or USER:PASSWORD as it stands in a URL.
func parseUser(s string, lookup func(string) (string, bool)) (user *url.Userinfo, secret bool, err error) {
	name, password, given := strings.Cut(s, ":")
	if name, err = url.PathUnescape(name); err != nil || name == "" {
		return nil, given, errProxy
	}
	if !given {
		return url.User(name), false, nil
	}
	if variable, ok := variableName(password); ok && lookup != nil {
		value, set := lookup(variable)
		if !set {
			return nil, false, errors.New("the environment variable " + variable + " is not set")
		}
		return url.UserPassword(name, value), false, nil
	}
	if password, err = url.PathUnescape(password); err != nil {
		return nil, true, errProxy
	}
	return url.UserPassword(name, password), true, nil
}
