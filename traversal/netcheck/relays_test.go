package netcheck

import (
	"errors"
	"io"
	"log"
	"net"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"

	"culvert.dev/culvert/internal/hostnet"
	"culvert.dev/culvert/internal/wgkey"
	"culvert.dev/culvert/traversal/relay"
	"culvert.dev/culvert/traversal/relay/relayserver"
)

// newRelay starts a relay on loopback that admits who is not refused, and returns its URL.
func newRelay(t *testing.T, admit func(wgkey.Public) error) string {
	t.Helper()
	s, err := relayserver.New(relayserver.Config{Key: newKey(t), Admit: func(key wgkey.Public, _ netip.Addr) error { return admit(key) }})
	if err != nil {
		t.Fatal(err)
	}
	web := httptest.NewUnstartedServer(s.Handler())
	web.Config.ErrorLog = log.New(io.Discard, "", 0)
	web.Start()
	t.Cleanup(func() {
		web.CloseClientConnections()
		s.Close()
		web.Close()
	})
	return web.URL
}

func newKey(t *testing.T) wgkey.Private {
	t.Helper()
	key, err := wgkey.NewPrivate()
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// TestRelays has one that admits, one that refuses, one that is down and one that is none, over real connections.
func TestRelays(t *testing.T) {
	key := newKey(t)
	admits := newRelay(t, func(k wgkey.Public) error {
		if k != key.Public() {
			return errors.New("not on the list")
		}
		return nil
	})
	refuses := newRelay(t, func(wgkey.Public) error { return errors.New("not on the list") })
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	down := "http://" + l.Addr().String()
	l.Close()
	none := httptest.NewServer(nil)
	defer none.Close()

	cfg := Config{NoPortMapping: true, Host: func() (hostnet.Snapshot, error) { return hostnet.Snapshot{}, nil }}
	for _, url := range []string{admits, refuses, down, none.URL} {
		cfg.Relays = append(cfg.Relays, relay.Server{URL: url, Proxy: "none"})
	}
	cfg.Key = key
	rep, err := Run(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []Relay{{Connected: true}, {Refused: true}, {}, {}} {
		got := rep.Relays[i]
		if got.Connected != want.Connected || got.Refused != want.Refused || got.Throwaway || got.URL != cfg.Relays[i].URL {
			t.Errorf("relay %d: %+v", i, got)
		}
		if got.Connected != (got.RTT > 0) || got.Connected == (got.Err != "") || strings.Contains(got.Err, got.URL) {
			t.Errorf("relay %d: %+v", i, got)
		}
	}
	text := string(rep.AppendText(nil))
	for _, want := range []string{admits + " is reached, round trip", refuses + " is reached, but does not admit this node's key", down + " is not reached: connect"} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}

	cfg.Key, cfg.Relays = wgkey.Private{}, cfg.Relays[:1]
	if rep, err = Run(t.Context(), cfg); err != nil || !rep.Relays[0].Refused || !rep.Relays[0].Throwaway {
		t.Errorf("with a key of its own: %+v, %v", rep, err)
	}
	if text := string(rep.AppendText(nil)); !strings.Contains(text, "does not admit the key that was made for this test") {
		t.Errorf("text:\n%s", text)
	}
}

func TestBesidesARunningNode(t *testing.T) {
	rep, err := Run(t.Context(), Config{NoPortMapping: true, OtherRelays: true, Host: func() (hostnet.Snapshot, error) { return hostnet.Snapshot{}, nil }})
	if err != nil {
		t.Fatal(err)
	}
	rep.Besides([]Relay{{URL: "https://relay.example", Connected: true, RTT: 12.3, FromNode: true}}, 51820)
	text := string(rep.AppendText(nil))
	if !strings.Contains(text, "https://relay.example is connected to the running node, round trip 12.3 ms") || !strings.Contains(text, "a node runs here on UDP port 51820") ||
		strings.Contains(text, "--relay URL") {
		t.Errorf("text:\n%s", text)
	}
}
