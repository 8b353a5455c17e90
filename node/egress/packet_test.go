package egress

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"culvert.dev/culvert/internal/proxy"
)

func listenPacket(t testing.TB, d proxy.Dialer) proxy.PacketConn {
	t.Helper()
	pc, err := d.ListenPacket(context.Background(), &proxy.Request{Protocol: "socks5"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { pc.Close() })
	return pc
}

// ask sends a datagram and returns the answer with its source, "" without one. It must not wait.
func ask(t testing.TB, pc proxy.PacketConn, to, say string) string {
	t.Helper()
	start := time.Now()
	if err := pc.WriteTo([]byte(say), target(to)); err != nil {
		t.Errorf("send to %s: %v", to, err)
	}
	if took := time.Since(start); took > 0 {
		t.Errorf("sending to %s took %v", to, took)
	}
	return hear(pc)
}

// hear returns what comes in within a minute.
func hear(pc proxy.PacketConn) string {
	type result struct {
		s   string
		err error
	}
	got := make(chan result, 1)
	go func() {
		b := make([]byte, 2048)
		n, from, err := pc.ReadFrom(b)
		got <- result{fmt.Sprintf("%s from %s", b[:n], from), err}
	}()
	select {
	case r := <-got:
		if r.err != nil {
			return r.err.Error()
		}
		return r.s
	case <-time.After(time.Minute):
		return ""
	}
}

// packetWorld has everything that datagrams may go to.
func packetWorld(t testing.TB) (*world, *exitHost, *exitHost) {
	w := newWorld(t)
	fra, ams := w.exit("fra", "100.64.0.4"), w.exit("ams", "100.64.0.5")
	w.peers["db"] = []netip.Addr{netip.MustParseAddr("fd7a::2"), netip.MustParseAddr("100.64.0.2")}
	w.routes[netip.MustParsePrefix("203.0.113.0/24")] = "db"
	w.answers["www.vpn.example"] = []netip.Addr{netip.MustParseAddr("203.0.113.7")}
	w.direct.answers = map[string][]netip.Addr{"www.lan": {netip.MustParseAddr("198.51.100.7")}, "evil.lan": {netip.MustParseAddr("127.0.0.1")}}
	reply := func(b []byte) []byte { return append([]byte("re:"), b...) }
	for _, at := range []string{"100.64.0.2:53", "[fd7a::2]:53", "203.0.113.7:53", "203.0.113.8:53"} {
		w.listenUDP(at, reply)
	}
	w.direct.udp.listenUDP("198.51.100.7:53", reply)
	return w, fra, ams
}

// One association talks to everything at once, and every answer tells where it comes from.
func TestDatagramsToEverything(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, fra, ams := packetWorld(t)
		e := w.egress()
		r := rules(t, "fra ams", "*.lan direct", "*.vpn.example mesh", "*.blocked.example block")
		pc := listenPacket(t, e.Dialer(func() Rules { return r }))
		for range 2 {
			for _, c := range []struct{ to, want string }{
				{"db:53", "re:a from [fd7a::2]:53"},
				{"100.64.0.2:53", "re:a from 100.64.0.2:53"},
				{"203.0.113.8:53", "re:a from 203.0.113.8:53"},
				{"www.vpn.example:53", "re:a from 203.0.113.7:53"},
				{"www.lan:53", "re:a from 198.51.100.7:53"},
				{"www.example:53", "fra:a from 192.0.2.1:53"},
				{"192.0.2.9:99", "fra:a from 192.0.2.9:99"},
				{"self:53", "a from 100.64.0.1:53"},
			} {
				if got := ask(t, pc, c.to, "a"); got != c.want {
					t.Errorf("%s: got %q, want %q", c.to, got, c.want)
				}
			}
		}
		for to, want := range map[string]proxy.Kind{
			"a.blocked.example:1": proxy.NotAllowed, "127.0.0.1:1": proxy.NotAllowed, "nobody:1": proxy.NameNotFound, "nobody.mesh:1": proxy.NameNotFound,
			"239.255.255.250:1900": proxy.NotAllowed, "255.255.255.255:67": proxy.NotAllowed,
		} {
			if err := pc.WriteTo([]byte("a"), target(to)); proxy.KindOf(err) != want || err == nil {
				t.Errorf("%s: %v, want %v", to, err, want)
			}
		}
		if got := strings.Join(fra.asked(), " "); got != "www.example:53 192.0.2.9:99 www.example:53 192.0.2.9:99" || len(ams.asked()) > 0 {
			t.Errorf("the exits were asked for %s and %v", got, ams.asked())
		}
		if s := state(e, "fra"); s.Conns != 1 || s.Good != 1 {
			t.Errorf("status %+v, want one association", s)
		}
		pc.Close()
		if _, _, err := pc.ReadFrom(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
			t.Errorf("reading after the close: %v", err)
		}
		if err := pc.WriteTo([]byte("a"), target("db:53")); !errors.Is(err, net.ErrClosed) {
			t.Errorf("writing after the close: %v", err)
		}
		if s := state(e, "fra"); s.Conns != 0 {
			t.Errorf("status %+v after the close", s)
		}
		synctest.Wait()
		w.mu.Lock()
		defer w.mu.Unlock()
		for at := range w.udp {
			if at.Addr() == ownV4 || at.Addr() == ownV6 {
				t.Errorf("port %v is still open", at)
			}
		}
	})
}

// All targets of one way see one port (RFC 4787 REQ-1).
func TestDatagramsKeepOnePort(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, _, _ := packetWorld(t)
		senders := make(chan netip.AddrPort, 8)
		for _, at := range []string{"100.64.0.2:1", "203.0.113.7:2"} {
			pc, err := w.ListenPacket(netip.MustParseAddrPort(at))
			if err != nil {
				t.Fatal(err)
			}
			defer pc.Close()
			go func() {
				for {
					_, from, err := pc.ReadFrom(make([]byte, 1))
					if err != nil {
						return
					}
					senders <- addrPortOf(from)
				}
			}()
		}
		pc := listenPacket(t, w.egress().Dialer(via()))
		pc.WriteTo([]byte("a"), target("100.64.0.2:1"))
		pc.WriteTo([]byte("a"), target("203.0.113.7:2"))
		if a, b := <-senders, <-senders; a != b {
			t.Errorf("the targets see %v and %v", a, b)
		}
	})
}

// Without an own IPv6 address the IPv4 address of a peer is taken.
func TestDatagramsFallBackToTheOtherFamily(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, _, _ := packetWorld(t)
		w.noV6 = true
		pc := listenPacket(t, w.egress().Dialer(via()))
		if got := ask(t, pc, "db:53", "a"); got != "re:a from 100.64.0.2:53" {
			t.Errorf("got %q", got)
		}
		if err := pc.WriteTo([]byte("a"), target("[fd7a::2]:53")); proxy.KindOf(err) != proxy.NetworkUnreachable {
			t.Errorf("IPv6: %v", err)
		}
	})
}

func TestDatagramsMoveToTheNextExit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, fra, _ := packetWorld(t)
		e := w.egress()
		pc := listenPacket(t, e.Dialer(via("fra", "ams")))
		if got := ask(t, pc, "www.example:53", "a"); got != "fra:a from 192.0.2.1:53" {
			t.Errorf("got %q", got)
		}
		w.listen("100.64.0.4:1080", nil)
		fra.cut() // the association ends with its connection
		synctest.Wait()
		if got := ask(t, pc, "www.example:53", "b"); got != "ams:b from 192.0.2.1:53" {
			t.Errorf("after the first exit is gone: %q", got)
		}
		if s := state(e, "fra"); s.State != Down {
			t.Errorf("status %+v", s)
		}
	})
}

// While a way opens datagrams wait, as many as there may be, and writing never does.
func TestDatagramsWaitForTheWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, _, _ := packetWorld(t)
		w.rtt = 500 * time.Millisecond
		pc := listenPacket(t, w.egress().Dialer(via("fra")))
		start, dropped := time.Now(), 0
		for i := range 2 * maxQueue {
			if err := pc.WriteTo([]byte{byte('0' + i)}, target("www.example:53")); err != nil {
				dropped++
			}
		}
		if time.Since(start) > 0 || dropped != maxQueue {
			t.Errorf("writing took %v, %d dropped", time.Since(start), dropped)
		}
		for i := range 10 { // in order; a burst of more may be too much for the exit
			if got, want := hear(pc), fmt.Sprintf("fra:%c from 192.0.2.1:53", '0'+i); got != want {
				t.Fatalf("datagram %d: got %q, want %q", i, got, want)
			}
		}
	})
}

func TestDatagramsWithoutAnyExit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, _, _ := packetWorld(t)
		w.peers["phone"] = []netip.Addr{netip.MustParseAddr("100.64.0.9")}
		pc := listenPacket(t, w.egress().Dialer(via("phone")))
		for range 100 {
			pc.WriteTo([]byte("a"), target("www.example:53"))
			synctest.Wait()
		}
		if n := w.dials("100.64.0.9:1080"); n != 1 {
			t.Errorf("%d attempts at once", n)
		}
		if err := pc.WriteTo([]byte("a"), target("www.example:53")); proxy.KindOf(err) != proxy.HostUnreachable {
			t.Errorf("got %v", err)
		}
		time.Sleep(2 * time.Second)
		pc.WriteTo([]byte("a"), target("www.example:53"))
		synctest.Wait()
		if n := w.dials("100.64.0.9:1080"); n < 2 {
			t.Error("it is never tried again")
		}
	})
}

// Strangers do not get through to a port of the host.
func TestDirectDatagramsComeFromContactsOnly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, _, _ := packetWorld(t)
		r := rules(t, "", "198.51.100.0/24 direct")
		pc := listenPacket(t, w.egress().Dialer(func() Rules { return r }))
		ask(t, pc, "198.51.100.7:53", "a")
		host := w.direct.udp
		stranger, err := host.ListenPacket(netip.MustParseAddrPort("198.51.100.66:53"))
		if err != nil {
			t.Fatal(err)
		}
		defer stranger.Close()
		host.mu.Lock()
		var own netip.AddrPort
		for at := range host.udp {
			if at.Addr() == ownV4 {
				own = at
			}
		}
		host.mu.Unlock()
		if !own.IsValid() {
			t.Fatal("there is no port of the host")
		}
		stranger.WriteTo([]byte("injected"), net.UDPAddrFromAddrPort(own))
		if got := hear(pc); got != "" {
			t.Errorf("got %q", got)
		}
	})
}

// A change of the rules holds for datagrams as well, after a while.
func TestDatagramsFollowTheRules(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, _, _ := packetWorld(t)
		r := rules(t, "fra")
		pc := listenPacket(t, w.egress().Dialer(func() Rules { return r }))
		ask(t, pc, "www.example:53", "a")
		r = rules(t, "fra", "*.example block")
		time.Sleep(routeTime + time.Second)
		if err := pc.WriteTo([]byte("a"), target("www.example:53")); proxy.KindOf(err) != proxy.NotAllowed {
			t.Errorf("got %v", err)
		}
	})
}

// An association remembers a bounded number of targets.
func TestDatagramsToManyTargets(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, _, _ := packetWorld(t)
		pc := listenPacket(t, w.egress().Dialer(via()))
		for i := range 3 * maxRoutes {
			to := proxy.Target{Addr: netip.AddrFrom4([4]byte{203, 0, 113, byte(i)}), Port: uint16(1 + i/256)}
			if err := pc.WriteTo([]byte("a"), to); err != nil {
				t.Fatal(err)
			}
		}
		if n := len(pc.(*association).routes); n > maxRoutes {
			t.Errorf("%d targets are remembered", n)
		}
		for i := range 2 * maxLegs {
			pc.WriteTo([]byte("a"), proxy.Target{Addr: ownV4, Port: uint16(1 + i)})
		}
		if n := len(pc.(*association).legs); n > maxLegs {
			t.Errorf("%d ways are open", n)
		}
	})
}
