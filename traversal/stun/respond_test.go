package stun

import (
	"bytes"
	"fmt"
	"net/netip"
	"testing"

	pion "github.com/pion/stun/v3"
)

var (
	fourAddrs = addrs("198.51.100.10", "198.51.100.11")
	sixAddrs  = addrs("2001:db8::10", "2001:db8::11")
	client4   = ap("203.0.113.5:40000")
	client6   = ap("[2001:db8:5::1]:40000")
)

// change is a CHANGE-REQUEST.
func change(flags byte) pion.Setter { return attr(pion.AttrChangeRequest, 0, 0, 0, flags) }

func responsePort(p uint16) pion.Setter {
	return attr(pion.AttrResponsePort, byte(p>>8), byte(p), 0, 0)
}

// TestChangeRequest: RFC 5780 section 6.1, tables 1 and 2, at all four ends of a server of each family.
func TestChangeRequest(t *testing.T) {
	for _, list := range [][]netip.Addr{fourAddrs, sixAddrs} {
		from := client4
		if list[0].Is6() {
			from = client6
		}
		g := fakeSite(3478, 3479, list...)
		s := bareServer(t, ServerConfig{}, g)
		for a, addr := range list {
			for port := range 2 {
				for _, flags := range []byte{0, changePort, changeAddr, changeAddr | changePort} {
					want := place{g, addr, port}
					if flags&changeAddr != 0 {
						want.addr = list[1-a]
					}
					if flags&changePort != 0 {
						want.port = 1 - port
					}
					out, ok := s.respond(nil, build(t, change(flags)), place{g, addr, port}, from, 0)
					if !ok || out.from != want || out.to != from {
						t.Errorf("%v port %d, flags %d: from %v to %v, want from %v", addr, port, flags, out.from, out.to, want)
						continue
					}
					m := decode(t, out.msg)
					var other pion.OtherAddress
					var origin pion.ResponseOrigin
					if other.GetFrom(m) != nil || origin.GetFrom(m) != nil || mappedOf(t, m) != from {
						t.Errorf("got %v", m)
					}
					// OTHER-ADDRESS is about where the request went, RESPONSE-ORIGIN about where the response comes from.
					if got, want := other.String(), (place{g, list[1-a], 1 - port}).addrPort().String(); got != want {
						t.Errorf("OTHER-ADDRESS %v, want %v", got, want)
					}
					if got := origin.String(); got != want.addrPort().String() {
						t.Errorf("RESPONSE-ORIGIN %v, want %v", got, want.addrPort())
					}
				}
			}
		}
	}
}

// TestOneAddress: the other port alone is served; nothing is said of another address, and who asks for it is refused.
func TestOneAddress(t *testing.T) {
	g := fakeSite(3478, 3479, fourAddrs[0])
	s := bareServer(t, ServerConfig{}, g)
	at := place{g, fourAddrs[0], 0}
	for flags, want := range map[byte]int{0: 0, changePort: 0, changeAddr: 420, changeAddr | changePort: 420} {
		out, ok := s.respond(nil, build(t, change(flags)), at, client4, 0)
		if !ok {
			t.Fatal("no answer")
		}
		m := decode(t, out.msg)
		var code pion.ErrorCodeAttribute
		_ = code.GetFrom(m)
		if int(code.Code) != want || m.Contains(pion.AttrOtherAddress) {
			t.Errorf("flags %d: got %v", flags, m)
		}
		from := at
		if flags == changePort {
			from.port = 1
		}
		if out.from != from {
			t.Errorf("flags %d: from %v", flags, out.from)
		}
	}
}

// TestUnknownAddress: on a wildcard socket of a host without two public addresses, nothing is made up.
func TestUnknownAddress(t *testing.T) {
	g := fakeSite(3478, 3479, fourAddrs...)
	g.wildcard = true
	s := bareServer(t, ServerConfig{}, g)
	for _, a := range []netip.Addr{{}, netip.MustParseAddr("10.0.0.1")} {
		out, ok := s.respond(nil, build(t), place{site: g, addr: a}, client4, 0)
		if !ok || decode(t, out.msg).Contains(pion.AttrOtherAddress) {
			t.Errorf("%v: got %x", a, out.msg)
		}
		out, _ = s.respond(nil, build(t, change(changeAddr)), place{site: g, addr: a}, client4, 0)
		if m := decode(t, out.msg); m.Type != pion.BindingError {
			t.Errorf("%v: got %v", a, m)
		}
	}
}

// TestResponsePort: RFC 5780 section 7.5, within what is safe.
func TestResponsePort(t *testing.T) {
	g := fakeSite(3478, 3479, fourAddrs...)
	other := fakeSite(5000, 5001, fourAddrs...)
	s := bareServer(t, ServerConfig{DiscoveryBurst: 100}, g, other)
	at := place{g, fourAddrs[0], 0}
	for port, ok := range map[uint16]bool{
		1024: true, 40001: true, 65535: true,
		0: false, 1: false, 53: false, 1023: false, 3478: false, 3479: false, 5000: false, 5001: false,
	} {
		out, answered := s.respond(nil, build(t, responsePort(port)), at, client4, 0)
		if !answered {
			t.Fatal("no answer")
		}
		m := decode(t, out.msg)
		switch {
		case ok && (m.Type != pion.BindingSuccess || out.to != netip.AddrPortFrom(client4.Addr(), port)):
			t.Errorf("port %d: %v to %v", port, m, out.to)
		case !ok && (m.Type != pion.BindingError || out.to != client4):
			t.Errorf("port %d: %v to %v", port, m, out.to)
		}
		if ok && mappedOf(t, m) != client4 {
			t.Errorf("port %d: mapped %v", port, mappedOf(t, m))
		}
	}
	if out, _ := s.respond(nil, build(t, responsePort(40001), attr(pion.AttrPadding, 1, 2, 3, 4)), at, client4, 0); out.to != client4 || decode(t, out.msg).Type != pion.BindingError {
		t.Error("RFC 5780 section 6.1: RESPONSE-PORT with PADDING is refused")
	}
	if out, _ := s.respond(nil, build(t, responsePort(40001), change(changePort)), at, client4, 0); out.to.Port() != 40001 || out.from.port != 1 {
		t.Errorf("RESPONSE-PORT with CHANGE-REQUEST: %v to %v", out.from, out.to)
	}
}

// TestPadding: RFC 5780 section 7.6, never longer than what was sent.
func TestPadding(t *testing.T) {
	g := fakeSite(3478, 3479, fourAddrs...)
	s := bareServer(t, ServerConfig{}, g)
	for _, n := range []int{0, 1, 4, 100, 1023, 1024, 1500} {
		req := build(t, attr(pion.AttrPadding, make([]byte, n)...), pion.Fingerprint)
		out, ok := s.respond(nil, req, place{g, fourAddrs[0], 0}, client4, 0)
		if !ok {
			t.Fatalf("%d: no answer", n)
		}
		m := decode(t, out.msg)
		value, _ := m.Get(pion.AttrPadding)
		if want := min(padded(n), 1024); len(value) != want {
			t.Errorf("%d: PADDING of %d, want %d", n, len(value), want)
		}
		if pion.Fingerprint.Check(m) != nil || len(out.msg) > maxMessage {
			t.Errorf("%d: %d bytes, %v", n, len(out.msg), m)
		}
	}
}

// TestClassic: RFC 3489 section 8.1.
func TestClassic(t *testing.T) {
	g := fakeSite(3478, 3479, fourAddrs...)
	s := bareServer(t, ServerConfig{}, g)
	req := classic(build(t, change(changePort)))
	out, ok := s.respond(nil, req, place{g, fourAddrs[0], 0}, client4, 0)
	if !ok || out.from.port != 1 || !bytes.Equal(out.msg[4:20], req[4:20]) {
		t.Fatalf("got %x from %v", out.msg, out.from)
	}
	copy(out.msg[4:], build(t)[4:8]) // the cookie, for the other implementation
	m := decode(t, out.msg)
	for typ, want := range map[pion.AttrType]string{
		pion.AttrMappedAddress:  "203.0.113.5:40000",
		pion.AttrSourceAddress:  "198.51.100.10:3479",
		pion.AttrChangedAddress: "198.51.100.11:3479",
	} {
		var a pion.MappedAddress
		if err := a.GetFromAs(m, typ); err != nil || a.String() != want {
			t.Errorf("%v: got %v %v, want %v", typ, a, err, want)
		}
	}
	if len(m.Attributes) != 3 {
		t.Errorf("got %v", m)
	}
	if got := s.Stats(); got.Classic != 1 || got.Changed != 1 || got.Responses != 1 {
		t.Errorf("got %+v", got)
	}
}

// TestSourcesWithoutAnswer: nothing goes to what is no host's address.
func TestSourcesWithoutAnswer(t *testing.T) {
	g := fakeSite(3478, 3479, fourAddrs...)
	s := bareServer(t, ServerConfig{}, g)
	req := build(t)
	for from, want := range map[string]bool{
		"203.0.113.5:1": true, "[2001:db8::1]:65535": true, "127.0.0.1:7": true, "[fe80::1]:9": true, "[::1]:9": true, "10.0.0.255:9": true,
		"203.0.113.5:0": false, "0.0.0.0:9": false, "0.1.2.3:9": false, "224.0.0.1:9": false, "239.255.255.250:1900": false,
		"255.255.255.255:67": false, "240.0.0.1:9": false, "[::]:9": false, "[ff02::1]:9": false, "[ff0e::1]:5353": false,
		"[::ffff:224.0.0.1]:9": false, "[2001:db8::1]:0": false, "[::ffff:203.0.113.5]:9": true,
	} {
		if _, ok := s.respond(nil, req, place{g, fourAddrs[0], 0}, ap(from), 0); ok != want {
			t.Errorf("server, %s: answered %v", from, ok)
		}
		dst := []byte("kept")
		if got, ok := Answer(dst, req, ap(from)); ok != want || !ok && string(got) != "kept" {
			t.Errorf("Answer, %s: answered %v, %q", from, ok, got)
		}
	}
	if _, ok := s.respond(nil, req, place{g, fourAddrs[0], 0}, netip.AddrPort{}, 0); ok {
		t.Error("answered nobody")
	}
	if got := s.Stats(); got.BadSource == 0 {
		t.Errorf("got %+v", got)
	}
}

// TestAnswer: what a responder without sockets says.
func TestAnswer(t *testing.T) {
	for _, from := range []netip.AddrPort{client4, client6} {
		prefix := []byte("before")
		response, ok := Answer(prefix, build(t, change(0), pion.Fingerprint), from)
		if !ok || !bytes.HasPrefix(response, prefix) {
			t.Fatalf("got %q", response)
		}
		response = response[len(prefix):]
		m := decode(t, response)
		if mappedOf(t, m) != from || pion.Fingerprint.Check(m) != nil || len(m.Attributes) != 2 || len(response) > MaxAnswerLen {
			t.Errorf("got %v", m)
		}
	}
	mapped := netip.AddrPortFrom(netip.AddrFrom16(client4.Addr().As16()), client4.Port())
	if response, ok := Answer(nil, build(t), mapped); !ok || mappedOf(t, decode(t, response)) != client4 {
		t.Error("an IPv4-mapped address is an IPv4 address")
	}
	for name, set := range map[string]pion.Setter{
		"CHANGE-REQUEST": change(changePort), "RESPONSE-PORT": responsePort(4000), "PADDING": attr(pion.AttrPadding, 1, 2, 3, 4),
	} {
		response, ok := Answer(nil, build(t, set), client4)
		if m := decode(t, response); !ok || m.Type != pion.BindingError {
			t.Errorf("%s: got %v", name, m)
		}
	}
}

func TestSoftware(t *testing.T) {
	g := fakeSite(3478, 3479, fourAddrs...)
	for in, want := range map[string]string{"": "culvert", "none": "", "culvert 1.2.3": "culvert 1.2.3"} {
		s := bareServer(t, ServerConfig{Software: in}, g)
		// A request that has a SOFTWARE leaves room for one.
		out, _ := s.respond(nil, build(t, pion.NewSoftware("some client, version 1")), place{g, fourAddrs[0], 0}, client4, 0)
		var got pion.Software
		if err := got.GetFrom(decode(t, out.msg)); (err == nil) != (want != "") || got.String() != want {
			t.Errorf("%q: got %q %v", in, got, err)
		}
		out, _ = s.respond(nil, build(t), place{g, fourAddrs[0], 0}, client4, 0)
		if m := decode(t, out.msg); m.Contains(pion.AttrSoftware) != (in == "") || !m.Contains(pion.AttrResponseOrigin) {
			t.Errorf("%q: for a request of 20 bytes only a short one fits: %v", in, m)
		}
	}
	if _, err := newServer(ServerConfig{Software: fmt.Sprintf("%065d", 0)}); err == nil {
		t.Error("65 bytes are accepted")
	}
}
