package relayserver

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"

	"culvert.dev/culvert/traversal/relay/derp"
)

// exchange sends packets both ways.
func exchange(t *testing.T, a, b *peer) {
	t.Helper()
	for i, n := range []int{1, 1400, 16 << 10, derp.MaxPacket} {
		a.send(b.public, numbered(i, max(n, 8)))
		if from, data := b.receive(); from != a.public || !bytes.Equal(data, numbered(i, max(n, 8))) {
			t.Fatalf("%d bytes arrived as %d", n, len(data))
		}
		b.send(a.public, data(i))
		if from, got := a.receive(); from != b.public || !bytes.Equal(got, data(i)) {
			t.Fatal("the answer differs")
		}
	}
}

func data(i int) []byte { return fmt.Appendf(nil, "answer %d", i) }

func TestUpgradeAndFastStart(t *testing.T) {
	for _, secure := range []bool{false, true} {
		s := newServer(t, Config{Admit: everybody})
		addr, config := serveFor(t, s, secure)
		a, err := dial(t, s, addr, config, newKey(t), nil)
		if err != nil {
			t.Fatal(err)
		}
		b, err := dial(t, s, addr, config, newKey(t), http.Header{derp.HeaderFastStart: {"1"}, derp.HeaderIdealNode: {"relay1"}})
		if err != nil {
			t.Fatal(err)
		}
		exchange(t, a, b)
		seen := map[Transport]bool{}
		for _, c := range s.Clients() {
			seen[c.Transport] = true
			if c.Address != netip.MustParseAddr("127.0.0.1") {
				t.Errorf("address %v", c.Address)
			}
		}
		if !seen[TransportDERP] || !seen[TransportFastStart] {
			t.Errorf("transports %v", seen)
		}
	}
}

// A client that starts fast sends its request, ClientInfo and packets before it has read anything.
func TestEverythingInOneWrite(t *testing.T) {
	s := newServer(t, Config{Admit: everybody})
	addr, _ := serveFor(t, s, false)
	key := newKey(t)
	sealed, err := derp.SealClientInfo(key, s.public, derp.ClientInfo{Version: 2})
	if err != nil {
		t.Fatal(err)
	}
	public := key.Public()
	b := []byte("GET /derp HTTP/1.1\r\nHost: relay.test\r\nUpgrade: derp\r\nConnection: Upgrade\r\nDerp-Fast-Start: 1\r\n\r\n")
	b = derp.AppendFrame(b, derp.FrameClientInfo, sealed)
	b = derp.AppendFrame(b, derp.FrameSendPacket, public[:], make([]byte, 3000))
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.Write(b)
	r := derp.NewReader(conn, derp.MaxServerFrame)
	for _, want := range []derp.Type{derp.FrameServerKey, derp.FrameServerInfo, derp.FrameRecvPacket} {
		if typ, _, err := r.Next(); typ != want || err != nil {
			t.Fatalf("got %v %v, want %v", typ, err, want)
		}
	}
}

func TestAnswerToTheUpgrade(t *testing.T) {
	s := newServer(t, Config{Admit: everybody})
	addr, _ := serveFor(t, s, false)
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	io.WriteString(conn, "GET /derp HTTP/1.1\r\nHost: relay.test\r\nUpgrade: DERP\r\nConnection: Upgrade\r\n\r\n")
	want := "HTTP/1.1 101 Switching Protocols\r\nUpgrade: DERP\r\nConnection: Upgrade\r\nDerp-Version: 2\r\nDerp-Public-Key: " +
		s.public.Hex() + "\r\n\r\n\x01\x00\x00\x00\x28" + derp.Magic + string(s.public[:])
	got := make([]byte, len(want))
	if _, err := io.ReadFull(conn, got); string(got) != want || err != nil {
		t.Errorf("got %q %v, want %q", got, err, want)
	}
}

func TestMetaCertificateIsPresented(t *testing.T) {
	s := newServer(t, Config{Admit: everybody})
	addr, config := serveFor(t, s, true)
	conn, err := tls.Dial("tcp", addr, config)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if key, version, ok := derp.MetaKey(conn.ConnectionState().PeerCertificates); !ok || key != s.public || version != derp.Version {
		t.Errorf("got %v %d %v", key.Short(), version, ok)
	}
}

func TestWebSocket(t *testing.T) {
	s := newServer(t, Config{Admit: everybody})
	addr, config := serveFor(t, s, true)
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: config}}
	defer client.CloseIdleConnections()
	ws, _, err := websocket.Dial(ctx, "wss://"+addr+"/derp", &websocket.DialOptions{
		HTTPClient: client, Subprotocols: []string{"derp"}, HTTPHeader: http.Header{"Origin": {"https://elsewhere.example"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer ws.CloseNow()
	a, err := login(t, s, websocket.NetConn(ctx, ws, websocket.MessageBinary), newKey(t), derp.ClientInfo{Version: 2})
	if err != nil {
		t.Fatal(err)
	}
	b := mustDial(t, s, addr, config)
	exchange(t, a, b)
	seen := false
	for _, c := range s.Clients() {
		seen = seen || c.Transport == TransportWebSocket && c.Key == a.public
	}
	if !seen {
		t.Error("no client is shown as connected by WebSocket")
	}
	other, resp, err := websocket.Dial(ctx, "wss://"+addr+"/derp", &websocket.DialOptions{HTTPClient: client, Subprotocols: []string{"chat"}})
	if err != nil {
		t.Fatalf("%v %v", resp, err)
	}
	if _, _, err := other.Read(ctx); websocket.CloseStatus(err) != websocket.StatusPolicyViolation {
		t.Errorf("without the subprotocol: %v", err)
	}
}

// messages counts WebSocket messages and keeps the length of the longest.
type messages struct {
	net.Conn
	ws      *websocket.Conn
	longest int
	rest    []byte
}

// Read returns bytes of one message at a time.
func (m *messages) Read(b []byte) (int, error) {
	if len(m.rest) == 0 {
		_, data, err := m.ws.Read(context.Background())
		if err != nil {
			return 0, err
		}
		m.longest, m.rest = max(m.longest, len(data)), data
	}
	n := copy(b, m.rest)
	m.rest = m.rest[n:]
	return n, nil
}

// Peers that use the common library take messages of up to 32 KiB.
func TestWebSocketMessagesAreShort(t *testing.T) {
	s := newServer(t, Config{Admit: everybody, QueueBytes: 1 << 20})
	addr, config := serveFor(t, s, false)
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	ws, _, err := websocket.Dial(ctx, "ws://"+addr+"/derp", &websocket.DialOptions{Subprotocols: []string{"derp"}})
	if err != nil {
		t.Fatal(err)
	}
	defer ws.CloseNow()
	m := &messages{Conn: websocket.NetConn(ctx, ws, websocket.MessageBinary), ws: ws}
	ws.SetReadLimit(32 << 10)
	a, err := login(t, s, m, newKey(t), derp.ClientInfo{Version: 2})
	if err != nil {
		t.Fatal(err)
	}
	b := mustDial(t, s, addr, config)
	sizes := []int{derp.MaxPacket, 16 << 10, recordSize - derp.HeaderLen - derp.KeyLen, 1400, 1400, 40 << 10, derp.MaxPacket - 1, 8}
	for i, n := range sizes {
		b.send(a.public, numbered(i, n))
	}
	for i, n := range sizes {
		if from, data := a.receive(); from != b.public || !bytes.Equal(data, numbered(i, n)) {
			t.Fatalf("%d bytes arrived as %d", n, len(data))
		}
	}
	if m.longest != recordSize {
		t.Errorf("the longest message has %d bytes, want %d", m.longest, recordSize)
	}
}

func TestOtherPaths(t *testing.T) {
	h := newServer(t, Config{}).Handler()
	for _, c := range []struct {
		method, path string
		header       http.Header
		status       int
		name, value  string // a header of the answer
		body         string
	}{
		{"GET", "/", nil, 200, "Content-Type", "text/plain; charset=utf-8", "Culvert"},
		{"GET", "/derp/probe", nil, 200, "Access-Control-Allow-Origin", "*", ""},
		{"HEAD", "/derp/latency-check", nil, 200, "Access-Control-Allow-Origin", "*", ""},
		{"POST", "/derp/probe", nil, 405, "Allow", "GET, HEAD", ""},
		{"GET", "/generate_204", nil, 204, "X-Tailscale-Response", "", ""},
		{"GET", "/generate_204", http.Header{"X-Tailscale-Challenge": {"ts_a.B-9:"}}, 204, "X-Tailscale-Response", "response ts_a.B-9:", ""},
		{"GET", "/generate_204", http.Header{"X-Tailscale-Challenge": {"<script>"}}, 204, "X-Tailscale-Response", "", ""},
		{"GET", "/generate_204", http.Header{"X-Tailscale-Challenge": {strings.Repeat("a", 65)}}, 204, "X-Tailscale-Response", "", ""},
		{"GET", "/derp", nil, 426, "Upgrade", "DERP", "upgrade"},
		{"GET", "/derp", http.Header{"Upgrade": {"h2c"}}, 426, "Upgrade", "DERP", ""},
		{"POST", "/derp", http.Header{"Upgrade": {"DERP"}}, 405, "", "", ""},
		{"GET", "/metrics", nil, 404, "", "", ""},
	} {
		r := httptest.NewRequest(c.method, c.path, nil)
		maps.Copy(r.Header, c.header)
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		if w.Code != c.status || c.name != "" && w.Header().Get(c.name) != c.value || !strings.Contains(w.Body.String(), c.body) {
			t.Errorf("%s %s %v: %d %v %q", c.method, c.path, c.header, w.Code, w.Header(), w.Body)
		}
	}
}

func TestBodyAndHTTP2AreRefused(t *testing.T) {
	h := newServer(t, Config{}).Handler()
	r := httptest.NewRequest("GET", "/derp", strings.NewReader("x"))
	r.Header.Set("Upgrade", "DERP")
	w := httptest.NewRecorder()
	if h.ServeHTTP(w, r); w.Code != 400 {
		t.Errorf("a body: %d", w.Code)
	}
	r = httptest.NewRequest("GET", "/derp", nil)
	r.Header.Set("Upgrade", "DERP")
	r.ProtoMajor = 2
	w = httptest.NewRecorder()
	if h.ServeHTTP(w, r); w.Code != 505 {
		t.Errorf("HTTP/2: %d", w.Code)
	}
}

func TestSourceBehindAProxy(t *testing.T) {
	s := newServer(t, Config{TrustedProxies: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("10.0.0.0/8")}})
	for _, c := range []struct {
		remote    string
		forwarded []string
		want      string
	}{
		{"192.0.2.1:99", nil, "192.0.2.1"},
		{"[2001:db8::1%eth0]:99", nil, "2001:db8::1"},
		{"[::ffff:192.0.2.1]:99", nil, "192.0.2.1"},
		{"192.0.2.1:99", []string{"198.51.100.7"}, "192.0.2.1"}, // not a proxy
		{"127.0.0.1:99", nil, "127.0.0.1"},
		{"127.0.0.1:99", []string{"198.51.100.7"}, "198.51.100.7"},
		{"127.0.0.1:99", []string{"203.0.113.1, 198.51.100.7"}, "198.51.100.7"}, // the first was the client's own
		{"127.0.0.1:99", []string{"203.0.113.1", "198.51.100.7, 10.1.1.1"}, "198.51.100.7"},
		{"127.0.0.1:99", []string{"10.1.1.1"}, "10.1.1.1"},
		{"127.0.0.1:99", []string{"198.51.100.7:4711"}, "198.51.100.7"},
		{"127.0.0.1:99", []string{"[2001:db8::7]:4711"}, "2001:db8::7"},
		{"127.0.0.1:99", []string{"2001:db8::7"}, "2001:db8::7"},
		{"127.0.0.1:99", []string{"198.51.100.7, unknown"}, "127.0.0.1"},
	} {
		r := httptest.NewRequest("GET", "/derp", nil)
		r.RemoteAddr = c.remote
		for _, v := range c.forwarded {
			r.Header.Add("X-Forwarded-For", v)
		}
		if got := s.sourceOf(r); got != netip.MustParseAddr(c.want) {
			t.Errorf("%s %q: got %v, want %s", c.remote, c.forwarded, got, c.want)
		}
	}
}

func TestDrainingAnswersRetryAfter(t *testing.T) {
	s := newServer(t, Config{Admit: everybody})
	addr, _ := serveFor(t, s, false)
	if err := s.Drain(context.Background(), time.Second, time.Second); err != nil {
		t.Fatal(err)
	}
	_, err := dial(t, s, addr, nil, newKey(t), nil)
	e, ok := err.(statusError)
	if !ok || e.StatusCode != 503 || e.Header.Get("Retry-After") == "" {
		t.Errorf("got %v", err)
	}
	if n := s.Stats().Refused["draining"]; n != 1 {
		t.Errorf("%d refused", n)
	}
}

func TestListenerRefusesBeforeTLS(t *testing.T) {
	s := newServer(t, Config{Admit: everybody, MaxPerAddress: 3})
	addr, config := serveFor(t, s, true)
	var held []*peer
	for range 3 {
		held = append(held, mustDial(t, s, addr, config))
	}
	if p, err := dial(t, s, addr, config, newKey(t), nil); err == nil {
		t.Errorf("a fourth connection came through: %v", p.public.Short())
	}
	if n := s.Stats().Refused["address"]; n != 1 {
		t.Errorf("%d refused", n)
	}
	held[0].conn.Close()
	held[1].send(held[2].public, []byte("x"))
	held[2].receive()
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); { // until the relay has noticed
		if p, err := dial(t, s, addr, config, newKey(t), nil); err == nil {
			p.sync()
			return
		}
		runtime.Gosched()
	}
	t.Error("the place of a client that left is not free again")
}

func TestNothingIsLeftOfManyConnections(t *testing.T) {
	s := newServer(t, Config{Admit: everybody})
	addr, config := serveFor(t, s, true)
	before := runtime.NumGoroutine()
	for range 50 {
		a, b := mustDial(t, s, addr, config), mustDial(t, s, addr, config)
		a.send(b.public, initiation())
		b.receive()
		a.conn.Close()
		b.expectGone(a.public, derp.GoneDisconnected)
		b.conn.Close()
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := s.Drain(ctx, 0, 0); err != nil {
		t.Fatal(err)
	}
	for runtime.NumGoroutine() > before { // the last ones are about to return
		if ctx.Err() != nil {
			t.Fatalf("%d goroutines, %d before", runtime.NumGoroutine(), before)
		}
		runtime.Gosched()
	}
	if n := s.reserved.Load(); n != 0 || s.pool.lent.Load() != 0 {
		t.Errorf("%d places, %d bytes are held", n, s.pool.lent.Load())
	}
}
