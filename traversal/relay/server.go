package relay

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"slices"
	"strconv"
	"strings"
)

// Server is one relay as configured.
type Server struct {
	// URL is https://host[:port], or http://host[:port] for a relay behind a network that is trusted.
	URL string

	// Pins replace verification by roots and name: the relay's certificate must match one of them. None: roots and name.
	Pins []Pin

	// Proxy is http://[user:password@]host[:port] or the same with https, "none", or "" for what the environment says in
	// HTTPS_PROXY, HTTP_PROXY and NO_PROXY as it was when the process started.
	Proxy string

	WebSocket WebSocketMode
}

// WebSocketMode says when frames travel inside WebSocket messages, for proxies that spoil any other upgrade.
type WebSocketMode uint8

// Modes of WebSocket.
const (
	WebSocketAuto   WebSocketMode = iota // after a plain upgrade that something on the way answered
	WebSocketAlways                      // at once
	WebSocketNever
)

// String returns the word of the configuration file.
func (m WebSocketMode) String() string {
	switch m {
	case WebSocketAuto:
		return "auto"
	case WebSocketAlways:
		return "yes"
	case WebSocketNever:
		return "no"
	}
	return "mode " + strconv.Itoa(int(m))
}

// ParseWebSocketMode reads auto, yes or no; empty means auto.
func ParseWebSocketMode(s string) (WebSocketMode, error) {
	switch strings.ToLower(s) {
	case "", "auto":
		return WebSocketAuto, nil
	case "yes":
		return WebSocketAlways, nil
	case "no":
		return WebSocketNever, nil
	}
	return 0, fmt.Errorf("WebSocket %q: want auto, yes or no", s)
}

// Check reports what is wrong with s, nil if nothing is. The error never contains a password.
func (s Server) Check() error {
	_, err := s.target()
	return err
}

// same reports whether a connection to s is one to o.
func (s Server) same(o Server) bool {
	return s.URL == o.URL && s.Proxy == o.Proxy && s.WebSocket == o.WebSocket && slices.Equal(s.Pins, o.Pins)
}

// target is a Server whose texts have been read.
type target struct {
	url       string // normal form: scheme, host, and the port where it is not the scheme's
	host      string // without brackets
	addr      string // host:port
	tls       bool
	pins      []Pin
	proxy     proxyChoice
	webSocket WebSocketMode
}

func (s Server) target() (target, error) {
	t := target{pins: s.Pins, webSocket: s.WebSocket}
	if err := t.readURL(s.URL); err != nil {
		return t, err
	}
	if !t.tls && len(s.Pins) > 0 {
		return t, fmt.Errorf("relay %s: a pin needs https", t.url)
	}
	for _, p := range s.Pins {
		if p.IsZero() {
			return t, fmt.Errorf("relay %s: empty pin", t.url)
		}
	}
	if s.WebSocket > WebSocketNever {
		return t, fmt.Errorf("relay %s: unknown WebSocket %v", t.url, s.WebSocket)
	}
	var err error
	if t.proxy, err = parseProxy(s.Proxy); err != nil {
		return t, fmt.Errorf("relay %s: %w", t.url, err)
	}
	return t, nil
}

func (t *target) readURL(s string) error {
	u, err := url.Parse(s)
	if err != nil {
		return errors.New("relay URL: not a URL") // the cause would repeat it, with a password if there is one
	}
	switch {
	case strings.Contains(s, "@"): // not repeated either
		return errors.New("relay URL: takes no user name or password")
	case u.Scheme != "https" && u.Scheme != "http":
		return fmt.Errorf("relay URL %q: want https://host[:port]", s)
	case u.Path != "" && u.Path != "/", u.RawQuery != "", u.Fragment != "", u.ForceQuery, strings.HasSuffix(s, "#"):
		return fmt.Errorf("relay URL %q: want nothing after the host", s)
	}
	t.tls = u.Scheme == "https"
	t.host, t.addr, err = hostPort(u)
	if err != nil {
		return fmt.Errorf("relay URL %q: %w", s, err)
	}
	t.url = u.Scheme + "://" + t.authority()
	return nil
}

// authority is what belongs into the Host header.
func (t *target) authority() string {
	_, port, _ := net.SplitHostPort(t.addr)
	if port != defaultPort(t.tls) {
		return t.addr
	}
	if strings.Contains(t.host, ":") {
		return "[" + t.host + "]"
	}
	return t.host
}

func defaultPort(tls bool) string {
	if tls {
		return "443"
	}
	return "80"
}

// hostPort returns the host of an http or https URL and host:port with the scheme's port filled in.
func hostPort(u *url.URL) (host, addr string, err error) {
	host = u.Hostname()
	if host == "" || strings.ContainsFunc(host, func(r rune) bool { return r <= ' ' || r == 0x7f || strings.ContainsRune("/\\@?#%\"<>", r) }) {
		return "", "", errors.New("no valid host")
	}
	port := u.Port()
	switch {
	case port == "" && strings.HasSuffix(u.Host, ":"):
		return "", "", errors.New("no port after the colon")
	case port == "":
		port = defaultPort(u.Scheme == "https")
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil || n == 0 {
		return "", "", fmt.Errorf("port %s: want 1 to 65535", port)
	}
	return host, net.JoinHostPort(host, strconv.FormatUint(n, 10)), nil
}
