package proxy

import (
	"context"
	"io"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// TestAnswersThatNobodyAskedFor: bytes behind an answer that has no body are not the next answer, whether they come with it or
// later.
func TestAnswersThatNobodyAskedFor(t *testing.T) {
	const forged = "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nforged"
	for _, tt := range []struct{ name, method, first string }{
		{"a body for HEAD", "HEAD", "HTTP/1.1 200 OK\r\nContent-Length: 45\r\n\r\n"},
		{"a body for 304", "GET", "HTTP/1.1 304 Same\r\nContent-Length: 45\r\n\r\n"},
		{"more than its length", "GET", "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			more, sent := make(chan struct{}), make(chan struct{})
			var conns atomic.Int64
			origin := target(t, func(c net.Conn) {
				n := conns.Add(1)
				buf := make([]byte, 1024)
				c.Read(buf)
				if n == 1 {
					io.WriteString(c, tt.first)
					<-more
					io.WriteString(c, forged)
					close(sent)
				} else {
					io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ntrue")
				}
				c.Read(buf)
			})
			c := dialRaw(t, startHTTP(t, &hostsDialer{hosts: map[string]string{"a.test": origin}}, Config{}))
			c.send(tt.method + " http://a.test/ HTTP/1.1\r\n\r\n")
			c.answer(tt.method)
			close(more)
			<-sent
			time.Sleep(20 * time.Millisecond) // until it is there, over loopback
			c.send("GET http://a.test/ HTTP/1.1\r\n\r\n")
			if _, body := c.answer("GET"); body != "true" {
				t.Errorf("got %q", body)
			}
		})
	}
}

// TestNoLengthTwice: an answer without a body keeps a length, so that the client does not wait for the end of the connection.
func TestNoLengthTwice(t *testing.T) {
	for _, method := range []string{"GET", "HEAD"} {
		s := newByteServer(t, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nContent-Length: 0\r\n\r\n", 1)
		c := dialRaw(t, startHTTP(t, &hostsDialer{hosts: map[string]string{"a.test": s.addr}}, Config{}))
		c.send(method + " http://a.test/ HTTP/1.1\r\n\r\n")
		if res, _ := c.answer(method); len(res.Header.Values("Content-Length")) != 1 || res.ContentLength != 0 {
			t.Errorf("%s: got %v", method, res)
		}
	}
}

// TestTunnelBytesBehindARefusalAreNoRequest: a client that does not wait for its tunnel sends what somebody else may have written.
func TestTunnelBytesBehindARefusalAreNoRequest(t *testing.T) {
	d := &hostsDialer{hosts: map[string]string{"a.test": echoOrigin(t, "a")}}
	c := dialRaw(t, startHTTP(t, d, Config{Users: alice}))
	hidden := "GET http://a.test/ HTTP/1.1\r\n" + basic("alice", "secret") + "\r\n"
	c.send("CONNECT a.test:443 HTTP/1.1\r\n\r\n" + hidden)
	if res, _ := c.answer("CONNECT"); res.StatusCode != 407 || !res.Close {
		t.Errorf("got %v", res)
	}
	c.wantEnd()
	if got := d.requests(); len(got) != 0 {
		t.Errorf("served %v", got)
	}
}

// TestConnectMayTryAgain: one that waits for its tunnel keeps its connection.
func TestConnectMayTryAgain(t *testing.T) {
	d := &hostsDialer{hosts: map[string]string{"a.test": target(t, echo)}}
	c := dialRaw(t, startHTTP(t, d, Config{Users: alice}))
	c.send("CONNECT a.test:443 HTTP/1.1\r\n\r\n")
	if res, _ := c.answer("CONNECT"); res.StatusCode != 407 || res.Close {
		t.Errorf("got %v", res)
	}
	c.send("CONNECT a.test:443 HTTP/1.1\r\n" + basic("alice", "secret") + "\r\n")
	if res, _ := c.answer("CONNECT"); res.StatusCode != 200 {
		t.Fatalf("got %v", res)
	}
	c.send("through")
	got := make([]byte, 7)
	if _, err := io.ReadFull(c.br, got); err != nil || string(got) != "through" {
		t.Errorf("got %q, %v", got, err)
	}
}

// TestCredentialsStayHere, by whatever name and place they are sent.
func TestCredentialsStayHere(t *testing.T) {
	const want = "POST / HTTP/1.1\r\nHost: a.test\r\nTrailer: Proxy-Authorization\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nT: v\r\n\r\n"
	s := newByteServer(t, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", len(want))
	c := dialRaw(t, startHTTP(t, &hostsDialer{hosts: map[string]string{"a.test": s.addr}}, Config{Users: alice}))
	secret := strings.TrimSuffix(strings.TrimPrefix(basic("alice", "secret"), "Proxy-Authorization: "), "\r\n")
	c.send("POST http://a.test/ HTTP/1.1\r\nConnection: X-Secret, close\r\nX-Secret: " + secret + "\r\nPROXY-authorization: " + secret +
		"\r\nTrailer: Proxy-Authorization\r\nTransfer-Encoding: chunked\r\n\r\n5;" + strings.Repeat("e", 100) + "\r\nhello\r\n0\r\nproxy-Authorization: " + secret + "\r\nT: v\r\n\r\n")
	if got := <-s.requests; got != want {
		t.Errorf("got  %q\nwant %q", got, want)
	}
	c.answer("POST")
}

// TestPanicBesideTheHandler: in the goroutine that has the client's side, one ends a connection like any other.
func TestPanicBesideTheHandler(t *testing.T) {
	origin := target(t, func(c net.Conn) { io.Copy(io.Discard, c) })
	d := &hostsDialer{hosts: map[string]string{"a.test": echoOrigin(t, "a")}}
	addr := startHTTP(t, d, Config{})
	d.mu.Lock()
	d.hook = func(context.Context, *Request) (net.Conn, error) {
		c, err := net.Dial("tcp", origin)
		return panicking{c}, err
	}
	d.mu.Unlock()
	c := dialRaw(t, addr)
	c.send("POST http://a.test/ HTTP/1.1\r\nContent-Length: 1\r\n\r\nx")
	c.wantEnd()
	d.mu.Lock()
	d.hook = nil
	d.mu.Unlock()
	c = dialRaw(t, addr)
	c.send("GET http://a.test/ HTTP/1.1\r\n\r\n")
	if res, _ := c.answer("GET"); res.StatusCode != 200 {
		t.Errorf("another connection: %v", res.Status)
	}
}

// panicking is a connection with a fault.
type panicking struct{ net.Conn }

func (panicking) Write([]byte) (int, error) { panic("a fault") }

// TestFramingThatIsReadInTwoWays: what a server could take for another request does not reach it.
func TestFramingThatIsReadInTwoWays(t *testing.T) {
	const hidden = "0\r\n\r\nGET /hidden HTTP/1.1\r\nHost: a.test\r\n\r\n"
	for _, head := range []string{
		"Transfer-Encoding: chunked\r\nContent-Length: 6\r\n",
		"Content-Length: 6\r\nTransfer-Encoding: chunked\r\n",
		"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n",
		"Transfer-Encoding: xchunked\r\n",
		"Transfer-Encoding: chunked,\r\n",
		"Transfer-Encoding:\r\n chunked\r\n",
		"Transfer-Encoding : chunked\r\n",
		"Transfer-Encoding: \x0bchunked\r\n",
		"Transfer-Encoding: chunked\x00\r\n",
		"Transfer-Encoding: chunked\rX: y\r\n",
		" Transfer-Encoding: chunked\r\n",
		"X: y\r\n Transfer-Encoding: chunked\r\n",
		"Content-Length: +6\r\n",
		"Content-Length: -6\r\n",
		"Content-Length: 6, 6\r\n",
		"Content-Length: 6\r\nContent-Length: 6\r\n",
		"Content-Length: 0x6\r\n",
		"Content-Length: 6 6\r\n",
		"Content-Length: 99999999999999999999\r\n",
		"Content-Length:\r\n",
		"Content-Length\r\n",
		"Host: a.test\r\nHost: b.test\r\n",
	} {
		d := &hostsDialer{hosts: map[string]string{"a.test": echoOrigin(t, "a")}}
		c := dialRaw(t, startHTTP(t, d, Config{}))
		c.send("POST http://a.test/ HTTP/1.1\r\n" + head + "\r\n" + hidden)
		if res, _ := c.answer("POST"); res.StatusCode != 400 && res.StatusCode != 501 || !res.Close {
			t.Errorf("%q: %v", head, res.Status)
		}
		c.wantEnd()
		if n := len(d.requests()); n != 0 {
			t.Errorf("%q: %d connections", head, n)
		}
	}
}

// TestChunksThatAreNone end the connection: nobody knows where the next request begins.
func TestChunksThatAreNone(t *testing.T) {
	for _, body := range []string{
		"-1\r\nx\r\n0\r\n\r\n", "0x1\r\nx\r\n0\r\n\r\n", "+1\r\nx\r\n0\r\n\r\n", "\r\nx\r\n0\r\n\r\n", "1\nx\r\n0\r\n\r\n",
		"10000000000000000\r\nx\r\n0\r\n\r\n", "1\r\nxy\r\n0\r\n\r\n", "1;" + strings.Repeat("e", 8<<10) + "\r\nx\r\n0\r\n\r\n",
		"1\r\nx\r\n0\r\nno field\r\n\r\n", "1\r\nx\r\n0\r\nA: b\r\n folded\r\n\r\n",
	} {
		d := &hostsDialer{hosts: map[string]string{"a.test": echoOrigin(t, "a")}}
		c := dialRaw(t, startHTTP(t, d, Config{}))
		c.send("POST http://a.test/ HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n" + body + "GET http://a.test/hidden HTTP/1.1\r\n\r\n")
		if res, _ := c.answer("POST"); res.StatusCode != 400 || !res.Close {
			t.Errorf("%.40q: %v", body, res.Status)
		}
		c.wantEnd()
	}
}
