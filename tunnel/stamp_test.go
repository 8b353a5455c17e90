package tunnel

import (
	"bytes"
	"fmt"
	"net/netip"
	"sync"
	"testing"
	"time"

	"golang.zx2c4.com/wireguard/conn"

	"culvert.dev/culvert/internal/wgkey"
)

// received is a message in a buffer as wireguard-go's.
func received(size int) []byte {
	buf := make([]byte, 65535)
	buf[0] = typeTransport
	return buf[:size]
}

func TestStamp(t *testing.T) {
	for _, s := range []string{"192.0.2.1:5", "[2001:db8::1]:65535", "0.0.0.0:0"} {
		want := netip.MustParseAddrPort(s)
		packet := received(100)
		stampOf(packet).write(want)
		for _, given := range [][]byte{packet, packet[16:], packet[16:40], packet[:0]} {
			if got, ok := Origin(given); !ok || got != want {
				t.Errorf("%v, %v, want %v", got, ok, want)
			}
		}
		if bytes.ContainsFunc(packet[1:], func(r rune) bool { return r != 0 }) {
			t.Error("the stamp reaches into the packet")
		}
		copied := bytes.Clone(packet[:cap(packet)])
		for name, p := range map[string][]byte{
			"a copy of the buffer":             copied[:100],
			"a slice without its capacity":     packet[:100:100],
			"a slice with some of it":          packet[:100:60000],
			"a packet up to the end":           packet[:cap(packet)],
			"a packet that ends in the stamp":  packet[:cap(packet)-5],
			"a buffer that was never stamped":  received(100),
			"no packet":                        nil,
			"a buffer shorter than the stamp":  make([]byte, 0, stampLen-1),
			"a buffer as long as the stamp":    make([]byte, 0, stampLen),
			"a forgery that lacks the address": forged(want),
		} {
			if got, ok := Origin(p); ok {
				t.Errorf("%s: %v", name, got)
			}
		}
		stampOf(packet).write(netip.AddrPort{})
		if got, ok := Origin(packet); ok {
			t.Errorf("after the stamp was taken away: %v", got)
		}
	}
}

// forged is a buffer whose end someone filled by a long datagram, knowing all but where the buffer lies.
func forged(a netip.AddrPort) []byte {
	other := received(100)
	stampOf(other).write(a)
	return append(make([]byte, 65535-stampLen), other[65535-stampLen:65535]...)[:100:65535]
}

func TestStampingReceiver(t *testing.T) {
	udp := heardFromString(t, "192.0.2.7:77")
	relayed := newRelayEndpoint(newKey(t).Public())
	type row struct {
		name string
		typ  byte
		size int
		from conn.Endpoint
		pass bool
		ok   bool
	}
	rows := []row{
		{"by UDP", typeTransport, 100, udp, true, true},
		{"by the relay", typeTransport, 100, relayed, true, false},
		{"by UDP, with just room for the stamp", typeTransport, 65535 - stampLen, udp, true, true},
		{"into the place of the stamp", typeTransport, 65535 - stampLen + 1, udp, false, false},
		{"by the relay, into the place of the stamp", typeTransport, 65535, relayed, false, false},
		{"a handshake message", typeInitiation, 148, udp, true, false},
		{"by UDP again", typeTransport, 1000, udp, true, true},
		{"by the relay again: the stamp of the one before counts no more", typeTransport, 32, relayed, true, false},
	}
	var now row
	recv := stamping(func(bufs [][]byte, sizes []int, eps []conn.Endpoint) (int, error) {
		bufs[0][0], sizes[0], eps[0] = now.typ, now.size, now.from
		return 1, nil
	}, addrPortOf)
	bufs, sizes, eps := newBufs(1, 65535), make([]int, 1), make([]conn.Endpoint, 1)
	for i := range 2 {
		for _, now = range rows {
			if now.typ == typeInitiation && i == 0 {
				clear(bufs[0])
			}
			if _, err := recv(bufs, sizes, eps); err != nil {
				t.Fatal(err)
			}
			if got := sizes[0] > 0; got != now.pass {
				t.Errorf("%s: passed %v", now.name, got)
			}
			got, ok := Origin(bufs[0][:sizes[0]])
			if now.pass && now.typ == typeTransport && (ok != now.ok || ok && got.String() != "192.0.2.7:77") {
				t.Errorf("%s: %v, %v", now.name, got, ok)
			}
		}
	}
	now = rows[0]
	if n := testing.AllocsPerRun(100, func() { recv(bufs, sizes, eps) }); n != 0 {
		t.Errorf("%v allocations per packet", n)
	}
}

// A late packet by the relay is passed on with the peer's UDP endpoint, but did not come from there.
func TestLateRelayedPacketHasNoOrigin(t *testing.T) {
	ka, kb := newKey(t).Public(), newKey(t).Public()
	ra, rb := newPipeRelays(ka, kb)
	w := &wire{Bind: fixedBind{}, log: discard, shakes: newHandshakes(kb), link: newRelayLink(rb), stamp: true}
	w.link.add(ka, nil)
	fns, _, err := w.Open(1)
	if err != nil {
		t.Fatal(err)
	}
	udp := heardFromString(t, "192.0.2.7:77")
	w.link.of(ka).settle(7, udp, time.Now())
	if err := ra.Send(kb, [][]byte{{0: typeTransport, 4: 6, transportMinLen - 1: 0}}); err != nil {
		t.Fatal(err)
	}
	bufs, sizes, eps := newBufs(1, 65535), make([]int, 1), make([]conn.Endpoint, 1)
	stampOf(bufs[0][:100]).write(netip.MustParseAddrPort("192.0.2.9:9"))
	if n, err := fns[1](bufs, sizes, eps); n != 1 || err != nil || sizes[0] != transportMinLen || eps[0] != udp {
		t.Fatalf("%d, %v: %d bytes from %v", n, err, sizes[0], eps[0])
	}
	if got, ok := Origin(bufs[0][:sizes[0]]); ok {
		t.Errorf("origin %v", got)
	}
}

func heardFromString(t *testing.T, s string) conn.Endpoint {
	t.Helper()
	e, err := newBind(discard).ParseEndpoint(s)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// origins counts what Origin says of packets that arrive.
type origins struct {
	mu   sync.Mutex
	seen map[string]int
}

func (o *origins) note(packets [][]byte) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, p := range packets {
		a, ok := Origin(p)
		o.seen[fmt.Sprint(a, ok)]++
	}
}

func (o *origins) take() map[string]int {
	o.mu.Lock()
	defer o.mu.Unlock()
	seen := o.seen
	o.seen = map[string]int{}
	return seen
}

// This is the test that fails when wireguard-go handles its buffers otherwise: packets in runs, as a kernel with UDP_GRO
// delivers them, by UDP and by the relay in turn.
func TestOriginOfPacketsInBatches(t *testing.T) {
	for _, loop := range []string{"127.0.0.1", "[::1]"} {
		for _, stamp := range []bool{true, false} {
			relay := newMemRelay(0)
			ka, kb := newKey(t), newKey(t)
			seen := &origins{seen: map[string]int{}}
			start := func(key wgkey.Private, stamp bool, peer Peer) (*batchTUN, *Tunnel) {
				dev := newBatchTUN(seen.note)
				tn, err := New(dev, Config{PrivateKey: key, Peers: []Peer{peer}, Relay: relay.client(key.Public()), Stamp: stamp, AnyPort: true})
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { tn.Close() })
				if err := tn.Start(); err != nil {
					t.Fatal(err)
				}
				return dev, tn
			}
			_, b := start(kb, stamp, Peer{PublicKey: ka.Public(), AllowedIPs: prefixes("10.9.0.1/32")})
			dev, a := start(ka, false, Peer{PublicKey: kb.Public(), AllowedIPs: prefixes("10.9.0.2/32")})
			udp := fmt.Sprintf("%s:%d", loop, b.ListenPort())
			packets := packetsTo(addrB, addrA, 100, 1300)
			for i := range 20 {
				to, want := udp, fmt.Sprint(netip.MustParseAddrPort(fmt.Sprintf("%s:%d", loop, a.ListenPort())), true)
				if i%2 == 1 {
					to, want = relayText(kb.Public()), fmt.Sprint(netip.AddrPort{}, false)
				}
				if !stamp {
					want = fmt.Sprint(netip.AddrPort{}, false)
				}
				if err := a.configure(updateText([]peerUpdate{{key: kb.Public()}}) + "endpoint=" + to + "\n"); err != nil {
					t.Fatal(err)
				}
				dev.out <- packets
				got := map[string]int{}
				for deadline := time.Now().Add(5 * time.Second); got[want] < len(packets) && time.Now().Before(deadline); time.Sleep(ms) {
					for k, n := range seen.take() {
						got[k] += n
					}
				}
				if len(got) != 1 || got[want] != len(packets) {
					t.Fatalf("batch %d by %s: %v, want %d of %q", i, to, got, len(packets), want)
				}
			}
		}
	}
}
