package node

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"culvert.dev/culvert/filter"
	"culvert.dev/culvert/internal/control"
	"culvert.dev/culvert/internal/packet"
	"culvert.dev/culvert/internal/testnet"
	"culvert.dev/culvert/internal/wgkey"
)

// freePort is a port that nobody else uses.
func freePort(t *testing.T) int {
	t.Helper()
	port := testnet.FreePort()
	if port == 0 {
		t.Fatal("no port is free")
	}
	return port
}

type side struct {
	dir  string
	key  wgkey.Private
	port int
	addr string
}

func newSide(t *testing.T, addr string) side {
	key, err := wgkey.NewPrivate()
	if err != nil {
		t.Fatal(err)
	}
	return side{t.TempDir(), key, freePort(t), addr}
}

// write makes the side's configuration with the given peer sections.
func (s side) write(t *testing.T, peers ...string) string {
	file := filepath.Join(s.dir, "culvert.conf")
	text := fmt.Sprintf("[Interface]\nName = node\nPrivateKey = %s\nAddress = %s/24\nListenPort = %d\n%s\n",
		s.key.Reveal(), s.addr, s.port, strings.Join(peers, "\n"))
	if !strings.Contains(text, "[Traversal]") {
		text += "[Traversal]\nDirect = no\n" // nodes of one host find a direct path in no time, and would ask the host's gateway for ports
	}
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

func (s side) asPeer(name, more string) string {
	return fmt.Sprintf("[Peer]\nName = %s\nPublicKey = %s\nAllowedIPs = %s/32\nEndpoint = 127.0.0.1:%d\nPersistentKeepalive = 1\n%s",
		name, s.key.Public(), s.addr, s.port, more)
}

func start(t *testing.T, file, socket string) *Node {
	n, err := Start(context.Background(), Config{File: file, Socket: socket, Version: "test"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { n.Close() })
	return n
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for range 200 {
		if ok() {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Fatal("never: " + what)
}

func TestTwoNodesReachEachOther(t *testing.T) {
	a, b := newSide(t, "100.70.3.1"), newSide(t, "100.70.3.2")
	na := start(t, a.write(t, b.asPeer("bob", "AllowRouting = yes")), filepath.Join(t.TempDir(), "a.sock"))
	if err := na.Health(); err == nil || !strings.Contains(err.Error(), "none of 1 peers") {
		t.Errorf("health without the peer: %v", err)
	}
	if p := na.Status().Peers[0]; p.Path.Kind != PathNone || !p.Path.Since.IsZero() {
		t.Errorf("path before the peer is up: %+v", p.Path)
	}
	start(t, b.write(t, a.asPeer("alice", "")), "")
	eventually(t, "healthy", func() bool { return na.Health() == nil })

	var s Status
	if err := control.NewClient(filepath.Join(na.cfg.Socket)).Status(t.Context(), &s); err != nil {
		t.Fatal(err)
	}
	p := s.Peers[0]
	if s.Name != "node" || s.ListenPort != uint16(a.port) || s.Version != "test" || s.PublicKey != a.key.Public() {
		t.Errorf("status %+v", s)
	}
	if p.Name != "bob" || p.Path.Kind != PathDirect || p.Path.Endpoint != fmt.Sprintf("127.0.0.1:%d", b.port) || !p.Allow.Routing || p.Allow.LAN {
		t.Errorf("peer %+v", p)
	}
}

func TestReloadAppliesOrChangesNothing(t *testing.T) {
	a, b, c := newSide(t, "100.70.4.1"), newSide(t, "100.70.4.2"), newSide(t, "100.70.4.3")
	file := a.write(t, b.asPeer("bob", ""))
	n := start(t, file, "")
	start(t, b.write(t, a.asPeer("alice", "")), "")
	eventually(t, "bob reached", func() bool { return n.Health() == nil })
	before := n.Status().Peers[0].LastHandshake

	a.write(t, b.asPeer("bob", "AllowRouting = yes\nAllowPeers = carol"), c.asPeer("carol", ""))
	if err := n.Reload(); err != nil {
		t.Fatal(err)
	}
	s := n.Status()
	if len(s.Peers) != 2 || !s.Peers[0].Allow.Routing || s.Peers[0].LastHandshake != before {
		t.Errorf("after the reload: %+v", s.Peers)
	}
	for _, bad := range []struct{ text, want string }{
		{"[Peer]\nName = x\n", "PublicKey"},
		{"nonsense", "culvert.conf:"},
	} {
		a.write(t, bad.text)
		if err := n.Reload(); err == nil || !strings.Contains(err.Error(), bad.want) {
			t.Errorf("reload of %q: %v", bad.text, err)
		}
	}
	moved := a
	moved.addr = "100.70.4.9"
	moved.write(t)
	if err := n.Reload(); err == nil || !strings.Contains(err.Error(), "Address has changed") {
		t.Errorf("reload with another address: %v", err)
	}
	if len(n.Status().Peers) != 2 {
		t.Error("a refused reload changed the peers")
	}
	a.write(t)
	if err := n.Reload(); err != nil || len(n.Status().Peers) != 0 {
		t.Errorf("reload without peers: %v, %d left", err, len(n.Status().Peers))
	}
}

func TestResolverFollowsTheConfiguration(t *testing.T) {
	a, b := newSide(t, "100.70.5.1"), newSide(t, "100.70.5.2")
	peer := b.asPeer("bob", "AllowRouting = yes")
	n := start(t, a.write(t, peer), "")
	served := func() bool {
		to := netip.MustParseAddrPort(a.addr + ":53")
		return n.net.Policy().DecideTo(1, packet.ProtoUDP, to).Action == filter.Accept &&
			n.net.Policy().DecideTo(1, packet.ProtoTCP, to).Action == filter.Accept
	}
	if !served() || len(*n.upstreams.Load()) != 0 {
		t.Error("by default the host's resolver is not served")
	}
	for _, c := range []struct {
		text      string
		served    bool
		upstreams string
	}{
		{"[Exit]\nDNS = 127.0.0.1:5353", true, "[127.0.0.1:5353]"},
		{"[Exit]\nDNS = off", false, "[]"},
		{"", true, "[]"},
	} {
		a.write(t, peer, c.text)
		if err := n.Reload(); err != nil || served() != c.served || fmt.Sprint(*n.upstreams.Load()) != c.upstreams {
			t.Errorf("%q: %v, served %v, upstreams %v", c.text, err, served(), *n.upstreams.Load())
		}
	}
}

func TestCloseLeavesNothing(t *testing.T) {
	a := newSide(t, "100.70.6.1")
	file := a.write(t)
	before := runtime.NumGoroutine()
	for range 3 {
		n := start(t, file, filepath.Join(a.dir, "s.sock"))
		n.Close()
		if _, err := os.Stat(n.cfg.Socket); err == nil {
			t.Error("the socket file is still there")
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	n, err := Start(ctx, Config{File: file})
	if err != nil {
		t.Fatal(err)
	}
	cancel()
	<-n.Done()
	eventually(t, "goroutines back", func() bool { return runtime.NumGoroutine() <= before })
}

func TestStartTellsWhatIsWrong(t *testing.T) {
	a := newSide(t, "100.70.7.1")
	file := a.write(t)
	c, err := net.ListenUDP("udp", &net.UDPAddr{Port: a.port})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := Start(t.Context(), Config{File: file}); err == nil || !strings.Contains(err.Error(), fmt.Sprint(a.port)) {
		t.Errorf("a port in use: %v", err)
	}
	if _, err := Start(t.Context(), Config{File: filepath.Join(a.dir, "none")}); err == nil || !strings.Contains(err.Error(), "none") {
		t.Errorf("no file: %v", err)
	}
}
