//go:build linux

package lab_test

import (
	"bytes"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"culvert.dev/culvert/internal/lab"
)

// whoamiUDP answers every datagram with the address and port that it came from.
func whoamiUDP(t testing.TB, node *lab.Node, addr string) {
	t.Helper()
	u := node.ListenUDP(t, addr)
	go func() {
		for b := make([]byte, 65536); ; {
			_, from, err := u.ReadFromUDPAddrPort(b)
			if err != nil {
				return
			}
			u.WriteToUDPAddrPort([]byte(from.String()), from)
		}
	}()
}

// TestProxyUDP uses UDP ASSOCIATE towards the internet and the mesh.
func TestProxyUDP(t *testing.T) {
	t.Parallel()
	w := newProxied(t, proxiedConfig{client: `
[SOCKS5]
Listen = 127.0.0.1:1080, [::1]:1080
Exit = exit-fra
Route = ads.example block
[SOCKS5]
Listen = 127.0.0.1:1081
User = alice:secret
Exit = exit-ams
[SOCKS5]
Listen = 127.0.0.1:1082
UDP = no
`})
	const echoPort, whoPort, spyPort = 7, 4000, 4001
	for _, f := range families {
		for _, a := range [][2]string{lab.Server, lab.Server2} {
			echoUDP(t, w.S, lab.Port(a[f.i], echoPort))
			whoamiUDP(t, w.S, lab.Port(a[f.i], whoPort))
		}
		echoUDP(t, w.DB, lab.Port(lab.ProxyMesh["db"][f.i], echoPort))
		whoamiUDP(t, w.DB, lab.Port(lab.ProxyMesh["db"][f.i], whoPort))
	}
	w.listening(t, 1080, 1081, 1082)
	capture := w.C.Capture(t, "r", marker)
	for _, proxy := range []string{"127.0.0.1:1080", "[::1]:1080"} {
		t.Run("by "+proxy, func(t *testing.T) {
			s := w.associate(t, proxy, socksUser{})
			if host, _, _ := net.SplitHostPort(proxy); s.relay.Addr() != netip.MustParseAddr(host) {
				t.Errorf("the relay is at %v, want the address that the client came to", s.relay)
			}
			for _, f := range families {
				w.udpTargets(t, s, f)
			}
		})
	}
	s := w.associate(t, "127.0.0.1:1080", socksUser{})
	t.Run("a question to a resolver on the internet", func(t *testing.T) {
		question := dnsmessage.Message{Header: dnsmessage.Header{ID: 77, RecursionDesired: true},
			Questions: []dnsmessage.Question{{Name: dnsmessage.MustNewName("v4.example."), Type: dnsmessage.TypeA, Class: dnsmessage.ClassINET}}}
		b, _ := question.Pack()
		got, _, err := s.exchange(lab.NameServer[0], 53, b)
		var answer dnsmessage.Message
		if err != nil || answer.Unpack(got) != nil || len(answer.Answers) != 1 {
			t.Errorf("%v, %x", err, got)
		}
	})
	t.Run("names are resolved by the exit", func(t *testing.T) {
		if got, from, err := s.exchange("v4.example", whoPort, []byte("?")); err != nil || !strings.HasPrefix(string(got), lab.ProxyOuter["fra"][0]+":") {
			t.Errorf("got %q from %v, %v", got, from, err)
		}
		if got, _, err := s.exchange("db", whoPort, []byte("?")); err != nil || !strings.Contains(string(got), "::2]:") && !strings.HasPrefix(string(got), lab.ProxyMesh["c"][0]) {
			t.Errorf("a peer by name: got %q, %v", got, err)
		}
	})
	t.Run("one port outside for all destinations", func(t *testing.T) {
		s := w.associate(t, "127.0.0.1:1080", socksUser{})
		first, _, err := s.exchange(lab.Server[0], whoPort, []byte("?"))
		second, _, err2 := s.exchange(lab.Server2[0], whoPort, []byte("?"))
		if err != nil || err2 != nil || string(first) != string(second) {
			t.Errorf("one server saw %s, the other %s: %v, %v", first, second, err, err2)
		}
		other := w.associate(t, "127.0.0.1:1080", socksUser{})
		if third, _, err := other.exchange(lab.Server[0], whoPort, []byte("?")); err != nil || string(third) == string(first) {
			t.Errorf("two associations leave by one port, %s: %v", third, err)
		}
	})
	t.Run("a third host does not get in", func(t *testing.T) {
		s := w.associate(t, "127.0.0.1:1080", socksUser{})
		outside, _, err := s.exchange(lab.Server[0], whoPort, []byte("?"))
		if err != nil {
			t.Fatal(err)
		}
		spy := w.S.ListenUDP(t, lab.Port(lab.Server2[0], spyPort))
		spy.WriteToUDPAddrPort([]byte("spy"), netip.MustParseAddrPort(string(outside)))
		if got, from, err := s.exchange(lab.Server[0], echoPort, []byte("still")); err != nil || string(got) != "still" {
			t.Errorf("got %q from %v, %v", got, from, err)
		}
	})
	t.Run("users, and their exit", func(t *testing.T) {
		s := w.associate(t, "127.0.0.1:1081", socksUser{"alice", "secret"})
		if got, _, err := s.exchange(lab.Server[0], whoPort, []byte("?")); err != nil || !strings.HasPrefix(string(got), lab.ProxyOuter["ams"][0]+":") {
			t.Errorf("got %q, %v", got, err)
		}
		s = w.associate(t, "127.0.0.1:1080", socksUser{})
		if err := s.send("ads.example", whoPort, []byte("?")); err != nil {
			t.Fatal(err)
		}
		if got, _, err := s.receive(200 * time.Millisecond); err == nil {
			t.Errorf("a blocked name answered %q", got)
		}
	})
	t.Run("a listener without UDP says so", func(t *testing.T) {
		c, err := socksDial(w.C, "127.0.0.1:1082")
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if _, err := socksRequest(c, socksUser{}, socksAssociate, "0.0.0.0", 0); err != errSOCKS(7) {
			t.Errorf("got %v, want reply 7", err)
		}
	})
	t.Run("what is not the client's is not relayed", func(t *testing.T) { w.udpStrangers(t, echoPort) })
	t.Run("it ends with its connection", func(t *testing.T) {
		s := w.associate(t, "127.0.0.1:1080", socksUser{})
		if _, _, err := s.exchange(lab.Server[0], echoPort, []byte("x")); err != nil {
			t.Fatal(err)
		}
		s.control.Close()
		lab.WaitFor(t, 5*time.Second, "the relay's port to be free", func() bool { return !w.C.Bound("udp", int(s.relay.Port())) })
	})
	capture.Settle(t)
	if capture.DNS() != 0 || capture.Plain() != 0 {
		t.Errorf("%d packets of DNS, %d with plain text left the host: %s", capture.DNS(), capture.Plain(), capture.First())
	}
}

// udpTargets exchanges datagrams of several sizes with the internet and the mesh.
func (w *proxied) udpTargets(t *testing.T, s *socksUDP, f family) {
	t.Helper()
	for _, host := range []string{lab.Server[f.i], lab.ProxyMesh["db"][f.i]} {
		for _, size := range []int{0, 1, 1400, 4097, 60000} {
			data := random(t, size)
			copy(data, marker)
			got, from, err := s.exchange(host, 7, data)
			if err != nil || !bytes.Equal(got, data) || from != netip.AddrPortFrom(netip.MustParseAddr(host), 7) {
				t.Errorf("%d bytes to %s: %d bytes from %v, %v", size, host, len(got), from, err)
			}
		}
	}
	for host, want := range map[string]string{lab.Server[f.i]: lab.ProxyOuter["fra"][f.i], lab.ProxyMesh["db"][f.i]: lab.ProxyMesh["c"][f.i]} {
		got, _, err := s.exchange(host, 4000, []byte("?"))
		if a, perr := netip.ParseAddrPort(string(got)); err != nil || perr != nil || a.Addr().String() != want {
			t.Errorf("%s saw %s, want %s: %v", host, got, want, err)
		}
	}
	const n = 200 // in flights that no buffer is too small for
	for first := 0; first < n; first += 20 {
		for i := range 20 {
			s.send(lab.Server[f.i], 7, fmt.Appendf(nil, "%d", first+i))
		}
		for i := range 20 {
			if got, _, err := s.receive(soon); err != nil || string(got) != fmt.Sprint(first+i) {
				t.Fatalf("%s: datagram %d is %q, %v", f.name, first+i, got, err)
			}
		}
	}
}

// udpStrangers sends to the relay what it must not pass on: from another socket, in fragments, too short, from outside.
func (w *proxied) udpStrangers(t *testing.T, port int) {
	s := w.associate(t, "127.0.0.1:1080", socksUser{})
	if _, _, err := s.exchange(lab.Server[0], port, []byte("mine")); err != nil {
		t.Fatal(err)
	}
	header := append([]byte{0, 0, 0}, socksAddress(lab.Server[0], port)...)
	stranger := w.C.ListenUDP(t, "127.0.0.1:0")
	stranger.WriteToUDPAddrPort(append(header, "strange"...), s.relay)
	for _, b := range [][]byte{{}, {0, 0}, {0, 0, 0}, {0, 0, 0, 9, 1}, header[:8], append([]byte{0, 0, 1}, header[3:]...), append([]byte{0, 0, 0x81}, header[3:]...)} {
		s.u.WriteToUDPAddrPort(b, s.relay)
	}
	if got, _, err := s.exchange(lab.Server[0], port, []byte("after")); err != nil || string(got) != "after" {
		t.Errorf("got %q, %v", got, err)
	}
	stranger.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
	if n, from, err := stranger.ReadFromUDPAddrPort(make([]byte, 100)); err == nil {
		t.Errorf("another socket got %d bytes from %v", n, from)
	}
}
