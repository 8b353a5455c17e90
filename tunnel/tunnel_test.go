package tunnel

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.zx2c4.com/wireguard/tun"
	"golang.zx2c4.com/wireguard/tun/tuntest"

	"culvert.dev/culvert/internal/wgkey"
)

// lockedLog collects log lines.
type lockedLog struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedLog) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedLog) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func (l *lockedLog) logger() *slog.Logger {
	return slog.New(slog.NewTextHandler(l, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

var (
	addrA = netip.MustParseAddr("10.9.0.1")
	addrB = netip.MustParseAddr("10.9.0.2")
)

type end struct {
	*Tunnel
	tun *tuntest.ChannelTUN
	key wgkey.Private
	log *lockedLog
}

// startEnd starts a tunnel on real sockets.
func startEnd(t testing.TB, key wgkey.Private, peers ...Peer) *end {
	t.Helper()
	e := &end{tun: tuntest.NewChannelTUN(), key: key, log: &lockedLog{}}
	var err error
	if e.Tunnel, err = New(e.tun.TUN(), Config{PrivateKey: key, Peers: peers, Logger: e.log.logger()}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { e.Close() })
	if err := e.Start(); err != nil {
		t.Fatal(err)
	}
	return e
}

// startPair starts two tunnels of which the first knows the other's address on the loopback.
func startPair(t testing.TB, loop string) (a, b *end) {
	t.Helper()
	ka, kb := newKey(t), newKey(t)
	b = startEnd(t, kb, Peer{Name: "a", PublicKey: ka.Public(), AllowedIPs: prefixes("10.9.0.1/32")})
	a = startEnd(t, ka, Peer{Name: "b", PublicKey: kb.Public(), AllowedIPs: prefixes("10.9.0.2/32"), Endpoint: fmt.Sprintf("%s:%d", loop, b.ListenPort())})
	return a, b
}

func prefixes(s ...string) (out []netip.Prefix) {
	for _, p := range s {
		out = append(out, netip.MustParsePrefix(p))
	}
	return out
}

var pingID atomic.Uint32

// ping sends a packet through the tunnel.
func ping(t testing.TB, from, to *end, src, dst netip.Addr) {
	t.Helper()
	if !pings(from, to, src, dst, 3*time.Second) {
		t.Fatalf("no packet from %v to %v\n%s", src, dst, from.log)
	}
}

func pings(from, to *end, src, dst netip.Addr, wait time.Duration) bool {
	msg := tuntest.Ping(dst, src)
	binary.BigEndian.PutUint16(msg[4:], uint16(pingID.Add(1))) // not to take an earlier one for it
	timeout := time.After(wait)
	select {
	case from.tun.Outbound <- msg:
	case <-timeout:
		return false
	}
	for {
		select {
		case got := <-to.tun.Inbound:
			if bytes.Equal(got, msg) {
				return true
			}
		case <-timeout:
			return false
		}
	}
}

func statsOf(t testing.TB, e *end, key wgkey.Public) PeerStats {
	t.Helper()
	all, err := e.Stats()
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range all {
		if s.PublicKey == key {
			return s
		}
	}
	t.Fatalf("no stats for %s", key.Short())
	return PeerStats{}
}

func TestTunnelsExchangePackets(t *testing.T) {
	for _, loop := range []string{"127.0.0.1", "[::1]"} {
		a, b := startPair(t, loop)
		for range 3 {
			ping(t, a, b, addrA, addrB)
			ping(t, b, a, addrB, addrA)
		}
		if pings(a, b, addrA, netip.MustParseAddr("10.9.0.3"), 50*time.Millisecond) {
			t.Error("a packet for nobody arrived")
		}
		sa, sb := statsOf(t, a, b.key.Public()), statsOf(t, b, a.key.Public())
		for _, s := range []PeerStats{sa, sb} {
			if time.Since(s.LastHandshake) > time.Minute || s.RxBytes == 0 || s.TxBytes == 0 {
				t.Errorf("stats: %+v", s)
			}
			if s.RTT <= 0 || s.RTT > 2*time.Second {
				t.Errorf("handshake RTT %v", s.RTT)
			}
		}
		if sb.Endpoint.Port() != a.ListenPort() {
			t.Errorf("b sees %v, a listens on %d", sb.Endpoint, a.ListenPort())
		}
	}
}

func TestPortIsDerivedFromTheKey(t *testing.T) {
	// The pair is from wg(8). The port must never change: peers have it in their configuration.
	key, _ := wgkey.ParsePublic("HIgo9xNzJMWLKASShiTqIybxZ0U3wGLiUeJ1PKf8ykw=")
	if got := PortOf(key); got != 25067 {
		t.Errorf("PortOf: %d, want 25067", got)
	}
	seen := map[uint16]bool{}
	for range 300 {
		p := PortOf(newKey(t).Public())
		if p < 20000 || p > 32767 {
			t.Fatalf("port %d is outside the range", p)
		}
		seen[p] = true
	}
	if len(seen) < 280 {
		t.Errorf("300 keys have %d ports", len(seen))
	}

	first := startEnd(t, newKey(t))
	if got, want := first.ListenPort(), PortOf(first.key.Public()); got != want {
		t.Skipf("port %d is taken on this host", want)
	}
	second := startEnd(t, first.key) // the same identity a second time
	if got, want := second.ListenPort(), portsOf(first.key.Public())[1]; got != want {
		t.Errorf("with the first port taken: %d, want the second candidate %d", got, want)
	}
	if !strings.Contains(second.log.String(), "another port") {
		t.Error("nothing was said about the other port")
	}
}

func TestConfiguredPortTaken(t *testing.T) {
	pc, err := net.ListenPacket("udp4", ":0")
	if err != nil {
		t.Fatal(err)
	}
	defer pc.Close()
	port := pc.LocalAddr().(*net.UDPAddr).AddrPort().Port()
	tn, err := New(tuntest.NewChannelTUN().TUN(), Config{PrivateKey: newKey(t), ListenPort: port})
	if err != nil {
		t.Fatal(err)
	}
	defer tn.Close()
	err = tn.Start()
	if !errors.Is(err, syscall.EADDRINUSE) || !strings.Contains(err.Error(), fmt.Sprint(port)) || !strings.Contains(err.Error(), "ListenPort") {
		t.Errorf("Start: %v: want the port and what to do", err)
	}
	if got := tn.ListenPort(); got != 0 {
		t.Errorf("ListenPort %d after a failed start", got)
	}
	pc.Close()
	if err := tn.Start(); err != nil {
		t.Errorf("Start once the port is free: %v", err)
	}
	if got := tn.ListenPort(); got != port {
		t.Errorf("ListenPort %d, want %d", got, port)
	}
}

func TestNewDoesNotStart(t *testing.T) {
	ch := tuntest.NewChannelTUN() // emits EventUp by itself
	tn, err := New(ch.TUN(), Config{PrivateKey: newKey(t)})
	if err != nil {
		t.Fatal(err)
	}
	defer tn.Close()
	time.Sleep(20 * time.Millisecond)
	if tn.ListenPort() != 0 {
		t.Error("the event of the device started the tunnel")
	}
}

func TestSetPeersKeepsSessions(t *testing.T) {
	a, b := startPair(t, "127.0.0.1")
	ping(t, a, b, addrA, addrB)
	ping(t, b, a, addrB, addrA)
	kb := b.key.Public()
	before := statsOf(t, a, kb)

	other := newKey(t).Public()
	peers := []Peer{
		{Name: "new", PublicKey: other, AllowedIPs: prefixes("10.9.1.0/24")},
		{Name: "renamed", PublicKey: kb, AllowedIPs: prefixes("10.9.0.2/32", "10.9.7.0/24"), Endpoint: before.Endpoint.String()},
	}
	if err := a.SetPeers(peers); err != nil {
		t.Fatal(err)
	}
	after := statsOf(t, a, kb)
	if after.LastHandshake != before.LastHandshake || after.RxBytes < before.RxBytes || after.TxBytes < before.TxBytes || after.Endpoint != before.Endpoint {
		t.Errorf("before %+v, after %+v", before, after)
	}
	ping(t, a, b, addrA, addrB)
	if got := statsOf(t, a, kb); got.LastHandshake != before.LastHandshake {
		t.Error("the peer had to shake hands again")
	}

	// A prefix that moves takes its traffic along.
	peers[0].AllowedIPs, peers[1].AllowedIPs = peers[1].AllowedIPs, peers[0].AllowedIPs
	if err := a.SetPeers(peers); err != nil {
		t.Fatal(err)
	}
	if pings(a, b, addrA, addrB, 100*time.Millisecond) {
		t.Error("traffic still goes to the former owner of the prefix")
	}
	peers[0].AllowedIPs, peers[1].AllowedIPs = peers[1].AllowedIPs, peers[0].AllowedIPs
	if err := a.SetPeers(peers); err != nil {
		t.Fatal(err)
	}
	ping(t, a, b, addrA, addrB)
	if got := statsOf(t, a, kb); got.LastHandshake != before.LastHandshake {
		t.Error("moving prefixes cost the session")
	}

	if err := a.SetPeers(peers[:1]); err != nil {
		t.Fatal(err)
	}
	if all, _ := a.Stats(); len(all) != 1 || all[0].PublicKey != other {
		t.Errorf("after removal: %+v", all)
	}
	if pings(a, b, addrA, addrB, 100*time.Millisecond) {
		t.Error("traffic reaches a removed peer")
	}
}

func TestFaultyPeersChangeNothing(t *testing.T) {
	a, b := startPair(t, "127.0.0.1")
	kb, k1, k2 := b.key.Public(), newKey(t).Public(), newKey(t).Public()
	good := Peer{Name: "good", PublicKey: k1}
	for _, c := range []struct {
		want  string
		peers []Peer
	}{
		{"bad: no public key", []Peer{{Name: "bad"}}},
		{"own", []Peer{good, {PublicKey: a.key.Public()}}},
		{"same public key as peer good", []Peer{good, {Name: "twin", PublicKey: k1}}},
		{"keepalive 65536", []Peer{{PublicKey: k2, Keepalive: 65536}}},
		{"keepalive -1", []Peer{{PublicKey: k2, Keepalive: -1}}},
		{"host:port", []Peer{{PublicKey: k2, Endpoint: "example.com"}}},
		{"brackets", []Peer{{PublicKey: k2, Endpoint: "2001:db8::1:5"}}},
		{"port from 1", []Peer{{PublicKey: k2, Endpoint: "example.com:0"}}},
		{"port from 1", []Peer{{PublicKey: k2, Endpoint: "example.com:http"}}},
		{"no host", []Peer{{PublicKey: k2, Endpoint: ":5"}}},
		{"nosuchif", []Peer{{PublicKey: k2, Endpoint: "[fe80::1%nosuchif]:5"}}},
		{"invalid prefix", []Peer{{PublicKey: k2, AllowedIPs: make([]netip.Prefix, 1)}}},
		{"belongs to peer good", []Peer{
			{Name: "good", PublicKey: k1, AllowedIPs: prefixes("10.0.0.1/8")},
			{Name: "thief", PublicKey: k2, AllowedIPs: prefixes("10.2.0.0/8")},
		}},
	} {
		if err := a.SetPeers(c.peers); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("error %v, want %q in it", err, c.want)
		}
	}
	if all, err := a.Stats(); err != nil || len(all) != 1 || all[0].PublicKey != kb {
		t.Errorf("peers after refused changes: %+v, %v", all, err)
	}
	ping(t, a, b, addrA, addrB)
	if _, err := New(tuntest.NewChannelTUN().TUN(), Config{}); err == nil {
		t.Error("New without a private key succeeds")
	}
}

func TestPresharedKey(t *testing.T) {
	psk, err := wgkey.NewPreshared()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		a, b wgkey.Preshared
		want bool
	}{{psk, psk, true}, {psk, wgkey.Preshared{}, false}, {wgkey.Preshared{}, psk, false}} {
		ka, kb := newKey(t), newKey(t)
		b := startEnd(t, kb, Peer{PublicKey: ka.Public(), Preshared: c.b, AllowedIPs: prefixes("10.9.0.1/32")})
		a := startEnd(t, ka, Peer{PublicKey: kb.Public(), Preshared: c.a, AllowedIPs: prefixes("10.9.0.2/32"), Endpoint: fmt.Sprintf("127.0.0.1:%d", b.ListenPort())})
		wait := 3 * time.Second
		if !c.want {
			wait = 150 * time.Millisecond
		}
		if got := pings(a, b, addrA, addrB, wait); got != c.want {
			t.Errorf("connected: %v, want %v", got, c.want)
		}
		for _, e := range []*end{a, b} {
			for _, secret := range []string{psk.Reveal(), psk.RevealHex(), e.key.Reveal(), e.key.RevealHex()} {
				if strings.Contains(e.log.String(), secret) {
					t.Error("a key was logged")
				}
			}
		}
	}
}

func TestMalformedDatagramsDoNoHarm(t *testing.T) {
	a, b := startPair(t, "127.0.0.1")
	ping(t, a, b, addrA, addrB)
	c, err := net.Dial("udp", fmt.Sprintf("127.0.0.1:%d", b.ListenPort()))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	r := rand.New(rand.NewPCG(3, 4))
	for i := range 3000 {
		msg := make([]byte, []int{0, 1, 3, 31, 32, 64, 92, 147, 148, 149, 1500}[r.IntN(11)])
		for j := range msg {
			msg[j] = byte(r.Uint32())
		}
		if len(msg) > 0 {
			msg[0] = byte(i % 7) // all message types and some that do not exist
		}
		if len(msg) > 3 && i%3 > 0 {
			clear(msg[1:4])
		}
		c.Write(msg)
	}
	ping(t, a, b, addrA, addrB)
	ping(t, b, a, addrB, addrA)
	if got := statsOf(t, b, a.key.Public()).Endpoint.Port(); got != a.ListenPort() {
		t.Errorf("the peer's endpoint moved to port %d", got)
	}
}

func TestCloseLeavesNothing(t *testing.T) {
	settle := func(most int) int {
		n := runtime.NumGoroutine()
		for i := 0; i < 300 && n > most; i++ {
			time.Sleep(10 * time.Millisecond)
			n = runtime.NumGoroutine()
		}
		return n
	}
	before := runtime.NumGoroutine()
	for range 3 {
		a, b := startPair(t, "127.0.0.1")
		ping(t, a, b, addrA, addrB)
		never, err := New(tuntest.NewChannelTUN().TUN(), Config{PrivateKey: newKey(t)})
		if err != nil {
			t.Fatal(err)
		}
		for _, tn := range []*Tunnel{a.Tunnel, b.Tunnel, never} {
			for range 2 {
				if err := tn.Close(); err != nil {
					t.Error(err)
				}
			}
			select {
			case <-tn.Wait():
			default:
				t.Error("Wait is not done after Close")
			}
			if err := tn.Start(); !errors.Is(err, errClosed) {
				t.Errorf("Start after Close: %v", err)
			}
			if err := tn.SetPeers(nil); !errors.Is(err, errClosed) {
				t.Errorf("SetPeers after Close: %v", err)
			}
			if _, err := tn.Stats(); !errors.Is(err, errClosed) {
				t.Errorf("Stats after Close: %v", err)
			}
			if tn.ListenPort() != 0 {
				t.Error("ListenPort after Close")
			}
		}
	}
	if after := settle(before); after > before {
		buf := make([]byte, 1<<16)
		t.Errorf("%d goroutines, had %d\n%s", after, before, buf[:runtime.Stack(buf, true)])
	}
}

// brokenTUN fails when told to.
type brokenTUN struct {
	tun.Device
	fail chan struct{}
}

func (b brokenTUN) Read([][]byte, []int, int) (int, error) {
	<-b.fail
	return 0, os.ErrInvalid
}

func TestWaitTellsOfADeadDevice(t *testing.T) {
	dev := brokenTUN{tuntest.NewChannelTUN().TUN(), make(chan struct{})}
	tn, err := New(dev, Config{PrivateKey: newKey(t)})
	if err != nil {
		t.Fatal(err)
	}
	if err := tn.Start(); err != nil {
		t.Fatal(err)
	}
	close(dev.fail)
	select {
	case <-tn.Wait():
	case <-time.After(3 * time.Second):
		t.Error("Wait does not notice")
	}
	if err := tn.Start(); !errors.Is(err, errClosed) {
		t.Errorf("Start of a dead tunnel: %v", err)
	}
	tn.Close()
}

// TestAnswersOnly has a tunnel that keeps nothing of handshakes. Peers that call it notice no difference.
func TestAnswersOnly(t *testing.T) {
	ka, kb := newKey(t), newKey(t)
	server := &end{tun: tuntest.NewChannelTUN(), key: kb, log: &lockedLog{}}
	var err error
	server.Tunnel, err = New(server.tun.TUN(), Config{
		PrivateKey: kb, AnswersOnly: true, Logger: server.log.logger(),
		Peers: []Peer{{Name: "a", PublicKey: ka.Public(), AllowedIPs: prefixes("10.9.0.1/32")}},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { server.Close() })
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	caller := startEnd(t, ka, Peer{
		Name: "b", PublicKey: kb.Public(), AllowedIPs: prefixes("10.9.0.2/32"), Endpoint: fmt.Sprintf("127.0.0.1:%d", server.ListenPort()),
	})
	ping(t, caller, server, addrA, addrB)
	ping(t, server, caller, addrB, addrA)
	h := server.shakes
	if n := len(h.peers) + len(h.byAddress) + len(h.byResponse) + int(h.unconfirmed.Load()); n != 0 {
		t.Errorf("%d things are kept", n)
	}
	if s := statsOf(t, server, ka.Public()); s.RTT != 0 || s.LastHandshake.IsZero() {
		t.Errorf("stats %+v", s)
	}
	_, err = New(tuntest.NewChannelTUN().TUN(), Config{PrivateKey: kb, AnswersOnly: true, Relay: newMemRelay(0).client(kb.Public())})
	if err == nil || !strings.Contains(err.Error(), "no relay") {
		t.Errorf("with a relay: error %v", err)
	}
}
