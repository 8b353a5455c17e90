//go:build linux

package lab_test

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"culvert.dev/culvert/internal/lab"
	"culvert.dev/culvert/internal/wgkey"
	"culvert.dev/culvert/traversal/wgstun"
)

// attached is stock wireguard-go with a culvert that looks after it.
type attached struct {
	*lab.Process // the culvert
	wg           *lab.Stock
	node         *lab.Node
	tb           testing.TB // it lives as long as this
	dir, conf    string
}

const attachRelay = "[STUN]\nListen = 198.18.3.2:3478\nListen = 198.18.3.3:3478\n[WGSTUN]\nListen = :3479\n"

// attach runs stock wireguard-go without any endpoint in a node, and a culvert that finds one.
func (w *relayWorld) attach(t *testing.T, node *lab.Node, key wgkey.Private, mesh string, peer wgkey.Public, peerMesh, conf string) *attached {
	t.Helper()
	a := &attached{node: node, tb: t, dir: t.TempDir()}
	inner := wgstun.AddressOf(key.Public()).String()
	a.wg = node.Stock(t, lab.Tunnel{
		Key: key, Addrs: []string{mesh + "/32", inner + "/128"},
		Peers: []lab.TunnelPeer{{Key: peer, AllowedIPs: peerMesh + "/32"}},
	})
	for _, server := range []string{"100.64.0.4/32", "fd74:656c:696f::4/128"} { // the operator's part
		node.Route(server, a.wg.Dev)
	}
	a.conf = filepath.Join(a.dir, "attach.conf")
	if err := os.WriteFile(a.conf, []byte(conf+"[Traversal]\nPortMapping = no\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	a.start(t)
	return a
}

// start runs the culvert, again if it has ended.
func (a *attached) start(t *testing.T) {
	t.Helper()
	a.Process = a.node.Start(a.tb, nil, lab.Culvert.Path(), "attach", "--interface", a.wg.Dev, "-c", a.conf, "--socket", filepath.Join(a.dir, "s"), "--log-level", "debug")
	lab.WaitFor(t, 20*time.Second, "culvert attach to answer", func() bool {
		if !a.Alive() {
			t.Fatalf("culvert attach ended at once:\n%s", a.Log())
		}
		_, err := a.command("status")
		return err == nil
	})
	a.tb.Cleanup(func() {
		if a.tb.Failed() && a.Alive() {
			out, err := a.command("status")
			a.tb.Logf("status in %s: %v\n%s", a.node.Name, err, out)
		}
	})
}

func (a *attached) command(args ...string) (string, error) {
	return a.node.Exec("", lab.Culvert.Path(), append([]string{"attach"}, append(args, "--socket", filepath.Join(a.dir, "s"))...)...)
}

// attachStatus is the part of the status that cases look at.
type attachStatus struct {
	Peers []struct {
		Path      path `json:"path"`
		RelayRx   int  `json:"relay_rx_packets"`
		Traversal struct {
			Phase       string  `json:"phase"`
			Upgrades    int     `json:"upgrades"`
			DirectAfter float64 `json:"direct_after_ms"`
		} `json:"traversal"`
	} `json:"peers"`
	Outer []struct {
		Source   string `json:"source"`
		Endpoint string `json:"endpoint"`
		Err      string `json:"error"`
	} `json:"outer"`
}

func (a *attached) status(t testing.TB) (s attachStatus) {
	t.Helper()
	out, err := a.command("status", "--json")
	if err == nil {
		err = json.Unmarshal([]byte(out), &s)
	}
	if err != nil || len(s.Peers) != 1 {
		t.Fatalf("status: %v\n%s", err, out)
	}
	return s
}

// endpoint is where WireGuard itself sends to a peer.
func (a *attached) endpoint(t testing.TB, peer wgkey.Public) string {
	t.Helper()
	for line := range strings.Lines(a.node.Run(t, "wg", "show", a.wg.Dev, "endpoints")) {
		if f := strings.Fields(line); len(f) == 2 && f[0] == peer.String() {
			return f[1]
		}
	}
	return ""
}

// isDirect reports whether the peer is reached directly, and that is no trial any more.
func (a *attached) isDirect(t testing.TB) bool {
	p := a.status(t).Peers[0]
	return p.Path.Kind == "direct" && p.Traversal.Phase == "direct"
}

// losses sends echo requests for a while and returns how many had no answer.
func losses(t *testing.T, from *lab.Node, to string, count int) int {
	t.Helper()
	out, _ := from.Exec("", "ping", "-n", "-c", fmt.Sprint(count), "-i", "0.05", "-W", "1", to)
	return count - len(pingStat.FindAllString(out, -1))
}

func TestAttachBothEnds(t *testing.T) {
	t.Parallel()
	lab.Need(t, "wg", "ping")
	productOnly(t, "attach is the product's")
	w := newRelayWorld(t)
	relay := w.v1.StartRelay(t, w.relayConf(relay1, attachRelay))
	conf := clientLines(t, relay, "Relay", "STUN", "WGSTUN")
	began := time.Now()
	a := w.attach(t, w.a, w.aKey, meshA, w.bKey.Public(), meshB, conf)
	if e := a.endpoint(t, w.bKey.Public()); !strings.HasPrefix(e, "127.") {
		t.Errorf("at first the endpoint is %s, want a port for the relay", e)
	}
	b := w.attach(t, w.b, w.bKey, meshB, w.aKey.Public(), meshA, conf)
	lab.WaitFor(t, 20*time.Second, "an echo", func() bool { return echoes(w.a, meshB) })
	t.Logf("first echo after %v", time.Since(began).Round(time.Millisecond))
	stop := pingingFrom(t, w.a, meshB)
	lab.WaitFor(t, 30*time.Second, "both ends to be direct", func() bool { return a.isDirect(t) && b.isDirect(t) })
	direct := time.Since(began)
	longest, lost := stop()
	s := a.status(t)
	t.Logf("direct after %v (of the machine %.0f ms); longest gap %v, %d echoes lost", direct.Round(time.Millisecond), s.Peers[0].Traversal.DirectAfter, longest, lost)
	for _, o := range s.Outer {
		if !strings.HasPrefix(o.Endpoint, "198.18.1.2:") {
			t.Errorf("%s sees %q (%s), want the router's address", o.Source, o.Endpoint, o.Err)
		}
	}
	if e := a.endpoint(t, w.bKey.Public()); !strings.HasPrefix(e, "198.18.2.2:") {
		t.Errorf("a sends to %s, want b's router", e)
	}
	if e := b.endpoint(t, w.aKey.Public()); !strings.HasPrefix(e, "198.18.1.2:") {
		t.Errorf("b sends to %s, want a's router", e)
	}

	relay.Crash()
	if n := losses(t, w.a, meshB, 60); n > 0 {
		t.Errorf("with all relays cut %d of 60 echoes are lost", n)
	}
	t.Run("killed, the tunnel goes on", func(t *testing.T) {
		a.Kill()
		b.Kill()
		if n := losses(t, w.a, meshB, 60); n > 0 {
			t.Errorf("%d of 60 echoes are lost", n)
		}
	})
	t.Run("started again, it leaves the path alone", func(t *testing.T) {
		relay.Start(t)
		before := a.endpoint(t, w.bKey.Public())
		a.start(t)
		b.start(t)
		if n := losses(t, w.a, meshB, 100); n > 0 {
			t.Errorf("%d of 100 echoes are lost", n)
		}
		if after := a.endpoint(t, w.bKey.Public()); after != before {
			t.Errorf("the endpoint was %s and is %s", before, after)
		}
	})
	t.Run("one end ends, and the other stays direct", func(t *testing.T) {
		lab.WaitFor(t, 10*time.Second, "both ends to be direct", func() bool { return a.isDirect(t) && b.isDirect(t) })
		if err := a.Stop(5 * time.Second); err != nil {
			t.Error(err)
		}
		if n := losses(t, w.b, meshA, 60); n > 0 {
			t.Errorf("%d of 60 echoes are lost", n)
		}
		a.start(t)
		if n := losses(t, w.b, meshA, 60); n > 0 {
			t.Errorf("started again: %d of 60 echoes are lost", n)
		}
	})
	t.Run("ended, it leaves the device in order", func(t *testing.T) {
		for _, x := range []*attached{a, b} {
			if err := x.Stop(5 * time.Second); err != nil {
				t.Error(err)
			}
		}
		if n := losses(t, w.a, meshB, 40); n > 0 {
			t.Errorf("%d of 40 echoes are lost", n)
		}
	})
}

// pingingFrom sends echo requests every 20 ms until stop, which returns the longest time without an answer and how many were lost.
func pingingFrom(t *testing.T, from *lab.Node, to string) (stop func() (longest time.Duration, lost int)) {
	t.Helper()
	const every = 20 * time.Millisecond
	p := from.Start(t, nil, "ping", "-n", "-i", "0.02", to)
	lab.WaitFor(t, 10*time.Second, "the first answers", func() bool { return len(pingStat.FindAllString(p.Log(), -1)) > 5 })
	return func() (longest time.Duration, lost int) {
		p.Kill()
		last := 0
		for _, m := range pingStat.FindAllStringSubmatch(p.Log(), -1) {
			var n int
			fmt.Sscan(m[1], &n)
			if last > 0 && n > last {
				longest = max(longest, time.Duration(n-last)*every)
				lost += n - last - 1
			}
			last = max(last, n)
		}
		return longest, lost
	}
}

// TestAttachFallsBack begins where no UDP passes, lets a direct path come, cuts it under traffic, and lets it come back.
func TestAttachFallsBack(t *testing.T) {
	t.Parallel()
	lab.Need(t, "wg", "ping", "nft", "iperf3")
	productOnly(t, "attach is the product's")
	w := newRelayWorld(t)
	relay := w.v1.StartRelay(t, w.relayConf(relay1, attachRelay))
	conf := clientLines(t, relay, "Relay", "STUN", "WGSTUN")
	unblock := func() {
		for _, r := range []*lab.Node{w.ra, w.rb} {
			r.Nft("delete table inet noudp")
		}
	}
	w.blockUDP()
	a := w.attach(t, w.a, w.aKey, meshA, w.bKey.Public(), meshB, conf)
	b := w.attach(t, w.b, w.bKey, meshB, w.aKey.Public(), meshA, conf)
	lab.WaitFor(t, 20*time.Second, "an echo by relay", func() bool { return echoes(w.a, meshB) })
	for _, x := range []*attached{a, b} {
		lab.WaitFor(t, 5*time.Second, "status to say so", func() bool {
			p := x.status(t).Peers[0]
			return p.Path.Kind == "relay" && p.RelayRx > 0
		})
	}
	iperfServer(t, w.b, 5201)
	t.Logf("by relay %.0f Mbit/s", iperf(t, w.a, meshB, 5201, 2))
	stop := pingingFrom(t, w.a, meshB)
	unblock()
	lab.WaitFor(t, 90*time.Second, "both ends to be direct", func() bool { return a.isDirect(t) && b.isDirect(t) })
	longest, lost := stop()
	t.Logf("from relayed to direct: longest gap %v, %d echoes lost", longest, lost)
	t.Logf("directly %.0f Mbit/s", iperf(t, w.a, meshB, 5201, 2))
	// A path that was good for half a minute is tried again as soon as it answers.
	if n := losses(t, w.a, meshB, 640); n > 0 {
		t.Errorf("%d of 640 echoes by the direct path are lost", n)
	}
	stop = pingingFrom(t, w.a, meshB)
	w.blockUDP()
	lab.WaitFor(t, 20*time.Second, "both ends to be relayed", func() bool {
		return a.status(t).Peers[0].Path.Kind == "relay" && b.status(t).Peers[0].Path.Kind == "relay"
	})
	w.a.Run(t, "ping", "-n", "-c", "20", "-i", "0.05", "-W", "1", meshB)
	longest, lost = stop()
	t.Logf("cut: longest gap %v, %d echoes lost", longest, lost)
	if longest > 5*time.Second {
		t.Errorf("no echo for %v", longest)
	}
	unblock()
	stop = pingingFrom(t, w.a, meshB)
	lab.WaitFor(t, 90*time.Second, "both ends to be direct again", func() bool { return a.isDirect(t) && b.isDirect(t) })
	longest, lost = stop()
	t.Logf("back: longest gap %v, %d echoes lost", longest, lost)
}

// TestAttachAndNode has a stock WireGuard with attach on one end, and a node of culvert's own on the other.
func TestAttachAndNode(t *testing.T) {
	t.Parallel()
	lab.Need(t, "wg", "ping")
	productOnly(t, "attach is the product's")
	w := newRelayWorld(t)
	relay := w.v1.StartRelay(t, w.relayConf(relay1, attachRelay))
	conf := clientLines(t, relay, "Relay", "STUN", "WGSTUN")
	b := w.b.StartExit(t, lab.ExitCulvert, lab.ExitConfig{
		Key: w.bKey, Addrs: []string{meshB + "/32"}, Port: 40002, Extra: conf,
		Peers: []lab.ExitPeer{{Name: "a", Key: w.aKey.Public(), AllowedIPs: meshA + "/32"}},
	})
	a := w.attach(t, w.a, w.aKey, meshA, w.bKey.Public(), meshB, conf)
	lab.WaitFor(t, 20*time.Second, "an echo", func() bool { return echoes(w.a, meshB) })
	stop := pingingFrom(t, w.a, meshB)
	lab.WaitFor(t, 30*time.Second, "both ends to be direct", func() bool { return a.isDirect(t) && pathOf(t, b).Kind == "direct" })
	longest, lost := stop()
	t.Logf("longest gap %v, %d echoes lost", longest, lost)
	if e := a.endpoint(t, w.bKey.Public()); e != "198.18.2.2:40002" {
		t.Errorf("a sends to %s, want 198.18.2.2:40002", e)
	}
	relay.Crash()
	if n := losses(t, w.a, meshB, 60); n > 0 {
		t.Errorf("with all relays cut %d of 60 echoes are lost", n)
	}
}

// TestAttachRestores has a peer that stays relayed, since no UDP passes, and looks at what is left of the device in the end.
func TestAttachRestores(t *testing.T) {
	t.Parallel()
	lab.Need(t, "wg", "ping")
	productOnly(t, "attach is the product's")
	w := newRelayWorld(t)
	w.blockUDP()
	relay := w.v1.StartRelay(t, w.relayConf(relay1, attachRelay))
	conf := clientLines(t, relay, "Relay", "STUN", "WGSTUN")
	a := w.attach(t, w.a, w.aKey, meshA, w.bKey.Public(), meshB, conf)
	const before = "198.51.100.1:51820"
	w.b.IP("addr", "add", "198.51.100.9/24", "dev", "lo")
	b := w.attach(t, w.b, w.bKey, meshB, w.aKey.Public(), meshA, conf)
	lab.WaitFor(t, 20*time.Second, "an echo by relay", func() bool { return echoes(w.a, meshB) })
	if n := losses(t, w.a, meshB, 40); n > 0 {
		t.Errorf("by relay %d of 40 echoes are lost", n)
	}
	if s := a.status(t); s.Peers[0].Path.Kind != "relay" || s.Peers[0].Path.Reason == "" {
		t.Errorf("path %+v", s.Peers[0].Path)
	}
	for _, size := range []string{"0", "1392"} {
		w.a.Run(t, "ping", "-n", "-M", "do", "-c", "3", "-i", "0.05", "-W", "2", "-s", size, meshB)
	}

	t.Run("killed and started again, the relay is found again", func(t *testing.T) {
		port := a.endpoint(t, w.bKey.Public())
		a.Kill()
		a.start(t)
		lab.WaitFor(t, 10*time.Second, "an echo by relay", func() bool { return echoes(w.a, meshB) })
		if again := a.endpoint(t, w.bKey.Public()); again != port {
			t.Errorf("the port for the relay was %s and is %s", port, again)
		}
	})
	t.Run("ended, endpoint and peers are as before", func(t *testing.T) {
		w.b.Run(t, "wg", "set", b.wg.Dev, "peer", w.aKey.Public().String(), "endpoint", before)
		if err := b.Stop(5 * time.Second); err != nil {
			t.Error(err)
		}
		w.b.Run(t, "wg", "set", b.wg.Dev, "peer", w.aKey.Public().String(), "endpoint", before)
		b.start(t)
		lab.WaitFor(t, 20*time.Second, "an echo by relay", func() bool { return echoes(w.a, meshB) })
		if e := b.endpoint(t, w.aKey.Public()); !strings.HasPrefix(e, "127.") {
			t.Errorf("by relay, the endpoint is %s", e)
		}
		if err := b.Signal(syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		if err := b.Stop(5 * time.Second); err != nil {
			t.Error(err)
		}
		if e := b.endpoint(t, w.aKey.Public()); e != before {
			t.Errorf("the endpoint is %s, want %s", e, before)
		}
		peers := strings.Fields(w.b.Run(t, "wg", "show", b.wg.Dev, "peers"))
		if len(peers) != 1 {
			t.Errorf("peers: %v, want the one that was there", peers)
		}
	})
}

// TestAttachWithDefaultRoute has all of a host's traffic go into the tunnel, as wg-quick does it, but for what bears the device's mark:
// relays and checks must not.
func TestAttachWithDefaultRoute(t *testing.T) {
	t.Parallel()
	lab.Need(t, "wg", "ping", "ip")
	productOnly(t, "attach is the product's")
	w := newRelayWorld(t)
	relay := w.v1.StartRelay(t, w.relayConf(relay1, attachRelay))
	conf := clientLines(t, relay, "Relay", "STUN", "WGSTUN")
	b := w.attach(t, w.b, w.bKey, meshB, w.aKey.Public(), meshA, conf)
	a := &attached{node: w.a, tb: t, dir: t.TempDir()}
	a.wg = w.a.StockDevice(t)
	a.wg.Set(t, lab.Tunnel{Key: w.aKey, Peers: []lab.TunnelPeer{{Key: w.bKey.Public(), AllowedIPs: "0.0.0.0/0, ::/0"}}}.Conf())
	w.a.Run(t, "wg", "set", a.wg.Dev, "fwmark", "51820")
	w.a.Addr(a.wg.Dev, meshA+"/24")
	w.a.IP("link", "set", "dev", a.wg.Dev, "mtu", "1420", "up")
	w.a.IP("route", "add", "default", "dev", a.wg.Dev, "table", "51820")
	w.a.IP("rule", "add", "not", "fwmark", "51820", "table", "51820")
	w.a.IP("rule", "add", "table", "main", "suppress_prefixlength", "0")
	a.conf = filepath.Join(a.dir, "attach.conf")
	if err := os.WriteFile(a.conf, []byte(conf+"[Traversal]\nPortMapping = no\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	a.start(t)
	lab.WaitFor(t, 20*time.Second, "an echo", func() bool { return echoes(w.a, meshB) })
	stop := pingingFrom(t, w.a, meshB)
	lab.WaitFor(t, 40*time.Second, "both ends to be direct", func() bool { return a.isDirect(t) && b.isDirect(t) })
	stop()
	relay.Crash()
	if n := losses(t, w.a, meshB, 60); n > 0 {
		t.Errorf("with all relays cut %d of 60 echoes are lost", n)
	}
}

// TestAttachSaysWhatIsMissing has the host lack the address and the route that the WG-STUN server needs.
func TestAttachSaysWhatIsMissing(t *testing.T) {
	t.Parallel()
	lab.Need(t, "wg", "ip")
	productOnly(t, "attach is the product's")
	w := newRelayWorld(t)
	relay := w.v1.StartRelay(t, w.relayConf(relay1, attachRelay))
	conf := clientLines(t, relay, "Relay", "STUN", "WGSTUN")
	a := &attached{node: w.a, tb: t, dir: t.TempDir()}
	a.wg = w.a.Stock(t, lab.Tunnel{Key: w.aKey, Peers: []lab.TunnelPeer{{Key: w.bKey.Public(), AllowedIPs: meshB + "/32"}}})
	a.conf = filepath.Join(a.dir, "attach.conf")
	if err := os.WriteFile(a.conf, []byte(conf), 0o600); err != nil {
		t.Fatal(err)
	}
	a.start(t)
	command := regexp.MustCompile(`ip -6 (address|route) add \S+ dev ` + a.wg.Dev)
	var lines []string
	lab.WaitFor(t, 10*time.Second, "the commands that are needed", func() bool {
		out, _ := a.command("status")
		lines = command.FindAllString(out, -1)
		return len(lines) > 1
	})
	for _, line := range lines {
		f := strings.Fields(line)
		w.a.Run(t, f[0], f[1:]...)
	}
	lab.WaitFor(t, 40*time.Second, "WireGuard's own mapping", func() bool {
		for _, o := range a.status(t).Outer {
			if o.Source == "wg-stun" && strings.HasPrefix(o.Endpoint, "198.18.1.2:") {
				return true
			}
		}
		return false
	})
}
