package relay

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
)

// maxHeader bounds what a proxy or relay may answer in HTTP, in bytes.
const maxHeader = 64 << 10

// proxyChoice is where a Server says to go through.
type proxyChoice struct {
	environment bool
	via         *proxy // nil: directly, unless environment says otherwise
}

// proxy is an HTTP proxy that takes CONNECT.
type proxy struct {
	name  string // scheme://host:port: what may be shown
	host  string
	addr  string
	tls   bool
	login string // value of Proxy-Authorization, "" without
}

// parseProxy reads the Proxy of a Server. Errors never contain the text, for the password in it.
func parseProxy(s string) (proxyChoice, error) {
	switch s {
	case "":
		return proxyChoice{environment: true}, nil
	case "none":
		return proxyChoice{}, nil
	}
	u, err := url.Parse(s)
	if err != nil {
		return proxyChoice{}, errors.New("proxy: not a URL; want none or http://[user:password@]host:port, with special characters of the password as %XX")
	}
	p, err := newProxy(u)
	return proxyChoice{via: p}, err
}

func newProxy(u *url.URL) (*proxy, error) {
	if u.Scheme != "http" && u.Scheme != "https" {
		return nil, errors.New("proxy: want none, http://… or https://…")
	}
	if u.Path != "" && u.Path != "/" || u.RawQuery != "" || u.Fragment != "" {
		return nil, errors.New("proxy: want nothing after host and port")
	}
	host, addr, err := hostPort(u)
	if err != nil {
		return nil, fmt.Errorf("proxy: %w", err)
	}
	p := &proxy{name: u.Scheme + "://" + addr, host: host, addr: addr, tls: u.Scheme == "https"}
	if u.User != nil {
		password, _ := u.User.Password()
		p.login = "Basic " + base64.StdEncoding.EncodeToString([]byte(u.User.Username()+":"+password))
	}
	return p, nil
}

// proxyFor returns the proxy towards t, nil for none.
func (d *Dialer) proxyFor(t *target) (*proxy, error) {
	if !t.proxy.environment {
		return t.proxy.via, nil
	}
	environment := d.environment
	if environment == nil {
		environment = http.ProxyFromEnvironment
	}
	u, err := environment(&http.Request{URL: &url.URL{Scheme: schemeOf(t.tls), Host: t.addr}})
	switch {
	case err != nil:
		return nil, errors.New("the environment's proxy is not a URL")
	case u == nil:
		return nil, nil
	}
	p, err := newProxy(u)
	if err != nil {
		return nil, fmt.Errorf("from the environment: %w", err)
	}
	return p, nil
}

func schemeOf(tls bool) string {
	if tls {
		return "https"
	}
	return "http"
}

// connect asks the proxy at the other end of c for a connection to addr (RFC 9110 section 9.3.6).
func (p *proxy) connect(c net.Conn, addr string) (net.Conn, error) {
	request := "CONNECT " + addr + " HTTP/1.1\r\nHost: " + addr + "\r\nUser-Agent: culvert\r\n"
	if p.login != "" {
		request += "Proxy-Authorization: " + p.login + "\r\n"
	}
	if _, err := io.WriteString(c, request+"\r\n"); err != nil {
		return nil, err
	}
	limit := &io.LimitedReader{R: c, N: maxHeader}
	r := bufio.NewReader(limit)
	answer, err := http.ReadResponse(r, &http.Request{Method: http.MethodConnect})
	if err != nil {
		return nil, answerError(err, limit)
	}
	if answer.StatusCode < 200 || answer.StatusCode > 299 {
		return nil, p.refusal(answer)
	}
	return leftOver(c, r), nil
}

// refusal says what a proxy's answer other than success means.
func (p *proxy) refusal(answer *http.Response) error {
	switch {
	case answer.StatusCode == http.StatusProxyAuthRequired && p.login != "":
		return fmt.Errorf("%s: the user name or password is not accepted", status(answer))
	case answer.StatusCode == http.StatusProxyAuthRequired:
		return fmt.Errorf("%s: it wants a user name and password (%s), as in http://user:password@host:port",
			status(answer), schemes(answer.Header.Values("Proxy-Authenticate")))
	case answer.StatusCode == http.StatusForbidden, answer.StatusCode == http.StatusMethodNotAllowed:
		return fmt.Errorf("%s: it does not allow connections there", status(answer))
	}
	return errors.New(status(answer))
}

// schemes names the ways of authentication that a proxy offers.
func schemes(challenges []string) string {
	var names []string
	for _, c := range challenges {
		name, _, _ := strings.Cut(c, " ")
		if isToken(name) && len(names) < 4 {
			names = append(names, name)
		}
	}
	if len(names) == 0 {
		return "it does not say how"
	}
	return strings.Join(names, ", ")
}

// isToken reports whether s may be shown as it is.
func isToken(s string) bool {
	return s != "" && len(s) <= 32 && !strings.ContainsFunc(s, func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '-')
	})
}

// viaProxy opens a connection through p to addr. It returns the TCP connection below it too.
func (d *Dialer) viaProxy(ctx context.Context, p *proxy, addr string) (bottom, tunnel net.Conn, err error) {
	c, err := d.dialTCP(ctx, p.addr)
	if err != nil {
		return nil, nil, err
	}
	defer interrupt(ctx, c)()
	through := c
	if p.tls {
		t := tls.Client(c, &tls.Config{ServerName: p.host, RootCAs: d.Roots, MinVersion: tls.VersionTLS12, NextProtos: []string{"http/1.1"}})
		if err := t.HandshakeContext(ctx); err != nil {
			c.Close()
			return nil, nil, err
		}
		through = t
	}
	tunnel, err = p.connect(through, addr)
	if err != nil {
		c.Close()
		return nil, nil, err
	}
	return c, tunnel, nil
}
