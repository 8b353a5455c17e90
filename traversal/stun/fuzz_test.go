package stun

import (
	"bytes"
	"net/netip"
	"testing"

	pion "github.com/pion/stun/v3"
)

// seeds are messages of every kind.
func seeds(f *testing.F) (list [][]byte) {
	list = [][]byte{
		build(f), build(f, pion.Fingerprint), classic(build(f, change(changeAddr))), build(f, change(6), responsePort(4000)),
		build(f, attr(pion.AttrPadding, make([]byte, 30)...), attr(0x7777), pion.Fingerprint), typed(build(f), 0x0011), {}, {1},
	}
	for _, name := range []string{"request", "longterm", "response4", "response6"} {
		list = append(list, vector(f, name))
	}
	return list
}

// FuzzServer: whatever arrives, a response is bounded, goes back to the sender's address, is well-formed to another
// implementation, and is answered by nobody; what the other implementation cannot read is not answered.
func FuzzServer(f *testing.F) {
	for _, msg := range seeds(f) {
		f.Add(msg, []byte{192, 0, 2, 1}, uint16(1234), uint8(0))
		f.Add(msg, bytes.Repeat([]byte{0x20}, 16), uint16(65535), uint8(7))
	}
	f.Fuzz(func(t *testing.T, msg, ip []byte, port uint16, how uint8) {
		addr, _ := netip.AddrFromSlice(ip)
		from := netip.AddrPortFrom(addr, port)
		list := fourAddrs
		if how&1 != 0 {
			list = sixAddrs
		}
		if how&2 != 0 {
			list = list[:1]
		}
		g := fakeSite(3478, 3479, list...)
		s := bareServer(t, ServerConfig{Sources: 1}, g)
		at := place{g, list[0], int(how >> 2 & 1)}
		out, ok := s.respond(nil, msg, at, from, 0)
		if !ok {
			return
		}
		checkResponse(t, msg, out.msg, from)
		if out.to.Addr() != from.Addr() || out.to != from && (out.to.Port() < 1024 || out.to.Port() == 3478) {
			t.Errorf("from %v, the response goes to %v", from, out.to)
		}
		if again, ok := s.respond(nil, out.msg, at, from, 0); ok {
			t.Errorf("%x is answered by %x", out.msg, again.msg)
		}
	})
}

func FuzzAnswer(f *testing.F) {
	for _, msg := range seeds(f) {
		f.Add(msg, []byte{192, 0, 2, 1}, uint16(1234))
	}
	f.Fuzz(func(t *testing.T, msg, ip []byte, port uint16) {
		addr, _ := netip.AddrFromSlice(ip)
		from := netip.AddrPortFrom(addr, port)
		dst := make([]byte, 3, 3+MaxAnswerLen)
		kept := bytes.Clone(msg)
		response, ok := Answer(dst, msg, from)
		if !bytes.Equal(msg, kept) || !bytes.Equal(response[:3], dst) || &response[0] != &dst[0] {
			t.Error("more than the room given was used")
		}
		if ok {
			checkResponse(t, msg, response[3:], netip.AddrPortFrom(addr.Unmap(), port))
		} else if len(response) != 3 {
			t.Errorf("%x, but no answer", response)
		}
	})
}

// checkResponse holds a response against its request, by another implementation.
func checkResponse(t *testing.T, req, response []byte, from netip.AddrPort) {
	t.Helper()
	if factor := float64(onWire(response, from)) / float64(onWire(req, from)); factor > 2.1 {
		t.Errorf("%x for %x: factor %.2f", response, req, factor)
	}
	if !bytes.Equal(response[4:20], req[4:20]) {
		t.Errorf("%x for %x: another transaction", response, req)
	}
	old := !Is(response)
	req, response = bytes.Clone(req), bytes.Clone(response)
	for _, b := range [][]byte{req, response} {
		copy(b[4:], []byte{0x21, 0x12, 0xa4, 0x42})
	}
	q, m := decode(t, req), decode(t, response)
	if q.Type != pion.BindingRequest {
		t.Errorf("%v is answered", q)
	}
	if !old && m.Contains(pion.AttrFingerprint) != (q.Contains(pion.AttrFingerprint)) {
		t.Errorf("%v for %v: FINGERPRINT", m, q)
	}
	if m.Contains(pion.AttrFingerprint) && pion.Fingerprint.Check(m) != nil {
		t.Errorf("%v: wrong FINGERPRINT", m)
	}
	if m.Type == pion.BindingSuccess && !old && mappedOf(t, m) != from {
		t.Errorf("mapped %v, want %v", mappedOf(t, m), from)
	}
}

// FuzzClient: whatever arrives under the right transaction, the client takes it for an answer only if it has an address of a
// host's or an error, and goes on waiting otherwise.
func FuzzClient(f *testing.F) {
	for _, msg := range seeds(f) {
		f.Add(msg, true)
		f.Add(msg, false)
	}
	f.Fuzz(func(t *testing.T, msg []byte, match bool) {
		c := scripted(func(c *Client, n int, req []byte) {
			if match && len(msg) >= headerLen {
				msg = bytes.Clone(msg)
				copy(msg[4:20], req[4:20])
			}
			handled := c.Handle(msg, clientServer)
			if handled && (!match || !Is(msg) || msg[0]&1 == 0) {
				t.Errorf("%x is taken for an answer", msg)
			}
			c.Handle(respondTo(req, "203.0.113.5:5"), clientServer)
		})
		r, err := c.Bind(t.Context(), clientServer)
		if err == nil && !answerable(r.Mapped) {
			t.Errorf("%x: %+v", msg, r)
		}
	})
}
