package relay

import (
	"bytes"
	"crypto/tls"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"

	"github.com/coder/websocket"

	"culvert.dev/culvert/internal/wgkey"
	"culvert.dev/culvert/traversal/relay/derp"
	"culvert.dev/culvert/traversal/relay/relayserver"
)

// newRelay starts a real relay that admits everybody, behind wrap, and returns its URL.
func newRelay(t testing.TB, key wgkey.Private, cert *tls.Certificate, wrap func(http.Handler) http.Handler) string {
	t.Helper()
	s, err := relayserver.New(relayserver.Config{
		Key: key, Admit: func(wgkey.Public, netip.Addr) error { return nil },
		ConnectRate: 1e9, ConnectBurst: 1e9, MaxPerAddress: 1 << 20,
	})
	if err != nil {
		t.Fatal(err)
	}
	h := s.Handler()
	if wrap != nil {
		h = wrap(h)
	}
	web := httptest.NewUnstartedServer(h)
	web.Config.ErrorLog = log.New(io.Discard, "", 0)
	t.Cleanup(func() {
		web.CloseClientConnections()
		s.Close()
		web.Close()
	})
	if cert == nil {
		web.Start()
		return web.URL
	}
	c := *cert
	c.Certificate = append(c.Certificate[:len(c.Certificate):len(c.Certificate)], s.MetaCertificate())
	web.TLS = &tls.Config{Certificates: []tls.Certificate{c}, NextProtos: []string{"http/1.1"}}
	web.StartTLS()
	return web.URL
}

// onlyWebSocket is a proxy on the way that knows no other upgrade.
func onlyWebSocket(status int) func(http.Handler) http.Handler {
	return func(h http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if !strings.EqualFold(r.Header.Get("Upgrade"), "websocket") {
				w.WriteHeader(status)
				return
			}
			h.ServeHTTP(w, r)
		})
	}
}

func TestDialWebSocket(t *testing.T) {
	cert := newCertificate(t, "127.0.0.1")
	key := newKey(t)
	for _, c := range []struct {
		name string
		tls  bool
		mode WebSocketMode
		wrap func(http.Handler) http.Handler
		want Transport
		err  string
	}{
		{"always", false, WebSocketAlways, nil, TransportWebSocket, ""},
		{"always, TLS", true, WebSocketAlways, nil, TransportWebSocket, ""},
		{"not needed", false, WebSocketAuto, nil, TransportDERP, ""},
		{"not needed, TLS", true, WebSocketAuto, nil, TransportFastStart, ""},
		{"needed", false, WebSocketAuto, onlyWebSocket(400), TransportWebSocket, ""},
		{"needed, odd answer", false, WebSocketAuto, onlyWebSocket(200), TransportWebSocket, ""},
		{"needed, not allowed", false, WebSocketNever, onlyWebSocket(400), 0, "upgrade: answered 400"},
		{"busy", false, WebSocketAuto, onlyWebSocket(503), 0, "upgrade: answered 503"},
		{"redirect", false, WebSocketAuto, onlyWebSocket(307), 0, "not followed"},
		{"neither", false, WebSocketAuto, func(http.Handler) http.Handler { return http.NotFoundHandler() }, 0, "404 Not Found; then by WebSocket: upgrade: answered 404"},
		{"redirect of WebSocket", false, WebSocketAlways, func(http.Handler) http.Handler { return http.RedirectHandler("http://elsewhere.example/", 302) }, 0,
			`to "http://elsewhere.example", which is not followed`},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := Server{URL: newRelay(t, key, nil, c.wrap), WebSocket: c.mode}
			if c.tls {
				s.URL = newRelay(t, key, &cert, c.wrap)
			}
			d := newDialer(t)
			d.Roots = rootsOf(cert)
			conn, err := d.Dial(t.Context(), s)
			if err != nil {
				if c.err == "" || !strings.Contains(err.Error(), c.err) {
					t.Errorf("error %q, want %q in it", err, c.err)
				}
				return
			}
			defer conn.Close()
			if got := conn.Info(); c.err != "" || got.Transport != c.want || got.Key != key.Public() {
				t.Errorf("info %+v, want transport %v", got, c.want)
			}
			self := d.Key.Public()
			big := [][]byte{bytes.Repeat([]byte("x"), 1400), bytes.Repeat([]byte("y"), derp.MaxPacket), {}}
			if err := conn.Send(self, big); err != nil {
				t.Fatal(err)
			}
			for _, want := range big {
				if m, err := conn.Recv(); err != nil || m.Peer != self || !bytes.Equal(m.Packet, want) {
					t.Fatalf("received %d bytes from %v, %v, want %d", len(m.Packet), m.Peer, err, len(want))
				}
			}
		})
	}
}

func TestWebSocketWithoutSubprotocol(t *testing.T) {
	url := newRelay(t, newKey(t), nil, func(h http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			c, _, err := w.(http.Hijacker).Hijack()
			if err != nil {
				return
			}
			defer c.Close()
			io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: x\r\n\r\n")
		})
	})
	_, err := newDialer(t).Dial(t.Context(), Server{URL: url, WebSocket: WebSocketAlways})
	if err == nil || !strings.Contains(err.Error(), "upgrade: ") {
		t.Errorf("error %v", err)
	}
}

// TestWebSocketMessagesAreShort has a relay that ends a connection for a longer message, as stock derper does at twice the length.
func TestWebSocketMessagesAreShort(t *testing.T) {
	const packets = 40
	key := newKey(t)
	relay := func(w http.ResponseWriter, r *http.Request) error {
		ws, err := websocket.Accept(w, r, &websocket.AcceptOptions{Subprotocols: []string{derp.Subprotocol}})
		if err != nil {
			return err
		}
		defer ws.CloseNow()
		stream := websocket.NetConn(r.Context(), ws, websocket.MessageBinary)
		ws.SetReadLimit(messageLen)
		stream.Write(derp.AppendFrame(nil, derp.FrameServerKey, derp.ServerKeyPayload(key.Public())))
		frames := derp.NewReader(stream, derp.MaxServerFrame)
		for n := 0; n < packets; {
			kind, payload, err := frames.Next()
			if err != nil {
				return fmt.Errorf("after %d packets: %w", n, err)
			}
			switch kind {
			case derp.FrameClientInfo:
				client, _, err := derp.OpenClientInfo(key, payload)
				if err != nil {
					return err
				}
				info, err := derp.SealServerInfo(key, client, derp.ServerInfo{Version: derp.Version})
				if err != nil {
					return err
				}
				stream.Write(derp.AppendFrame(nil, derp.FrameServerInfo, info))
			case derp.FrameSendPacket:
				n++
			}
		}
		return nil
	}
	ended := make(chan error, 1)
	url := newRelay(t, key, nil, func(http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { ended <- relay(w, r) })
	})
	c, err := newDialer(t).Dial(t.Context(), Server{URL: url, WebSocket: WebSocketAlways})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	var batch [][]byte
	for range packets {
		batch = append(batch, make([]byte, 8<<10))
	}
	if err := c.Send(wgkey.Public{1}, batch); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// TestWebSocketAfterASilentRefusal has something on the way that closes a connection for an upgrade that it does not know.
func TestWebSocketAfterASilentRefusal(t *testing.T) {
	for _, answer := range []string{"", "go away\r\n\r\n"} {
		url := newRelay(t, newKey(t), nil, func(h http.Handler) http.Handler {
			return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if strings.EqualFold(r.Header.Get("Upgrade"), "websocket") {
					h.ServeHTTP(w, r)
					return
				}
				c, _, err := w.(http.Hijacker).Hijack()
				if err != nil {
					return
				}
				io.WriteString(c, answer)
				c.Close()
			})
		})
		c, err := newDialer(t).Dial(t.Context(), Server{URL: url})
		if err != nil {
			t.Errorf("answer %q: %v", answer, err)
			continue
		}
		if got := c.Info().Transport; got != TransportWebSocket {
			t.Errorf("answer %q: transport %v", answer, got)
		}
		c.Close()
	}
}
