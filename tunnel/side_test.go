package tunnel

import (
	"bytes"
	"encoding/binary"
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.zx2c4.com/wireguard/conn"

	"culvert.dev/culvert/internal/wgkey"
)

// binding is a STUN Binding request, or what looks like one.
func binding(typ uint16) []byte {
	msg := make([]byte, 28)
	binary.BigEndian.PutUint16(msg, typ)
	binary.BigEndian.PutUint16(msg[2:], 8)
	binary.BigEndian.PutUint32(msg[4:], stunMagic)
	copy(msg[8:], "transactions")
	return msg
}

func TestIsSide(t *testing.T) {
	likeSTUN := message(typeInitiation, 0x42a41221, 0, newKey(t).Public())
	if binary.BigEndian.Uint32(likeSTUN[4:]) != stunMagic {
		t.Fatal("the index is not STUN's magic cookie")
	}
	for _, c := range []struct {
		name string
		msg  []byte
		want bool
	}{
		{"a request", binding(0x0001), true},
		{"an indication", binding(0x0011), true},
		{"a success response", binding(0x0101), true},
		{"an error response", binding(0x0111), true},
		{"a header alone", binding(0x0101)[:stunMinLen], true},
		{"shorter than a header", binding(0x0001)[:stunMinLen-1], false},
		{"nothing", nil, false},
		{"another cookie", append(binding(0x0001)[:7:7], bytes.Repeat([]byte{1}, 20)...), false},
		{"bits that STUN has zero", binding(0x0201), false},
		{"an initiation whose index is the cookie", likeSTUN, false},
		{"a sealed message", []byte(sealedMagic + "x"), true},
		{"the magic of sealed messages alone", []byte(sealedMagic), false},
		{"a part of it", []byte(sealedMagic[:5] + "xxxxxxxxxxxxxxxxxxxx"), false},
		{"a transport message", message(typeCookie, 0, 1, newKey(t).Public()), false},
	} {
		if got := isSide(c.msg); got != c.want {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
	}
}

func TestSideChannel(t *testing.T) {
	for _, loop := range []string{"127.0.0.1", "[::1]"} {
		a, b := startPair(t, loop)
		ping(t, a, b, addrA, addrB)
		type arrival struct {
			msg  []byte
			from netip.AddrPort
		}
		arrivals := make(chan arrival, 100)
		b.SetSide(func(msg []byte, _ uint32, from netip.AddrPort) { arrivals <- arrival{bytes.Clone(msg), from} })

		pc, err := net.ListenPacket("udp", loop+":0")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { pc.Close() })
		stranger := pc.LocalAddr().(*net.UDPAddr).AddrPort()
		to := netip.AddrPortFrom(stranger.Addr(), b.ListenPort())
		send := func(msg []byte) {
			t.Helper()
			if _, err := pc.WriteTo(msg, net.UDPAddrFromAddrPort(to)); err != nil {
				t.Fatal(err)
			}
		}
		next := func() arrival {
			t.Helper()
			select {
			case got := <-arrivals:
				return got
			case <-time.After(3 * time.Second):
				t.Fatal("nothing arrives")
				return arrival{}
			}
		}
		for i := range 20 { // in runs, as the kernel coalesces them
			send(binding(0x0001))
			send(binding(0x0101))
			if i%2 == 0 {
				send([]byte("garbage of another kind, which is for nobody"))
			}
		}
		for range 40 {
			if got := next(); got.from != stranger || len(got.msg) != 28 || !isSide(got.msg) {
				t.Fatalf("%x from %v, want a STUN message from %v", got.msg, got.from, stranger)
			}
		}

		// The answer leaves from the WireGuard socket.
		if err := b.SendSide(binding(0x0111), stranger); err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, 100)
		pc.SetReadDeadline(time.Now().Add(3 * time.Second))
		n, from, err := pc.ReadFrom(buf)
		if err != nil || !bytes.Equal(buf[:n], binding(0x0111)) || from.(*net.UDPAddr).AddrPort() != to {
			t.Fatalf("%x from %v (%v), want it from %v", buf[:n], from, err, to)
		}

		// One tunnel to the other, beside its data.
		for range 20 {
			if err := a.SendSide(binding(0x0001), to); err != nil {
				t.Fatal(err)
			}
			ping(t, a, b, addrA, addrB)
			if got := next(); got.from.Port() != a.ListenPort() {
				t.Fatalf("from %v, want port %d", got.from, a.ListenPort())
			}
		}

		b.SetSide(nil)
		send(binding(0x0001))
		ping(t, a, b, addrA, addrB)
		if len(arrivals) != 0 {
			t.Error("a message arrives after SetSide(nil)")
		}
	}
}

func TestSideNeedsAStartedTunnel(t *testing.T) {
	tn, err := New(newBatchTUN(nil), Config{PrivateKey: newKey(t)})
	if err != nil {
		t.Fatal(err)
	}
	defer tn.Close()
	if err := tn.SendSide(binding(1), netip.MustParseAddrPort("127.0.0.1:9")); err == nil {
		t.Error("SendSide before Start succeeds")
	}
}

// What comes by the relay is not the socket's.
func TestRelayedSTUNIsDropped(t *testing.T) {
	h, _, peer := newTestHandshakes(t)
	w := &wire{log: discard, shakes: h, link: newRelayLink(newMemRelay(0).client(peer))}
	fn := func([]byte, uint32, netip.AddrPort) { t.Error("a relayed message is given to the side channel") }
	w.side.Store(&fn)
	if w.special(binding(1), newRelayEndpoint(peer)) {
		t.Error("wireguard-go is given a STUN message")
	}
	var stranger conn.Endpoint = memEndpoint{}
	if w.special(binding(1), stranger) {
		t.Error("wireguard-go is given a STUN message without sender")
	}
}

// FuzzSpecial checks that no message by any way confuses the state of the handshakes.
func FuzzSpecial(f *testing.F) {
	key := wgkey.Public{7}
	f.Add(binding(1), false)
	for _, typ := range []byte{typeInitiation, typeResponse, typeCookie} {
		f.Add(message(typ, 3, 7, key), true)
		f.Add(message(typ, 3, 7, key), false)
	}
	f.Add([]byte{typeInitiation}, true)
	peer := wgkey.Public{9}
	udp := memEndpoint{netip.MustParseAddrPort(addressB)}
	f.Fuzz(func(t *testing.T, msg []byte, byRelay bool) {
		if len(msg) == 0 || msg[0] == typeTransport {
			return // not for special
		}
		h := newHandshakes(key)
		h.add(peer)
		w := &wire{Bind: fixedBind{}, log: discard, shakes: h, link: newRelayLink(newMemRelay(0).client(key))}
		w.link.add(peer, udp)
		fn := func([]byte, uint32, netip.AddrPort) {}
		w.side.Store(&fn)
		var from conn.Endpoint = udp
		if byRelay {
			from = w.link.of(peer)
		}
		h.sentInitiation(message(typeInitiation, 7, 0, peer), string(udp.DstToBytes()), at(0))
		h.sentResponse(message(typeResponse, 8, 1, peer), string(udp.DstToBytes()), at(0))
		h.sentInitiation(message(typeInitiation, 7, 0, peer), string(udp.DstToBytes()), time.Now())
		for range 3 {
			if w.special(msg, from) && isSide(msg) {
				t.Error("wireguard-go is given a STUN message")
			}
			if int(h.unanswered.Load()) != len(h.byOwn) || int(h.refusals.Load()) != len(h.byTheirs) || len(h.byOwn) > 1 || len(h.byEndpoint) > 2 {
				t.Fatalf("%d, %d own; %d, %d refused; %d endpoints", h.unanswered.Load(), len(h.byOwn), h.refusals.Load(), len(h.byTheirs), len(h.byEndpoint))
			}
		}
		h.remove(peer)
		if len(h.byOwn)+len(h.byTheirs)+len(h.byEndpoint)+len(h.byResponse)+len(h.byAddress) != 0 {
			t.Error("something is left of a removed peer")
		}
	})
}
