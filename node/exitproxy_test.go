package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"culvert.dev/culvert/filter"
	"culvert.dev/culvert/internal/config"
	"culvert.dev/culvert/internal/proxy"
	"culvert.dev/culvert/nat"
)

// exitWorld is a node whose peer alice uses its SOCKS5, without a tunnel: requests are made as the server makes them. The node takes
// an address of this host for one of the internet, so that there is something to reach.
type exitWorld struct {
	n       *Node
	side    side
	peers   []string
	alice   netip.AddrPort
	reach   netip.Addr // what alice may reach
	flowLog string
	log     logText
}

func (l *logText) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

const aliceMay = "AllowRouting = yes\nAllowLAN = yes"

func newExitWorld(t *testing.T, more ...string) *exitWorld {
	t.Helper()
	w := &exitWorld{side: newSide(t, "100.70.4.2"), alice: netip.MustParseAddrPort("100.70.4.1:40000")}
	w.flowLog = filepath.Join(t.TempDir(), "flows.json")
	w.peers = []string{newSide(t, "100.70.4.1").asPeer("alice", ""), newSide(t, "100.70.4.3").asPeer("carol", "")}
	hosts, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, h := range hosts {
		if a, ok := netip.AddrFromSlice(h.(*net.IPNet).IP.To4()); ok && !a.IsLoopback() && !a.IsLinkLocalUnicast() {
			w.reach = a
		}
	}
	if !w.reach.IsValid() {
		t.Skip("this host has no IPv4 address but loopback")
	}
	if w.n, err = Start(t.Context(), Config{File: w.write(t, aliceMay, more...), Logger: slog.New(slog.NewTextHandler(&w.log, nil))}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.n.Close() })
	w.apply(t, aliceMay, more...)
	return w
}

// write writes the configuration with what alice may.
func (w *exitWorld) write(t *testing.T, alice string, more ...string) string {
	return w.side.write(t, append([]string{w.peers[0] + alice, w.peers[1], "[Control]\nFlowLog = " + w.flowLog}, more...)...)
}

// apply brings a configuration into force on a host that has no address of its own, as the policy sees it.
func (w *exitWorld) apply(t *testing.T, alice string, more ...string) {
	t.Helper()
	w.write(t, alice, more...)
	conf, err := w.n.cfg.load()
	if err != nil {
		t.Fatal(err)
	}
	netmap, err := nat.NewNetmap(conf.Netmap)
	if err != nil {
		t.Fatal(err)
	}
	w.n.mu.Lock()
	defer w.n.mu.Unlock()
	c := conf.FilterConfig(func(p *config.Peer) uint16 { return w.n.ids.ids[p.PublicKey] })
	policy, err := filter.New(c)
	if err != nil {
		t.Fatal(err)
	}
	w.n.useNetmap(netmap)
	w.n.usePolicy(policy)
	w.n.setPresent(conf)
	w.n.conf = conf
}

func (w *exitWorld) dial(to string) (net.Conn, error) {
	t, err := proxy.ParseTarget(to)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	return w.n.exits.Dial(ctx, &proxy.Request{Protocol: "socks5", Client: w.alice, Target: t})
}

// listen answers connections with what they send.
func (w *exitWorld) listen(t *testing.T) *net.TCPAddr {
	return echoServer(t, netip.AddrPortFrom(w.reach, 0).String())
}

func (w *exitWorld) associate(t *testing.T) proxy.PacketConn {
	t.Helper()
	pc, err := w.n.exits.ListenPacket(t.Context(), &proxy.Request{Protocol: "socks5", Client: w.alice})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { pc.Close() })
	return pc
}

func targetOf(t *testing.T, text string) proxy.Target {
	t.Helper()
	to, err := proxy.ParseTarget(text)
	if err != nil {
		t.Fatal(err)
	}
	return to
}

// ends reports that a connection has ended.
func ends(t *testing.T, what string, c net.Conn) {
	t.Helper()
	c.SetDeadline(time.Now().Add(5 * time.Second))
	if _, err := c.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("%s: the connection goes on: %v", what, err)
	}
}

func TestExitSOCKSFollowsSourceRules(t *testing.T) {
	w := newExitWorld(t, "[Filter]\nRule = accept from 100.70.4.1 to * tcp\nRule = reject from * to *\n")
	echo := w.listen(t)
	c, err := w.dial(echo.String())
	if err != nil {
		t.Fatalf("a rule that accepts the packets of this address: %v", err)
	}
	if got := converse(t, c, "x"); got != "x" {
		t.Errorf("got %q", got)
	}
	w.apply(t, aliceMay, "[Filter]\nRule = reject from 100.70.4.77 to *\n")
	if c, err = w.dial(echo.String()); err != nil {
		t.Fatalf("a rule about another address: %v", err)
	}
	w.apply(t, aliceMay, fmt.Sprintf("[Filter]\nRule = reject from 100.70.4.1 to * tcp/%d\n", echo.Port))
	ends(t, "a rule forbids it now", c)
	c.Close()
}

func TestExitSOCKSCutsWhatChanges(t *testing.T) {
	w := newExitWorld(t)
	echo := w.listen(t)
	other := w.reach.Next()
	netmap := func(to netip.Addr) string { return fmt.Sprintf("[Netmap]\nFrom = 10.99.0.1/32\nTo = %s/32\n", to) }
	w.apply(t, aliceMay, netmap(w.reach))
	c, err := w.dial(fmt.Sprintf("10.99.0.1:%d", echo.Port))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	w.apply(t, aliceMay, netmap(other))
	ends(t, "the address means another host now", c)
}

func TestExitSOCKSRevealsNoPeers(t *testing.T) {
	w := newExitWorld(t)
	_, exists := w.dial("carol.mesh:80")
	_, not := w.dial("nobody.mesh:80")
	if exists == nil || not == nil || proxy.KindOf(exists) != proxy.KindOf(not) {
		t.Errorf("a peer that alice may not reach: %v (%v); nobody: %v (%v)", exists, proxy.KindOf(exists), not, proxy.KindOf(not))
	}
}

func TestExitSOCKSReachesNoFurtherThanPackets(t *testing.T) {
	w := newExitWorld(t)
	loop := echoServer(t, "127.0.0.1:0")
	for _, to := range []string{
		loop.String(), fmt.Sprintf("[::ffff:127.0.0.1]:%d", loop.Port), fmt.Sprintf("[64:ff9b::7f00:1]:%d", loop.Port), fmt.Sprintf("[::7f00:1]:%d", loop.Port),
		fmt.Sprintf("[2002:7f00:1::]:%d", loop.Port), "169.254.169.254:80", "[fe80::1]:80", "0.0.0.0:80", "[::]:80", "224.0.0.1:80", "255.255.255.255:80",
		"100.70.4.2:1080", "100.70.4.3:80", "100.70.4.99:80", "localhost:80",
	} {
		if c, err := w.dial(to); err == nil {
			c.Close()
			t.Errorf("%s was reached by TCP", to)
		}
		pc := w.associate(t)
		if tgt := targetOf(t, to); tgt.Name == "" {
			if err := pc.WriteTo([]byte("x"), tgt); err == nil {
				t.Errorf("%s was reached by UDP", to)
			}
		}
	}
}

// A scanner finds closed ports no faster by SOCKS5 than by packets.
func TestExitSOCKSBoundsScans(t *testing.T) {
	w := newExitWorld(t)
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	tried, refused := 0, 0
	for ctx.Err() == nil && tried < 3000 {
		_, err := w.n.exits.Dial(ctx, &proxy.Request{Client: w.alice, Target: proxy.Target{Addr: w.reach, Port: uint16(1 + tried%1000)}})
		if tried++; proxy.KindOf(err) == proxy.Refused {
			refused++
		}
	}
	if refused > 1000 {
		t.Errorf("%d ports were scanned in a second", refused)
	}
	// What is answered costs nothing.
	echo := w.listen(t)
	for range 3 {
		c, err := w.dial(echo.String())
		if err != nil {
			t.Fatal(err)
		}
		c.Close()
	}
}

func TestExitSOCKSBoundsNames(t *testing.T) {
	w := newExitWorld(t, "[Exit]\nDNS = 192.0.2.250\n")
	c := w.associate(t).(*exitPacketConn)
	for i := range 2000 {
		c.WriteTo([]byte("x"), proxy.Target{Name: fmt.Sprintf("n%d.example", i), Port: 9})
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.names) > maxExitNames || c.resolving > maxExitResolving {
		t.Errorf("%d names, %d of them being resolved", len(c.names), c.resolving)
	}
}

func TestExitSOCKSDatagrams(t *testing.T) {
	w := newExitWorld(t)
	server, err := net.ListenPacket("udp", netip.AddrPortFrom(w.reach, 0).String())
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	pc := w.associate(t)
	at := server.LocalAddr().(*net.UDPAddr).AddrPort()
	to := proxy.Target{Addr: at.Addr(), Port: at.Port()}
	if err := pc.WriteTo([]byte("ping"), to); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 100)
	server.SetDeadline(time.Now().Add(5 * time.Second))
	n, from, err := server.ReadFrom(b)
	if err != nil || string(b[:n]) != "ping" {
		t.Fatalf("%q, %v", b[:n], err)
	}
	server.WriteTo([]byte("pong"), from)
	if n, src, err := pc.ReadFrom(b); err != nil || string(b[:n]) != "pong" || src != to {
		t.Fatalf("%q from %v, %v", b[:n], src, err)
	}
	w.apply(t, "AllowLAN = yes")
	if err := pc.WriteTo([]byte("again"), to); proxy.KindOf(err) != proxy.NotAllowed {
		t.Errorf("after the permission was withdrawn: %v", err)
	}
	pc.Close()
	w.apply(t, aliceMay)
	if err := pc.WriteTo([]byte("x"), to); err == nil {
		t.Error("a closed association sends")
	}
	w.n.Close()
	log, err := os.ReadFile(w.flowLog)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		`"proto":"udp","src":"100.70.4.1"`, `"reason":"no-routing"`,
		fmt.Sprintf(`"dst":"%s","dport":%d,"orig_packets":1,"orig_bytes":4,"reply_packets":1,"reply_bytes":4`, at.Addr(), at.Port()),
	} {
		if !strings.Contains(string(log), want) {
			t.Errorf("the flow log has no %s:\n%s", want, log)
		}
	}
}

// An association that many hosts have been written to forgets the oldest, and tokens end.
func TestExitSOCKSBoundsDestinations(t *testing.T) {
	w := newExitWorld(t)
	c := w.associate(t).(*exitPacketConn)
	sent := 0
	for port := range 3000 {
		if c.WriteTo([]byte("x"), proxy.Target{Addr: w.reach, Port: uint16(20000 + port)}) == nil {
			sent++
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if sent > 1500 || len(c.ends) > maxExitEnds || len(c.hosts) != 1 || c.hosts[w.reach].ends != len(c.ends) {
		t.Errorf("%d destinations were sent to, %d are remembered, of %v", sent, len(c.ends), c.hosts)
	}
}

// The denials of packets and those of SOCKS5 share a bound, which counts in one clock.
func TestExitSOCKSDenialsShareTheClock(t *testing.T) {
	w := newExitWorld(t)
	w.dial("127.0.0.1:80")
	l := w.n.flowLog.Load()
	l.denials.mu.Lock()
	defer l.denials.mu.Unlock()
	if last := time.Duration(l.denials.last); last == 0 || last > time.Since(w.n.started)+time.Second {
		t.Errorf("the bound is at %v", last)
	}
}

// What the upstream carries finds no other way: neither without it nor after another has taken its place.
func TestExitSOCKSUpstreamIsTheOnlyWay(t *testing.T) {
	w := newExitWorld(t)
	hub := newSide(t, "100.70.5.2")
	const section = "[Upstream]\nFile = hub.conf\n"
	w.side.upstreamFile(t, w.side.key, hub, "")
	w.write(t, aliceMay, section)
	if err := w.n.Reload(); err != nil {
		t.Fatal(err)
	}
	c := w.associate(t).(*exitPacketConn)
	to := proxy.Target{Addr: netip.MustParseAddr("198.51.100.7"), Port: 9}
	if err := c.WriteTo([]byte("x"), to); err != nil {
		t.Fatal(err)
	}
	was := w.n.upstream.Swap(nil)
	for what, try := range map[string]func() error{
		"another destination": func() error { return c.WriteTo([]byte("x"), proxy.Target{Addr: to.Addr, Port: 10}) },
		"the same":            func() error { return c.WriteTo([]byte("x"), to) },
		"a connection":        func() error { _, err := w.dial("198.51.100.7:80"); return err },
	} {
		if err := try(); proxy.KindOf(err) != proxy.NetworkUnreachable {
			t.Errorf("%s without the upstream: %v", what, err)
		}
	}
	w.n.upstream.Store(was)
	if err := c.WriteTo([]byte("x"), to); err != nil {
		t.Fatal(err)
	}
	w.side.upstreamFile(t, w.side.key, hub, "MTU = 1300\n")
	if err := w.n.Reload(); err != nil {
		t.Fatal(err)
	}
	if err := c.WriteTo([]byte("x"), to); err != nil {
		t.Errorf("by the upstream that took its place: %v", err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if e := c.ends[netip.AddrPortFrom(to.Addr, to.Port)]; len(c.hosts) != 0 || e == nil || e.up != w.n.upstream.Load() || c.up != 1 {
		t.Errorf("by the host %v, by the upstream %+v of %d", c.hosts, e, c.up)
	}
}

func TestExitSOCKSDatagramsTakeAFamilyThatLeadsThere(t *testing.T) {
	nowhere := netip.MustParseAddr("2001:db8::1")
	if hasRoute(netip.AddrPortFrom(nowhere, 9)) {
		t.Skip("this host has a route for IPv6")
	}
	w := newExitWorld(t)
	if got := w.associate(t).(*exitPacketConn).choose([]netip.Addr{nowhere, w.reach}, 9); got != w.reach {
		t.Errorf("chose %v", got)
	}
}
