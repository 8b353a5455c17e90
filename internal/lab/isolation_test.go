//go:build linux

package lab_test

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"culvert.dev/culvert/internal/lab"
)

// forbiddenPort is where the probes of this file go; witnesses count what arrives there.
const forbiddenPort = 4242

// destination is a row of the isolation table: an address, and whether the sender is told that it is denied.
type destination struct {
	addr string
	answer
}

type answer int

const (
	told   answer = iota // a reset for TCP, ICMP prohibited for UDP
	either               // an address that is nobody's: told or silence
	silent               // RFC 1122 section 3.2.2 and RFC 4443 section 2.4 allow no error about group addresses
)

// always lists what no permission opens, per family.
var always = [2][]destination{
	{
		{"127.0.0.1", told}, {"127.1.2.3", told}, // host loopback
		{lab.ExitWAN[0], told}, {lab.ExitLAN[0], told}, {lab.ExitToC[0], told}, {lab.ExitToP[0], told}, // the host itself
		{"0.0.0.0", either}, {"0.1.2.3", either}, // unspecified, "this network"
		{"255.255.255.255", silent}, {"192.168.7.255", silent}, {"203.0.113.255", silent}, // broadcast
		{"224.0.0.1", silent}, {"239.1.2.3", silent}, // multicast
		{"169.254.1.1", told}, {"169.254.169.254", told}, // link-local, cloud metadata
		{lab.PeerMesh[0], told},     // another peer
		{lab.ClientMesh[0], either}, // itself
	},
	{
		{"::1", told},
		{lab.ExitWAN[1], told}, {lab.ExitLAN[1], told}, {lab.ExitToC[1], told}, {lab.ExitToP[1], told},
		{"::", either},
		{"ff02::1", silent}, {"ff05::2", silent}, {"ff0e::1:2", silent},
		{"fe80::1", told},
		{lab.PeerMesh[1], told},
		{lab.ClientMesh[1], either},
		{"::ffff:127.0.0.1", told}, {"::ffff:192.168.7.1", told}, {"::ffff:169.254.169.254", told}, // v4-mapped
		{"::127.0.0.1", told},                                                                            // v4-compatible
		{"64:ff9b::127.0.0.1", told}, {"64:ff9b::169.254.169.254", told}, {"64:ff9b::203.0.113.2", told}, // NAT64
		{"2002:7f00:1::1", told}, {"2002:a9fe:a9fe::1", told}, // 6to4 of 127.0.0.1 and 169.254.169.254
		{"2001:0:c633:640a::80ff:fffe", told}, // Teredo client at 127.0.0.1
	},
}

// local lists what AllowLAN opens.
var local = [2][]destination{
	{
		{lab.LANHost[0], told},  // on-link, RFC 1918
		{lab.Private[0], told},  // RFC 1918 behind a router
		{lab.Shared[0], told},   // RFC 6598
		{lab.Provider[0], told}, // on-link, although the address looks public
		{lab.ClientOuter[0], told},
		{"172.16.0.1", told},
	},
	{
		{lab.LANHost[1], told},
		{lab.Private[1], told},
		{lab.Provider[1], told},
		{lab.ClientOuter[1], told},
		{"::ffff:192.168.7.10", told}, {"64:ff9b::192.168.7.10", told}, {"2002:c0a8:70a::1", told},
	},
}

// witnesses watch nodes of a world.
type witnesses map[string]*lab.Witness

func (w *world) watch(nodes ...*lab.Node) witnesses {
	ws := make(witnesses)
	for _, n := range nodes {
		ws[n.Name] = n.Witness(forbiddenPort)
	}
	return ws
}

// heard describes what was counted anywhere, or is empty.
func (ws witnesses) heard() string {
	var b strings.Builder
	for name, w := range ws {
		if !w.Silent() {
			fmt.Fprintf(&b, " node %s: in %+v, out %+v", name, w.In(), w.Out())
		}
	}
	return b.String()
}

// remove ends the counting in all nodes.
func (ws witnesses) remove() {
	for _, w := range ws {
		w.Remove()
	}
}

// silence fails the test if a witness counts anything, now or a little later.
func (ws witnesses) silence(t *testing.T) {
	t.Helper()
	if lab.Poll(100*time.Millisecond, func() bool { return ws.heard() != "" }) {
		t.Errorf("packets came through:%s", ws.heard())
	}
}

// denied probes one destination with one protocol from a tap and wants the answer that section 6 of the design gives.
func denied(t *testing.T, tap *lab.Tap, src netip.Addr, d destination, proto string, ws witnesses) {
	t.Helper()
	drain(tap)
	dst := netip.MustParseAddr(d.addr)
	p := probe{src: src, dst: dst, proto: proto, sport: 6001, dport: forbiddenPort, payload: []byte("12345678")}
	if err := tap.Send(p.bytes()); err != nil {
		t.Fatal(err)
	}
	limit := soon
	if d.answer != told || proto == "echo" {
		limit = 50 * time.Millisecond // time to get through, should the exit be wrong
	}
	var got seen
	tap.Receive(limit, func(b []byte) bool {
		s, ok := dissect(b)
		if !ok {
			return false
		}
		if inner, isError := s.about(); s.src == dst || isError && inner.dst == dst {
			got = s
			return true
		}
		return false
	})
	answered := got.src.IsValid()
	switch {
	case d.answer == silent && answered:
		t.Errorf("%s to %s: answered by %v (protocol %d), want silence", proto, d.addr, got.src, got.proto)
	case !answered && (d.answer != told || proto == "echo"):
	case proto == "tcp" && (got.proto != protoTCP || got.flags&tcpRST == 0):
		t.Errorf("tcp to %s: got protocol %d flags %#x (answered: %t), want a reset", d.addr, got.proto, got.flags, answered)
	case proto != "tcp" && !got.prohibited():
		t.Errorf("%s to %s: got protocol %d type %d code %d (answered: %t), want ICMP prohibited", proto, d.addr, got.proto, got.icmpType, got.icmpCode, answered)
	}
	// Whatever the exit sends, its own node counts first; what the others hear is asked for once per table.
	if x := ws["x"]; !x.Silent() {
		t.Errorf("%s to %s came through: the exit sent %+v to others and %+v to itself", proto, d.addr, x.Out(), x.In())
	}
}

var protocols = []string{"tcp", "udp", "echo"}

func TestIsolationByDefault(t *testing.T) {
	t.Parallel()
	productOnly(t, "a plain router forwards everything")
	w := newWorld(t, "AllowRouting = yes", "")
	pc := w.StockClient(t, w.P, w.keys.P, w.exit.Key)
	w.connect(t, w.P)
	tap, ptap := w.C.Tap(t, w.client.Dev), w.P.Tap(t, pc.Dev)
	bothFamilies(t, func(t *testing.T, f family) {
		ws := w.watch(w.X, w.R, w.S, w.L, w.P, w.C)
		defer ws.remove()
		for _, proto := range protocols {
			t.Run("a peer that may route reaches no local destination by "+proto, func(t *testing.T) {
				for _, d := range append(always[f.i], local[f.i]...) {
					denied(t, tap, addr(lab.ClientMesh, f), d, proto, ws)
				}
				ws.silence(t)
			})
			t.Run("a peer that may not route reaches nothing by "+proto, func(t *testing.T) {
				for _, d := range append(append(always[f.i], local[f.i]...), destination{addr: lab.Server[f.i]}) {
					if d.addr == lab.PeerMesh[f.i] || d.addr == lab.ClientMesh[f.i] { // these change places
						continue
					}
					denied(t, ptap, addr(lab.PeerMesh, f), d, proto, ws)
				}
				denied(t, ptap, addr(lab.PeerMesh, f), destination{addr: lab.ClientMesh[f.i]}, proto, ws)
				ws.silence(t)
			})
			t.Run("a spoofed inner source gets nowhere by "+proto, func(t *testing.T) {
				for _, src := range []string{lab.PeerMesh[f.i], lab.ExitMesh[f.i], lab.Server2[f.i], lab.LANHost[f.i], lab.ExitWAN[f.i]} {
					p := probe{src: netip.MustParseAddr(src), dst: addr(lab.Server, f), proto: proto, sport: 6002, dport: forbiddenPort}
					if err := tap.Send(p.bytes()); err != nil {
						t.Fatal(err)
					}
				}
				ws.silence(t)
			})
		}
		t.Run("no service of the node", func(t *testing.T) {
			for _, row := range []struct {
				tap *lab.Tap
				src [2]string
			}{{tap, lab.ClientMesh}, {ptap, lab.PeerMesh}} {
				for _, proto := range []string{"tcp", "udp"} {
					denied(t, row.tap, addr(row.src, f), destination{addr: lab.ExitMesh[f.i]}, proto, ws)
				}
			}
			ws.silence(t)
		})
		// The control experiment comes last: what is allowed does arrive, and the witnesses do count it.
		t.Run("the internet is reached by tcp, udp and echo", func(t *testing.T) {
			if heard := ws.heard(); heard != "" {
				t.Fatalf("packets before the first that is allowed:%s", heard)
			}
			w.reach(t, f, w.S, lab.Server[f.i])
			for name, c := range map[string]lab.Count{"exit": ws["x"].Out(), "server": ws["s"].In()} {
				if c.TCP == 0 || c.UDP == 0 || c.Echo == 0 {
					t.Errorf("the witness of the %s counted %+v, want some of each", name, c)
				}
			}
		})
	})
}

// reach wants the client to reach a node's address by all three protocols.
func (w *world) reach(t *testing.T, f family, node *lab.Node, to string) {
	t.Helper()
	target := lab.Port(to, forbiddenPort)
	t.Run("reach "+to, func(t *testing.T) {
		serveTCP(t, node, target, func(c *net.TCPConn) { io.Copy(c, c) })
		echoUDP(t, node, target)
		c := dialTCP(t, w.C, f, target)
		c.Write([]byte("x"))
		c.CloseWrite()
		if got, err := io.ReadAll(c); string(got) != "x" || err != nil {
			t.Errorf("tcp: got %q, %v", got, err)
		}
		if got, _ := exchange(t, w.C.ListenUDP(t, lab.Port(lab.ClientMesh[f.i], 0)), target, []byte("y")); string(got) != "y" {
			t.Errorf("udp: got %q", got)
		}
		if out, err := w.C.Exec("", "ping", "-n", "-c", "1", "-W", "2", to); err != nil {
			t.Errorf("echo: %v\n%s", err, out)
		}
	})
}

func TestIsolationWithPermissions(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "AllowRouting = yes\nAllowLAN = yes\nAllowPeers = p", "AllowRouting = yes")
	pc := w.StockClient(t, w.P, w.keys.P, w.exit.Key)
	w.connect(t, w.P)
	tap, ptap := w.C.Tap(t, w.client.Dev), w.P.Tap(t, pc.Dev)
	bothFamilies(t, func(t *testing.T, f family) {
		t.Run("AllowLAN opens local networks", func(t *testing.T) {
			w.reach(t, f, w.L, lab.LANHost[f.i])
			w.reach(t, f, w.S, lab.Private[f.i])
			w.reach(t, f, w.S, lab.Shared[f.i])
			w.reach(t, f, w.R, lab.Provider[f.i])
		})
		t.Run("AllowPeers opens the way to a peer", func(t *testing.T) {
			w.reach(t, f, w.P, lab.PeerMesh[f.i])
		})
	})
	bothFamilies(t, func(t *testing.T, f family) {
		productOnly(t, "a plain router forwards everything")
		ws := w.watch(w.X, w.R, w.S, w.L, w.P, w.C)
		defer ws.remove()
		for _, proto := range protocols {
			t.Run("AllowPeers does not open the way back by "+proto, func(t *testing.T) {
				denied(t, ptap, addr(lab.PeerMesh, f), destination{addr: lab.ClientMesh[f.i]}, proto, ws)
				ws.silence(t)
			})
			t.Run("AllowLAN does not open the host itself by "+proto, func(t *testing.T) {
				for _, d := range always[f.i] {
					if d.addr != lab.PeerMesh[f.i] {
						denied(t, tap, addr(lab.ClientMesh, f), d, proto, ws)
					}
				}
				ws.silence(t)
			})
		}
	})
}

func TestIsolationByConfiguration(t *testing.T) {
	t.Parallel()
	productOnly(t, "a plain router has no such rules")
	w := &world{Internet: lab.NewInternet(t)}
	const metadata = "169.254.169.254"
	w.L.Addr("x", metadata+"/32")
	w.X.Route(metadata, lab.LANHost[0])
	w.keys = w.Keys()
	w.config = w.ExitConfig(w.keys, "AllowRouting = yes", "")
	w.config.Extra = fmt.Sprintf("[Exit]\nAllowTo = %s/32\nDenyTo = %s/32, %s/128\n", metadata, lab.Server2[0], lab.Server2[1])
	w.exit = w.X.StartExit(t, lab.ExitCulvert, w.config)
	w.client = w.StockClient(t, w.C, w.keys.C, w.exit.Key)
	w.connect(t, w.C)
	t.Run("AllowTo opens a built-in denial", func(t *testing.T) { w.reach(t, families[0], w.L, metadata) })

	tap, ws := w.C.Tap(t, w.client.Dev), w.watch(w.X, w.S)
	bothFamilies(t, func(t *testing.T, f family) {
		t.Run("DenyTo closes a destination", func(t *testing.T) {
			for _, proto := range protocols {
				denied(t, tap, addr(lab.ClientMesh, f), destination{addr: lab.Server2[f.i]}, proto, ws)
			}
			ws.silence(t)
		})
	})
}
