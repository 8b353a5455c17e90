package attach

import (
	"bytes"
	"encoding/json"
	"flag"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.zx2c4.com/wireguard/conn"
	wireguard "golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tun/tuntest"

	"culvert.dev/culvert/internal/config"
	"culvert.dev/culvert/internal/control"
	"culvert.dev/culvert/internal/control/openmetrics"
	"culvert.dev/culvert/internal/wgkey"
	"culvert.dev/culvert/internal/wguapi"
)

var update = flag.Bool("update", false, "write testdata anew")

// stockDevice runs stock wireguard-go on loopback sockets, without an interface, and returns its socket.
func stockDevice(t *testing.T, setup string) string {
	t.Helper()
	d := wireguard.NewDevice(tuntest.NewChannelTUN().TUN(), conn.NewDefaultBind(), wireguard.NewLogger(wireguard.LogLevelSilent, ""))
	t.Cleanup(d.Close)
	if err := d.IpcSet(setup); err != nil {
		t.Fatal(err)
	}
	if err := d.Up(); err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "attach") // short enough for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	l, err := net.Listen("unix", filepath.Join(dir, "wg.sock"))
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	t.Cleanup(func() { l.Close(); <-done })
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go d.IpcHandle(c)
		}
	}()
	return l.Addr().String()
}

// attachTo attaches to a device whose relay is nowhere.
func attachTo(t *testing.T, uapi string) *Attachment {
	t.Helper()
	a, err := Start(t.Context(), Config{
		Interface: "culvert-none", UAPI: uapi, Socket: filepath.Join(filepath.Dir(uapi), "c.sock"), Version: "test",
		Relays:    []config.Relay{{URL: "http://127.0.0.1:1", Proxy: config.ProxyNone, WebSocket: config.WebSocketNo}},
		Traversal: config.Traversal{Direct: true},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Close() })
	return a
}

func endpointOf(t *testing.T, uapi string, key wgkey.Public) netip.AddrPort {
	t.Helper()
	d, err := wguapi.NewClient(uapi).Get(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range d.Peers {
		if p.PublicKey == key {
			return p.Endpoint
		}
	}
	t.Fatalf("the device has no peer %s", key.Short())
	return netip.AddrPort{}
}

func TestAttachToStockDevice(t *testing.T) {
	key, lost, known := newKey(t), newKey(t).Public(), newKey(t).Public()
	uapi := stockDevice(t, "private_key="+key.RevealHex()+"\npublic_key="+lost.Hex()+"\nallowed_ip=10.0.0.2/32\npublic_key="+known.Hex()+
		"\nendpoint=192.0.2.7:51820\nallowed_ip=10.0.0.3/32\n")
	a := attachTo(t, uapi)
	if a.PublicKey() != key.Public() {
		t.Errorf("attached as %s", a.PublicKey().Short())
	}
	if e := endpointOf(t, uapi, lost); !e.Addr().IsLoopback() {
		t.Errorf("a peer without endpoint is at %v, want a port for the relay", e)
	}
	if e := endpointOf(t, uapi, known); e != endpoint("192.0.2.7:51820") {
		t.Errorf("a peer that may know no relay is at %v", e)
	}

	client := control.NewClient(a.cfg.Socket)
	var s Status
	if err := client.Status(t.Context(), &s); err != nil {
		t.Fatal(err)
	}
	if len(s.Peers) != 2 || s.ListenPort == 0 || s.CheckPort == 0 || s.Fault != "" || len(s.Relays) != 1 {
		t.Errorf("status: %+v", s)
	}
	if err := client.Health(t.Context()); err == nil || !strings.Contains(err.Error(), "no relay is connected") {
		t.Errorf("health: %v", err)
	}
	if err := client.Reload(t.Context()); err == nil || !strings.Contains(err.Error(), "by itself") {
		t.Errorf("reload: %v", err)
	}
	var b bytes.Buffer
	if err := control.WriteMetrics(&b, source{a}.Metrics()); err != nil {
		t.Fatal(err)
	}
	if _, err := openmetrics.Parse(b.Bytes()); err != nil {
		t.Errorf("metrics: %v\n%s", err, b.String())
	}
	if strings.Contains(b.String(), key.Reveal()) {
		t.Error("the metrics have the private key")
	}

	// Another one on the same device is refused before it changes anything.
	_, err := Start(t.Context(), Config{Interface: "culvert-none", UAPI: uapi, Socket: a.cfg.Socket, Relays: a.cfg.Relays})
	if err == nil {
		t.Error("attached twice")
	}
	at := endpointOf(t, uapi, lost)
	a.Close()
	if e := endpointOf(t, uapi, lost); e != at {
		t.Errorf("a peer that never had an endpoint was moved from %v to %v", at, e)
	}

	again := attachTo(t, uapi)
	if e := endpointOf(t, uapi, lost); e != at {
		t.Errorf("the next run moved it from %v to %v", at, e)
	}
	again.Close()
	if again.Err() != nil {
		t.Errorf("ended by itself: %v", again.Err())
	}
}

func TestAttachEndsWithItsKey(t *testing.T) {
	uapi := stockDevice(t, "private_key="+newKey(t).RevealHex()+"\n")
	a := attachTo(t, uapi)
	c, err := net.Dial("unix", uapi)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Write([]byte("set=1\nprivate_key=" + newKey(t).RevealHex() + "\n\n")); err != nil {
		t.Fatal(err)
	}
	wait(t, a.Done(), "the end of an attachment whose device has another key")
	if err := a.Err(); err == nil || !strings.Contains(err.Error(), "private key of the device has changed") {
		t.Errorf("got %v", err)
	}
}

func TestAttachRefuses(t *testing.T) {
	relays := []config.Relay{{URL: "http://127.0.0.1:1", WebSocket: config.WebSocketNo}}
	for _, c := range []struct {
		name string
		cfg  Config
		want string
	}{
		{"no interface", Config{Relays: relays}, "no interface is named"},
		{"no relay", Config{Interface: "wg7"}, "no relay is named"},
		{"no device", Config{Interface: "culvert-none", Relays: relays}, "culvert-none.sock"},
		{"no key", Config{Interface: "culvert-none", UAPI: stockDevice(t, ""), Relays: relays}, "no private key yet"},
		{"bad relay", Config{
			Interface: "culvert-none", UAPI: stockDevice(t, "private_key="+newKey(t).RevealHex()+"\n"),
			Relays: []config.Relay{{URL: "ftp://x", WebSocket: config.WebSocketNo}},
		}, "--relay: "},
	} {
		t.Run(c.name, func(t *testing.T) {
			a, err := Start(t.Context(), c.cfg)
			if err == nil {
				a.Close()
			}
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %q", err, c.want)
			}
		})
	}
}

// sampleStatus has every field.
func sampleStatus(now time.Time) Status {
	key := wgkey.Public{1, 2, 3}
	return Status{
		Interface: "wg0", PublicKey: wgkey.Public{9}, ListenPort: 51820, CheckPort: 40000, UptimeS: 3700, Version: "v1.2.3", Fault: "no answer",
		Peers: []PeerStatus{
			{
				PublicKey: key, Addresses: []netip.Prefix{netip.MustParsePrefix("10.0.0.2/32"), netip.MustParsePrefix("10.1.0.0/16")},
				Path:          PathStatus{Kind: pathDirect, Endpoint: "203.0.113.7:51820", RTT: 12.345, Since: now.Add(-time.Minute), Reason: "checks and WireGuard agree: host to reflexive"},
				LastHandshake: now.Add(-5 * time.Second), RxBytes: 1536, TxBytes: 10, KeepaliveS: 25, RelayPort: endpoint("127.0.0.1:9999"), RelayRx: 3, RelayTx: 4, RelayLost: 1,
				Traversal: &TraversalStatus{
					Phase: "direct", Mode: "route", Local: "host", Remote: "reflexive", Check: "203.0.113.7:40001", RTT: 12.345, Since: now.Add(-time.Minute), DirectAfter: 800,
					Pairs: 4, Valid: 1, Upgrades: 1, Fallbacks: 0, NextTry: now.Add(time.Minute), ClockAhead: 70,
					Bans: []BanStatus{{endpoint("203.0.113.8:1"), now.Add(time.Second), "WireGuard does not get through"}},
				},
			},
			{PublicKey: wgkey.Public{4}, Addresses: []netip.Prefix{}, Path: PathStatus{Kind: pathNone, Reason: "the peer is not at the relay"}},
		},
		Relays: []RelayStatus{{URL: "https://relay.example", State: "connected", Connected: true, Home: true, RTT: 20, Since: now.Add(-time.Hour), Reconnects: 2, RxBytes: 5, TxBytes: 6, Drops: 7, Err: "x"}},
		Outer: []OuterStatus{
			{Source: "stun relay.example:3478", Endpoint: endpoint("198.51.100.1:40000"), RTT: 20.5, Since: now.Add(-time.Hour), Checked: now.Add(-3 * time.Second)},
			{Source: "wg-stun", Err: "requests to it do not reach the tunnel:\nip -6 route add fd74:656c:696f::4/128 dev wg0"},
		},
		Candidates: []Candidate{{"reflexive", endpoint("198.51.100.1:51820"), endpoint("198.51.100.1:40000"), "wg-stun"}},
		Drops:      DropStatus{1, 2, 3},
	}
}

func TestStatusForms(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	var text bytes.Buffer
	if err := sampleStatus(now).WriteText(&text, now); err != nil {
		t.Fatal(err)
	}
	document, err := json.MarshalIndent(sampleStatus(now), "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	for name, got := range map[string][]byte{"status.txt": text.Bytes(), "status.json": append(document, '\n')} {
		file := filepath.Join("testdata", name)
		if *update {
			if err := os.WriteFile(file, got, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, want) {
			t.Errorf("%s:\n%s\nwant:\n%s", name, got, want)
		}
	}
}
