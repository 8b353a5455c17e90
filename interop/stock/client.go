package stock

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"net/http"

	"github.com/coder/websocket"
	"go4.org/mem"
	"tailscale.com/derp"
	"tailscale.com/derp/derphttp"
	"tailscale.com/net/netmon"
	"tailscale.com/net/wsconn"
	"tailscale.com/types/key"

	"culvert.dev/culvert/internal/wgkey"
)

// Mode is how a client gets from HTTP to DERP.
type Mode int

const (
	Upgrade   Mode = iota // Upgrade: DERP, waiting for the 101
	FastStart             // Upgrade: DERP with the server's key from the metacert, waiting for nothing
	WebSocket
)

func (m Mode) String() string { return [...]string{"upgrade", "fast-start", "websocket"}[m] }

// ClientConfig says how to connect.
type ClientConfig struct {
	Key   wgkey.Private
	URL   string         // https://host:port or http://host:port
	Roots *x509.CertPool // for https
	Mode  Mode
	Logf  func(format string, args ...any) // nil: silence
}

func (cfg *ClientConfig) logf() func(string, ...any) {
	if cfg.Logf == nil {
		return func(string, ...any) {}
	}
	return cfg.Logf
}

// tls chooses the mode as the stock client does: it starts fast whenever TLS 1.3 showed it the metacert.
func (cfg *ClientConfig) tls() *tls.Config {
	c := &tls.Config{RootCAs: cfg.Roots}
	if cfg.Mode == Upgrade {
		c.MaxVersion = tls.VersionTLS12
	}
	return c
}

// Dial connects derphttp's client, in the modes Upgrade and FastStart.
func Dial(ctx context.Context, cfg ClientConfig) (*derphttp.Client, error) {
	c, err := derphttp.NewClient(NodePrivate(cfg.Key), cfg.URL+"/derp", cfg.logf(), netmon.NewStatic())
	if err != nil {
		return nil, err
	}
	c.TLSConfig = cfg.tls()
	c.SetCanAckPings(true)
	c.SetURLDialer(new(net.Dialer).DialContext)
	if err := c.Connect(ctx); err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

// DialWebSocket connects a client as derphttp does where it uses WebSocket (which it does only in browsers, or with a
// build tag and an environment variable).
func DialWebSocket(ctx context.Context, cfg ClientConfig) (*derp.Client, net.Conn, error) {
	transport := &http.Transport{TLSClientConfig: cfg.tls()}
	ws, _, err := websocket.Dial(ctx, cfg.URL+"/derp", &websocket.DialOptions{
		Subprotocols: []string{"derp"},
		HTTPClient:   &http.Client{Transport: transport},
	})
	if err != nil {
		return nil, nil, fmt.Errorf("dial websocket: %w", err)
	}
	conn := wsconn.NetConn(context.Background(), ws, websocket.MessageBinary, cfg.URL)
	c, err := NewClient(conn, cfg)
	if err != nil {
		conn.Close()
		return nil, nil, err
	}
	return c, conn, nil
}

// NewClient is derp.NewClient on a connection that already speaks DERP. It reads the server's key and sends its own.
func NewClient(conn net.Conn, cfg ClientConfig) (*derp.Client, error) {
	brw := bufio.NewReadWriter(bufio.NewReader(conn), bufio.NewWriter(conn))
	return derp.NewClient(NodePrivate(cfg.Key), conn, brw, cfg.logf(), derp.CanAckPings(true))
}

// NodePrivate is a WireGuard key as the stock packages hold it.
func NodePrivate(k wgkey.Private) key.NodePrivate {
	raw := k.RevealBytes()
	return key.NodePrivateFromRaw32(mem.B(raw[:]))
}

// NodePublic is a WireGuard key as the stock packages hold it.
func NodePublic(k wgkey.Public) key.NodePublic { return key.NodePublicFromRaw32(mem.B(k[:])) }

// Public is the reverse of NodePublic.
func Public(k key.NodePublic) wgkey.Public { return wgkey.Public(k.Raw32()) }
