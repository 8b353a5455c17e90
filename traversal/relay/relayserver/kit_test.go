package relayserver

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"log/slog"
	"maps"
	"math/big"
	"net"
	"net/http"
	"net/netip"
	"testing"
	"time"

	"culvert.dev/culvert/internal/wgkey"
	"culvert.dev/culvert/traversal/relay/derp"
)

func newKey(t testing.TB) wgkey.Private {
	t.Helper()
	k, err := wgkey.NewPrivate()
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// everybody admits all keys.
func everybody(wgkey.Public, netip.Addr) error { return nil }

// newServer starts a relay that ends with the test.
func newServer(t testing.TB, cfg Config) *Server {
	t.Helper()
	if cfg.Key.IsZero() {
		cfg.Key = newKey(t)
	}
	if cfg.ConnectRate == 0 {
		cfg.ConnectRate, cfg.ConnectBurst = 1e9, 1e9
	}
	if cfg.MaxPerAddress == 0 {
		cfg.MaxPerAddress = 1 << 20
	}
	s, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// peer is a client made of derp's functions alone.
type peer struct {
	t      testing.TB
	key    wgkey.Private
	public wgkey.Public
	conn   net.Conn
	r      *derp.Reader
	info   derp.ServerInfo
}

// login does the client's part of the handshake on a connection that DERP runs on.
func login(t testing.TB, s *Server, conn net.Conn, key wgkey.Private, info derp.ClientInfo) (*peer, error) {
	p := &peer{t: t, key: key, public: key.Public(), conn: conn, r: derp.NewReader(conn, derp.MaxServerFrame)}
	return p, p.login(s, info)
}

func (p *peer) login(s *Server, info derp.ClientInfo) error {
	typ, payload, err := p.r.Next()
	if err != nil {
		return err
	}
	if key, err := derp.ParseServerKey(payload); typ != derp.FrameServerKey || err != nil || key != s.public {
		return errors.New("no ServerKey of this server")
	}
	sealed, err := derp.SealClientInfo(p.key, s.public, info)
	if err != nil {
		return err
	}
	if _, err := p.conn.Write(derp.AppendFrame(nil, derp.FrameClientInfo, sealed)); err != nil {
		return err
	}
	typ, payload, err = p.r.Next()
	if err != nil {
		return err
	}
	if typ != derp.FrameServerInfo {
		return errors.New("no ServerInfo")
	}
	p.info, err = derp.OpenServerInfo(p.key, s.public, payload)
	return err
}

// attach gives the relay one end of a connection, without HTTP, and returns the other.
func attach(t testing.TB, s *Server, from string) (net.Conn, refusal) {
	t.Helper()
	o, why := s.reserve(netip.MustParseAddr(from))
	if why != 0 {
		return nil, why
	}
	near, far := net.Pipe()
	o.take(far)
	s.launch(o)
	return near, 0
}

// join connects a client through a pipe. A pipe holds nothing: the relay's writer is stuck until the client reads.
func join(t testing.TB, s *Server, key wgkey.Private) *peer {
	t.Helper()
	return joinAs(t, s, key, derp.ClientInfo{Version: derp.Version})
}

func joinAs(t testing.TB, s *Server, key wgkey.Private, info derp.ClientInfo) *peer {
	t.Helper()
	conn, why := attach(t, s, "192.0.2.1")
	if why != 0 {
		t.Fatalf("refused: %v", why)
	}
	p, err := login(t, s, conn, key, info)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	p.sync()
	return p
}

// send sends a packet.
func (p *peer) send(to wgkey.Public, data []byte) {
	p.t.Helper()
	p.frame(derp.FrameSendPacket, to[:], data)
}

func (p *peer) frame(t derp.Type, parts ...[]byte) {
	p.t.Helper()
	if _, err := p.conn.Write(derp.AppendFrame(nil, t, parts...)); err != nil {
		p.t.Fatal(err)
	}
}

// next returns the next frame except keepalives.
func (p *peer) next() (derp.Type, []byte) {
	p.t.Helper()
	for {
		typ, payload, err := p.r.Next()
		if err != nil {
			p.t.Fatalf("read: %v", err)
		}
		if typ != derp.FrameKeepAlive {
			return typ, payload
		}
	}
}

// receive expects a packet and returns its source and data.
func (p *peer) receive() (from wgkey.Public, data []byte) {
	p.t.Helper()
	typ, payload := p.next()
	if typ != derp.FrameRecvPacket || len(payload) < derp.KeyLen {
		p.t.Fatalf("got %v %x, want a packet", typ, payload)
	}
	return wgkey.Public(payload), payload[derp.KeyLen:]
}

// expectGone expects PeerGone.
func (p *peer) expectGone(key wgkey.Public, why derp.GoneReason) {
	p.t.Helper()
	typ, payload := p.next()
	got, reason, err := derp.ParsePeerGone(payload)
	if typ != derp.FramePeerGone || err != nil || got != key || reason != why {
		p.t.Fatalf("got %v %v %v (%v), want PeerGone %v %v", typ, got.Short(), reason, err, key.Short(), why)
	}
}

// sync returns when the relay has handled all that was sent so far: it answers a ping. Nothing else may be waiting.
func (p *peer) sync() {
	p.t.Helper()
	p.frame(derp.FramePing, []byte("syncsync"))
	if typ, payload := p.next(); typ != derp.FramePong || string(payload) != "syncsync" {
		p.t.Fatalf("got %v %x, want the pong", typ, payload)
	}
}

// expectClosed expects the relay to close the connection, after whatever frames.
func (p *peer) expectClosed() {
	p.t.Helper()
	for {
		if _, _, err := p.r.Next(); err != nil {
			return
		}
	}
}

// serve starts an HTTP server for the relay on loopback and returns its address.
func serve(t testing.TB, s *Server, tlsConfig *tls.Config) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	l = s.Listener(l)
	if tlsConfig != nil {
		l = tls.NewListener(l, tlsConfig)
	}
	h := s.HTTPServer()
	done := make(chan struct{})
	go func() { h.Serve(l); close(done) }()
	t.Cleanup(func() { h.Close(); <-done })
	return addr
}

// tlsPair returns the configurations of a TLS server with a certificate of its own and of a client that trusts it.
func tlsPair(t testing.TB, s *Server) (server, client *tls.Config) {
	t.Helper()
	priv, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), DNSNames: []string{"relay.test"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, priv.Public(), priv)
	if err != nil {
		t.Fatal(err)
	}
	leaf, _ := x509.ParseCertificate(der)
	pool := x509.NewCertPool()
	pool.AddCert(leaf)
	server = &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der, s.MetaCertificate()}, PrivateKey: priv}}}
	return server, &tls.Config{RootCAs: pool, ServerName: "relay.test"}
}

// dial connects through TCP, TLS if configured, and the HTTP upgrade.
func dial(t testing.TB, s *Server, addr string, config *tls.Config, key wgkey.Private, header http.Header) (*peer, error) {
	t.Helper()
	raw, err := (&net.Dialer{Timeout: 10 * time.Second}).DialContext(context.Background(), "tcp", addr)
	if err != nil {
		return nil, err
	}
	t.Cleanup(func() { raw.Close() })
	conn := raw
	if config != nil {
		conn = tls.Client(conn, config)
	}
	req, _ := http.NewRequest("GET", "http://relay.test/derp", nil)
	maps.Copy(req.Header, header)
	req.Header.Set("Upgrade", "DERP")
	req.Header.Set("Connection", "Upgrade")
	if err := req.Write(conn); err != nil {
		return nil, err
	}
	p := &peer{t: t, key: key, public: key.Public(), conn: conn, r: derp.NewReader(conn, derp.MaxServerFrame)}
	if header.Get(derp.HeaderFastStart) == "" {
		br := bufio.NewReader(conn)
		resp, err := http.ReadResponse(br, req)
		if err != nil {
			return nil, err
		}
		if resp.StatusCode != http.StatusSwitchingProtocols {
			return nil, statusError{resp}
		}
		p.r.Preload(readAhead(br))
	}
	return p, p.login(s, derp.ClientInfo{Version: derp.Version})
}

type statusError struct{ *http.Response }

func (e statusError) Error() string { return e.Status }

func textLogger(w io.Writer) *slog.Logger { return slog.New(slog.NewTextHandler(w, nil)) }
