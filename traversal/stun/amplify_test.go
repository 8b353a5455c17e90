package stun

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"

	pion "github.com/pion/stun/v3"
)

// onWire is how long a datagram is as an IP packet.
func onWire(b []byte, to netip.AddrPort) int {
	if to.Addr().Is4() {
		return len(b) + headersV4
	}
	return len(b) + headersV6
}

// everyRequest calls fn with requests of every combination of what makes responses long or short.
func everyRequest(t *testing.T, fn func(req []byte)) {
	changes := []pion.Setter{nil, change(0), change(changePort), change(changeAddr | changePort)}
	ports := []pion.Setter{nil, responsePort(40001), responsePort(80)}
	pads := []pion.Setter{nil, attr(pion.AttrPadding), attr(pion.AttrPadding, make([]byte, 37)...), attr(pion.AttrPadding, make([]byte, 1500)...)}
	texts := []pion.Setter{nil, pion.NewSoftware("x"), pion.NewSoftware("a client of some size, with its version"), attr(0x9000)}
	for _, a := range changes {
		for _, b := range ports {
			for _, c := range pads {
				for _, d := range texts {
					for unknown := range 20 {
						var list []pion.Setter
						for _, s := range []pion.Setter{a, b, c, d} {
							if s != nil {
								list = append(list, s)
							}
						}
						for i := range unknown {
							list = append(list, attr(pion.AttrType(0x7000+i)))
						}
						req := build(t, list...)
						fn(req)
						fn(classic(req))
						fn(build(t, append(list, pion.Fingerprint)...))
					}
				}
			}
		}
	}
}

// TestAmplification: whatever is asked, a response is at most 2.1 times as long as its request, IP and UDP counted; what a
// client cannot do without is never left out for that.
func TestAmplification(t *testing.T) {
	largest := map[string]float64{}
	for name, list := range map[string][]netip.Addr{
		"IPv4": fourAddrs, "IPv6": sixAddrs, "IPv4, one address": fourAddrs[:1], "IPv6, one address": sixAddrs[:1],
	} {
		from := client4
		if list[0].Is6() {
			from = client6
		}
		g := fakeSite(3478, 3479, list...)
		s := bareServer(t, ServerConfig{Rate: 1e9, Burst: 1e6, DiscoveryRate: 1e9, DiscoveryBurst: 1e6, TotalRate: 1e9, Software: fmt.Sprintf("%064d", 0)}, g)
		now := int64(0)
		everyRequest(t, func(req []byte) {
			now += 1000
			out, ok := s.respond(nil, req, place{g, list[0], 0}, from, now)
			if !ok {
				t.Fatalf("%x: no answer: %+v", req, s.Stats())
			}
			answer, _ := Answer(nil, req, from)
			for _, b := range [][]byte{out.msg, answer} {
				factor := float64(onWire(b, from)) / float64(onWire(req, from))
				largest[name] = max(largest[name], factor)
				if factor > 2.1 || len(b) > maxMessage || len(b)%4 != 0 {
					t.Errorf("%s: %d bytes for %d: factor %.2f", name, len(b), len(req), factor)
				}
			}
			if len(answer) > MaxAnswerLen {
				t.Errorf("%s: Answer of %d bytes", name, len(answer))
			}
			checkComplete(t, out.msg, len(list) > 1)
		})
	}
	t.Logf("largest factors: %v", largest)
}

// checkComplete: success has the mapped address and, of a server with two addresses, the other one; an error has its code and,
// for 420, the attributes.
func checkComplete(t *testing.T, msg []byte, two bool) {
	t.Helper()
	old := !Is(msg)
	if old {
		copy(msg[4:], []byte{0x21, 0x12, 0xa4, 0x42})
	}
	m := decode(t, msg)
	var needed []pion.AttrType
	var code pion.ErrorCodeAttribute
	switch {
	case m.Type == pion.BindingError:
		needed = append(needed, pion.AttrErrorCode)
		if code.GetFrom(m); code.Code == 420 {
			needed = append(needed, pion.AttrUnknownAttributes)
		}
	case old:
		needed = append(needed, pion.AttrMappedAddress, pion.AttrSourceAddress)
		if two {
			needed = append(needed, pion.AttrChangedAddress)
		}
	default:
		needed = append(needed, pion.AttrXORMappedAddress, pion.AttrResponseOrigin)
		if two {
			needed = append(needed, pion.AttrOtherAddress)
		}
	}
	for _, typ := range needed {
		if !m.Contains(typ) {
			t.Errorf("%v: without %v", m, typ)
		}
	}
}

// TestNoLoop: what a server sends is answered by no server, whatever the request was and whoever it was given to.
func TestNoLoop(t *testing.T) {
	g := fakeSite(3478, 3479, fourAddrs...)
	cfg := ServerConfig{Rate: 1e9, Burst: 1e6, DiscoveryRate: 1e9, DiscoveryBurst: 1e6, TotalRate: 1e9}
	s, other := bareServer(t, cfg, g), bareServer(t, cfg, fakeSite(3478, 3479, fourAddrs...))
	from := ap("198.51.100.99:3478") // as if another server had asked
	now := int64(0)
	everyRequest(t, func(req []byte) {
		now += 1000
		out, ok := s.respond(nil, req, place{g, fourAddrs[0], 0}, from, now)
		if !ok {
			t.Fatal("no answer")
		}
		if again, ok := other.respond(nil, out.msg, place{g, fourAddrs[0], 0}, from, now); ok {
			t.Fatalf("%x is answered by %x", out.msg, again.msg)
		}
		if again, ok := Answer(nil, out.msg, from); ok {
			t.Fatalf("%x is answered by %x", out.msg, again)
		}
	})
	if got := other.Stats(); got.Requests != 0 || got.NotRequest == 0 || got.NotRequest+got.Malformed != s.Stats().Requests {
		t.Errorf("got %+v", got)
	}
}

// TestRandomBytesAreNoReason: seeded garbage, half of it with a header that is right, never makes a response that is too long.
func TestRandomBytesAreNoReason(t *testing.T) {
	g := fakeSite(3478, 3479, fourAddrs...)
	s := bareServer(t, ServerConfig{Rate: 1e9, Burst: 1e6, DiscoveryRate: 1e9, DiscoveryBurst: 1e6, TotalRate: 1e9}, g)
	rng := rand.New(rand.NewPCG(1, 2))
	answered := 0
	for i := range 50_000 {
		msg := make([]byte, rng.IntN(120))
		for j := range msg {
			msg[j] = byte(rng.Uint32())
		}
		if len(msg) >= headerLen && i%2 == 0 {
			msg = long(msg[:len(msg)&^3], len(msg)&^3-headerLen)
			copy(msg, []byte{0, 1})
			for at := headerLen; at+4 <= len(msg); { // small attributes, so that some fit
				msg[at], msg[at+1], msg[at+2], msg[at+3] = byte(rng.IntN(2)*0x80), byte(rng.IntN(48)), 0, byte(rng.IntN(12))
				at += attrHeaderLen + padded(int(msg[at+3]))
			}
		}
		out, ok := s.respond(nil, msg, place{g, fourAddrs[0], 0}, client4, int64(i)*1000)
		if !ok {
			continue
		}
		answered++
		if factor := float64(onWire(out.msg, client4)) / float64(onWire(msg, client4)); factor > 2.1 {
			t.Errorf("%x: %x", msg, out.msg)
		}
	}
	if answered < 500 {
		t.Errorf("%d answered: this tests nothing", answered)
	}
}
