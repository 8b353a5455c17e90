package wgstun

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	pion "github.com/pion/stun/v3"
	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tun/netstack"

	"culvert.dev/culvert/internal/wgkey"
	"culvert.dev/culvert/tunnel"
)

func newKey(t testing.TB) wgkey.Private {
	t.Helper()
	k, err := wgkey.NewPrivate()
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// startServer runs a WG-STUN server on loopback, whose clients have the addresses that follow from their keys, and the IPv4 address given.
func startServer(t testing.TB, clients map[wgkey.Public]netip.Addr) (*Responder, *tunnel.Tunnel, wgkey.Public) {
	t.Helper()
	r := NewResponder(ResponderConfig{Origin: tunnel.Origin})
	key := newKey(t)
	cfg := tunnel.Config{PrivateKey: key, AnyPort: true, Stamp: true}
	for k, v4 := range clients {
		p := tunnel.Peer{PublicKey: k, AllowedIPs: []netip.Prefix{netip.PrefixFrom(AddressOf(k), 128)}}
		if v4.IsValid() {
			p.AllowedIPs = append(p.AllowedIPs, netip.PrefixFrom(v4, 32))
		}
		cfg.Peers = append(cfg.Peers, p)
	}
	s, err := tunnel.New(r, cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	if err := s.Start(); err != nil {
		t.Fatal(err)
	}
	return r, s, key.Public()
}

// stockClient is wireguard-go as it comes, with a network stack inside its tunnel.
type stockClient struct {
	dev *device.Device
	net *netstack.Net
}

func startStockClient(t testing.TB, key wgkey.Private, v4 netip.Addr, server wgkey.Public, port uint16) *stockClient {
	t.Helper()
	tun, net, err := netstack.CreateNetTUN([]netip.Addr{v4, AddressOf(key.Public())}, nil, 1420)
	if err != nil {
		t.Fatal(err)
	}
	dev := device.NewDevice(tun, conn.NewDefaultBind(), device.NewLogger(device.LogLevelSilent, ""))
	t.Cleanup(dev.Close)
	conf := fmt.Sprintf("private_key=%s\npublic_key=%s\nendpoint=127.0.0.1:%d\nallowed_ip=%v/32\nallowed_ip=%v/128\n",
		key.RevealHex(), server.Hex(), port, ServerV4, ServerV6)
	if err := dev.IpcSet(conf); err != nil {
		t.Fatal(err)
	}
	if err := dev.Up(); err != nil {
		t.Fatal(err)
	}
	return &stockClient{dev, net}
}

// port is the outer port, as wireguard-go tells it.
func (c *stockClient) port(t testing.TB) (port uint16) {
	t.Helper()
	conf, err := c.dev.IpcGet()
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(conf) {
		if n, ok := strings.CutPrefix(line, "listen_port="); ok {
			fmt.Sscan(n, &port)
		}
	}
	return port
}

// ask has a stock STUN client ask inside the tunnel.
func (c *stockClient) ask(t testing.TB, server netip.Addr) netip.AddrPort {
	t.Helper()
	sock, err := c.net.DialUDPAddrPort(netip.AddrPort{}, netip.AddrPortFrom(server, Port))
	if err != nil {
		t.Fatal(err)
	}
	client, err := pion.NewClient(sock)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	var mapped netip.AddrPort
	err = client.Do(pion.MustBuild(pion.TransactionID, pion.BindingRequest, pion.Fingerprint), func(e pion.Event) {
		if e.Error != nil {
			t.Error(e.Error)
			return
		}
		var a pion.XORMappedAddress
		if err := a.GetFrom(e.Message); err != nil {
			t.Error(err)
			return
		}
		addr, _ := netip.AddrFromSlice(a.IP)
		mapped = netip.AddrPortFrom(addr.Unmap(), uint16(a.Port))
	})
	if err != nil {
		t.Fatal(err)
	}
	return mapped
}

// TestStockClients is what the package is for: a WireGuard and a STUN client that know nothing of each other learn the outer
// endpoint, and the new one after it has changed.
func TestStockClients(t *testing.T) {
	key := newKey(t)
	r, s, server := startServer(t, map[wgkey.Public]netip.Addr{key.Public(): clientV4})
	c := startStockClient(t, key, clientV4, server, s.ListenPort())
	loopback := netip.MustParseAddr("127.0.0.1")
	before := c.port(t)
	for _, addr := range []netip.Addr{ServerV4, ServerV6} {
		if got, want := c.ask(t, addr), netip.AddrPortFrom(loopback, before); got != want {
			t.Errorf("at %v: got %v, want %v", addr, got, want)
		}
	}

	// The client's socket gets another port, in the middle of its session.
	if err := c.dev.IpcSet(fmt.Sprintf("listen_port=%d\n", freePort(t))); err != nil {
		t.Fatal(err)
	}
	after := c.port(t)
	if after == before {
		t.Fatal("the socket has not moved")
	}
	if got, want := c.ask(t, ServerV6), netip.AddrPortFrom(loopback, after); got != want {
		t.Errorf("after the move: got %v, want %v", got, want)
	}
	s.Close() // what was answered is counted now
	if st := r.Stats(); st.STUN < 3 || st.Dropped["no-origin"] > 0 {
		t.Errorf("%+v", st)
	}
}

func freePort(t testing.TB) int {
	t.Helper()
	sock, err := net.ListenPacket("udp", ":0")
	if err != nil {
		t.Fatal(err)
	}
	defer sock.Close()
	return sock.LocalAddr().(*net.UDPAddr).Port
}

// TestStockClientFindsNothingElse scans the server from inside the tunnel; echo shows that it could be reached.
func TestStockClientFindsNothingElse(t *testing.T) {
	key := newKey(t)
	r, s, server := startServer(t, map[wgkey.Public]netip.Addr{key.Public(): clientV4})
	c := startStockClient(t, key, clientV4, server, s.ListenPort())
	for _, addr := range []netip.Addr{ServerV4, ServerV6} {
		c.ping(t, addr)
		var scan []net.Conn
		for _, port := range []uint16{1, 22, 53, 80, 443, 3478, 3479, 5349, 51820, 65535} {
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
			if tcp, err := c.net.DialContextTCPAddrPort(ctx, netip.AddrPortFrom(addr, port)); err == nil {
				t.Errorf("TCP port %d of %v is open", port, addr)
				tcp.Close()
			} else if !errors.Is(err, context.DeadlineExceeded) && !strings.Contains(err.Error(), "operation was canceled") {
				t.Errorf("TCP port %d of %v: %v, want silence", port, addr, err)
			}
			cancel()
			sock, err := c.net.DialUDPAddrPort(netip.AddrPort{}, netip.AddrPortFrom(addr, port))
			if err != nil {
				t.Fatal(err)
			}
			defer sock.Close()
			if _, err := sock.Write([]byte("anybody there?")); err != nil {
				t.Fatal(err)
			}
			scan = append(scan, sock)
		}
		c.ask(t, addr) // whatever there was to answer has been answered before this
		for _, sock := range scan {
			sock.SetReadDeadline(time.Now())
			if n, err := sock.Read(make([]byte, 1500)); err == nil {
				t.Errorf("%v answers UDP with %d bytes", sock.RemoteAddr(), n)
			}
		}
	}
	s.Close() // what was answered is counted now
	st := r.Stats()
	if st.STUN < 2 || st.Dropped["other-protocol"] < 20 || st.Dropped["other-port"] != 18 || st.Dropped["not-stun"] != 2 {
		t.Errorf("the scan did not get there: %+v", st)
	}
}

// ping sends more than one request where need be, each by a socket of its own: a reply that arrives before Read waits for it wakes no
// Read of that socket any more.
func (c *stockClient) ping(t *testing.T, to netip.Addr) {
	t.Helper()
	request := []byte{8, 0, 0, 0, 0, 0, 0, 1, 'p', 'i', 'n', 'g'}
	if to.Is6() {
		request[0] = 128
	}
	try := func() bool {
		sock, err := c.net.DialPingAddr(netip.Addr{}, to)
		if err != nil {
			t.Fatal(err)
		}
		defer sock.Close()
		sock.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
		if _, err := sock.Write(request); err != nil {
			t.Fatal(err)
		}
		_, err = sock.Read(make([]byte, 100))
		return err == nil
	}
	for range 50 {
		if try() {
			return
		}
	}
	t.Fatalf("no echo from %v", to)
}

// TestStrangersLearnNothing: a key that is no peer of the server's has no session, and a client no other's address.
func TestStrangersLearnNothing(t *testing.T) {
	key, stranger := newKey(t), newKey(t)
	r, s, server := startServer(t, map[wgkey.Public]netip.Addr{key.Public(): clientV4})
	out := startStockClient(t, stranger, clientV4, server, s.ListenPort())
	in := startStockClient(t, key, netip.MustParseAddr("100.64.9.9"), server, s.ListenPort()) // not the address that the server has for it
	for _, c := range []*stockClient{out, in} {
		sock, err := c.net.DialUDPAddrPort(netip.AddrPort{}, netip.AddrPortFrom(ServerV4, Port))
		if err != nil {
			t.Fatal(err)
		}
		defer sock.Close()
		if _, err := sock.Write(request(t).Raw); err != nil {
			t.Fatal(err)
		}
	}
	if got := in.ask(t, ServerV6); got.Port() != in.port(t) { // its own address, behind the other in the same tunnel
		t.Errorf("got %v", got)
	}
	s.Close() // what was answered is counted now
	if st := r.Stats(); st.STUN != 1 {
		t.Errorf("%d answers, want the one to the client by its own address", st.STUN)
	}
}
