package interop

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"tailscale.com/derp/derphttp"
	"tailscale.com/net/netmon"
	"tailscale.com/tailcfg"

	"culvert.dev/culvert/internal/wgkey"
	"culvert.dev/culvert/interop/stock"
	"culvert.dev/culvert/traversal/relay"
	"culvert.dev/culvert/traversal/relay/relayserver"
)

// TestHowStockClientsStart has our server say how the stock clients came.
func TestHowStockClientsStart(t *testing.T) {
	c := startCulvert(t, relayserver.Config{})
	for _, k := range []struct {
		dial dialFunc
		want relayserver.Transport
	}{
		{dialStock(stock.FastStart), relayserver.TransportFastStart},
		{dialStock(stock.Upgrade), relayserver.TransportDERP},
		{dialStockWebSocket, relayserver.TransportWebSocket},
	} {
		t.Run(k.want.String(), func(t *testing.T) {
			e := connect(t, c.place, k.dial)
			carry(t, e, e, "hello")
			if got := c.client(t, e.key).Transport; got != k.want {
				t.Errorf("connected by %v", got)
			}
		})
	}
}

// client returns what the relay says of a key's only connection.
func (c *culvert) client(t *testing.T, key wgkey.Public) relayserver.ClientStats {
	t.Helper()
	for _, s := range c.relay.Clients() {
		if s.Key == key {
			return s
		}
	}
	t.Fatalf("the relay does not know %s", key.Short())
	return relayserver.ClientStats{}
}

// TestStockDERPMap connects as tailscaled does: a region of a DERP map, with the node pinned by CertName.
func TestStockDERPMap(t *testing.T) {
	c := startCulvert(t, relayserver.Config{})
	at := netip.MustParseAddrPort(strings.TrimPrefix(c.url, "https://"))
	for _, k := range []struct {
		name, pin string
		ok        bool
	}{
		{"right pin", stockPin(c.leaf.Raw), true},
		{"wrong pin", stockPin([]byte("another certificate")), false},
	} {
		t.Run(k.name, func(t *testing.T) {
			key, err := wgkey.NewPrivate()
			if err != nil {
				t.Fatal(err)
			}
			region := &tailcfg.DERPRegion{RegionID: 900, RegionCode: "own", Nodes: []*tailcfg.DERPNode{{
				Name: "900a", RegionID: 900, HostName: "127.0.0.1", IPv4: "127.0.0.1", IPv6: "none",
				DERPPort: int(at.Port()), CertName: k.pin,
			}}}
			client := derphttp.NewRegionClient(stock.NodePrivate(key), func(string, ...any) {}, netmon.NewStatic(),
				func() *tailcfg.DERPRegion { return region })
			defer client.Close()
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			if err := client.Connect(ctx); (err == nil) != k.ok {
				t.Fatalf("connect: %v", err)
			}
			if !k.ok {
				return
			}
			client.NotePreferred(true)
			e, err := stockEnd(key.Public(), client).accepted(ctx)
			if err != nil {
				t.Fatal(err)
			}
			defer e.close()
			carry(t, e, e, "hello")
			if !c.client(t, e.key).Preferred {
				t.Error("the relay does not know that it is the client's home")
			}
		})
	}
}

// stockPin is the CertName that pins a certificate (DER).
func stockPin(der []byte) string { return fmt.Sprintf("sha256-raw:%x", sha256.Sum256(der)) }

// TestRefusedKey connects with keys that the relay does not admit.
func TestRefusedKey(t *testing.T) {
	c := startCulvert(t, relayserver.Config{Admit: func(wgkey.Public, netip.Addr) error { return errors.New("not on the list") }})
	for _, k := range kinds {
		t.Run(k.name, func(t *testing.T) {
			key, err := wgkey.NewPrivate()
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			p := c.place
			p.middlebox(startMiddlebox(t, p))
			e, err := k.dial(ctx, p, key)
			if err == nil {
				e.close()
				t.Fatal("was admitted")
			}
			if ctx.Err() != nil {
				t.Errorf("was left waiting: %v", err)
			}
		})
	}
}

// TestRecheck withdraws the permission of clients that are connected.
func TestRecheck(t *testing.T) {
	var closed atomic.Bool
	c := startCulvert(t, relayserver.Config{Admit: func(wgkey.Public, netip.Addr) error {
		if closed.Load() {
			return errors.New("closed")
		}
		return nil
	}})
	a, b := connect(t, c.place, dialStock(stock.FastStart)), connect(t, c.place, culvertDialer(relay.TransportFastStart))
	carry(t, a, b, "hello")
	c.relay.Recheck()
	carry(t, b, a, "still here")
	closed.Store(true)
	c.relay.Recheck()
	a.ended(t)
	b.ended(t)
}

// TestAnnouncedRate looks at what a stock client is told of the limit, and that it loses nothing if it keeps to it.
func TestAnnouncedRate(t *testing.T) {
	const rate = 4 << 20
	c := startCulvert(t, relayserver.Config{Rate: rate})
	a, b := connect(t, c.place, dialStock(stock.FastStart)), connect(t, c.place, dialStock(stock.Upgrade))
	if a.rate != rate || b.rate != rate {
		t.Fatalf("told %d and %d bytes a second, want %d", a.rate, b.rate, rate)
	}
	for range 100 {
		carry(t, a, b, payload(1400))
	}
}

// TestEnforcedRate floods from a client that ignores the announced rate: what arrives is what the rate permits.
func TestEnforcedRate(t *testing.T) {
	const (
		rate  = 1 << 20
		burst = 128 << 10 // well within the queue of the receiver, so that nothing need be lost
		sent  = 640 << 10
		size  = 1024
	)
	c := startCulvert(t, relayserver.Config{Rate: rate, Burst: burst})
	var sending sync.WaitGroup
	t.Cleanup(sending.Wait) // after the connections have been closed
	from, to := connect(t, c.place, dialIgnoringRate), connect(t, c.place, culvertDialer(relay.TransportFastStart))
	start := time.Now()
	sending.Go(func() {
		for range sent / size {
			if from.send(to.key, []byte(payload(size))) != nil {
				return
			}
		}
	})
	for range sent / size {
		to.want(t, "packet") // none is lost: the server reads later
	}
	least := time.Duration(float64(sent-burst) / rate * float64(time.Second))
	if took := time.Since(start); took < least*8/10 {
		t.Errorf("%d bytes took %v, want %v at least", sent, took, least)
	}
}

// dialIgnoringRate connects a stock client that never hears of the limit, since it does not read.
func dialIgnoringRate(ctx context.Context, p place, key wgkey.Private) (*end, error) {
	c, err := stock.Dial(ctx, stock.ClientConfig{Key: key, URL: p.url, Roots: p.roots, Mode: stock.FastStart})
	if err != nil {
		return nil, err
	}
	return &end{
		key:   key.Public(),
		send:  func(to wgkey.Public, packet []byte) error { return c.Send(stock.NodePublic(to), packet) },
		close: func() { c.Close() },
	}, nil
}

// TestDrain has the relay ask its clients to go, and refuse new ones.
func TestDrain(t *testing.T) {
	c := startCulvert(t, relayserver.Config{})
	a, b := connect(t, c.place, dialStock(stock.FastStart)), connect(t, c.place, culvertDialer(relay.TransportFastStart))
	const within = 4 * time.Second
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	drained := make(chan error, 1)
	go func() { drained <- c.relay.Drain(ctx, within, time.Minute) }()
	for _, e := range []*end{a, b} {
		if ev := e.want(t, "restarting"); ev.in < 0 || ev.in > within {
			t.Errorf("told to come back in %v, want up to %v", ev.in, within)
		}
	}
	carry(t, a, b, "while it drains")
	header := http.Header{"Upgrade": {"DERP"}, "Connection": {"Upgrade"}}
	if resp := ask(t, c.place, http.MethodGet, "/derp", header); resp.StatusCode != http.StatusServiceUnavailable || resp.Header.Get("Retry-After") == "" {
		t.Errorf("a new client gets %s, Retry-After %q", resp.Status, resp.Header.Get("Retry-After"))
	}
	a.close()
	b.close()
	if err := <-drained; err != nil {
		t.Error("drain:", err)
	}
}

// TestKeepAlive waits for the frame that keeps a stock client from giving up, and for its answer to our ping.
func TestKeepAlive(t *testing.T) {
	t.Parallel()                                                               // the server adds up to 5 s at random
	c := startCulvert(t, relayserver.Config{KeepAlive: 10 * time.Millisecond}) // and looks once a second
	e := connect(t, c.place, dialStock(stock.FastStart))
	sawPing := false
	deadline := time.NewTimer(patience)
	defer deadline.Stop()
	for {
		select {
		case ev, ok := <-e.events:
			if !ok {
				t.Fatal("connection ended")
			}
			switch {
			case ev.kind == "ping":
				sawPing = true
			case ev.kind == "keepalive" && sawPing:
				return
			case ev.kind == "keepalive":
				t.Fatal("no ping before the keepalive, though the client says that it answers pings")
			}
		case <-deadline.C:
			t.Fatal("no keepalive")
		}
	}
}

// TestSideEndpoints asks our server and the stock one the same questions.
func TestSideEndpoints(t *testing.T) {
	ours, theirs := startCulvert(t, relayserver.Config{}).place, startStock(t).place
	challenge := func(s string) http.Header { return http.Header{"X-Tailscale-Challenge": {s}} }
	for _, q := range []struct {
		method, path string
		header       http.Header
	}{
		{"GET", "/derp/probe", nil},
		{"HEAD", "/derp/probe", nil},
		{"POST", "/derp/probe", nil},
		{"GET", "/derp/latency-check", nil},
		{"HEAD", "/derp/latency-check", nil},
		{"GET", "/generate_204", nil},
		{"GET", "/generate_204", challenge("ts_derp1.example.com-1:2")},
		{"GET", "/generate_204", challenge("with space")},
		{"GET", "/generate_204", challenge("injected\tx")},
		{"GET", "/generate_204", challenge(strings.Repeat("a", 64))},
		{"GET", "/generate_204", challenge(strings.Repeat("a", 65))},
		{"GET", "/derp", nil},
		{"GET", "/derp", http.Header{"Upgrade": {"h2c"}, "Connection": {"Upgrade"}}},
	} {
		t.Run(fmt.Sprintf("%s %s %.20v", q.method, q.path, q.header), func(t *testing.T) {
			got, want := ask(t, ours, q.method, q.path, q.header), ask(t, theirs, q.method, q.path, q.header)
			if got.StatusCode != want.StatusCode {
				t.Errorf("status %s, stock %s", got.Status, want.Status)
			}
			for _, h := range []string{"X-Tailscale-Response", "Access-Control-Allow-Origin"} {
				if got.Header.Get(h) != want.Header.Get(h) {
					t.Errorf("%s: %q, stock %q", h, got.Header.Get(h), want.Header.Get(h))
				}
			}
		})
	}
}

// ask makes one request and returns the answer's head.
func ask(t *testing.T, p place, method, path string, header http.Header) *http.Response {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, p.url+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	for name, values := range header {
		req.Header[name] = values
	}
	transport := p.transport()
	defer transport.CloseIdleConnections()
	resp, err := transport.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	return resp
}
