package testnet

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tun"
	"golang.zx2c4.com/wireguard/tun/tuntest"

	"culvert.dev/culvert/internal/wgkey"
	"culvert.dev/culvert/nat"
	"culvert.dev/culvert/tunnel"
)

// wireguard is a wireguard-go device on a host, with one peer.
type wireguard struct {
	dev *device.Device
	tun *tuntest.ChannelTUN
}

// quietTUN hides that the interface is up, which would start the device before its time.
type quietTUN struct {
	tun.Device
	events chan tun.Event
}

func (q quietTUN) Events() <-chan tun.Event { return q.events }

func (q quietTUN) Close() error {
	close(q.events)
	return q.Device.Close()
}

const wgPort = 51820

// newWireGuard makes a device whose peer is expected at endpoint. It is not up yet.
func newWireGuard(t testing.TB, h *Host, key wgkey.Private, peer wgkey.Public, endpoint netip.AddrPort) *wireguard {
	t.Helper()
	w := &wireguard{tun: tuntest.NewChannelTUN()}
	w.dev = device.NewDevice(quietTUN{w.tun.TUN(), make(chan tun.Event)}, NewBind(h), &device.Logger{Verbosef: device.DiscardLogf, Errorf: device.DiscardLogf})
	err := w.dev.IpcSet(fmt.Sprintf("private_key=%s\nlisten_port=%d\npublic_key=%s\nendpoint=%v\npersistent_keepalive_interval=25\nallowed_ip=0.0.0.0/0\n",
		key.RevealHex(), wgPort, hexOf(peer), endpoint))
	if err != nil {
		t.Fatal(err)
	}
	if err := Pin(w.dev); err != nil {
		t.Fatal(err)
	}
	return w
}

func (w *wireguard) up(t testing.TB) {
	t.Helper()
	if err := w.dev.Up(); err != nil {
		t.Fatal(err)
	}
}

func (w *wireguard) close() {
	w.dev.Close()
	<-w.dev.Wait()
}

// connected reports whether the device has completed a handshake.
func (w *wireguard) connected(t testing.TB) bool {
	t.Helper()
	text, err := w.dev.IpcGet()
	if err != nil {
		t.Fatal(err)
	}
	return strings.Contains(text, "last_handshake_time_sec=") && !strings.Contains(text, "last_handshake_time_sec=0\n")
}

func newKey(t testing.TB) wgkey.Private {
	t.Helper()
	k, err := wgkey.NewPrivate()
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// mapped is the outer address of the port that WireGuard will use.
func mapped(t testing.TB, h *Host, s *stunServer) netip.AddrPort {
	t.Helper()
	sock := listen(t, h, wgPort)
	defer sock.Close()
	return bind(sock, s.addr(0, 0), 0, 0, sock)
}

// punch has two devices send to each other's outer addresses, a second apart, and reports whether both have completed a
// handshake within a minute. The ports are those a server has seen, or, as with endpoints that a user has written down, the
// own ones.
func punch(t testing.TB, s *stunServer, a, b *Host, static bool) (ok bool, took time.Duration) {
	t.Helper()
	ka, kb := newKey(t), newKey(t)
	ea, eb := mapped(t, a, s), mapped(t, b, s)
	if !ea.IsValid() || !eb.IsValid() {
		return false, 0
	}
	if static {
		ea, eb = netip.AddrPortFrom(ea.Addr(), wgPort), netip.AddrPortFrom(eb.Addr(), wgPort)
	}
	wa, wb := newWireGuard(t, a, ka, kb.Public(), eb), newWireGuard(t, b, kb, ka.Public(), ea)
	defer wa.close()
	defer wb.close()
	start := time.Now()
	wa.up(t)
	time.Sleep(time.Second)
	wb.up(t)
	for range 60 {
		time.Sleep(time.Second)
		if wa.connected(t) && wb.connected(t) {
			return true, time.Since(start)
		}
	}
	return false, time.Since(start)
}

// side is one NAT of a pair.
type side struct{ mapping, filtering nat.Dependence }

// letsIn reports whether packets that o sends to the outer address which a server has seen of n reach n's inside, and the
// answers o, when both send to each other's such address, n first or not. That is theory, after RFC 4787 and what NATs with
// sessions do: an answer goes back by the way the packet has come, except that an inside end which has sent to the very same
// remote end before goes on by the mapping it has for that.
func (n side) letsIn(o side, first bool) bool {
	const ei = nat.EndpointIndependent
	switch n.filtering {
	case ei: // whoever knows the address
		return n.mapping == ei || o.mapping != ei || !first
	case nat.AddressDependent:
		return n.mapping == ei // the mapping must be the one through which n has sent to o's address
	default:
		return n.mapping == ei && o.mapping == ei // and o must send from the port that n has sent to
	}
}

// TestWireGuardThroughEveryPairOfNATs: two devices connect if one's packets reach the other and are answered; WireGuard
// learns the address from them.
func TestWireGuardThroughEveryPairOfNATs(t *testing.T) {
	started := time.Now()
	connects := 0
	for i := range 81 {
		a, b := side{dependences[i%3], dependences[i/3%3]}, side{dependences[i/9%3], dependences[i/27]}
		synctest.Test(t, func(t *testing.T) {
			n := New(Config{Seed: uint64(i)})
			inet := n.Internet()
			s := newSTUNServer(t, inet)
			host := func(name string, x side) *Host {
				g := inet.Gateway(name, GatewayConfig{
					Link: LinkConfig{Latency: 10 * time.Millisecond},
					NAT:  &NATConfig{Mapping: x.mapping, Filtering: x.filtering, Ports: nat.PortRandom},
				})
				return g.Host("host "+name, HostConfig{})
			}
			got, took := punch(t, s, host("a", a), host("b", b), false)
			if want := a.letsIn(b, true) || b.letsIn(a, false); got != want {
				t.Errorf("%v with %v: connected: %v after %v, want %v", a, b, got, took, want)
			}
			if got {
				connects++
			}
		})
	}
	t.Logf("%d of 81 pairs connect; %v", connects, time.Since(started))
}

// TestWireGuardCarriesDataAndFollowsAPeerThatMoves: over a bad path, through NATs, one of which reboots; and one peer changes
// to another network.
func TestWireGuardCarriesDataAndFollowsAPeerThatMoves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := New(Config{Seed: 2})
		inet := n.Internet()
		s := newSTUNServer(t, inet)
		bad := LinkConfig{Latency: 20 * time.Millisecond, Jitter: 10 * time.Millisecond, Loss: 0.05, Duplicate: 0.02, Reorder: 0.02}
		homeA, homeB := inet.Site("a", PRC, SiteConfig{Link: bad}), inet.Site("b", PRCR, SiteConfig{})
		a, b := homeA.Host("a", HostConfig{}), homeB.Host("b", HostConfig{})
		ka, kb := newKey(t), newKey(t)
		ea, eb := mapped(t, a, s), mapped(t, b, s)
		wa, wb := newWireGuard(t, a, ka, kb.Public(), eb), newWireGuard(t, b, kb, ka.Public(), ea)
		defer wa.close()
		defer wb.close()
		wa.up(t)
		wb.up(t)
		serial := uint16(0)
		pass := func(what string, within time.Duration) {
			t.Helper()
			serial++
			ping := tuntest.Ping(netip.MustParseAddr("10.0.0.2"), netip.MustParseAddr("10.0.0.1"))
			binary.BigEndian.PutUint16(ping[4:], serial) // the identification tells it from those before
			limit := time.After(within)
			for again := time.NewTicker(100 * time.Millisecond); ; <-again.C {
				select {
				case wa.tun.Outbound <- ping:
				default: // the device still has one to take
				}
				for done := false; !done; {
					select {
					case got := <-wb.tun.Inbound:
						if binary.BigEndian.Uint16(got[4:]) == serial {
							again.Stop()
							return
						}
					case <-limit:
						t.Fatalf("%s: nothing has got through in %v", what, within)
					case <-time.After(90 * time.Millisecond):
						done = true
					}
				}
			}
		}
		pass("first packet", 30*time.Second)
		for range 20 {
			pass("more", 5*time.Second)
		}
		homeA.Reboot() // the port is preserved, and a's packets reach b as before
		pass("after the reboot", 5*time.Second)
		a.Move(homeB.Router, HostConfig{}) // where b's outer address does not lead to b
		eb = netip.AddrPortFrom(b.Addr(), wgPort)
		if err := wa.dev.IpcSet(fmt.Sprintf("public_key=%s\nendpoint=%v\n", hexOf(kb.Public()), eb)); err != nil {
			t.Fatal(err)
		}
		pass("on the same local network", 5*time.Second)
	})
}

func hexOf(k wgkey.Public) string { return hex.EncodeToString(k[:]) }

// TestTunnelsThatStartAtTheSameInstant: the product's own tunnel, through NATs, in virtual time.
func TestTunnelsThatStartAtTheSameInstant(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := New(Config{Seed: 1})
		inet := n.Internet()
		s := newSTUNServer(t, inet)
		a, b := inet.Site("a", PRC, SiteConfig{}).Host("a", HostConfig{}), inet.Site("b", CGNE, SiteConfig{}).Host("b", HostConfig{})
		ka, kb := newKey(t), newKey(t)
		ea, eb := mapped(t, a, s), mapped(t, b, s)
		start := func(h *Host, key wgkey.Private, peer wgkey.Public, at netip.AddrPort) *tunnel.Tunnel {
			tn, err := tunnel.New(tuntest.NewChannelTUN().TUN(), tunnel.Config{
				PrivateKey: key, ListenPort: wgPort, Bind: NewBind(h),
				Peers: []tunnel.Peer{{PublicKey: peer, Endpoint: at.String(), Keepalive: 5}},
			})
			if err != nil {
				t.Fatal(err)
			}
			if err := Pin(tn); err != nil {
				t.Fatal(err)
			}
			return tn
		}
		ta, tb := start(a, ka, kb.Public(), eb), start(b, kb, ka.Public(), ea)
		defer ta.Close()
		defer tb.Close()
		if err := errors.Join(ta.Start(), tb.Start()); err != nil {
			t.Fatal(err)
		}
		time.Sleep(20 * time.Second)
		for _, tn := range []*tunnel.Tunnel{ta, tb} {
			stats, err := tn.Stats()
			if err != nil || len(stats) != 1 || stats[0].LastHandshake.IsZero() {
				t.Errorf("%+v, %v", stats, err)
			}
		}
	})
	if err := Pin(t); err == nil {
		t.Error("found a device in a *testing.T")
	}
}

func TestBindOpensAgain(t *testing.T) {
	a, b := pair(New(Config{}), LinkConfig{})
	x := NewBind(a)
	for range 2 {
		fns, port, err := x.Open(0)
		if err != nil || len(fns) != 1 || port == 0 {
			t.Fatal(len(fns), port, err)
		}
		if _, _, err := x.Open(0); err != conn.ErrBindAlreadyOpen {
			t.Errorf("opened twice: %v", err)
		}
		to, err := x.ParseEndpoint(netip.AddrPortFrom(b.Addr(), 9).String())
		if err != nil || x.Send([][]byte{[]byte("x")}, to) != nil {
			t.Error(err)
		}
		done := make(chan error)
		go func() {
			_, err := fns[0]([][]byte{make([]byte, 10)}, make([]int, 1), make([]conn.Endpoint, 1))
			done <- err
		}()
		if err := x.Close(); err != nil {
			t.Fatal(err)
		}
		if err := <-done; err != net.ErrClosed {
			t.Errorf("receiver after Close: %v", err)
		}
		if err := x.Send([][]byte{[]byte("x")}, to); err != net.ErrClosed {
			t.Errorf("send after Close: %v", err)
		}
	}
}

// What the namespace lab has measured with real NATs (Linux, nft) for the 105 pairs of router types: S connects with static
// endpoints, H with those that a server has seen, too.
var measured = map[RouterType]string{
	Pub:     "SSSSSSSSSSSSS.",
	PubFW:   "SSHSSH....H..",
	FC:      "SSSSSSSSSSS.",
	FCR:     "HSHHHHHHHH.",
	ARC:     "SSSSSSSSS.",
	PRC:     "SH....H..",
	PRCR:    "H....H..",
	ADM:     ".......",
	SymKeep: "......",
	SymSeq:  ".....",
	Sym:     "....",
	CGNE:    "H..",
	CGNS:    "..",
	Blocked: ".",
}

func TestRouterTypesConnectAsInTheLab(t *testing.T) {
	started := time.Now()
	count := map[byte]int{}
	types := RouterTypes()
	for i, a := range types {
		var row []byte
		for _, b := range types[i:] {
			cell := byte('.')
			for _, static := range []bool{false, true} {
				synctest.Test(t, func(t *testing.T) {
					n := New(Config{Seed: uint64(i)})
					inet := n.Internet()
					s := newSTUNServer(t, inet)
					host := func(name string, typ RouterType) *Host {
						return inet.Site(name, typ, SiteConfig{Link: LinkConfig{Latency: 10 * time.Millisecond}}).Host("host "+name, HostConfig{})
					}
					ok, _ := punch(t, s, host("a", a), host("b", b), static)
					switch {
					case ok && static:
						cell = 'S'
					case ok:
						cell = 'H'
					}
				})
				if cell == '.' { // static endpoints do no better
					break
				}
			}
			count[cell]++
			row = append(row, cell)
		}
		t.Logf("%-8s %*s", a, len(types), row)
		if string(row) != measured[a] {
			t.Errorf("%s with %v: got %s, the lab has %s", a, types[i:], row, measured[a])
		}
	}
	if count['S'] != 39 || count['S']+count['H'] != 56 {
		t.Errorf("%d pairs connect with static endpoints, %d in all; want 39 and 56", count['S'], count['S']+count['H'])
	}
	t.Logf("%v", time.Since(started))
}
