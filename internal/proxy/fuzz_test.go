package proxy

import (
	"bytes"
	"errors"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"
)

// script is a connection of which the other side has said everything, in pieces of a few bytes.
type script struct {
	net.Conn
	in    *bytes.Reader
	piece int
	out   bytes.Buffer
}

func newScript(in []byte, piece int) *script {
	return &script{in: bytes.NewReader(in), piece: max(piece, 1)}
}

func (s *script) Read(b []byte) (int, error) {
	if len(b) > s.piece {
		b = b[:s.piece]
	}
	return s.in.Read(b)
}

func (s *script) Write(b []byte) (int, error)      { return s.out.Write(b) }
func (s *script) Close() error                     { return nil }
func (s *script) SetDeadline(time.Time) error      { return nil }
func (s *script) SetReadDeadline(time.Time) error  { return nil }
func (s *script) SetWriteDeadline(time.Time) error { return nil }
func (s *script) LocalAddr() net.Addr              { return &net.UnixAddr{} }
func (s *script) RemoteAddr() net.Addr             { return &net.UnixAddr{} }

// checkTarget fails for a target that nobody may hand to a dialer.
func checkTarget(t *testing.T, target Target) {
	t.Helper()
	switch {
	case (target.Name == "") == !target.Addr.IsValid():
		t.Fatalf("%+v has both or neither", target)
	case target.Name != "" && faultOfName(target.Name) != "":
		t.Fatalf("%+v: %s", target, faultOfName(target.Name))
	case target.Name != lower(target.Name):
		t.Fatalf("%+v has capitals", target)
	case target.Addr.Is4In6() || target.Addr.Zone() != "":
		t.Fatalf("%+v is mapped or has a zone", target)
	}
	if _, err := netip.ParseAddr(target.Name); err == nil {
		t.Fatalf("%+v is an address", target)
	}
}

// FuzzSOCKS5Request: a request that is accepted is the same when it is written again, whatever the pieces are.
func FuzzSOCKS5Request(f *testing.F) {
	f.Add([]byte(toExample), 1)
	f.Add([]byte("\x05\x03\x00\x01\xc0\x00\x02\x01\x00\x50"), 3)
	f.Add([]byte("\x05\x01\x00\x04\x20\x01\x0d\xb8\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01\x01\xbbmore"), 100)
	f.Fuzz(func(t *testing.T, b []byte, piece int) {
		h := &handshake{c: newScript(b, piece)}
		code, target, err := readSOCKS5Request(h)
		if err != nil {
			return
		}
		checkTarget(t, target)
		again := &handshake{c: newScript(appendTarget([]byte{5, code, 0}, target), piece+1)}
		code2, target2, err := readSOCKS5Request(again)
		if err != nil || code2 != code || target2 != target {
			t.Fatalf("%d %+v, again %d %+v, %v", code, target, code2, target2, err)
		}
		rest, _ := io.ReadAll(h.done())
		if !bytes.HasSuffix(b, rest) {
			t.Fatalf("%q is left of %q", rest, b)
		}
	})
}

func FuzzSOCKS4Request(f *testing.F) {
	f.Add([]byte("\x01\x00\x50\x00\x00\x00\x01me\x00example.org\x00more"), 1)
	f.Add([]byte("\x01\x01\xbb\xc0\x00\x02\x01\x00"), 100)
	f.Fuzz(func(t *testing.T, b []byte, piece int) {
		h := &handshake{c: newScript(b, piece)}
		command, user, host, err := readSOCKS4(h)
		if err != nil {
			return
		}
		rest, _ := io.ReadAll(h.done())
		want := append([]byte{command}, b[1:7]...)
		want = append(append(want, user...), 0)
		if host.is4a {
			want = append(append(want, host.name...), 0)
		}
		if !bytes.Equal(append(want, rest...), b) {
			t.Fatalf("%q is %q and %q", b, want, rest)
		}
		s := &Server{}
		var r Request
		if _, err := s.checkSOCKS4(&r, command, user, host); err == nil {
			checkTarget(t, r.Target)
		}
	})
}

// FuzzConversation: no bytes make a server do anything but answer and end, and none make it dial without a proper target.
func FuzzConversation(f *testing.F) {
	f.Add([]byte(passHello+aliceRight+toExample+"more"), 7)
	f.Add([]byte(hello+toExample), 1)
	f.Add([]byte("\x04\x01\x00\x50\x00\x00\x00\x01me\x00example.org\x00more"), 2)
	f.Fuzz(func(t *testing.T, b []byte, piece int) {
		d := failing(errPlain)
		s, err := New(Config{SOCKS: true, UDP: true, Dialer: d})
		if err != nil {
			t.Fatal(err)
		}
		if bytes.Contains(b, []byte("+exit+")) || bytes.Contains(b, []byte("exit+")) {
			return // a wrong exit waits for a second
		}
		s.ServeConn(t.Context(), newScript(b, piece))
		for _, r := range d.requests {
			checkTarget(t, r.Target)
		}
		if st := s.Stats(); st.Active != 0 || st.Connections != 1 {
			t.Fatalf("%+v", st)
		}
	})
}

func FuzzDatagram(f *testing.F) {
	f.Add([]byte("\x00\x00\x00\x01\xc0\x00\x02\x01\x00\x50data"))
	f.Add([]byte("\x00\x00\x00\x03\x0bexample.org\x00\x50"))
	f.Fuzz(func(t *testing.T, b []byte) {
		target, payload, err := parseDatagram(b)
		if err != nil {
			return
		}
		checkTarget(t, target)
		again, payload2, err := parseDatagram(append(appendHeader(nil, target), payload...))
		if err != nil || again != target || !bytes.Equal(payload, payload2) {
			t.Fatalf("%+v, again %+v, %v", target, again, err)
		}
		if !bytes.HasSuffix(b, payload) {
			t.Fatalf("%q is not the end of %q", payload, b)
		}
	})
}

// TestDatagramCutShort: no beginning of a header is one.
func TestDatagramCutShort(t *testing.T) {
	for _, target := range []Target{
		{Addr: netip.MustParseAddr("192.0.2.1"), Port: 80},
		{Addr: netip.MustParseAddr("2001:db8::1"), Port: 80},
		{Name: "example.org", Port: 80},
	} {
		h := appendHeader(nil, target)
		for n := range len(h) {
			if _, _, err := parseDatagram(h[:n]); !errors.Is(err, errShort) {
				t.Errorf("%d of %d bytes for %s: %v", n, len(h), target, err)
			}
		}
	}
}

// FuzzReply: whatever a server answers, the client reads no byte behind the reply.
func FuzzReply(f *testing.F) {
	f.Add([]byte(helloBack+"\x05\x00"+noAddress+"more"), 3, false)
	f.Add([]byte(passBack+"\x01\x00\x05\x00\x00\x03\x02me\x00\x50more"), 100, true)
	f.Fuzz(func(t *testing.T, b []byte, piece int, password bool) {
		c := newScript(b, piece)
		var u *User
		if password {
			u = &alice[1]
		}
		err := Connect(t.Context(), c, Target{Name: "example.org", Port: 80}, u)
		if err != nil {
			return
		}
		end := 2
		if password {
			end = 4
		}
		switch b[end+3] {
		case addressIPv4:
			end += 4 + 4 + 2
		case addressIPv6:
			end += 4 + 16 + 2
		case addressName:
			end += 4 + 1 + int(b[end+4]) + 2
		default:
			t.Fatalf("%q is accepted", b)
		}
		if rest := c.in.Len(); rest != len(b)-end {
			t.Fatalf("%q: %d bytes are left, want %d", b, rest, len(b)-end)
		}
	})
}
