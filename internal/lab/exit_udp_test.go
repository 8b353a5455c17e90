//go:build linux

package lab_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"culvert.dev/culvert/internal/lab"
)

// echoUDP sends every datagram back where it came from, until the test ends.
func echoUDP(t testing.TB, node *lab.Node, addr string) {
	t.Helper()
	c := node.ListenUDP(t, addr)
	c.SetReadBuffer(4 << 20)
	go func() {
		buf := make([]byte, 65536)
		for {
			n, from, err := c.ReadFromUDPAddrPort(buf)
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err == nil {
				c.WriteToUDPAddrPort(buf[:n], from)
			}
		}
	}()
}

// exchange sends one datagram and returns the answer. It repeats nothing, since nothing may be lost here, except that a
// router such as the reference may drop the first answer that is larger than the tunnel, to report the path's MTU.
func exchange(t testing.TB, c *net.UDPConn, to string, payload []byte) (answer []byte, from netip.AddrPort) {
	t.Helper()
	for attempt := 0; ; attempt++ {
		if _, err := c.WriteToUDPAddrPort(payload, netip.MustParseAddrPort(to)); err != nil {
			t.Fatalf("send %d bytes: %v", len(payload), err)
		}
		if lab.ExitKind(*exitFlag) == lab.ExitCulvert || attempt > 0 {
			return read(t, c)
		}
		buf := make([]byte, 65536)
		c.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
		if n, from, err := c.ReadFromUDPAddrPort(buf); err == nil {
			return buf[:n], from
		}
	}
}

func read(t testing.TB, c *net.UDPConn) ([]byte, netip.AddrPort) {
	t.Helper()
	buf := make([]byte, 65536)
	c.SetReadDeadline(time.Now().Add(soon))
	n, from, err := c.ReadFromUDPAddrPort(buf)
	if err != nil {
		t.Fatalf("read: %v", err)
	}
	return buf[:n], from
}

func TestUDPMapping(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "AllowRouting = yes", "AllowRouting = yes")
	w.StockClient(t, w.P, w.keys.P, w.exit.Key)
	w.connect(t, w.P)
	bothFamilies(t, func(t *testing.T, f family) {
		first := w.S.ListenUDP(t, lab.Port(lab.Server[f.i], 3001))
		otherPort := w.S.ListenUDP(t, lab.Port(lab.Server[f.i], 3002))
		otherHost := w.S.ListenUDP(t, lab.Port(lab.Server2[f.i], 3001))
		client := func(t *testing.T, port int) *net.UDPConn {
			return w.C.ListenUDP(t, lab.Port(lab.ClientMesh[f.i], port))
		}
		// external sends a datagram to a server and returns where it seems to come from.
		external := func(t *testing.T, c, server *net.UDPConn) netip.AddrPort {
			t.Helper()
			if _, err := c.WriteTo([]byte("?"), server.LocalAddr()); err != nil {
				t.Fatal(err)
			}
			_, from := read(t, server)
			return from
		}
		t.Run("the mapping is independent of the endpoint and keeps the port", func(t *testing.T) {
			c := client(t, 4001)
			for _, server := range []*net.UDPConn{first, otherPort, otherHost} {
				if got, want := external(t, c, server), netip.MustParseAddrPort(lab.Port(lab.ExitWAN[f.i], 4001)); got != want {
					t.Errorf("%v sees %v, want %v", server.LocalAddr(), got, want)
				}
			}
		})
		t.Run("a port taken on the exit becomes another", func(t *testing.T) {
			productOnly(t, "nft masquerade does not see the exit's own sockets")
			w.X.ListenUDP(t, f.any+":4002")
			c := client(t, 4002)
			a, b := external(t, c, first), external(t, c, otherHost)
			if a.Port() == 4002 || a != b {
				t.Errorf("the servers see %v and %v, want one port that is not 4002", a, b)
			}
		})
		t.Run("two clients with one port get two", func(t *testing.T) {
			c, p := client(t, 4003), w.P.ListenUDP(t, lab.Port(lab.PeerMesh[f.i], 4003))
			a, b := external(t, c, first), external(t, p, first)
			if a == b {
				t.Fatalf("both are %v", a)
			}
			for _, row := range []struct {
				c    *net.UDPConn
				from netip.AddrPort
			}{{c, a}, {p, b}} {
				first.WriteToUDPAddrPort([]byte(row.from.String()), row.from)
				if got, _ := read(t, row.c); string(got) != row.from.String() {
					t.Errorf("the client behind %v got %q", row.from, got)
				}
			}
		})
		t.Run("a third host cannot inject", func(t *testing.T) {
			c := client(t, 4004)
			ext := external(t, c, first)
			otherHost.WriteToUDPAddrPort([]byte("injected"), ext)
			first.WriteToUDPAddrPort([]byte("answer"), ext)
			if got, from := read(t, c); string(got) != "answer" {
				t.Errorf("got %q from %v", got, from)
			}
		})
		t.Run("another port of the same host may answer", func(t *testing.T) {
			productOnly(t, "conntrack filters by address and port")
			c := client(t, 4005)
			ext := external(t, c, first)
			otherPort.WriteToUDPAddrPort([]byte("answer"), ext)
			got, from := read(t, c)
			if want := otherPort.LocalAddr().(*net.UDPAddr).AddrPort(); string(got) != "answer" || from != want {
				t.Errorf("got %q from %v, want it from %v", got, from, want)
			}
		})
	})
}

func TestUDPDatagrams(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "AllowRouting = yes", "")
	bothFamilies(t, func(t *testing.T, f family) {
		echo := lab.Port(lab.Server[f.i], 3010)
		echoUDP(t, w.S, echo)
		for _, size := range []int{0, 1, 1372, 1373, 1392, 1393, 1400, 1401, 4097, 60000, 65507} {
			t.Run(fmt.Sprintf("%d bytes there and back", size), func(t *testing.T) {
				c, data := w.C.ListenUDP(t, lab.Port(lab.ClientMesh[f.i], 0)), random(t, size)
				if got, from := exchange(t, c, echo, data); !bytes.Equal(got, data) || from.String() != echo {
					t.Errorf("got %d bytes from %v", len(got), from)
				}
			})
		}
		t.Run("2000 datagrams of one flow stay in order", func(t *testing.T) {
			inOrder(t, w, f)
		})
		t.Run("a checksum that comes to zero, there and back", func(t *testing.T) {
			if f.i == 1 {
				productOnly(t, "stock wireguard-go sends the answer with checksum zero, which IPv6 does not allow")
			}
			const port = 3012
			c, server := w.C.ListenUDP(t, lab.Port(lab.ClientMesh[f.i], 0)), w.S.ListenUDP(t, lab.Port(lab.Server[f.i], port))
			there := probe{
				src: addr(lab.ClientMesh, f), dst: addr(lab.Server, f), proto: "udp",
				sport: c.LocalAddr().(*net.UDPAddr).AddrPort().Port(), dport: port, payload: make([]byte, 8),
			}.zeroSum()
			back := probe{src: there.dst, dst: there.src, proto: "udp", sport: port, dport: there.sport, payload: make([]byte, 8)}.zeroSum()
			if err := w.C.Tap(t, w.client.Dev).Send(there.bytes()); err != nil {
				t.Fatal(err)
			}
			got, from := read(t, server)
			if !bytes.Equal(got, there.payload) {
				t.Errorf("the server got % x, want % x", got, there.payload)
			}
			server.WriteToUDPAddrPort(back.payload, from)
			if got, _ := read(t, c); !bytes.Equal(got, back.payload) {
				t.Errorf("the client got % x, want % x", got, back.payload)
			}
		})
		t.Run("64 flows at once", func(t *testing.T) {
			results := make(chan error)
			for range 64 {
				c := w.C.ListenUDP(t, lab.Port(lab.ClientMesh[f.i], 0))
				data := random(t, 200)
				go func() { results <- echoOnce(c, echo, data) }()
			}
			for range 64 {
				if err := <-results; err != nil {
					t.Error(err)
				}
			}
		})
	})
}

func echoOnce(c *net.UDPConn, addr string, data []byte) error {
	c.SetDeadline(time.Now().Add(soon))
	if _, err := c.WriteToUDPAddrPort(data, netip.MustParseAddrPort(addr)); err != nil {
		return err
	}
	buf := make([]byte, 2048)
	n, _, err := c.ReadFromUDPAddrPort(buf)
	if err == nil && !bytes.Equal(buf[:n], data) {
		err = errors.New("another datagram came back")
	}
	return err
}

// inOrder sends numbered datagrams to a server that echoes them, in bursts of 100, which no queue on the way is too short
// for, and wants all of them at the server and back at the client in order.
func inOrder(t *testing.T, w *world, f family) {
	t.Helper()
	const total, burst, port = 2000, 100, 3011
	c := w.C.ListenUDP(t, lab.Port(lab.ClientMesh[f.i], 0))
	server := w.S.ListenUDP(t, lab.Port(lab.Server[f.i], port))
	to := netip.MustParseAddrPort(lab.Port(lab.Server[f.i], port))
	local := c.LocalAddr().(*net.UDPAddr).AddrPort()
	for _, s := range []*net.UDPConn{c, server} {
		s.SetReadBuffer(4 << 20)
	}
	// take reads the numbers of one burst, or of what arrives of it.
	take := func(s *net.UDPConn, each func([]byte, netip.AddrPort)) (got []uint32) {
		buf := make([]byte, 2048)
		for len(got) < burst {
			s.SetReadDeadline(time.Now().Add(soon))
			n, from, err := s.ReadFromUDPAddrPort(buf)
			if err != nil || n != 256 {
				break
			}
			got = append(got, binary.BigEndian.Uint32(buf))
			each(buf[:n], from)
		}
		return got
	}
	for first := uint32(0); first < total; first += burst {
		var sent []uint32
		b := make([]byte, 256)
		for i := range uint32(burst) {
			sent = append(sent, first+i)
			binary.BigEndian.PutUint32(b, first+i)
			b[255] = 0
			// Stock wireguard-go sends a checksum that comes to zero as zero, which IPv6 does not allow (RFC 8200 section 8.1).
			if p := (probe{src: local.Addr(), dst: to.Addr(), proto: "udp", sport: local.Port(), dport: port, payload: b}); p.hasZeroSum() {
				b[255] = 1
			}
			if _, err := c.WriteToUDPAddrPort(b, to); err != nil {
				t.Fatal(err)
			}
		}
		atServer := take(server, func(b []byte, from netip.AddrPort) { server.WriteToUDPAddrPort(b, from) })
		atClient := take(c, func([]byte, netip.AddrPort) {})
		if !slices.Equal(atServer, sent) {
			t.Fatalf("of %d to %d the server got %v", first, first+burst-1, atServer)
		}
		if !slices.Equal(atClient, sent) {
			t.Fatalf("of %d to %d, which the server echoed in order, the client got %v", first, first+burst-1, atClient)
		}
	}
}

func TestUDPErrors(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "AllowRouting = yes", "")
	bothFamilies(t, func(t *testing.T, f family) {
		// failure sends to a destination and returns the error that ICMP brings back to the socket.
		failure := func(t *testing.T, addr string) error {
			c, err := w.C.Dial(f.udp, addr, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			// Unreachable hosts are reported to sockets that ask for all errors only.
			setOption(t, c.(*net.UDPConn), f, unix.IP_RECVERR, unix.IPV6_RECVERR, 1)
			c.Write([]byte("?"))
			c.SetReadDeadline(time.Now().Add(soon))
			_, err = c.Read(make([]byte, 1))
			return err
		}
		t.Run("a closed port is refused", func(t *testing.T) {
			if err := failure(t, lab.Port(lab.Server[f.i], 1)); !errors.Is(err, syscall.ECONNREFUSED) {
				t.Errorf("got %v, want connection refused", err)
			}
		})
		t.Run("an unreachable host is reported", func(t *testing.T) {
			err := failure(t, lab.Port(lab.Unreachable[f.i], 1))
			if !errors.Is(err, syscall.EHOSTUNREACH) && !errors.Is(err, syscall.ENETUNREACH) {
				t.Errorf("got %v, want host or network unreachable", err)
			}
		})
		t.Run("the error of one datagram does not end the flow", func(t *testing.T) {
			open, closed := lab.Port(lab.Server[f.i], 3020), lab.Port(lab.Server[f.i], 1)
			echoUDP(t, w.S, open)
			c := w.C.ListenUDP(t, lab.Port(lab.ClientMesh[f.i], 0))
			for range 3 {
				if _, err := c.WriteToUDPAddrPort([]byte("?"), netip.MustParseAddrPort(closed)); err != nil {
					t.Fatal(err)
				}
				if got, _ := exchange(t, c, open, []byte("still here")); string(got) != "still here" {
					t.Fatalf("got %q", got)
				}
			}
		})
		t.Run("packet too big is reported with the path's MTU", func(t *testing.T) {
			addr := lab.Port(lab.NarrowHost[f.i], 3021)
			echoUDP(t, w.M, addr)
			c, err := w.C.Dial(f.udp, addr, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			if got := pathMTU(t, c.(*net.UDPConn), f); got != lab.NarrowMTU {
				t.Errorf("the client learns MTU %d, want %d", got, lab.NarrowMTU)
			}
			// What fits now passes in both directions.
			data := random(t, lab.NarrowMTU-[2]int{28, 48}[f.i])
			lab.WaitFor(t, soon, "the socket's pending errors to be read", func() bool { _, err := c.Write(data); return err == nil })
			c.SetReadDeadline(time.Now().Add(soon))
			got := make([]byte, 2000)
			if n, err := c.Read(got); err != nil || !bytes.Equal(got[:n], data) {
				t.Errorf("a datagram that fits: got %d bytes, %v", n, err)
			}
		})
	})
}

// pathMTU sends datagrams that must not be fragmented until the kernel has learned of a smaller MTU.
func pathMTU(t *testing.T, c *net.UDPConn, f family) (mtu int) {
	t.Helper()
	setOption(t, c, f, unix.IP_MTU_DISCOVER, unix.IPV6_MTU_DISCOVER, unix.IP_PMTUDISC_DO)
	level, option := unix.IPPROTO_IP, unix.IP_MTU
	if f.i == 1 {
		level, option = unix.IPPROTO_IPV6, unix.IPV6_MTU
	}
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	big := make([]byte, 1350)
	lab.Poll(soon, func() bool {
		c.Write(big) // EMSGSIZE is the answer that is waited for
		raw.Control(func(fd uintptr) { mtu, err = unix.GetsockoptInt(int(fd), level, option) })
		return err != nil || mtu < 1420
	})
	if err != nil {
		t.Fatal(err)
	}
	return mtu
}

// setOption sets a socket option of the IP layer, which has two names.
func setOption(t *testing.T, c *net.UDPConn, f family, v4, v6, value int) {
	t.Helper()
	level, option := unix.IPPROTO_IP, v4
	if f.i == 1 {
		level, option = unix.IPPROTO_IPV6, v6
	}
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	if cerr := raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), level, option, value) }); cerr != nil || err != nil {
		t.Fatalf("set socket option %d: %v, %v", option, cerr, err)
	}
}
