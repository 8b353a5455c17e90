package proxy

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
)

func TestAuthorities(t *testing.T) {
	for _, tt := range []struct{ in, want string }{
		{"a.test", "a.test:80"}, {"A.Test.:8080", "a.test:8080"}, {"a:", "a:80"}, {"[2001:DB8::1]:443", "[2001:db8::1]:443"}, {"[::1]", "[::1]:80"},
		{"192.0.2.1:1", "192.0.2.1:1"}, {"[::ffff:192.0.2.1]:1", "192.0.2.1:1"}, {"xn--bcher-kva.test:80", "xn--bcher-kva.test:80"},
		{"", ""}, {":80", ""}, {"a:0", ""}, {"a:65536", ""}, {"a:x", ""}, {"a:+1", ""}, {"a:1:2", ""}, {"::1", ""}, {"[::1", ""}, {"[::1]x", ""}, {"[a]:1", ""},
		{"[fe80::1%eth0]:1", ""}, {"[fe80::1%25eth0]:1", ""}, {"u@a:1", ""}, {"u:p@a", ""}, {"a b:1", ""}, {"a%2e:1", ""}, {"[1.2.3.4]:1", ""}, {"a..b:1", ""}, {"a.test..:1", ""},
	} {
		got, err := authorityTarget(tt.in, 80)
		if (err == nil) != (tt.want != "") || err == nil && got.String() != tt.want {
			t.Errorf("%q: got %q, %v, want %q", tt.in, got.String(), err, tt.want)
		}
	}
}

func FuzzAuthority(f *testing.F) {
	for _, s := range []string{"a.test:80", "[::1]:443", "a", "u@b", "[fe80::1%1]:2", "1.2.3.4:", "a:1:2"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		got, err := authorityTarget(s, 0)
		if err != nil {
			return
		}
		if got.Port == 0 || got.Name == "" && !got.Addr.IsValid() || strings.ContainsAny(got.Name, "@/\\[]:%? \r\n") {
			t.Fatalf("%q: %+v", s, got)
		}
		if again, err := authorityTarget(got.String(), 0); err != nil || again != got {
			t.Fatalf("%q: %+v, then %+v, %v", s, got, again, err)
		}
	})
}

// Go's own parser is the second opinion: the two must never see different hosts.
func FuzzAbsoluteAddress(f *testing.F) {
	for _, s := range []string{"http://a.test/x?y", "HTTP://[::1]:8080", "http://a?b@c/", "http://a\\@b/", "https://a/", "/x", "http://u:p@h/", "http://a#b"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		a, err := absoluteAddress(s, "GET")
		if err != nil {
			return
		}
		if !strings.HasPrefix(a.path, "/") || !strings.HasSuffix(a.path, strings.TrimLeft(a.path, "/")) || strings.Contains(a.authority, "/") {
			t.Fatalf("%q: %+v", s, a)
		}
		u, err := url.Parse(s)
		if err != nil {
			return
		}
		other, err := targetOf(u.Hostname(), a.target.Port)
		if err != nil || other != a.target {
			t.Fatalf("%q: %+v, but net/url reads %q", s, a.target, u.Host)
		}
	})
}

func FuzzConnectionOptions(f *testing.F) {
	for _, s := range []string{"close", "keep-alive, Upgrade", ",, x ,", "a,b\tc", "HOST"} {
		f.Add(s, "X-A")
	}
	f.Fuzz(func(t *testing.T, value, name string) {
		h := httpFields{{"Connection", value}, {name, "1"}, {"Host", "h"}, {"Content-Length", "1"}, {"Proxy-Authorization", "secret"}}
		before := slices.Clone(h)
		kept := endToEnd(h)
		if !slices.Equal(h, before) {
			t.Fatal("the request itself was changed")
		}
		for _, f := range kept {
			lower := strings.ToLower(f.name)
			if f.value == "secret" || perHop(f.name) || slices.Contains(connectionOptions(h), lower) && lower != "host" && lower != "content-length" {
				t.Fatalf("%q: %q is passed on", value, f.name)
			}
		}
		if len(kept.values("Host")) == 0 || len(kept.values("Content-Length")) == 0 {
			t.Fatalf("%q takes away what the request needs", value)
		}
	})
}

func FuzzBasicCredentials(f *testing.F) {
	for _, s := range []string{"Basic YTpi", "basic  YTpi ", "Bearer x", "Basic", "Basic !"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		user, password, ok := basicCredentials(s)
		if !ok {
			return
		}
		again := "Basic " + base64.StdEncoding.EncodeToString([]byte(user+":"+password))
		if u, p, ok := basicCredentials(again); !ok || u != user || p != password || strings.Contains(user, ":") {
			t.Fatalf("%q: %q %q, then %q %q %v", s, user, password, u, p, ok)
		}
	})
}

// Whatever is accepted is written so that Go's parser reads one request, with the same body, and nothing behind it.
func FuzzRequest(f *testing.F) {
	for _, s := range []string{
		"GET http://a.test/ HTTP/1.1\r\nHost: b\r\n\r\n",
		"POST http://a.test/x?y HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc",
		"POST http://a/ HTTP/1.1\r\nTransfer-Encoding: chunked\r\nTE: trailers\r\n\r\n3\r\nabc\r\n0\r\nA: b\r\n\r\n",
		"OPTIONS http://a HTTP/1.0\nMax-Forwards: 3\n\n", "GET http://a/ HTTP/1.1\r\nConnection: upgrade, x\r\nUpgrade: y\r\n\r\n",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		br := bufio.NewReader(bytes.NewReader(in))
		q, err := readRequest(br)
		if err != nil {
			return
		}
		a, err := absoluteAddress(q.uri, q.method)
		if err != nil {
			return
		}
		var out bytes.Buffer
		c := httpCopy{dst: &out, src: newBody(br, q.length), chunked: q.length.chunked, head: q.appendHead(nil, a), ready: true}
		if c.run(&httpBuffers) != nil {
			return
		}
		whole := out.String()
		rest := bufio.NewReader(&out)
		again, err := http.ReadRequest(rest)
		if err != nil {
			if _, uerr := url.ParseRequestURI(a.path); uerr != nil && a.path != "*" {
				return // net/url is stricter about paths, which are the server's business
			}
			t.Fatalf("%q was sent as %q, which is wrong: %v", in, whole, err)
		}
		body, err := io.ReadAll(again.Body)
		if left, _ := io.ReadAll(rest); err != nil || int64(len(body)) != c.moved || len(left) > 0 || again.Host != a.authority || len(again.Header["Proxy-Authorization"]) > 0 {
			t.Fatalf("%q was sent as %q: body %q of %d, %v, host %q, then %q", in, whole, body, c.moved, err, again.Host, left)
		}
	})
}

func FuzzAnswer(f *testing.F) {
	for _, s := range []string{"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc", "HTTP/1.0 200\nA : b\n c\n\nrest", "HTTP/1.0 200 O\x01\n0:\x10\n\n", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		br := bufio.NewReader(bytes.NewReader(in))
		head, err := (&headReader{br: br, left: maxResponseHead, answers: true}).head()
		if err != nil {
			return
		}
		res, err := parseAnswer(head, "GET")
		if err != nil || res.status < 200 {
			return
		}
		e := &httpExchange{q: &httpRequest{method: "GET", minor: 1}}
		chunked := res.length.chunked || res.length.untilClose
		var out bytes.Buffer
		c := httpCopy{dst: &out, src: newBody(br, res.length), chunked: chunked, head: e.answerHead(res, chunked, true), ready: true}
		if c.run(&httpBuffers) != nil {
			return
		}
		whole := out.String()
		rest := bufio.NewReader(&out)
		again, err := http.ReadResponse(rest, nil)
		if err != nil {
			t.Fatalf("%q was sent as %q, which is wrong: %v", in, whole, err)
		}
		body, err := io.ReadAll(again.Body)
		if left, _ := io.ReadAll(rest); err != nil || int64(len(body)) != c.moved || len(left) > 0 {
			t.Fatalf("%q was sent as %q: body %q of %d, %v, then %q", in, whole, body, c.moved, err, left)
		}
	})
}
