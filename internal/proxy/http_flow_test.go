package proxy

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"net/textproto"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/coder/websocket"
)

func TestPipelinedRequestsToSeveralHosts(t *testing.T) {
	d := &hostsDialer{hosts: map[string]string{"a.test": echoOrigin(t, "A"), "b.test": echoOrigin(t, "B")}}
	c := dialRaw(t, startHTTP(t, d, Config{}))
	c.send("GET http://a.test/1 HTTP/1.1\r\n\r\n" +
		"POST http://b.test/2 HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\nT: 1\r\n\r\n\r\n" +
		"GET http://no.test/ HTTP/1.1\r\n\r\n" +
		"PUT http://a.test/3 HTTP/1.1\r\nContent-Length: 2\r\n\r\nyo" +
		"GET http://b.test/4 HTTP/1.1\r\nConnection: close\r\n\r\n")
	for _, want := range []string{"A GET /1 ", "B POST /2 host=b.test te=[chunked] cl=-1 body=\"hi\"", "", `A PUT /3 host=a.test te=[] cl=2 body="yo"`, "B GET /4 "} {
		res, body := c.answer("GET")
		if want == "" {
			if res.StatusCode != 502 || res.Close {
				t.Errorf("got %v", res)
			}
		} else if !strings.HasPrefix(body, want) {
			t.Errorf("got %q, want %q", body, want)
		}
	}
	c.wantEnd()
	if n := len(d.requests()); n != 3 {
		t.Errorf("%d connections, want one for each host", n)
	}
}

// A server may close a connection that it has promised to keep.
func TestConnectionClosedByServerMeanwhile(t *testing.T) {
	const want = "GET / HTTP/1.1\r\nHost: a.test\r\n\r\n"
	s := newByteServer(t, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", len(want))
	d := &hostsDialer{hosts: map[string]string{"a.test": s.addr}}
	c := dialRaw(t, startHTTP(t, d, Config{}))
	for i, in := range []string{"GET http://a.test/ HTTP/1.1\r\n\r\n", "GET http://a.test/ HTTP/1.1\r\n\r\n", "POST http://a.test/ HTTP/1.1\r\nContent-Length: 9\r\n\r\n123456789"} {
		c.send(in)
		if res, body := c.answer("GET"); res.StatusCode != 200 || body != "ok" {
			t.Errorf("%d: got %v %q", i, res, body)
		}
		<-s.requests
	}
}

// echoTCP sends back what comes, and ends when its client ends.
func echoTCP(t testing.TB, network, addr string) string {
	l, err := net.Listen(network, addr)
	if err != nil {
		t.Skip("no such loopback here: ", err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				io.Copy(c, c)
				io.WriteString(c, "end")
			}()
		}
	}()
	return l.Addr().String()
}

func TestHTTPConnect(t *testing.T) {
	for _, tt := range []struct {
		name, network, listen string
		socks                 bool
	}{
		{"IPv4", "tcp4", "127.0.0.1:0", false}, {"IPv6", "tcp6", "[::1]:0", false}, {"beside SOCKS", "tcp4", "127.0.0.1:0", true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d := &hostsDialer{}
			to := echoTCP(t, tt.network, tt.listen)
			c := dialRaw(t, startHTTP(t, d, Config{SOCKS: tt.socks}))
			early := strings.Repeat("early ", 2000) // more than a buffer
			c.send("CONNECT " + to + " HTTP/1.1\r\nHost: elsewhere.test\r\n\r\n" + early)
			if res, _ := c.answer("CONNECT"); res.StatusCode != 200 || len(res.TransferEncoding) > 0 || res.Header.Get("Content-Length") != "" {
				t.Fatalf("got %v", res)
			}
			c.send("late")
			c.c.CloseWrite()
			got, err := io.ReadAll(c.br)
			if want := early + "lateend"; err != nil || string(got) != want {
				t.Errorf("got %d bytes ending in %q, %v; want %d", len(got), got[max(0, len(got)-10):], err, len(want))
			}
			if got := d.requests()[0].Target.String(); got != to {
				t.Errorf("dialled %s, want %s", got, to)
			}
		})
	}
}

func TestConnectAfterOtherRequests(t *testing.T) {
	d := &hostsDialer{hosts: map[string]string{"a.test": echoOrigin(t, "A"), "echo.test": echoTCP(t, "tcp", "127.0.0.1:0")}}
	c := dialRaw(t, startHTTP(t, d, Config{}))
	c.send("GET http://a.test/ HTTP/1.1\r\n\r\nCONNECT echo.test:7 HTTP/1.0\r\n\r\nhello")
	c.answer("GET")
	if res, _ := c.answer("CONNECT"); res.StatusCode != 200 {
		t.Fatal(res.Status)
	}
	c.c.CloseWrite()
	if got, err := io.ReadAll(c.br); string(got) != "helloend" || err != nil {
		t.Errorf("got %q, %v", got, err)
	}
}

// As nc -N does it: all is sent, then the sending side is closed, then the answer is awaited.
func TestHalfClosedClientGetsItsAnswer(t *testing.T) {
	asked, answer := make(chan string), make(chan struct{})
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		asked <- string(body)
		<-answer
		io.WriteString(w, "done")
	}))
	defer s.Close()
	d := &hostsDialer{hosts: map[string]string{"a.test": s.Listener.Addr().String()}}
	addr := startHTTP(t, d, Config{})
	for _, in := range []string{"GET http://a.test/ HTTP/1.0\r\n\r\n", "POST http://a.test/ HTTP/1.0\r\nContent-Length: 4\r\n\r\nbody"} {
		c := dialRaw(t, addr)
		c.send(in)
		c.c.CloseWrite()
		<-asked
		answer <- struct{}{}
		if res, body := c.answer("GET"); res.StatusCode != 200 || body != "done" {
			t.Errorf("got %v %q", res, body)
		}
		c.wantEnd()
	}
}

func TestClientThatLeavesCancels(t *testing.T) {
	t.Run("the dial", func(t *testing.T) {
		dialling, cancelled := make(chan struct{}), make(chan error)
		d := &hostsDialer{hook: func(ctx context.Context, _ *Request) (net.Conn, error) {
			dialling <- struct{}{}
			<-ctx.Done()
			cancelled <- context.Cause(ctx)
			return nil, ctx.Err()
		}}
		addr := startHTTP(t, d, Config{})
		for _, in := range []string{"GET http://a.test/ HTTP/1.1\r\n\r\n", "CONNECT a.test:1 HTTP/1.1\r\n\r\n", "CONNECT a.test:1 HTTP/1.1\r\n\r\nearly",
			"POST http://a.test/ HTTP/1.1\r\nContent-Length: 9\r\n\r\n123"} {
			c := dialRaw(t, addr)
			c.send(in)
			<-dialling
			c.c.SetLinger(0)
			c.c.Close()
			if err := <-cancelled; !errors.Is(err, errGone) {
				t.Errorf("%q: %v", in, err)
			}
		}
	})
	t.Run("the request", func(t *testing.T) {
		asked, ended := make(chan struct{}), make(chan struct{})
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			io.Copy(io.Discard, r.Body)
			asked <- struct{}{}
			<-r.Context().Done()
			ended <- struct{}{}
		}))
		defer s.Close()
		d := &hostsDialer{hosts: map[string]string{"a.test": s.Listener.Addr().String()}}
		addr := startHTTP(t, d, Config{})
		for _, in := range []string{"GET http://a.test/ HTTP/1.1\r\n\r\n", "POST http://a.test/ HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc"} {
			c := dialRaw(t, addr)
			c.send(in)
			<-asked
			c.c.SetLinger(0)
			c.c.Close()
			<-ended
		}
	})
	t.Run("the answer", func(t *testing.T) {
		ended := make(chan struct{})
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			defer close(ended)
			for r.Context().Err() == nil {
				if _, err := io.WriteString(w, strings.Repeat("x", 4096)); err != nil {
					return
				}
			}
		}))
		defer s.Close()
		d := &hostsDialer{hosts: map[string]string{"a.test": s.Listener.Addr().String()}}
		c := dialRaw(t, startHTTP(t, d, Config{}))
		c.send("GET http://a.test/ HTTP/1.1\r\n\r\n")
		c.br.ReadString('\n')
		c.c.Close()
		<-ended
	})
}

// pipeProxy serves one client over pipes, whose times are those of a synctest bubble.
func pipeProxy(d Dialer) (client net.Conn, done chan struct{}) {
	p, err := New(Config{HTTP: true, Dialer: d})
	if err != nil {
		panic(err)
	}
	client, served := net.Pipe()
	done = make(chan struct{})
	go func() {
		defer close(done)
		p.ServeConn(context.Background(), served)
		p.Close()
	}()
	return client, done
}

func TestClientThatEndsIsGivenAWhile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client, done := pipeProxy(&hostsDialer{hook: func(ctx context.Context, _ *Request) (net.Conn, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		}})
		io.WriteString(client, "CONNECT a.test:1 HTTP/1.1\r\n\r\n")
		begin := time.Now()
		client.Close()
		<-done
		if took := time.Since(begin); took != goneTime {
			t.Errorf("the dial was given up after %v, want %v", took, goneTime)
		}
	})
	synctest.Test(t, func(t *testing.T) {
		target, origin := net.Pipe()
		client, done := pipeProxy(&hostsDialer{hook: func(context.Context, *Request) (net.Conn, error) { return target, nil }})
		asked := make(chan struct{})
		go func() {
			http.ReadRequest(bufio.NewReader(origin))
			close(asked)
			io.Copy(io.Discard, origin)
		}()
		io.WriteString(client, "GET http://a.test/ HTTP/1.1\r\n\r\n")
		<-asked
		begin := time.Now()
		client.Close()
		<-done
		if took := time.Since(begin); took != graceTime {
			t.Errorf("the request was given up after %v, want %v", took, graceTime)
		}
	})
}

func TestIdleClientIsClosed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		target, origin := net.Pipe()
		client, done := pipeProxy(&hostsDialer{hook: func(context.Context, *Request) (net.Conn, error) { return target, nil }})
		closed := make(chan time.Time, 1)
		go func() {
			br := bufio.NewReader(origin)
			for {
				if _, err := http.ReadRequest(br); err != nil {
					closed <- time.Now()
					return
				}
				io.WriteString(origin, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
			}
		}()
		br := bufio.NewReader(client)
		for range 2 {
			io.WriteString(client, "GET http://a.test/ HTTP/1.1\r\n\r\n")
			if res, err := http.ReadResponse(br, nil); err != nil || res.StatusCode != 200 {
				t.Fatal(res, err)
			}
			time.Sleep(warmTime - time.Second)
		}
		begin := time.Now()
		if took := (<-closed).Sub(begin); took != time.Second {
			t.Errorf("the server's connection was closed after %v more", took)
		}
		<-done
		if took := time.Since(begin); took != keepAliveTime-warmTime+time.Second {
			t.Errorf("the client's connection was closed after %v more", took)
		}
	})
}

// A client that stops in the middle of a body, its own or the answer's.
func TestStalledClientIsClosed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		target, origin := net.Pipe()
		client, done := pipeProxy(&hostsDialer{hook: func(context.Context, *Request) (net.Conn, error) { return target, nil }})
		go io.Copy(io.Discard, origin)
		io.WriteString(client, "POST http://a.test/ HTTP/1.1\r\nContent-Length: 9\r\n\r\nabc")
		begin := time.Now()
		res, err := http.ReadResponse(bufio.NewReader(client), nil)
		if err != nil || res.StatusCode != 408 || time.Since(begin) != stallTime {
			t.Errorf("got %v, %v after %v", res, err, time.Since(begin))
		}
		client.Close()
		<-done
	})
	synctest.Test(t, func(t *testing.T) {
		target, origin := net.Pipe()
		client, done := pipeProxy(&hostsDialer{hook: func(context.Context, *Request) (net.Conn, error) { return target, nil }})
		go func() {
			http.ReadRequest(bufio.NewReader(origin))
			io.WriteString(origin, "HTTP/1.1 200 OK\r\n\r\n")
			for {
				if _, err := origin.Write(make([]byte, 4096)); err != nil {
					return
				}
			}
		}()
		io.WriteString(client, "GET http://a.test/ HTTP/1.1\r\n\r\n")
		begin := time.Now()
		client.Read(make([]byte, 1))
		<-done
		if took := time.Since(begin); took != stallTime {
			t.Errorf("closed after %v, want %v", took, stallTime)
		}
		client.Close()
	})
}

// A server that is silent for good.
func TestSilentServer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		target, origin := net.Pipe()
		client, done := pipeProxy(&hostsDialer{hook: func(context.Context, *Request) (net.Conn, error) { return target, nil }})
		go io.Copy(io.Discard, origin)
		io.WriteString(client, "GET http://a.test/ HTTP/1.1\r\n\r\n")
		res, err := http.ReadResponse(bufio.NewReader(client), nil)
		if err != nil || res.StatusCode != 504 || !strings.Contains(res.Header.Get("Proxy-Status"), "connection_read_timeout") {
			t.Errorf("got %v, %v", res, err)
		}
		client.Close()
		<-done
	})
}

// A client that comes back after the buffer has been given back.
func TestRequestAfterALongTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client, done := pipeProxy(&hostsDialer{hook: func(context.Context, *Request) (net.Conn, error) { return nil, errors.New("no") }})
		br := bufio.NewReader(client)
		for range 3 {
			io.WriteString(client, "GET http://a.test/ HTTP/1.1\r\n\r\n")
			res, err := http.ReadResponse(br, nil)
			if err != nil || res.StatusCode != 502 {
				t.Fatal(res, err)
			}
			io.Copy(io.Discard, res.Body)
			time.Sleep(2 * time.Minute)
		}
		client.Close()
		<-done
	})
}

func TestExpectContinue(t *testing.T) {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/no" {
			w.WriteHeader(417)
			return
		}
		body, _ := io.ReadAll(r.Body)
		fmt.Fprintf(w, "got %s", body)
	}))
	defer s.Close()
	d := &hostsDialer{hosts: map[string]string{"a.test": s.Listener.Addr().String()}}
	addr := startHTTP(t, d, Config{})
	c := dialRaw(t, addr)
	for range 2 {
		c.send("POST http://a.test/ HTTP/1.1\r\nExpect: 100-Continue\r\nContent-Length: 4\r\n\r\n")
		if res, err := http.ReadResponse(c.br, nil); err != nil || res.StatusCode != 100 {
			t.Fatal(res, err)
		}
		c.send("body")
		if _, body := c.answer("POST"); body != "got body" {
			t.Errorf("got %q", body)
		}
	}
	c.send("POST http://a.test/no HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n")
	if res, _ := c.answer("POST"); res.StatusCode != 417 || !res.Close {
		t.Errorf("got %v", res)
	}
	c.wantEnd()
}

func TestClientIsNotLeftWaitingForContinue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		target, origin := net.Pipe()
		client, done := pipeProxy(&hostsDialer{hook: func(context.Context, *Request) (net.Conn, error) { return target, nil }})
		go func() {
			q, err := http.ReadRequest(bufio.NewReader(origin))
			if err != nil {
				return
			}
			body, _ := io.ReadAll(q.Body)
			fmt.Fprintf(origin, "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
		}()
		io.WriteString(client, "POST http://a.test/ HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n")
		begin := time.Now()
		br := bufio.NewReader(client)
		res, err := http.ReadResponse(br, nil)
		if err != nil || res.StatusCode != 100 || time.Since(begin) != inviteTime {
			t.Fatal(res, err, time.Since(begin))
		}
		io.WriteString(client, "hi")
		res, err = http.ReadResponse(br, nil)
		if err != nil || res.StatusCode != 200 {
			t.Fatal(res, err)
		}
		if b, err := io.ReadAll(res.Body); string(b) != "hi" {
			t.Errorf("got %q, %v", b, err)
		}
		client.Close()
		<-done
	})
}

func TestInterimAnswersArriveEarly(t *testing.T) {
	release := make(chan struct{})
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Link", "</style.css>; rel=preload")
		w.WriteHeader(103)
		<-release
		io.WriteString(w, "page")
	}))
	defer s.Close()
	d := &hostsDialer{hosts: map[string]string{"a.test": s.Listener.Addr().String()}}
	hc := viaClient(t, startHTTP(t, d, Config{}))
	trace := &httptrace.ClientTrace{Got1xxResponse: func(code int, h textproto.MIMEHeader) error {
		if code != 103 || h.Get("Link") == "" {
			t.Error(code, h)
		}
		close(release)
		return nil
	}}
	q, _ := http.NewRequestWithContext(httptrace.WithClientTrace(t.Context(), trace), "GET", "http://a.test/", nil)
	res, err := hc.Do(q)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if body, _ := io.ReadAll(res.Body); string(body) != "page" {
		t.Errorf("got %q", body)
	}
}

func TestAnswerBeforeTheEndOfTheRequest(t *testing.T) {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Connection", "close")
		w.WriteHeader(413)
		io.WriteString(w, "too much")
	}))
	defer s.Close()
	d := &hostsDialer{hosts: map[string]string{"a.test": s.Listener.Addr().String()}}
	c := dialRaw(t, startHTTP(t, d, Config{}))
	c.send("POST http://a.test/ HTTP/1.1\r\nContent-Length: 100000000\r\n\r\nabc")
	res, body := c.answer("POST")
	if res.StatusCode != 413 || body != "too much" || !res.Close {
		t.Errorf("got %v %q", res, body)
	}
	c.wantEnd()
}

// A server that answers at once and reads the rest of the request all the same.
func TestRestOfRequestAfterTheAnswer(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	got := make(chan int, 1)
	go func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		q, err := http.ReadRequest(bufio.NewReader(c))
		if err != nil {
			return
		}
		io.WriteString(c, "HTTP/1.1 202 Accepted\r\nContent-Length: 2\r\n\r\nok")
		body, _ := io.ReadAll(q.Body)
		got <- len(body)
	}()
	d := &hostsDialer{hosts: map[string]string{"a.test": l.Addr().String()}}
	c := dialRaw(t, startHTTP(t, d, Config{}))
	c.send("POST http://a.test/ HTTP/1.1\r\nContent-Length: 3000000\r\n\r\n")
	if res, body := c.answer("POST"); res.StatusCode != 202 || body != "ok" {
		t.Errorf("got %v %q", res, body)
	}
	c.send(strings.Repeat("abc", 1000000))
	if n := <-got; n != 3000000 {
		t.Errorf("the server has read %d bytes", n)
	}
	c.c.CloseWrite()
	c.wantEnd()
}

// Both directions of one exchange at once, piece by piece: nothing is held back.
func TestBodiesAreStreamed(t *testing.T) {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		rc := http.NewResponseController(w)
		rc.EnableFullDuplex()
		rc.Flush()
		buf := make([]byte, 100)
		for {
			n, err := r.Body.Read(buf)
			w.Write(bytes.ToUpper(buf[:n]))
			rc.Flush()
			if err != nil {
				return
			}
		}
	}))
	defer s.Close()
	d := &hostsDialer{hosts: map[string]string{"a.test": s.Listener.Addr().String()}}
	hc := viaClient(t, startHTTP(t, d, Config{}))
	pr, pw := io.Pipe()
	q, _ := http.NewRequest("POST", "http://a.test/", pr)
	res, err := hc.Do(q)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	for i := range 20 {
		word := fmt.Sprintf("piece %d", i)
		io.WriteString(pw, word)
		got := make([]byte, len(word))
		if _, err := io.ReadFull(res.Body, got); err != nil || string(got) != strings.ToUpper(word) {
			t.Fatalf("got %q, %v", got, err)
		}
	}
	pw.Close()
	if rest, err := io.ReadAll(res.Body); len(rest) > 0 || err != nil {
		t.Errorf("got %q, %v", rest, err)
	}
}

func TestLargeBodies(t *testing.T) {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.NewResponseController(w).EnableFullDuplex()
		if r.ContentLength >= 0 {
			w.Header().Set("Content-Length", fmt.Sprint(r.ContentLength))
		}
		io.Copy(w, r.Body)
	}))
	defer s.Close()
	d := &hostsDialer{hosts: map[string]string{"a.test": s.Listener.Addr().String()}}
	hc := viaClient(t, startHTTP(t, d, Config{}))
	block := make([]byte, 8<<20)
	rand.Read(block)
	for _, length := range []int64{int64(len(block)), -1} {
		q, _ := http.NewRequest("PUT", "http://a.test/", io.MultiReader(bytes.NewReader(block)))
		q.ContentLength = length
		res, err := hc.Do(q)
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(res.Body)
		res.Body.Close()
		if !bytes.Equal(got, block) || err != nil || res.ContentLength != length {
			t.Errorf("length %d: got %d bytes, %v, length %d", length, len(got), err, res.ContentLength)
		}
	}
}

func TestCutAnswerIsSeenAsCut(t *testing.T) {
	for _, head := range []string{"Content-Length: 10\r\n", "Transfer-Encoding: chunked\r\n", "reset"} {
		for _, version := range []string{"1.0", "1.1"} {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			served, begun := make(chan struct{}), make(chan struct{})
			go func() {
				defer close(served)
				c, err := l.Accept()
				if err != nil {
					return
				}
				defer c.Close()
				http.ReadRequest(bufio.NewReader(c))
				switch {
				case strings.HasPrefix(head, "Content"):
					io.WriteString(c, "HTTP/1.1 200 OK\r\n"+head+"\r\nabc")
				case strings.HasPrefix(head, "Transfer"):
					io.WriteString(c, "HTTP/1.1 200 OK\r\n"+head+"\r\n3\r\nabc\r\n")
				default:
					io.WriteString(c, "HTTP/1.1 200 OK\r\n\r\nabc")
					c.(*net.TCPConn).SetLinger(0)
				}
				<-begun
			}()
			d := &hostsDialer{hosts: map[string]string{"a.test": l.Addr().String()}}
			c := dialRaw(t, startHTTP(t, d, Config{}))
			c.send("GET http://a.test/ HTTP/" + version + "\r\n\r\n")
			res, err := http.ReadResponse(c.br, nil)
			if err != nil {
				t.Fatal(err)
			}
			got := make([]byte, 3)
			io.ReadFull(res.Body, got)
			close(begun)
			rest, err := io.ReadAll(res.Body)
			if string(got) != "abc" || len(rest) > 0 || err == nil {
				t.Errorf("%q to HTTP/%s: got %q%q, %v; want an error", head, version, got, rest, err)
			}
			<-served
			l.Close()
		}
	}
}

func TestUpgrade(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		br := bufio.NewReader(c)
		q, err := http.ReadRequest(br)
		if err != nil || q.Header.Get("Upgrade") != "raw/1" {
			return
		}
		io.WriteString(c, "HTTP/1.1 101 Switching\r\nUpgrade: raw/1\r\nConnection: Upgrade\r\nX: y\r\n\r\nserver first;")
		io.Copy(c, br)
		io.WriteString(c, ";end")
	}()
	d := &hostsDialer{hosts: map[string]string{"a.test": l.Addr().String()}}
	c := dialRaw(t, startHTTP(t, d, Config{}))
	c.send("GET http://a.test/ HTTP/1.1\r\nUpgrade: raw/1\r\nConnection: upgrade\r\n\r\nearly ")
	res, err := http.ReadResponse(c.br, nil)
	if err != nil || res.StatusCode != 101 || res.Header.Get("X") != "y" || res.Header.Get("Upgrade") != "raw/1" {
		t.Fatal(res, err)
	}
	c.send("late")
	c.c.CloseWrite()
	if got, err := io.ReadAll(c.br); string(got) != "server first;early late;end" || err != nil {
		t.Errorf("got %q, %v", got, err)
	}
}

func TestWebSocket(t *testing.T) {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c, err := websocket.Accept(w, r, nil)
		if err != nil {
			return
		}
		defer c.CloseNow()
		for {
			kind, b, err := c.Read(r.Context())
			if err != nil || c.Write(r.Context(), kind, b) != nil {
				return
			}
		}
	}))
	defer s.Close()
	d := &hostsDialer{hosts: map[string]string{"a.test": s.Listener.Addr().String()}}
	hc := viaClient(t, startHTTP(t, d, Config{}))
	hc.Timeout = 0
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	// Through the proxy as a plain request with an upgrade, since the scheme is http.
	c, _, err := websocket.Dial(ctx, "http://a.test/socket", &websocket.DialOptions{HTTPClient: hc})
	if err != nil {
		t.Fatal(err)
	}
	defer c.CloseNow()
	for _, size := range []int{0, 1, 30000} {
		if err := c.Write(ctx, websocket.MessageBinary, bytes.Repeat([]byte("w"), size)); err != nil {
			t.Fatal(err)
		}
		if _, b, err := c.Read(ctx); err != nil || len(b) != size {
			t.Errorf("got %d bytes, %v", len(b), err)
		}
	}
	c.Close(websocket.StatusNormalClosure, "")
}
