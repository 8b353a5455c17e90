package node

import (
	"bytes"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"culvert.dev/culvert/internal/control"
	"culvert.dev/culvert/internal/control/openmetrics"
	"culvert.dev/culvert/internal/wgkey"
	"culvert.dev/culvert/tunnel"
)

func TestLinkWatch(t *testing.T) {
	began := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	at := func(s int) time.Time { return began.Add(time.Duration(s) * time.Second) }
	var never time.Time
	type step struct {
		now       int
		handshake time.Time
		sent      uint64
		want      linkState
	}
	for _, c := range []struct {
		name  string
		steps []step
	}{
		{"nobody wants it", []step{{0, never, 0, linkIdle}, {500, never, 0, linkIdle}}},
		{"it comes up while packets wait", []step{{0, never, 1, linkTrying}, {9, never, 5, linkTrying}, {10, at(10), 5, linkUp}}},
		{"it never comes up, then does", []step{{0, never, 1, linkTrying}, {10, never, 1, linkDown}, {300, never, 1, linkDown}, {301, at(301), 2, linkUp}}},
		{"it dies under traffic", []step{{0, at(0), 1, linkUp}, {179, at(0), 50, linkUp}, {180, at(0), 51, linkTrying}, {190, at(0), 51, linkDown}}},
		{"it rests, and is wanted again", []step{{179, at(0), 9, linkUp}, {180, at(0), 9, linkIdle}, {4000, at(0), 9, linkIdle}, {4001, at(0), 10, linkTrying}, {4002, at(4002), 10, linkUp}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			var w linkWatch
			for _, s := range c.steps {
				if got := w.step(s.handshake, s.sent, at(s.now)); got != s.want {
					t.Errorf("after %d s: %v, want %v", s.now, got, s.want)
				}
			}
		})
	}
}

// upstreamFile writes the wg-quick file of a tunnel to hub.
func (s side) upstreamFile(t *testing.T, key wgkey.Private, hub side, more string) {
	t.Helper()
	text := fmt.Sprintf("[Interface]\nPrivateKey = %s\nAddress = 10.64.9.2/32\nDNS = 10.64.9.1\n%s"+
		"[Peer]\nPublicKey = %s\nAllowedIPs = 0.0.0.0/0\nEndpoint = 127.0.0.1:%d\nPersistentKeepalive = 1\n", key.Reveal(), more, hub.key.Public(), hub.port)
	if err := os.WriteFile(filepath.Join(s.dir, "hub.conf"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestUpstreamComesUpAndIsReloaded(t *testing.T) {
	a, hub, device := newSide(t, "100.70.5.1"), newSide(t, "100.70.5.2"), newSide(t, "100.70.5.3")
	key, err := wgkey.NewPrivate()
	if err != nil {
		t.Fatal(err)
	}
	const section = "\n[Upstream]\nFile = hub.conf\n"
	phone := fmt.Sprintf("[Peer]\nName = phone\nPublicKey = %s\nAllowedIPs = %s/32\nAllowRouting = yes\n", device.key.Public(), device.addr)
	a.upstreamFile(t, key, hub, "")
	n := start(t, a.write(t, phone, section), "")

	s := n.Status().Upstream
	if s == nil || s.State == "up" || s.ListenPort == tunnel.PortOf(key.Public()) || s.Users[0] != "phone" || s.Addresses[0] != netip.MustParseAddr("10.64.9.2") || s.PublicKey != key.Public() {
		t.Fatalf("status before the hub is there: %+v", s)
	}
	if err := n.Health(); err == nil || !strings.Contains(err.Error(), "upstream: ") {
		t.Errorf("health before the hub is there: %v", err)
	}
	if r := n.dnsRoute(netip.MustParseAddr(device.addr)); r == nil || r != n.upstream.Load().names {
		t.Error("the phone's names are not asked through the upstream")
	}
	start(t, hub.write(t, fmt.Sprintf("[Peer]\nPublicKey = %s\nAllowedIPs = 10.64.9.2/32\n", key.Public())), "")
	eventually(t, "the upstream is up", func() bool { return n.Status().Upstream.State == "up" })
	if err := n.Health(); err != nil {
		t.Errorf("health with the hub: %v", err)
	}
	var text bytes.Buffer
	n.Status().WriteText(&text, time.Now())
	if out := text.String(); !strings.Contains(out, "upstream") || !strings.Contains(out, "10.64.9.2") || !strings.Contains(out, fmt.Sprintf("127.0.0.1:%d", hub.port)) {
		t.Errorf("status says\n%s", out)
	}
	var metrics bytes.Buffer
	control.WriteMetrics(&metrics, source{n}.Metrics())
	for _, want := range []string{`culvert_upstream_state{state="up"} 1`, `culvert_upstream_state{state="down"} 0`, fmt.Sprintf(`culvert_upstream_receive_bytes_total{endpoint="127.0.0.1:%d"} `, hub.port)} {
		if !strings.Contains(metrics.String(), want) {
			t.Errorf("the metrics have no %s:\n%s", want, &metrics)
		}
	}
	if _, err := openmetrics.Parse(metrics.Bytes()); err != nil {
		t.Error(err)
	}

	was := n.upstream.Load()
	reload := func() {
		t.Helper()
		if err := n.Reload(); err != nil {
			t.Fatal(err)
		}
	}
	a.upstreamFile(t, key, hub, "# another comment\n")
	reload()
	if n.upstream.Load() != was {
		t.Error("the tunnel was restarted, though nothing of it changed")
	}
	a.write(t, phone, section+"DNS = 10.64.9.9\n")
	reload()
	if now := n.upstream.Load(); now != was || (*now.servers.Load())[0].String() != "10.64.9.9:53" {
		t.Error("another resolver needs another tunnel, or is not taken over")
	}
	a.upstreamFile(t, key, hub, "MTU = 1300\n")
	reload()
	if now := n.upstream.Load(); now == was || now.conf.Own.MTU != 1300 {
		t.Error("the tunnel is the old one")
	}
	eventually(t, "the changed upstream is up", func() bool { return n.Status().Upstream.State == "up" })

	was = n.upstream.Load()
	a.upstreamFile(t, key, hub, "MTU = 13\n")
	if err := n.Reload(); err == nil || !strings.Contains(err.Error(), "hub.conf:5: MTU") || n.upstream.Load() != was {
		t.Errorf("a faulty file: %v", err)
	}
	a.write(t, phone)
	reload()
	if n.upstream.Load() != nil || n.Status().Upstream != nil || n.dnsRoute(netip.MustParseAddr(device.addr)) != nil {
		t.Error("the upstream is left")
	}
}

// A port that is taken does not stop the node, nor open another way.
func TestUpstreamWithoutAPort(t *testing.T) {
	a, hub, device := newSide(t, "100.70.6.1"), newSide(t, "100.70.6.2"), newSide(t, "100.70.6.3")
	key, err := wgkey.NewPrivate()
	if err != nil {
		t.Fatal(err)
	}
	a.upstreamFile(t, key, hub, fmt.Sprintf("ListenPort = %d\n", hub.port))
	hubNode := start(t, hub.write(t), "")
	n := start(t, a.write(t, fmt.Sprintf("[Peer]\nName = phone\nPublicKey = %s\nAllowedIPs = %s/32\nAllowRouting = yes\n", device.key.Public(), device.addr),
		"\n[Upstream]\nFile = hub.conf\n"), "")
	if err := n.Health(); err == nil || !strings.Contains(err.Error(), fmt.Sprintf("UDP port %d", hub.port)) {
		t.Errorf("health: %v", err)
	}
	hubNode.Close()
	eventually(t, "the port is taken once it is free", func() bool { return n.Status().Upstream.ListenPort == uint16(hub.port) })
}
