package proxy

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"culvert.dev/culvert/internal/stream"
)

// hostsDialer dials targets over the host's network. Names lead to the addresses given for them.
type hostsDialer struct {
	mu    sync.Mutex
	hosts map[string]string // name to host:port
	asked []Request
	live  atomic.Int64 // connections that are open
	hook  func(ctx context.Context, r *Request) (net.Conn, error)
}

type liveConn struct {
	*net.TCPConn
	once sync.Once
	live *atomic.Int64
}

func (c *liveConn) Close() error {
	c.once.Do(func() { c.live.Add(-1) })
	return c.TCPConn.Close()
}

func (d *hostsDialer) Dial(ctx context.Context, r *Request) (net.Conn, error) {
	d.mu.Lock()
	d.asked = append(d.asked, *r)
	to, ok := d.hosts[r.Target.Host()]
	hook := d.hook
	d.mu.Unlock()
	if hook != nil {
		return hook(ctx, r)
	}
	switch {
	case !ok && r.Target.Name != "":
		return nil, Fail(NameNotFound, "no such host")
	case !ok:
		to = r.Target.String()
	}
	var nd net.Dialer
	c, err := nd.DialContext(ctx, "tcp", to)
	if err != nil {
		return nil, err
	}
	d.live.Add(1)
	return &liveConn{TCPConn: c.(*net.TCPConn), live: &d.live}, nil
}

func (d *hostsDialer) ListenPacket(context.Context, *Request) (PacketConn, error) {
	return nil, errors.New("no datagrams here")
}

func (d *hostsDialer) requests() []Request {
	d.mu.Lock()
	defer d.mu.Unlock()
	return append([]Request(nil), d.asked...)
}

// startHTTP serves a proxy on loopback, and checks in the end that nothing is left of it.
func startHTTP(t testing.TB, d *hostsDialer, cfg Config) string {
	t.Helper()
	before := runtime.NumGoroutine()
	cfg.HTTP, cfg.Dialer, cfg.Name = true, d, "http test"
	p, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := stream.NewServer(stream.ServerConfig{Name: "test", Handle: p.ServeConn, Logger: slog.New(slog.DiscardHandler)})
	served := make(chan error, 1)
	go func() { served <- srv.Serve(l) }()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		srv.Shutdown(ctx)
		srv.Close()
		p.Close()
		<-served
		deadline := time.Now().Add(5 * time.Second)
		for d.live.Load() != 0 || runtime.NumGoroutine() > before+2 { // the test's own server may have one or two yet
			if time.Now().After(deadline) {
				buf := make([]byte, 1<<20)
				t.Errorf("left: %d connections, %d goroutines (%d before)\n%s", d.live.Load(), runtime.NumGoroutine(), before, buf[:runtime.Stack(buf, true)])
				return
			}
			runtime.Gosched()
		}
	})
	return l.Addr().String()
}

// rawClient talks to the proxy in bytes.
type rawClient struct {
	t  testing.TB
	c  *net.TCPConn
	br *bufio.Reader
}

func dialRaw(t testing.TB, addr string) *rawClient {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(20 * time.Second))
	return &rawClient{t, c.(*net.TCPConn), bufio.NewReader(c)}
}

func (r *rawClient) send(s string) {
	r.t.Helper()
	if _, err := io.WriteString(r.c, s); err != nil {
		r.t.Fatal(err)
	}
}

// answer reads an answer to a request of that method, with its body.
func (r *rawClient) answer(method string) (*http.Response, string) {
	r.t.Helper()
	res, err := http.ReadResponse(r.br, &http.Request{Method: method})
	if err != nil {
		r.t.Fatal("reading the answer:", err)
	}
	if method == "CONNECT" && res.StatusCode == 200 {
		return res, ""
	}
	body, err := io.ReadAll(res.Body)
	if err != nil {
		r.t.Fatal("reading the body:", err)
	}
	return res, string(body)
}

func (r *rawClient) wantEnd() {
	r.t.Helper()
	if rest, err := io.ReadAll(r.br); err != nil || len(rest) > 0 {
		r.t.Fatalf("got %q, %v; want the end of the connection", rest, err)
	}
}

// echoOrigin answers with what it was asked.
func echoOrigin(t testing.TB, name string) (addr string) {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		w.Header().Set("Origin", name)
		fmt.Fprintf(w, "%s %s %s host=%s te=%v cl=%d body=%q trailer=%v\n", name, r.Method, r.RequestURI, r.Host, r.TransferEncoding, r.ContentLength, body, r.Trailer)
		r.Header.Write(w)
	}))
	t.Cleanup(s.Close)
	return s.Listener.Addr().String()
}

func viaClient(t testing.TB, proxyAddr string) *http.Client {
	u := &url.URL{Scheme: "http", Host: proxyAddr}
	tr := &http.Transport{Proxy: http.ProxyURL(u), DisableCompression: true}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, Timeout: 20 * time.Second, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}

func TestEveryMethodIsProxied(t *testing.T) {
	d := &hostsDialer{hosts: map[string]string{"a.test": echoOrigin(t, "A")}}
	c := dialRaw(t, startHTTP(t, d, Config{}))
	for _, method := range []string{"GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "PROPFIND", "MKCOL", "REPORT", "LOCK", "ODD-ONE"} {
		c.send(method + " http://a.test/p?q=%20|x HTTP/1.1\r\nHost: other.test\r\nContent-Length: 3\r\nX-Case-Kept: yes\r\n\r\nabc")
		res, body := c.answer(method)
		if res.StatusCode != 200 || !strings.HasPrefix(body, "A "+method+` /p?q=%20|x host=a.test te=[] cl=3 body="abc"`) {
			t.Errorf("%s: %s %q", method, res.Status, body)
		}
		for _, own := range []string{"User-Agent", "Accept-Encoding", "X-Forwarded", "Via", "Forwarded"} {
			if strings.Contains(body, own) {
				t.Errorf("%s: the proxy has added %s: %s", method, own, body)
			}
		}
	}
	c.send("HEAD http://a.test/ HTTP/1.1\r\nHost: a.test\r\n\r\n")
	if res, _ := c.answer("HEAD"); res.StatusCode != 200 || res.ContentLength <= 0 {
		t.Errorf("HEAD: %+v", res)
	}
	c.send("OPTIONS http://a.test HTTP/1.1\r\nHost: a.test\r\n\r\n")
	if res, body := c.answer("OPTIONS"); res.StatusCode != 200 || body != "" { // net/http answers "*" by itself, with nothing
		t.Errorf("OPTIONS *: %s %q", res.Status, body)
	}
	if n := len(d.requests()); n != 1 {
		t.Errorf("%d connections for one server, want 1", n)
	}
	c.send("TRACE http://a.test/ HTTP/1.1\r\nHost: a.test\r\nCookie: secret\r\n\r\n")
	if res, body := c.answer("TRACE"); res.StatusCode != 405 || strings.Contains(body, "secret") || res.Header.Get("Allow") == "" {
		t.Errorf("TRACE: %v %q", res, body)
	}
	c.send("OPTIONS http://a.test/ HTTP/1.1\r\nHost: a.test\r\nMax-Forwards: 0\r\n\r\n")
	if res, body := c.answer("OPTIONS"); res.StatusCode != 200 || body != "" {
		t.Errorf("OPTIONS for the proxy: %v %q", res, body)
	}
	c.send("OPTIONS http://a.test/ HTTP/1.1\r\nHost: a.test\r\nMax-Forwards: 7\r\n\r\n")
	if _, body := c.answer("OPTIONS"); !strings.Contains(body, "Max-Forwards: 6") {
		t.Errorf("OPTIONS for the server: %q", body)
	}
}

// What a server gets, byte by byte, for what a client sent.
func TestForwardedRequest(t *testing.T) {
	for _, tt := range []struct{ name, in, want string }{
		{"the address decides over Host, case and order stay",
			"GET HTTP://A.test:80/x?y HTTP/1.1\r\nhost: evil\r\nzeta: 1\r\nALPHA: 2\r\n\r\n",
			"GET /x?y HTTP/1.1\r\nHost: A.test:80\r\nzeta: 1\r\nALPHA: 2\r\n\r\n"},
		{"without a path", "GET http://a.test?q HTTP/1.1\r\nHost: a\r\n\r\n", "GET /?q HTTP/1.1\r\nHost: a.test\r\n\r\n"},
		{"a path of two slashes", "GET http://a.test//b HTTP/1.1\r\nHost: a\r\n\r\n", "GET //b HTTP/1.1\r\nHost: a.test\r\n\r\n"},
		{"a server's options", "OPTIONS http://a.test:80 HTTP/1.1\r\nHost: a\r\n\r\n", "OPTIONS * HTTP/1.1\r\nHost: a.test:80\r\n\r\n"},
		{"credentials for the proxy stay here",
			"GET http://a.test/ HTTP/1.1\r\nProxy-Authorization: Basic dTpw\r\nAuthorization: Basic eDp5\r\nproxy-authorization-not: 1\r\n\r\n",
			"GET / HTTP/1.1\r\nHost: a.test\r\nAuthorization: Basic eDp5\r\nproxy-authorization-not: 1\r\n\r\n"},
		{"what concerns the connection stays here",
			"GET http://a.test/ HTTP/1.1\r\nConnection: keep-alive, X-Own , , Host\r\nX-Own: 1\r\nx-own: 2\r\nKeep-Alive: 5\r\nProxy-Connection: keep-alive\r\nTrailer: T\r\nTE: gzip\r\nUpgrade: x\r\nX-Other: 3\r\n\r\n",
			"GET / HTTP/1.1\r\nHost: a.test\r\nX-Other: 3\r\n\r\n"},
		{"trailers are understood", "GET http://a.test/ HTTP/1.1\r\nTE: trailers, deflate;q=0.5\r\n\r\n",
			"GET / HTTP/1.1\r\nHost: a.test\r\nTE: trailers\r\nConnection: TE\r\n\r\n"},
		{"an upgrade", "GET http://a.test/ HTTP/1.1\r\nUpgrade: websocket\r\nConnection: keep-alive, Upgrade\r\n\r\n",
			"GET / HTTP/1.1\r\nHost: a.test\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n"},
		{"no upgrade to h2c", "GET http://a.test/ HTTP/1.1\r\nUpgrade: h2c\r\nHTTP2-Settings: AA\r\nConnection: Upgrade, HTTP2-Settings\r\n\r\n",
			"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n"},
		{"HTTP/1.0", "GET http://a.test/ HTTP/1.0\r\nUpgrade: x\r\nConnection: upgrade\r\nExpect: 100-continue\r\n\r\n", "GET / HTTP/1.1\r\nHost: a.test\r\n\r\n"},
		{"lines that end in LF", "GET http://a.test/ HTTP/1.0\nA: b\n\n", "GET / HTTP/1.1\r\nHost: a.test\r\nA: b\r\n\r\n"},
		{"a body with a length", "POST http://a.test/ HTTP/1.1\r\nContent-Length: 3\r\nX: y\r\n\r\nabc",
			"POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 3\r\nX: y\r\n\r\nabc"},
		{"an empty body", "POST http://a.test/ HTTP/1.1\r\nContent-Length: 0\r\n\r\n", "POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 0\r\n\r\n"},
		{"a body in chunks, with extensions and a trailer",
			"POST http://a.test/ HTTP/1.1\r\nTransfer-Encoding: Chunked\r\nTrailer: T\r\n\r\n3;x=y\r\nabc\r\n02\r\nde\r\n0\r\nT: 1\r\nContent-Length: 9\r\n\r\n",
			"POST / HTTP/1.1\r\nHost: a.test\r\nTrailer: T\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabcde\r\n0\r\nT: 1\r\n\r\n"},
		{"the length stays though Connection names it", "POST http://a.test/ HTTP/1.1\r\nConnection: content-length\r\nContent-Length: 1\r\n\r\nx",
			"POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 1\r\n\r\nx"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := newByteServer(t, "HTTP/1.1 204 No Content\r\n\r\n", len(tt.want))
			d := &hostsDialer{hosts: map[string]string{"a.test": got.addr}}
			c := dialRaw(t, startHTTP(t, d, Config{}))
			c.send(tt.in)
			if res, body := c.answer("GET"); res.StatusCode != 204 {
				t.Fatal(res.Status, body)
			}
			if s := <-got.requests; s != tt.want {
				t.Errorf("got  %q\nwant %q", s, tt.want)
			}
		})
	}
}

// byteServer reads so many bytes of each connection, then answers with fixed ones and closes.
type byteServer struct {
	addr     string
	requests chan string
}

func newByteServer(t testing.TB, answer string, want int) *byteServer {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &byteServer{addr: l.Addr().String(), requests: make(chan string, 16)}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer c.Close()
				c.SetDeadline(time.Now().Add(10 * time.Second))
				b := make([]byte, want)
				n, _ := io.ReadFull(c, b)
				s.requests <- string(b[:n])
				io.WriteString(c, answer)
				c.(*net.TCPConn).CloseWrite()
				io.Copy(io.Discard, c)
			})
		}
	})
	t.Cleanup(func() { l.Close(); wg.Wait() })
	return s
}

// What a client gets for what a server sent.
func TestForwardedAnswer(t *testing.T) {
	const get = "GET / HTTP/1.1\r\nHost: a.test\r\n\r\n"
	for _, tt := range []struct{ name, client, in, want string }{
		{"a length", "1.1", "HTTP/1.1 200 Fine, Thanks\r\nserver: X\r\nContent-Length: 3\r\nZ: 1\r\nA: 2\r\n\r\nabc",
			"HTTP/1.1 200 Fine, Thanks\r\nserver: X\r\nContent-Length: 3\r\nZ: 1\r\nA: 2\r\n\r\nabc"},
		{"until the close", "1.1", "HTTP/1.0 200 OK\r\n\r\nabc", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"},
		{"until the close, for HTTP/1.0", "1.0", "HTTP/1.1 200 OK\r\n\r\nabc", "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nabc"},
		{"chunks with a trailer", "1.1", "HTTP/1.1 200 OK\r\nTrailer: T\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nT: v\r\nHost: x\r\n\r\n",
			"HTTP/1.1 200 OK\r\nTrailer: T\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nT: v\r\n\r\n"},
		{"chunks for HTTP/1.0", "1.0", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n", "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nabc"},
		{"no body with 204, whatever it says", "1.1", "HTTP/1.1 204 None\r\nContent-Length: 5\r\n\r\n", "HTTP/1.1 204 None\r\n\r\n"},
		{"304 has the length of what it does not send", "1.1", "HTTP/1.1 304 Same\r\nContent-Length: 5\r\n\r\n", "HTTP/1.1 304 Same\r\nContent-Length: 5\r\n\r\n"},
		{"chunks decide over a length", "1.1", "HTTP/1.1 200 OK\r\nContent-Length: 9\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n",
			"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n"},
		{"one length twice", "1.1", "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\na", "HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\na"},
		{"what concerns the connection", "1.1", "HTTP/1.1 200 OK\r\nConnection: close, X\r\nX: 1\r\nKeep-Alive: 3\r\nProxy-Authenticate: Basic\r\nUpgrade: h2c\r\nContent-Length: 0\r\n\r\n",
			"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"},
		{"interim answers", "1.1", "HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\nHTTP/1.1 102 Wait\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
			"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\nHTTP/1.1 102 Wait\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"},
		{"interim answers, for HTTP/1.0", "1.0", "HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
			"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"},
		{"what to upgrade to", "1.1", "HTTP/1.1 426 Upgrade Required\r\nUpgrade: TLS/1.2\r\nConnection: upgrade\r\nContent-Length: 0\r\n\r\n",
			"HTTP/1.1 426 Upgrade Required\r\nContent-Length: 0\r\nUpgrade: TLS/1.2\r\nConnection: upgrade\r\n\r\n"},
		{"an old server's lines", "1.1", "HTTP/1.1 200\nA : b\n  c\nContent-Length: 1\n\nx", "HTTP/1.1 200 \r\nA: b c\r\nContent-Length: 1\r\n\r\nx"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := newByteServer(t, tt.in, len(get))
			d := &hostsDialer{hosts: map[string]string{"a.test": s.addr}}
			c := dialRaw(t, startHTTP(t, d, Config{}))
			c.send("GET http://a.test/ HTTP/" + tt.client + "\r\n\r\n")
			got := make([]byte, len(tt.want))
			n, err := io.ReadFull(c.br, got)
			if string(got[:n]) != tt.want {
				t.Errorf("got  %q, %v\nwant %q", got[:n], err, tt.want)
			}
			c.c.CloseWrite()
			c.wantEnd()
		})
	}
}

func TestBadAnswers(t *testing.T) {
	for _, tt := range []struct{ name, in, status string }{
		{"nothing", "", "connection_terminated"},
		{"half a head", "HTTP/1.1 200 OK\r\nA: b", "connection_terminated"},
		{"no HTTP", "SSH-2.0-OpenSSH\r\n\r\n", "http_protocol_error"},
		{"two lengths", "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab", "http_protocol_error"},
		{"an unknown coding", "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", "http_protocol_error"},
		{"an upgrade nobody asked for", "HTTP/1.1 101 Go\r\nUpgrade: x\r\n\r\n", "http_protocol_error"},
		{"the proxy's own question", "HTTP/1.1 407 Tell\r\nProxy-Authenticate: Basic\r\n\r\n", "http_protocol_error"},
		{"bare CR", "HTTP/1.1 200 OK\r\nA: b\rSet-Cookie: x\r\n\r\n", "http_protocol_error"},
		{"too large a head", "HTTP/1.1 200 OK\r\nA: " + strings.Repeat("x", maxResponseHead) + "\r\n\r\n", "http_response_header_section_size"},
		{"endless interim answers", strings.Repeat("HTTP/1.1 100 Go\r\n\r\n", maxInterims+1), "http_protocol_error"},
		{"a bad chunk at once", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := newByteServer(t, tt.in, 10)
			d := &hostsDialer{hosts: map[string]string{"a.test": s.addr}}
			c := dialRaw(t, startHTTP(t, d, Config{}))
			c.send("GET http://a.test/ HTTP/1.1\r\n\r\n")
			res, err := http.ReadResponse(c.br, nil)
			for err == nil && res.StatusCode == 100 {
				res, err = http.ReadResponse(c.br, nil)
			}
			if err != nil {
				t.Fatal(err)
			}
			if tt.status == "" {
				return
			}
			body, _ := io.ReadAll(res.Body)
			if res.StatusCode != 502 || !strings.HasPrefix(res.Header.Get("Proxy-Status"), "culvert; error="+tt.status+"; ") || !bytes.Contains(body, []byte("a.test:80")) {
				t.Errorf("got %v %q", res, body)
			}
		})
	}
}
