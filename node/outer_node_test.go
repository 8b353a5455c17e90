package node

import (
	"bytes"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"culvert.dev/culvert/internal/control"
	"culvert.dev/culvert/internal/control/openmetrics"
	"culvert.dev/culvert/internal/hostnet"
	"culvert.dev/culvert/internal/wgkey"
	"culvert.dev/culvert/traversal/stun"
	"culvert.dev/culvert/traversal/wgstun"
	"culvert.dev/culvert/tunnel"
)

// startSTUN runs a STUN server on loopback and returns where.
func startSTUN(t *testing.T) string {
	t.Helper()
	s, err := stun.Listen(stun.ServerConfig{Addrs: []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:0")}})
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan struct{})
	go func() {
		defer close(served)
		s.Serve()
	}()
	t.Cleanup(func() {
		s.Close()
		<-served
	})
	return s.Addrs()[0].String()
}

// startWGSTUN runs a WG-STUN server on loopback that knows one client, and returns the section for it.
func startWGSTUN(t *testing.T, client wgkey.Public) (section string) {
	t.Helper()
	key, err := wgkey.NewPrivate()
	if err != nil {
		t.Fatal(err)
	}
	w, err := tunnel.New(wgstun.NewResponder(wgstun.ResponderConfig{Origin: tunnel.Origin}), tunnel.Config{
		PrivateKey: key, AnyPort: true, Stamp: true,
		Peers: []tunnel.Peer{{PublicKey: client, AllowedIPs: []netip.Prefix{netip.PrefixFrom(wgstun.AddressOf(client), 128)}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.Close() })
	if err := w.Start(); err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("[WGSTUN]\nPublicKey = %s\nEndpoint = 127.0.0.1:%d\n", key.Public(), w.ListenPort())
}

// A node learns by STUN, and inside a tunnel, where its WireGuard port is seen; the servers follow the configuration.
func TestNodeLearnsItsOuterEndpoint(t *testing.T) {
	a, b := newSide(t, "100.72.1.1"), newSide(t, "100.72.1.2")
	server, service := startSTUN(t), startWGSTUN(t, a.key.Public())
	bob := b.asPeer("bob", "")
	n := start(t, a.write(t, bob, "[STUN]\nServer = "+server+"\n", service), "")
	start(t, b.write(t, a.asPeer("alice", "")), "")

	seen := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), uint16(a.port))
	eventually(t, "both servers have answered", func() bool {
		o := n.Status().Outer
		return len(o) == 2 && o[0].Endpoint == seen && o[1].Endpoint == seen
	})
	o := n.Status().Outer
	if o[0].Source != "stun "+server || o[1].Source != "wg-stun" || o[0].RTT <= 0 || o[1].RTT <= 0 {
		t.Errorf("got %+v", o)
	}
	if s := n.Status(); len(s.Peers) != 1 || len(s.Drops) != 0 {
		t.Errorf("the WG-STUN server is taken for a peer, or its answers for traffic: %+v", s)
	}
	eventually(t, "bob reached beside it", func() bool { return n.Health() == nil })
	var text, metrics bytes.Buffer
	n.Status().WriteText(&text, time.Now())
	control.WriteMetrics(&metrics, source{n}.Metrics())
	if _, err := openmetrics.Parse(metrics.Bytes()); err != nil {
		t.Error(err)
	}
	for _, want := range []string{`culvert_outer_known{source="wg-stun"} 1`, fmt.Sprintf(`culvert_outer_rtt_seconds{source="stun %s"} `, server)} {
		if !strings.Contains(metrics.String(), want) {
			t.Errorf("the metrics have no %s:\n%s", want, &metrics)
		}
	}
	if !strings.Contains(text.String(), "wg-stun") || !strings.Contains(text.String(), seen.String()) {
		t.Errorf("status says\n%s", &text)
	}

	a.write(t, bob)
	if err := n.Reload(); err != nil || len(n.Status().Outer) != 0 {
		t.Errorf("reload without servers: %v, %+v", err, n.Status().Outer)
	}
	a.write(t, bob, service)
	if err := n.Reload(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the WG-STUN server has answered again", func() bool {
		o := n.Status().Outer
		return len(o) == 1 && o[0].Endpoint == seen
	})
	before := time.Now()
	host, err := hostnet.Read()
	if err != nil {
		t.Fatal(err)
	}
	n.hostChanged(host)
	eventually(t, "a change of the network has it asked again", func() bool { return n.Status().Outer[0].Checked.After(before) })
}
