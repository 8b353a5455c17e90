package testnet

import (
	"bytes"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// readErr reads once, within a second.
func readErr(s *Socket) error {
	s.SetReadDeadline(time.Now().Add(time.Second))
	_, _, err := s.ReadFromUDPAddrPort(make([]byte, 2000))
	return err
}

func TestDatagramsOfBothFamiliesAndAnySize(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := New(Config{})
		a, b := pair(n, LinkConfig{})
		sa, sb := listen(t, a, 1), listen(t, b, 2)
		for _, to := range []netip.Addr{b.Addr(), b.Addr6(), netip.AddrFrom16(b.Addr().As16())} {
			for _, size := range []int{0, 1, 1452, 1472, 1473, 4000, 65487} {
				msg := bytes.Repeat([]byte{byte(size)}, size)
				if _, err := sa.WriteToUDPAddrPort(msg, netip.AddrPortFrom(to, 2)); err != nil {
					t.Fatal(to, size, err)
				}
				buf := make([]byte, 65536)
				sb.SetReadDeadline(time.Now().Add(time.Second))
				m, from, err := sb.ReadFromUDPAddrPort(buf)
				if err != nil || !bytes.Equal(buf[:m], msg) || from.Port() != 1 || from.Addr().Is4() != to.Unmap().Is4() {
					t.Errorf("%v, %d bytes: read %d from %v, %v", to, size, m, from, err)
				}
			}
		}
	})
}

func TestSocketErrors(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := New(Config{})
		a, b := pair(n, LinkConfig{})
		only4 := n.Router("v4", netip.MustParsePrefix("10.0.0.0/24")).Host("c", HostConfig{})
		s := listen(t, a, 1)
		s4, err := a.ListenPacket(netip.MustParseAddrPort("0.0.0.0:3"))
		if err != nil {
			t.Fatal(err)
		}
		to := func(h *Host) netip.AddrPort { return netip.AddrPortFrom(h.Addr(), 2) }
		for _, c := range []struct {
			name string
			err  func() error
			want error
		}{
			{"port in use", func() error { _, err := a.ListenPacket(netip.MustParseAddrPort("[::]:1")); return err }, syscall.EADDRINUSE},
			{"port in use by a wildcard", func() error { _, err := a.ListenPacket(netip.AddrPortFrom(a.Addr(), 1)); return err }, syscall.EADDRINUSE},
			{"foreign address", func() error { _, err := a.ListenPacket(to(b)); return err }, syscall.EADDRNOTAVAIL},
			{"port zero", func() error { _, err := s.WriteToUDPAddrPort(nil, netip.AddrPortFrom(b.Addr(), 0)); return err }, syscall.EINVAL},
			{"IPv6 by an IPv4 socket", func() error { _, err := s4.WriteToUDPAddrPort(nil, netip.AddrPortFrom(b.Addr6(), 2)); return err }, syscall.EAFNOSUPPORT},
			{"no address of the family", func() error {
				_, err := listen(t, only4, 1).WriteToUDPAddrPort(nil, netip.AddrPortFrom(b.Addr6(), 2))
				return err
			}, syscall.ENETUNREACH},
			{"too long", func() error { _, err := s.WriteToUDPAddrPort(make([]byte, 65508), to(b)); return err }, syscall.EMSGSIZE},
			{"deadline", func() error { return readErr(s) }, os.ErrDeadlineExceeded},
			{"closed", func() error { s.Close(); return readErr(s) }, net.ErrClosed},
			{"write after close", func() error { _, err := s.WriteToUDPAddrPort(nil, to(b)); return err }, net.ErrClosed},
		} {
			if err := c.err(); !errors.Is(err, c.want) {
				t.Errorf("%s: got %v, want %v", c.name, err, c.want)
			}
		}
	})
}

func TestCloseAndDeadlineWakeReaders(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, _ := pair(New(Config{}), LinkConfig{})
		s := listen(t, a, 1)
		errs := make(chan error, 2)
		read := func() { _, _, err := s.ReadFromUDPAddrPort(nil); errs <- err }
		go read()
		synctest.Wait()
		s.SetReadDeadline(time.Now())
		if err := <-errs; !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Error(err)
		}
		s.SetReadDeadline(time.Time{})
		go read()
		go read()
		synctest.Wait()
		s.Close()
		for range 2 {
			if err := <-errs; !errors.Is(err, net.ErrClosed) {
				t.Error(err)
			}
		}
	})
}

func TestFullReceiveBufferDrops(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := pair(New(Config{}), LinkConfig{})
		sa, sb := listen(t, a, 1), listen(t, b, 2)
		sb.SetReadBuffer(10 * (perDatagram + 100))
		burst(t, sa, netip.AddrPortFrom(b.Addr(), 2), 15, 100, time.Millisecond)
		if got := collect(t, sb, time.Now()); len(got) != 10 || sb.Dropped() != 5 {
			t.Errorf("%d read, %d dropped", len(got), sb.Dropped())
		}
	})
}

func TestClosedPortAnswersUnreachable(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := pair(New(Config{}), LinkConfig{})
		s := listen(t, a, 1)
		s.SetReportErrors(true)
		for _, to := range []netip.Addr{b.Addr(), b.Addr6()} {
			s.WriteToUDPAddrPort([]byte("x"), netip.AddrPortFrom(to, 9))
			err := readErr(s)
			var icmp *ICMPError
			if !errors.Is(err, syscall.ECONNREFUSED) || !errors.As(err, &icmp) || icmp.From != to || icmp.To.Port() != 9 {
				t.Errorf("%v: %v", to, err)
			}
		}
		b.SetSilent(true)
		s.WriteToUDPAddrPort([]byte("x"), netip.AddrPortFrom(b.Addr(), 9))
		if err := readErr(s); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("silent host: %v", err)
		}
		s.SetReportErrors(false)
		b.SetSilent(false)
		s.WriteToUDPAddrPort([]byte("x"), netip.AddrPortFrom(b.Addr(), 9))
		if err := readErr(s); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("not asked for: %v", err)
		}
	})
}

func TestHopLimitRunsOutAtTheRouterItSays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := New(Config{})
		inet := n.Internet()
		isp := inet.Gateway("isp", GatewayConfig{IPv6: true})
		a := isp.Host("a", HostConfig{})
		b := inet.Host("b", HostConfig{})
		sa, sb := listen(t, a, 1), listen(t, b, 2)
		sa.SetReportErrors(true)
		for _, v6 := range []bool{false, true} {
			to := b.Addr()
			if v6 {
				to = b.Addr6()
			}
			for ttl, from := range map[uint8]netip.Addr{1: isp.Addr(v6), 2: inet.Addr(v6)} {
				sa.WriteToTTL([]byte("x"), netip.AddrPortFrom(to, 2), ttl)
				var e *ICMPError
				if err := readErr(sa); !errors.As(err, &e) || !e.TimeExceeded() || e.From != from {
					t.Errorf("hop limit %d to %v: %v, want from %v", ttl, to, err, from)
				}
			}
			sa.WriteToTTL([]byte("x"), netip.AddrPortFrom(to, 2), 3)
			if err := readErr(sb); err != nil {
				t.Errorf("hop limit 3 to %v: %v", to, err)
			}
			sa.SetTTL(2)
			sa.WriteToUDPAddrPort([]byte("x"), netip.AddrPortFrom(to, 2))
			if err := readErr(sa); !errors.Is(err, syscall.EHOSTUNREACH) {
				t.Errorf("SetTTL: %v", err)
			}
			sa.SetTTL(64)
		}
	})
}

func TestNarrowLink(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := New(Config{})
		inet := n.Internet()
		a := inet.Host("a", HostConfig{})
		isp := inet.Gateway("isp", GatewayConfig{IPv6: true, Link: LinkConfig{MTU: 1400}})
		b := isp.Host("b", HostConfig{})
		sa, sb := listen(t, a, 1), listen(t, b, 2)
		to := netip.AddrPortFrom(b.Addr(), 2)
		to6 := netip.AddrPortFrom(b.Addr6(), 2)

		sa.WriteToUDPAddrPort(make([]byte, 1452), to) // routers cut it
		if err := readErr(sb); err != nil {
			t.Errorf("IPv4 that may be cut: %v", err)
		}
		sa.SetReportErrors(true)
		sa.SetDF(true)
		for _, to := range []netip.AddrPort{to, to6} {
			if _, err := sa.WriteToUDPAddrPort(make([]byte, 1452), to); err != nil {
				t.Errorf("%v: first: %v", to, err)
			}
			var e *ICMPError
			if err := readErr(sa); !errors.Is(err, syscall.EMSGSIZE) || !errors.As(err, &e) || e.ICMP.Info != 1400 {
				t.Errorf("%v: ICMP: %v", to, err)
			}
			if _, err := sa.WriteToUDPAddrPort(make([]byte, 1452), to); !errors.Is(err, syscall.EMSGSIZE) {
				t.Errorf("%v: once the path is known: %v", to, err)
			}
			if _, err := sa.WriteToUDPAddrPort(make([]byte, 1352), to); err != nil {
				t.Errorf("%v: what fits: %v", to, err)
			}
			if err := readErr(sb); err != nil {
				t.Errorf("%v: what fits: %v", to, err)
			}
		}
		time.Sleep(pathMTULife) // what is known of the path is tried again after a while
		if _, err := sa.WriteToUDPAddrPort(make([]byte, 1452), to6); err != nil {
			t.Errorf("after ten minutes: %v", err)
		}
		if err := readErr(sa); !errors.Is(err, syscall.EMSGSIZE) {
			t.Errorf("after ten minutes: %v", err)
		}
		sa.SetDF(false)
		sa.WriteToUDPAddrPort(make([]byte, 1452), to6) // the sender cuts it, now that it knows
		if err := readErr(sb); err != nil {
			t.Errorf("IPv6 cut by the sender: %v", err)
		}
	})
}

func TestAddressesComeBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := New(Config{})
		home := n.Internet().Gateway("home", GatewayConfig{NAT: &NATConfig{}, LAN: []netip.Prefix{netip.MustParsePrefix("192.168.1.0/29")}})
		other := n.Router("other", netip.MustParsePrefix("10.0.0.0/24"))
		h := home.Host("h", HostConfig{})
		seen := map[netip.Addr]bool{}
		for range 20 {
			seen[h.Addr()] = true
			h.Move(other, HostConfig{})
			h.Move(home.Router, HostConfig{})
		}
		if len(seen) != 5 { // eight but for network, router and broadcast
			t.Errorf("the host has had %v", seen)
		}
		defer func() {
			if recover() == nil {
				t.Error("an address was given out twice")
			}
		}()
		home.Host("twin", HostConfig{Addrs: h.Addrs()})
	})
}

func TestNoSuchHost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, _ := pair(New(Config{}), LinkConfig{})
		s := listen(t, a, 1)
		s.SetReportErrors(true)
		s.WriteToUDPAddrPort([]byte("x"), netip.MustParseAddrPort("203.0.113.77:9"))
		if err := readErr(s); !errors.Is(err, syscall.EHOSTUNREACH) {
			t.Error(err)
		}
	})
}

func TestMovingHostKeepsItsSockets(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := New(Config{})
		inet := n.Internet()
		other := inet.Gateway("other", GatewayConfig{})
		a, b := inet.Host("a", HostConfig{}), inet.Host("b", HostConfig{})
		sa, sb := listen(t, a, 1), listen(t, b, 2)
		bound, err := a.ListenPacket(netip.AddrPortFrom(a.Addr(), 5))
		if err != nil {
			t.Fatal(err)
		}
		to := netip.AddrPortFrom(b.Addr(), 2)
		old := a.Addr()
		a.Move(other.Router, HostConfig{})
		sa.WriteToUDPAddrPort([]byte("1234"), to)
		got := collect(t, sb, time.Now())
		if len(got) != 1 || got[0].from.Addr() != a.Addr() || a.Addr() == old {
			t.Fatalf("after the move from %v to %v: %v", old, a.Addr(), got)
		}
		if _, err := bound.WriteToUDPAddrPort([]byte("x"), to); !errors.Is(err, syscall.ENETUNREACH) {
			t.Errorf("socket bound to the old address: %v", err)
		}
		sb.WriteToUDPAddrPort([]byte("1234"), got[0].from)
		if err := readErr(sa); err != nil {
			t.Error(err)
		}
		a.SetAddrs(netip.MustParseAddr("203.0.113.9")) // not of the new network, so that no answer finds back
		sa.WriteToUDPAddrPort([]byte("1234"), to)
		if got := collect(t, sb, time.Now()); len(got) != 1 || got[0].from.Addr() != netip.MustParseAddr("203.0.113.9") {
			t.Errorf("after SetAddrs: %v", got)
		}
	})
}

func TestSecondAttachment(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := New(Config{})
		inet := n.Internet()
		isp := inet.Gateway("isp", GatewayConfig{})
		a, b := inet.Host("a", HostConfig{}), inet.Host("b", HostConfig{})
		lte := a.Attach(isp.Router, HostConfig{})
		addrs := a.Addrs()
		second := addrs[len(addrs)-1]
		s, err := a.ListenPacket(netip.AddrPortFrom(second, 7))
		if err != nil {
			t.Fatal(err)
		}
		sb := listen(t, b, 2)
		s.WriteToUDPAddrPort([]byte("1234"), netip.AddrPortFrom(b.Addr(), 2))
		if got := collect(t, sb, time.Now()); len(got) != 1 || got[0].from.Addr() != second {
			t.Fatal(got)
		}
		if up, _ := lte.Stats(); up.Sent != 1 {
			t.Errorf("the second link carried %+v", up)
		}
		c := isp.Host("c", HostConfig{})
		sc := listen(t, c, 2)
		unbound := listen(t, a, 8)
		for to, from := range map[*Host]netip.Addr{b: addrs[0], c: second} {
			unbound.WriteToUDPAddrPort([]byte("1234"), netip.AddrPortFrom(to.Addr(), 2))
			s := sb
			if to == c {
				s = sc
			}
			if got := collect(t, s, time.Now()); len(got) != 1 || got[0].from.Addr() != from {
				t.Errorf("to %s: %v, want from %v", to.Name(), got, from)
			}
		}
	})
}

func TestDialUDPAndLoopback(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, _ := pair(New(Config{}), LinkConfig{})
		s := listen(t, a, 53)
		c, err := a.Dial(t.Context(), "udp", netip.AddrPortFrom(a.Addr(), 53).String())
		if err != nil {
			t.Fatal(err)
		}
		c.Write([]byte("ask"))
		buf := make([]byte, 10)
		m, from, err := s.ReadFrom(buf)
		if err != nil || string(buf[:m]) != "ask" {
			t.Fatal(m, err)
		}
		s.WriteTo([]byte("answer"), from)
		c.SetReadDeadline(time.Now().Add(time.Second))
		if m, err := c.Read(buf); err != nil || string(buf[:m]) != "answer" {
			t.Error(m, err)
		}
		var _ io.ReadWriteCloser = c
	})
}
