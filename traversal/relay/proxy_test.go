package relay

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
)

// testProxy takes CONNECT, if the login is right.
type testProxy struct {
	login  string // "" for anybody
	answer string // instead of what it would say
	used   int32
}

func (p *testProxy) serve(c net.Conn) {
	r := bufio.NewReader(c)
	request, err := http.ReadRequest(r)
	if err != nil {
		return
	}
	switch {
	case p.answer != "":
		io.WriteString(c, p.answer)
		return
	case request.Method != http.MethodConnect || request.Host != request.RequestURI:
		io.WriteString(c, "HTTP/1.1 400 Bad Request\r\n\r\n")
		return
	case p.login != "" && request.Header.Get("Proxy-Authorization") != p.login:
		io.WriteString(c, "HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: Basic realm=\"x\"\r\nProxy-Authenticate: NTLM\r\n\r\n")
		return
	}
	to, err := net.Dial("tcp", request.Host)
	if err != nil {
		io.WriteString(c, "HTTP/1.1 502 Bad Gateway\r\n\r\n")
		return
	}
	defer to.Close()
	atomic.AddInt32(&p.used, 1)
	io.WriteString(c, "HTTP/1.1 200 Connection established\r\n\r\n")
	done := make(chan struct{})
	go func() {
		defer close(done)
		io.Copy(to, r)
		to.(*net.TCPConn).CloseWrite()
	}()
	io.Copy(c, to)
	c.Close()
	<-done
}

func TestDialThroughProxy(t *testing.T) {
	const secret = "pass:w@rd"
	cert := newCertificate(t, "127.0.0.1")
	f := newFakeRelay(t)
	relay := "https://" + listenTLS(t, withMeta(t, cert, f.key), f.serve)
	plain := "http://" + listen(t, nil, f.serve)
	for _, c := range []struct {
		name  string
		proxy testProxy
		tls   bool
		user  string
		relay string
		want  []string // of the error; none: it works
	}{
		{"open", testProxy{}, false, "", relay, nil},
		{"open, plain relay", testProxy{}, false, "", plain, nil},
		{"open, by https", testProxy{}, true, "", relay, nil},
		{"with a login", testProxy{login: "Basic YWxpY2U6cGFzczp3QHJk"}, false, "alice:pass%3Aw%40rd@", relay, nil},
		{"with a login, by https", testProxy{login: "Basic YWxpY2U6cGFzczp3QHJk"}, true, "alice:pass%3Aw%40rd@", relay, nil},
		{"without the login it wants", testProxy{login: "Basic x"}, false, "", relay, []string{"407 Proxy Authentication Required", "(Basic, NTLM)"}},
		{"with another login", testProxy{login: "Basic x"}, false, "alice:pass%3Aw%40rd@", relay, []string{"407", "not accepted"}},
		{"refusing", testProxy{answer: "HTTP/1.1 403 Forbidden\r\n\r\n"}, false, "", relay, []string{"403 Forbidden", "does not allow"}},
		{"nothing behind it", testProxy{}, false, "", "https://127.0.0.1:1", []string{"502 Bad Gateway"}},
		{"strange status", testProxy{answer: "HTTP/1.1 799 Evil \x1b[31m\r\n\r\n"}, false, "", relay, []string{"status 799"}},
		{"not HTTP at all", testProxy{answer: "\x05\x00\r\n\r\n"}, false, "", relay, []string{"not HTTP"}},
		{"endless header", testProxy{answer: "HTTP/1.1 200 OK\r\nX: " + strings.Repeat("x", 70<<10)}, false, "", relay, []string{"longer than"}},
		{"asking for a strange login", testProxy{answer: "HTTP/1.1 407 x\r\nProxy-Authenticate: \"evil\" x\r\n\r\n"}, false, "", relay, []string{"407", "does not say how"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			name := "http://"
			var addr string
			if c.tls {
				name, addr = "https://", listenTLS(t, cert, c.proxy.serve)
			} else {
				addr = listen(t, nil, c.proxy.serve)
			}
			d := newDialer(t)
			d.Roots = rootsOf(cert)
			conn, err := d.Dial(t.Context(), Server{URL: c.relay, Proxy: name + c.user + addr, WebSocket: WebSocketNever})
			if err != nil {
				for _, w := range append(c.want, "proxy "+name+addr+": ") {
					if c.want == nil || !strings.Contains(err.Error(), w) {
						t.Errorf("error %q, want %q in it", err, w)
					}
				}
				if strings.Contains(err.Error(), secret) || strings.Contains(err.Error(), "pass%3A") || strings.Contains(err.Error(), "alice") || strings.ContainsRune(err.Error(), '\x1b') {
					t.Errorf("the error shows too much: %q", err)
				}
				return
			}
			if c.want != nil {
				conn.Close()
				t.Fatal("connected")
			}
			if got := conn.Info().Proxy; got != name+addr || atomic.LoadInt32(&c.proxy.used) != 1 {
				t.Errorf("proxy %q, used %d times", got, atomic.LoadInt32(&c.proxy.used))
			}
			checkEcho(t, conn, d.Key.Public())
		})
	}
}

func TestProxyThatIsNotThere(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	proxy := "http://" + l.Addr().String()
	l.Close()
	_, err = newDialer(t).Dial(t.Context(), Server{URL: "https://relay.example", Proxy: proxy})
	if err == nil || !strings.Contains(err.Error(), "proxy "+proxy+": ") || !strings.Contains(err.Error(), "refused") {
		t.Errorf("error %v", err)
	}
}

// TestCloseBehindATLSProxy has a proxy by https that stops reading while data waits: Close does not wait for it.
func TestCloseBehindATLSProxy(t *testing.T) {
	cert := newCertificate(t, "127.0.0.1")
	f := newFakeRelay(t)
	stop := make(chan struct{})
	defer close(stop)
	stuck := make(chan struct{})
	proxy := listenTLS(t, cert, func(c net.Conn) {
		r := bufio.NewReader(c)
		if _, err := http.ReadRequest(r); err != nil {
			return
		}
		io.WriteString(c, "HTTP/1.1 200 OK\r\n\r\n")
		near, far := net.Pipe()
		defer near.Close()
		go f.serve(far)
		go io.Copy(c, near)
		for range 2 { // the request and the key
			b := make([]byte, 4096)
			n, err := r.Read(b)
			if err != nil {
				return
			}
			near.Write(b[:n])
		}
		close(stuck)
		<-stop
	})
	d := newDialer(t)
	d.Roots = rootsOf(cert)
	c, err := d.Dial(t.Context(), Server{URL: "http://relay.example", Proxy: "https://" + proxy})
	if err != nil {
		t.Fatal(err)
	}
	<-stuck
	if _, ok := c.bottom.(*net.TCPConn); !ok {
		t.Errorf("what Close closes is a %T: TLS waits for up to 5 s to say goodbye", c.bottom)
	}
	c.Close()
}
