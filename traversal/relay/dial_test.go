package relay

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"culvert.dev/culvert/internal/wgkey"
	"culvert.dev/culvert/traversal/relay/derp"
)

func TestDialPlain(t *testing.T) {
	f := newFakeRelay(t)
	d := newDialer(t)
	c, err := d.Dial(t.Context(), Server{URL: "http://" + listen(t, nil, f.serve)})
	if err != nil {
		t.Fatal(err)
	}
	if i := c.Info(); i.Transport != TransportDERP || i.Key != f.key.Public() || i.TLS != "" {
		t.Errorf("info %+v", i)
	}
	checkEcho(t, c, d.Key.Public())
}

func TestDialTLS(t *testing.T) {
	cert := newCertificate(t, "127.0.0.1")
	leafPin, err := ParsePin("sha256-raw:" + hexOf(cert.Leaf.Raw))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name  string
		meta  bool
		tls12 bool
		pins  []Pin
		fast  int
		want  Transport
	}{
		{"roots", false, false, nil, 0, TransportDERP},
		{"roots, fast", true, false, nil, 1, TransportFastStart},
		{"TLS 1.2 never starts fast", true, true, nil, 0, TransportDERP},
		{"pin of the key", true, false, []Pin{PinOf(cert.Leaf)}, 1, TransportFastStart},
		{"pin of the leaf", true, false, []Pin{leafPin}, 1, TransportFastStart},
		{"pin with TLS 1.2", false, true, []Pin{leafPin}, 0, TransportDERP},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := newFakeRelay(t)
			used := cert
			if c.meta {
				used = withMeta(t, cert, f.key)
			}
			config := &tls.Config{Certificates: []tls.Certificate{used}, NextProtos: []string{"http/1.1"}}
			if c.tls12 {
				config.MaxVersion = tls.VersionTLS12
			}
			d := newDialer(t)
			if c.pins == nil {
				d.Roots = rootsOf(cert)
			}
			conn, err := d.Dial(t.Context(), Server{URL: "https://" + listen(t, config, f.serve), Pins: c.pins})
			if err != nil {
				t.Fatal(err)
			}
			if i := conn.Info(); i.Transport != c.want || i.Key != f.key.Public() || i.TLS != map[bool]string{true: "TLS 1.2", false: "TLS 1.3"}[c.tls12] {
				t.Errorf("info %+v", i)
			}
			checkEcho(t, conn, d.Key.Public())
			if f.fast != c.fast {
				t.Errorf("%d fast starts, want %d", f.fast, c.fast)
			}
		})
	}
}

// TestDialRefuses has what must not succeed, and the words by which the operator finds the cause.
func TestDialRefuses(t *testing.T) {
	cert, other := newCertificate(t, "127.0.0.1"), newCertificate(t, "127.0.0.1")
	wrongName := newCertificate(t, "other.example")
	f := newFakeRelay(t)
	answer := func(s string) func(net.Conn) {
		return func(c net.Conn) {
			http.ReadRequest(bufio.NewReader(c))
			io.WriteString(c, s)
		}
	}
	frames := func(b ...[]byte) func(net.Conn) {
		return answer("HTTP/1.1 101 Switching Protocols\r\nUpgrade: derp\r\nConnection: Upgrade\r\n\r\n" + string(join(b)))
	}
	serverKey := derp.AppendFrame(nil, derp.FrameServerKey, derp.ServerKeyPayload(f.key.Public()))
	for _, c := range []struct {
		name  string
		cert  *tls.Certificate // nil: no TLS
		serve func(net.Conn)
		pins  []Pin
		want  []string
	}{
		{"wrong pin", &cert, f.serve, []Pin{PinOf(other.Leaf)}, []string{"tls: ", PinOf(cert.Leaf).String()}},
		{"unknown authority", &other, f.serve, nil, []string{"tls: ", "needs a Pin"}},
		{"wrong name", &wrongName, f.serve, nil, []string{"tls: ", "IP SANs"}},
		{"no TLS at all", nil, answer("HTTP/1.1 400 Bad Request\r\n\r\n"), []Pin{PinOf(cert.Leaf)}, []string{"tls: "}},
		{"closed at once", &cert, func(net.Conn) {}, nil, []string{"upgrade: "}},
		{"not a relay", &cert, answer("HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"), nil, []string{"upgrade: answered 404 Not Found"}},
		{"redirect", &cert, answer("HTTP/1.1 301 Moved Permanently\r\nLocation: https://elsewhere.example/x?y\r\nContent-Length: 0\r\n\r\n"), nil,
			[]string{"301", `"https://elsewhere.example"`, "not followed"}},
		{"busy", &cert, answer("HTTP/1.1 503 Service Unavailable\r\nRetry-After: 7\r\n\r\n"), nil, []string{"answered 503 Service Unavailable"}},
		{"other protocol", &cert, answer("HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n"), nil, []string{"not DERP"}},
		{"not HTTP", &cert, answer("SSH-2.0-x\r\n\r\n"), nil, []string{"upgrade: the answer is not HTTP"}},
		{"endless header", &cert, answer("HTTP/1.1 101 x\r\nX: " + strings.Repeat("x", 70<<10)), nil, []string{"upgrade: the answer's header is longer"}},
		{"no key", &cert, frames(), nil, []string{"handshake: ", "before it said its key"}},
		{"key cut short", &cert, frames(serverKey[:30]), nil, []string{"handshake: ", "before it said its key"}},
		{"wrong magic", &cert, frames(derp.AppendFrame(nil, derp.FrameServerKey, make([]byte, 40))), nil, []string{"handshake: ", "magic"}},
		{"another frame first", &cert, frames(derp.AppendFrame(nil, derp.FrameKeepAlive)), nil, []string{"handshake: ", "KeepAlive"}},
		{"a frame too long", &cert, frames([]byte{1, 0xff, 0, 0, 0}), nil, []string{"handshake: ", "too long"}},
		{"not admitted", &cert, func(c net.Conn) {
			r := bufio.NewReader(c)
			http.ReadRequest(r)
			io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: DERP\r\nConnection: Upgrade\r\n\r\n"+string(serverKey))
			derp.NewReader(r, 1<<20).Next()
		}, nil, []string{"handshake: ", "may not admit it"}},
		{"ServerInfo by somebody else", &cert, frames(serverKey, derp.AppendFrame(nil, derp.FrameServerInfo, make([]byte, 80))), nil, []string{"handshake: ", "does not open"}},
		{"no ServerInfo", &cert, frames(serverKey, join(repeat(derp.AppendFrame(nil, derp.FrameKeepAlive), 40))), nil, []string{"handshake: no ServerInfo"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			var addr string
			if c.cert == nil {
				addr = listen(t, nil, c.serve)
			} else {
				addr = listenTLS(t, *c.cert, c.serve)
			}
			d := newDialer(t)
			if c.pins == nil {
				d.Roots = rootsOf(cert, wrongName)
			}
			conn, err := d.Dial(t.Context(), Server{URL: "https://" + addr, Pins: c.pins, WebSocket: WebSocketNever})
			if err == nil {
				conn.Close()
				t.Fatal("connected")
			}
			for _, w := range append(c.want, "relay https://"+addr+": ") {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("error %q, want %q in it", err, w)
				}
			}
			if want := map[bool]time.Duration{true: 7 * time.Second}[c.name == "busy"]; retryAfter(err) != want {
				t.Errorf("Retry-After %v, want %v", retryAfter(err), want)
			}
		})
	}
}

func join(parts [][]byte) (all []byte) {
	for _, p := range parts {
		all = append(all, p...)
	}
	return all
}

func repeat(b []byte, n int) (all [][]byte) {
	for range n {
		all = append(all, b)
	}
	return all
}

func TestDialChecksTheKeyOfTheCertificate(t *testing.T) {
	cert := newCertificate(t, "127.0.0.1")
	f := newFakeRelay(t)
	liar := newKey(t)
	for _, c := range []struct {
		name   string
		serve  func(net.Conn)
		config *tls.Config
		fails  string
	}{
		{"fast start", f.serve, &tls.Config{}, "handshake: "},
		{"the relay refuses in HTTP", func(c net.Conn) { io.WriteString(c, "HTTP/1.1 503 Service Unavailable\r\nRetry-After: 3\r\n\r\n") }, &tls.Config{}, "answered 503"},
		{"closed instead of an answer", func(c net.Conn) { http.ReadRequest(bufio.NewReader(c)) }, &tls.Config{}, "upgrade: "},
		{"not believed under TLS 1.2", f.serve, &tls.Config{MaxVersion: tls.VersionTLS12}, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.config.Certificates = []tls.Certificate{withMeta(t, cert, liar)}
			d := newDialer(t)
			d.Roots = rootsOf(cert)
			conn, err := d.Dial(t.Context(), Server{URL: "https://" + listen(t, c.config, c.serve), WebSocket: WebSocketNever})
			switch {
			case err == nil:
				conn.Close()
				if c.fails != "" {
					t.Error("connected")
				}
			case c.fails == "" || !strings.Contains(err.Error(), c.fails):
				t.Errorf("error %q, want %q", err, c.fails)
			}
		})
	}

	// The same lie where the relay answers the upgrade: its certificate says a version that is not ours.
	t.Run("another version is no fast start, but its key must be right", func(t *testing.T) {
		s := session{hasMeta: true, meta: liar.Public(), dialer: newDialer(t), target: &target{url: "x"}}
		a, b := memPipe("a", "b", 0)
		go b.Write(derp.AppendFrame(nil, derp.FrameServerKey, derp.ServerKeyPayload(f.key.Public())))
		s.bottom, s.stream = a, a
		if err := newConn(&s).handshake(&s); err == nil || !strings.Contains(err.Error(), "somebody may sit in between") {
			t.Errorf("error %v", err)
		}
		a.Close()
	})
}

func TestDialEndsInTime(t *testing.T) {
	hang := func(c net.Conn) { io.Copy(io.Discard, c) }
	for _, c := range []struct {
		name, url, phase string
		hole             bool
		accept           func(net.Conn)
	}{
		{"no answer to SYN", "http://relay.example", "connect: ", true, hang},
		{"no answer to the client hello", "https://relay.example", "tls: ", false, hang},
		{"no answer to the upgrade", "http://relay.example", "upgrade: ", false, hang},
		{"no key", "http://relay.example", "handshake: ", false, func(c net.Conn) {
			io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: DERP\r\nConnection: Upgrade\r\n\r\n")
			hang(c)
		}},
		{"a trickle", "http://relay.example", "upgrade: ", false, func(c net.Conn) {
			io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nX: ")
			for {
				if _, err := io.WriteString(c, "x"); err != nil {
					return
				}
				time.Sleep(time.Second)
			}
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := newMemNet()
				for _, addr := range []string{"relay.example:80", "relay.example:443"} {
					n.listen(addr, ms, c.accept).hole = c.hole
				}
				d := newDialer(t)
				d.DialTCP = n.dial
				begin := time.Now()
				_, err := d.Dial(t.Context(), Server{URL: c.url})
				if err == nil || !strings.Contains(err.Error(), c.phase) || !strings.Contains(err.Error(), "in time") {
					t.Errorf("error %v, want phase %q", err, c.phase)
				}
				if took := time.Since(begin); took != dialTimeout {
					t.Errorf("it took %v", took)
				}
				time.Sleep(2 * time.Second) // the other end notices
			})
		})
	}
}

func TestDialCanBeCancelled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newMemNet()
		n.listen("relay.example:443", ms, func(c net.Conn) { io.Copy(io.Discard, c) })
		d := newDialer(t)
		d.DialTCP = n.dial
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(time.Second, cancel)
		begin := time.Now()
		if _, err := d.Dial(ctx, Server{URL: "https://relay.example"}); err == nil || time.Since(begin) != time.Second {
			t.Errorf("error %v after %v", err, time.Since(begin))
		}
	})
}

func TestDialNeedsKeyAndURL(t *testing.T) {
	if _, err := (&Dialer{}).Dial(t.Context(), Server{URL: "https://relay.example"}); err == nil {
		t.Error("connected without a key")
	}
	if _, err := newDialer(t).Dial(t.Context(), Server{URL: "relay.example"}); err == nil {
		t.Error("connected without a URL")
	}
}

// TestBytesBehindTheAnswer has a relay whose first frame comes in one piece with the answer's header.
func TestBytesBehindTheAnswer(t *testing.T) {
	f := newFakeRelay(t)
	f.script = func(c net.Conn, _ *http.Request, rest *bufio.Reader) {
		key := derp.AppendFrame(nil, derp.FrameServerKey, derp.ServerKeyPayload(f.key.Public()))
		fmt.Fprintf(c, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: DERP\r\nConnection: Upgrade\r\n\r\n%s", key)
		_, payload, err := derp.NewReader(rest, 1<<20).Next()
		if err != nil {
			return
		}
		who, _, err := derp.OpenClientInfo(f.key, payload)
		if err != nil {
			return
		}
		info, _ := derp.SealServerInfo(f.key, who, f.info)
		self := wgkey.Public{1}
		c.Write(derp.AppendFrame(derp.AppendFrame(nil, derp.FrameServerInfo, info), derp.FrameRecvPacket, self[:], []byte("early")))
		io.Copy(io.Discard, rest)
	}
	c, err := newDialer(t).Dial(t.Context(), Server{URL: "http://" + listen(t, nil, f.serve)})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if m, err := c.Recv(); err != nil || string(m.Packet) != "early" {
		t.Errorf("received %+v %v", m, err)
	}
}
