package proxy

import (
	"context"
	"encoding/base64"
	"net"
	"net/http"
	"strings"
	"syscall"
	"testing"
	"time"
)

func TestRequestsRefused(t *testing.T) {
	d := &hostsDialer{hosts: map[string]string{"a.test": echoOrigin(t, "A")}}
	addr := startHTTP(t, d, Config{})
	post := "POST http://a.test/ HTTP/1.1\r\nHost: a.test\r\n"
	for _, tt := range []struct {
		name, in string
		status   int
		says     string
	}{
		{"both lengths", post + "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400, "both"},
		{"two lengths", post + "Content-Length: 5\r\nContent-Length: 6\r\n\r\nabcdef", 400, "Content-Length"},
		{"a list of lengths", post + "Content-Length: 5, 5\r\n\r\nabcde", 400, "Content-Length"},
		{"a signed length", post + "Content-Length: +5\r\n\r\nabcde", 400, "Content-Length"},
		{"a negative length", post + "Content-Length: -1\r\n\r\n", 400, "Content-Length"},
		{"an endless length", post + "Content-Length: 99999999999999999999\r\n\r\n", 400, "Content-Length"},
		{"a space before the colon", post + "Content-Length : 5\r\n\r\nabcde", 400, "name"},
		{"a folded line", post + "X: a\r\n b\r\n\r\n", 400, "folded"},
		{"bare CR", post + "X: a\rY: b\r\n\r\n", 400, "control"},
		{"NUL", post + "X: a\x00\r\n\r\n", 400, "control"},
		{"chunked by another name", post + "Transfer-Encoding: xchunked\r\n\r\n", 501, "coding"},
		{"chunked twice", post + "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 501, "coding"},
		{"chunked with a vertical tab", post + "Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n", 400, "control"},
		{"chunked in HTTP/1.0", "POST http://a.test/ HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400, "HTTP/1.0"},
		{"two Hosts", "GET http://a.test/ HTTP/1.1\r\nHost: a.test\r\nHost: b\r\n\r\n", 400, "Host"},
		{"a bad chunk", post + "Transfer-Encoding: chunked\r\n\r\nzz\r\n", 400, "body"},
		{"a bad end of chunk", post + "Transfer-Encoding: chunked\r\n\r\n1\r\nabc\r\n", 400, "body"},
		{"CONNECT with a body", "CONNECT a.test:80 HTTP/1.1\r\nContent-Length: 5\r\n\r\nabcde", 400, "body"},
		{"CONNECT without a port", "CONNECT a.test HTTP/1.1\r\n\r\n", 400, "port"},
		{"CONNECT to bare IPv6", "CONNECT 2001:db8::1:80 HTTP/1.1\r\n\r\n", 400, "brackets"},
		{"CONNECT to a URI", "CONNECT http://a.test/ HTTP/1.1\r\n\r\n", 400, "host:port"},
		{"a site", "GET / HTTP/1.1\r\nHost: a.test\r\n\r\n", 400, "this is an HTTP proxy"},
		{"asterisk", "OPTIONS * HTTP/1.1\r\nHost: a.test\r\n\r\n", 400, "this is an HTTP proxy"},
		{"https", "GET https://a.test/ HTTP/1.1\r\nHost: a.test\r\n\r\n", 501, "CONNECT"},
		{"ftp", "GET ftp://a.test/ HTTP/1.1\r\n\r\n", 501, "CONNECT"},
		{"credentials in the address", "GET http://u:p@a.test/ HTTP/1.1\r\n\r\n", 400, "user name"},
		{"a backslash for a slash", "GET http://a.test\\@b.test/ HTTP/1.1\r\n\r\n", 400, "backslash"},
		{"HTTP/2", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505, "HTTP/1.1"},
		{"HTTP/0.9", "GET http://a.test/\r\n\r\n", 400, "first line"},
		{"TLS", "\x16\x03\x01\x02\x00\x01\n\n", 400, "HTTP"},
		{"too large", "GET http://a.test/ HTTP/1.1\r\nX: " + strings.Repeat("x", maxRequestHead) + "\r\n\r\n", 431, "larger"},
		{"too many fields", "GET http://a.test/ HTTP/1.1\r\n" + strings.Repeat("a:\r\n", maxFields+1) + "\r\n", 431, "larger"},
		{"itself", "GET http://" + addr + "/ HTTP/1.1\r\n\r\n", 502, "back to this proxy"},
		{"itself by CONNECT", "CONNECT " + addr + " HTTP/1.1\r\n\r\n", 502, "back to this proxy"},
		{"two credentials", "GET http://a.test/ HTTP/1.1\r\nProxy-Authorization: Basic YTpi\r\nProxy-Authorization: Basic YTpi\r\n\r\n", 400, "Authorization"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := dialRaw(t, addr)
			c.send(tt.in)
			res, body := c.answer("GET")
			if res.StatusCode != tt.status || !strings.Contains(body, tt.says) {
				t.Errorf("got %s %q, want %d with %q", res.Status, body, tt.status, tt.says)
			}
			if !res.Close {
				t.Error("the connection is kept")
			}
			if h := res.Header; !strings.HasPrefix(h.Get("Content-Type"), "text/plain") || h.Get("X-Content-Type-Options") != "nosniff" || !strings.HasPrefix(h.Get("Proxy-Status"), "culvert; error=") {
				t.Errorf("got %v", h)
			}
			c.wantEnd()
		})
	}
	c := dialRaw(t, addr) // and it goes on
	c.send("GET http://a.test/ HTTP/1.1\r\n\r\n")
	if res, _ := c.answer("GET"); res.StatusCode != 200 {
		t.Error(res.Status)
	}
}

func TestSlowRequests(t *testing.T) {
	addr := startHTTP(t, &hostsDialer{}, Config{Handshake: 50 * time.Millisecond})
	for _, in := range []string{"G", "GET http://a.test/ HTTP/1.1\r\nX: "} {
		c := dialRaw(t, addr)
		c.send(in)
		if res, _ := c.answer("GET"); res.StatusCode != 408 {
			t.Errorf("%q: %s", in, res.Status)
		}
		c.wantEnd()
	}
	dialRaw(t, addr).wantEnd() // one that says nothing is told nothing
}

func TestFailuresOfTargets(t *testing.T) {
	for _, tt := range []struct {
		err    error
		status int
		word   string
	}{
		{Fail(NotAllowed, "by a rule <script>\r\nX: y \"é\""), 403, "http_request_denied"},
		{Fail(Timeout, "nobody answers"), 504, "connection_timeout"},
		{context.DeadlineExceeded, 504, "connection_timeout"},
		{Fail(Exhausted, "no ports"), 503, "connection_limit_reached"},
		{&net.OpError{Op: "dial", Err: syscall.ECONNREFUSED}, 502, "connection_refused"},
		{Fail(NameNotFound, "no such name"), 502, "dns_error"},
		{Fail(NetworkUnreachable, "no exit"), 502, "destination_ip_unroutable"},
		{Fail(General, "odd"), 502, "destination_unavailable"},
	} {
		d := &hostsDialer{hook: func(context.Context, *Request) (net.Conn, error) { return nil, tt.err }}
		addr := startHTTP(t, d, Config{})
		for _, in := range []string{"GET http://a.test/ HTTP/1.1\r\n\r\n", "CONNECT a.test:80 HTTP/1.1\r\n\r\n"} {
			c := dialRaw(t, addr)
			c.send(in)
			res, body := c.answer("GET")
			status := res.Header.Get("Proxy-Status")
			if res.StatusCode != tt.status || !strings.HasPrefix(status, "culvert; error="+tt.word+`; details="cannot connect to a.test:80: `) || !strings.Contains(body, "a.test:80") {
				t.Errorf("%v: got %s %q %q", tt.err, res.Status, status, body)
			}
			if strings.Count(body, "\n") != 1 || res.Header.Get("X") != "" {
				t.Errorf("%v: got %v %q", tt.err, res.Header, body)
			}
		}
	}
}

func TestStructuredString(t *testing.T) {
	if got, want := structuredString("a \"b\" \\c é\r\nX"), `"a \"b\" \\c ???X"`; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

func basic(user, password string) string {
	return "Proxy-Authorization: Basic " + base64.StdEncoding.EncodeToString([]byte(user+":"+password)) + "\r\n"
}

func TestHTTPAuthentication(t *testing.T) {
	d := &hostsDialer{hosts: map[string]string{"a.test": echoOrigin(t, "A")}}
	addr := startHTTP(t, d, Config{Users: []User{{"ann", "pw:1"}}})
	c := dialRaw(t, addr)
	ask := func(head string) (*http.Response, string) {
		c.send("POST http://a.test/ HTTP/1.1\r\nContent-Length: 3\r\n" + head + "\r\nabc")
		return c.answer("POST")
	}
	for _, head := range []string{"", basic("ann", "wrong"), "Proxy-Authorization: Bearer x\r\n", "Proxy-Authorization: Basic !\r\n", "Authorization: Basic YW5uOnB3OjE=\r\n"} {
		begin := time.Now()
		res, _ := ask(head)
		if res.StatusCode != 407 || res.Header.Get("Proxy-Authenticate") != `Basic realm="culvert"` || res.Close {
			t.Errorf("%q: got %v", head, res)
		}
		if wrong := strings.Contains(head, "Proxy") && strings.Contains(head, basic("ann", "wrong")); wrong != (time.Since(begin) > penaltyTime/2) {
			t.Errorf("%q took %v", head, time.Since(begin))
		}
	}
	if len(d.requests()) > 0 {
		t.Error("dialled without a login")
	}
	if res, body := ask(basic("ann", "pw:1")); res.StatusCode != 200 || strings.Contains(body, "Proxy-Auth") {
		t.Errorf("got %s %q", res.Status, body)
	}
	if res, _ := ask(basic("ann+exit+fra", "pw:1")); res.StatusCode != 200 {
		t.Error(res.Status)
	}
	if res, _ := ask(basic("ann", "pw:1")); res.StatusCode != 200 {
		t.Error(res.Status)
	}
	asked := d.requests() // the third found the first one's connection
	if len(asked) != 2 || asked[0].User != "ann" || asked[0].Exit != "" || asked[1].Exit != "fra" || asked[1].User != "ann" || asked[0].Protocol != "http" || asked[0].Client.Port() == 0 {
		t.Errorf("got %+v", asked)
	}
	c.send("CONNECT a.test:80 HTTP/1.1\r\n\r\n")
	if res, _ := c.answer("CONNECT"); res.StatusCode != 407 || res.Close {
		t.Errorf("got %v", res)
	}
	c.send("CONNECT a.test:80 HTTP/1.1\r\n" + basic("ann", "pw:1") + "\r\n")
	if res, _ := c.answer("CONNECT"); res.StatusCode != 200 {
		t.Errorf("got %v", res)
	}
}

func TestExitWithoutUsers(t *testing.T) {
	d := &hostsDialer{hosts: map[string]string{"a.test": echoOrigin(t, "A")}}
	c := dialRaw(t, startHTTP(t, d, Config{}))
	for _, head := range []string{"", basic("exit+fra", ""), basic("somebody", "x")} {
		c.send("GET http://a.test/ HTTP/1.1\r\n" + head + "\r\n")
		if res, _ := c.answer("GET"); res.StatusCode != 200 {
			t.Error(res.Status)
		}
	}
	if asked := d.requests(); len(asked) != 2 || asked[1].Exit != "fra" {
		t.Errorf("got %+v", asked)
	}
}
