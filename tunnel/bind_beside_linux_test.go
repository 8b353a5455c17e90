package tunnel

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tun/tuntest"

	"culvert.dev/culvert/internal/wgkey"
)

// listenHopLimit opens a socket that tells the hop limit of what it receives.
func listenHopLimit(t *testing.T, v6 bool) (pc *net.UDPConn, next func() int) {
	t.Helper()
	var lc net.ListenConfig
	p, err := lc.ListenPacket(t.Context(), "udp", loopback(v6, 0))
	if err != nil {
		t.Skip(err)
	}
	t.Cleanup(func() { p.Close() })
	pc = p.(*net.UDPConn)
	raw, _ := pc.SyscallConn()
	raw.Control(func(fd uintptr) {
		unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_RECVTTL, 1)
		if v6 {
			unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_RECVHOPLIMIT, 1)
		}
	})
	return pc, func() int {
		t.Helper()
		pc.SetReadDeadline(time.Now().Add(3 * time.Second))
		buf, oob := make([]byte, 2000), make([]byte, 200)
		_, n, _, _, err := pc.ReadMsgUDP(buf, oob)
		if err != nil {
			t.Fatal(err)
		}
		for rest := oob[:n]; len(rest) > 0; {
			h, data, more, err := unix.ParseOneSocketControlMessage(rest)
			if err != nil {
				break
			}
			if h.Level == unix.IPPROTO_IP && h.Type == unix.IP_TTL || h.Level == unix.IPPROTO_IPV6 && h.Type == unix.IPV6_HOPLIMIT {
				return int(data[0])
			}
			rest = more
		}
		return -1
	}
}

func TestHopLimitIsForOneDatagram(t *testing.T) {
	for _, v6 := range []bool{false, true} {
		pc, next := listenHopLimit(t, v6)
		b := newBind(discard)
		openBind(t, b)
		family := uint8(4)
		if v6 {
			family = 6
		}
		beside, err := openSideSocket(b, family, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer beside.close()
		to, _ := b.ParseEndpoint(pc.LocalAddr().String())
		for _, c := range []struct {
			ttl  uint8
			want int
		}{{0, 64}, {4, 4}, {0, 64}, {255, 255}, {1, 1}, {0, 64}} {
			if err := sendTTL(b, []byte("x"), to, c.ttl); err != nil {
				t.Fatal(err)
			}
			if got := next(); got != c.want {
				t.Errorf("v6=%v: hop limit %d arrives as %d", v6, c.ttl, got)
			}
			if err := beside.sendTTL([]byte("x"), to, c.ttl); err != nil {
				t.Fatal(err)
			}
			if got := next(); got != c.want {
				t.Errorf("v6=%v: hop limit %d of a socket beside arrives as %d", v6, c.ttl, got)
			}
		}
		other, _ := b.ParseEndpoint(loopback(!v6, 9))
		if err := beside.send([][]byte{{1}}, other); !errors.Is(err, syscall.EAFNOSUPPORT) {
			t.Errorf("the other family: %v", err)
		}
		if err := beside.sendTTL([]byte{1}, other, 4); !errors.Is(err, syscall.EAFNOSUPPORT) {
			t.Errorf("the other family with a hop limit: %v", err)
		}
	}
}

// An ICMP error about a probe, on a socket that is told of those, is neither taken for one of the next datagram nor does it
// end receiving.
func TestErrorsAboutEarlierDatagrams(t *testing.T) {
	a, b := newBind(discard).(*udpBind), newBind(discard)
	recvA, _, portA := openBind(t, a)
	recvB, _, portB := openBind(t, b)
	a.v4.Load().raw.Control(func(fd uintptr) {
		if err := unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_RECVERR, 1); err != nil {
			t.Fatal(err)
		}
	})
	gone, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	nobody, _ := a.ParseEndpoint(gone.LocalAddr().String())
	gone.Close()
	to, _ := a.ParseEndpoint(loopback(false, portB))
	back, _ := b.ParseEndpoint(loopback(false, portA))
	for i := range 5 {
		for _, send := range []func() error{
			func() error { return a.Send([][]byte{{byte(i)}, {byte(i)}}, to) },
			func() error { return errors.Join(a.SendTTL([]byte{byte(i)}, to, 9), a.SendTTL([]byte{byte(i)}, to, 9)) },
		} {
			if err := a.Send([][]byte{{9}}, nobody); err != nil {
				t.Fatal(err)
			}
			if err := send(); err != nil {
				t.Fatalf("after a refused one: %v", err)
			}
			receiveAll(t, recvB, 2)
		}
		if err := a.Send([][]byte{{9}}, nobody); err != nil {
			t.Fatal(err)
		}
		if err := b.Send([][]byte{{8}}, back); err != nil {
			t.Fatal(err)
		}
		receiveAll(t, recvA, 1)
	}
}

func TestLowPortIsRefusedInWords(t *testing.T) {
	w := &wire{Bind: newBind(discard), log: discard, shakes: newHandshakes(wgkey.Public{}), link: newRelayLink(newMemRelay(0).client(wgkey.Public{}))}
	if _, _, err := w.Open(0); err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	defer w.sockets.closeAll()
	_, _, err := w.openSocket(4, 587)
	if err == nil || errors.Is(err, syscall.EADDRINUSE) {
		t.Skip("SKIP: this user may open low ports, or the port is taken")
	}
	if !errors.Is(err, syscall.EACCES) || !strings.Contains(err.Error(), "ip_unprivileged_port_start") {
		t.Errorf("%v, want words on what to do", err)
	}
}

func TestHundredsOfSocketsAreCheap(t *testing.T) {
	w := &wire{Bind: newBind(discard), log: discard, shakes: newHandshakes(wgkey.Public{}), link: newRelayLink(newMemRelay(0).client(wgkey.Public{}))}
	if _, _, err := w.openSocket(4, 0); !errors.Is(err, errNotStarted) {
		t.Errorf("before Open: %v", err)
	}
	if _, _, err := w.Open(0); err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	defer w.sockets.closeAll()
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	for i := range maxSockets {
		if _, _, err := w.openSocket(4, 0); errors.Is(err, syscall.EMFILE) {
			t.Skipf("SKIP: only %d files may be open here", i)
		} else if err != nil {
			t.Fatal(err)
		}
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	if each := (int64(after.HeapAlloc) - int64(before.HeapAlloc)) / maxSockets; each > 32<<10 {
		t.Errorf("%d bytes for a socket", each)
	}
	if _, _, err := w.openSocket(4, 0); err == nil {
		t.Errorf("more than %d sockets", maxSockets)
	}
	w.closeSocket(5)
	if id, _, err := w.openSocket(4, 0); err != nil || id != maxSockets+1 {
		t.Errorf("after one is closed: %d, %v", id, err)
	}
	if _, _, err := w.openSocket(5, 0); err == nil {
		t.Error("a family 5")
	}
	w.sockets.closeAll()
	if n := w.sockets.count(); n != 0 {
		t.Errorf("%d sockets after closeAll", n)
	}
	if _, _, err := w.openSocket(4, 0); err == nil {
		t.Error("a socket after closeAll")
	}
}

// wayPair is two wires on the loopback, each with the other as its peer.
type wayPair struct {
	wires [2]*wire
	recv  [2][]conn.ReceiveFunc // IPv4, IPv6, relay, sockets
	keys  [2]wgkey.Public
	ports [2]uint16
}

func newWayPair(t testing.TB) *wayPair {
	t.Helper()
	p := &wayPair{keys: [2]wgkey.Public{newKey(t).Public(), newKey(t).Public()}}
	ra, rb := newPipeRelays(p.keys[0], p.keys[1])
	for i, r := range []Relay{ra, rb} {
		w := &wire{Bind: newBind(discard), log: discard, shakes: newHandshakes(p.keys[i]), link: newRelayLink(r)}
		w.link.add(p.keys[1-i], nil)
		fns, port, err := w.Open(0)
		if err != nil {
			t.Fatal(err)
		}
		if len(fns) != 4 {
			t.Skip("SKIP: this host lacks IPv4 or IPv6")
		}
		t.Cleanup(func() {
			w.sockets.closeAll()
			w.Close()
		})
		p.wires[i], p.recv[i], p.ports[i] = w, fns, port
	}
	return p
}

func (p *wayPair) route(t testing.TB, at int, r Route) {
	t.Helper()
	if err := p.wires[at].link.setRoute(p.keys[1-at], r, new(device.Peer), p.wires[at].endpointOf); err != nil {
		t.Fatal(err)
	}
}

// between routes the two to each other by the loopback, from WireGuard's sockets or others.
func (p *wayPair) between(t testing.TB, v6, beside bool) {
	t.Helper()
	ports, ids := p.ports, [2]uint32{}
	for i := range p.wires {
		if beside {
			family := uint8(4)
			if v6 {
				family = 6
			}
			var err error
			if ids[i], ports[i], err = p.wires[i].openSocket(family, 0); err != nil {
				t.Fatal(err)
			}
		}
	}
	for i := range p.wires {
		p.route(t, i, Route{Via: ViaWay, Way: Way{ids[i], netip.MustParseAddrPort(loopback(v6, ports[1-i]))}})
	}
}

// TestWaysAreNotAllocatedFor covers what a packet passes by way of a route, and what it costs the packets of others.
func TestWaysAreNotAllocatedFor(t *testing.T) {
	for _, c := range []struct {
		v6, beside, known bool
	}{{false, false, true}, {true, false, true}, {false, true, true}, {true, true, true}, {false, false, false}, {false, true, false}} {
		name := fmt.Sprintf("v6=%v beside=%v known=%v", c.v6, c.beside, c.known)
		p := newWayPair(t)
		p.between(t, c.v6, c.beside)
		from, to := p.wires[0].link.of(p.keys[1]), p.wires[1].link.of(p.keys[0])
		recv := p.recv[1][0]
		if c.v6 {
			recv = p.recv[1][1]
		}
		if c.beside {
			recv = p.recv[1][3]
		}
		if c.known {
			to.sessions.add(7)
		}
		out, bufs, sizes, eps := transports(100, 500, 7), newBufs(128, 2000), make([]int, 128), make([]conn.Endpoint, 128)
		step := func() {
			if err := p.wires[0].Send(out, from); err != nil {
				t.Fatal(err)
			}
			for n := 0; n < len(out); {
				k, err := recv(bufs, sizes, eps)
				if err != nil {
					t.Fatal(err)
				}
				for i := range k {
					if sizes[i] != 500 || (eps[i] == conn.Endpoint(to)) != c.known {
						t.Fatalf("%s: %d bytes from %v", name, sizes[i], eps[i].DstToString())
					}
				}
				n += k
			}
		}
		step()
		tx, rx := from.traffic.tx.Load(), to.traffic.rxWay.Load()
		if want := map[bool]uint64{true: 100}[c.known]; tx != 100 || rx != want {
			t.Errorf("%s: counted %d sent, %d received", name, tx, rx)
		}
		if raceEnabled {
			continue // sync.Pool drops items at random under the race detector
		}
		if n := testing.AllocsPerRun(50, step); n >= 1 {
			t.Errorf("%s: %v allocations per 100 packets", name, n)
		}
	}
}

// A socket beside is read in small pieces until a route accepts a way by it, whatever came before.
func TestSocketBecomesFast(t *testing.T) {
	p := newWayPair(t)
	id, port, err := p.wires[1].openSocket(4, 0)
	if err != nil {
		t.Fatal(err)
	}
	h := p.wires[1].sockets.find(id).sideSocket.(*besideSocket)
	to, _ := p.wires[0].Bind.ParseEndpoint(loopback(false, port))
	recv := p.recv[1][3]
	for _, size := range []int{100, 1500} {
		if err := p.wires[0].Bind.Send(transports(40, size, 1), to); err != nil {
			t.Fatal(err)
		}
		got, from := receiveAll(t, recv, 40)
		if len(got[39]) != size || wayOf(from) != (Way{id, netip.MustParseAddrPort(loopback(false, p.ports[0]))}) {
			t.Fatalf("%d bytes from %+v", len(got[39]), wayOf(from))
		}
	}
	if h.fast.Load() {
		t.Error("a socket is fast for side messages")
	}
	p.route(t, 1, Route{Via: ViaRelay, Accept: []Way{{id, netip.MustParseAddrPort(loopback(false, p.ports[0]))}}})
	if !h.fast.Load() {
		t.Error("a socket is not fast with an accepted way")
	}
	for range 3 {
		if err := p.wires[0].Bind.Send(transports(40, 9000, 1), to); err != nil {
			t.Fatal(err)
		}
		if got, _ := receiveAll(t, recv, 40); len(got[39]) != 9000 {
			t.Fatalf("%d bytes", len(got[39]))
		}
	}
}

// TestTunnelBySockets moves real packets both ways, over a handshake by the way.
func TestTunnelBySockets(t *testing.T) {
	for _, loop := range []string{"127.0.0.1", "::1"} {
		ka, kb := newKey(t), newKey(t)
		ra, rb := newMemRelay(0), newMemRelay(0) // of which neither reaches the other end
		a := startEndBy(t, ka, ra.client(ka.Public()), Peer{PublicKey: kb.Public(), AllowedIPs: prefixes("10.9.0.2/32")})
		b := startEndBy(t, kb, rb.client(kb.Public()), Peer{PublicKey: ka.Public(), AllowedIPs: prefixes("10.9.0.1/32")})
		addr := netip.MustParseAddr(loop)
		family := uint8(4)
		if addr.Is6() {
			family = 6
		}
		ia, pa, err := a.OpenSocket(family, 0)
		if err != nil {
			t.Skip(err)
		}
		ib, pb, err := b.OpenSocket(family, 0)
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(a.SetRoute(kb.Public(), Route{Via: ViaWay, Way: Way{ia, netip.AddrPortFrom(addr, pb)}}),
			b.SetRoute(ka.Public(), Route{Via: ViaWay, Way: Way{ib, netip.AddrPortFrom(addr, pa)}})); err != nil {
			t.Fatal(err)
		}
		for range 50 {
			ping(t, a, b, addrA, addrB)
			ping(t, b, a, addrB, addrA)
		}
		if s := statsOf(t, a, kb.Public()); s.Endpoint != netip.AddrPortFrom(addr, pb) || s.Socket != ia || s.Relayed {
			t.Errorf("%+v, want it at port %d by socket %d", s, pb, ia)
		}
		if s, _ := b.Traffic(ka.Public()); s.Tx < 50 || s.RxWay < 50 || s.RxRelay != 0 || s.Roamed.IsValid() {
			t.Errorf("%+v", s)
		}
	}
}

// startEndBy is startEnd with a relay and any port.
func startEndBy(t *testing.T, key wgkey.Private, relay Relay, peers ...Peer) *end {
	t.Helper()
	e := &end{tun: tuntest.NewChannelTUN(), key: key, log: &lockedLog{}}
	var err error
	if e.Tunnel, err = New(e.tun.TUN(), Config{PrivateKey: key, Peers: peers, Relay: relay, AnyPort: true, Logger: e.log.logger()}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { e.Close() })
	if err := e.Start(); err != nil {
		t.Fatal(err)
	}
	return e
}
