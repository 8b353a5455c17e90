package derp

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"culvert.dev/culvert/internal/wgkey"
)

func TestFrameLayout(t *testing.T) {
	got := AppendFrame([]byte{0xaa}, FrameSendPacket, []byte("ab"), nil, []byte("c"))
	if want := []byte{0xaa, 4, 0, 0, 0, 3, 'a', 'b', 'c'}; !bytes.Equal(got, want) {
		t.Errorf("got %x, want %x", got, want)
	}
	var h [HeaderLen]byte
	PutHeader(h[:], FrameRestarting, 0x01020304)
	if want := [HeaderLen]byte{0x15, 1, 2, 3, 4}; h != want {
		t.Errorf("got %x, want %x", h, want)
	}
}

func TestTypeNumbers(t *testing.T) {
	for _, c := range []struct {
		typ  Type
		n    uint8
		name string
	}{
		{FrameServerKey, 0x01, "ServerKey"}, {FrameClientInfo, 0x02, "ClientInfo"}, {FrameServerInfo, 0x03, "ServerInfo"},
		{FrameSendPacket, 0x04, "SendPacket"}, {FrameRecvPacket, 0x05, "RecvPacket"}, {FrameKeepAlive, 0x06, "KeepAlive"},
		{FrameNotePreferred, 0x07, "NotePreferred"}, {FramePeerGone, 0x08, "PeerGone"}, {FramePeerPresent, 0x09, "PeerPresent"},
		{FrameForwardPacket, 0x0a, "ForwardPacket"}, {FrameWatchConns, 0x10, "WatchConns"}, {FrameClosePeer, 0x11, "ClosePeer"},
		{FramePing, 0x12, "Ping"}, {FramePong, 0x13, "Pong"}, {FrameHealth, 0x14, "Health"}, {FrameRestarting, 0x15, "Restarting"},
		{0x7f, 0x7f, "frame 0x7f"},
	} {
		if uint8(c.typ) != c.n || c.typ.String() != c.name {
			t.Errorf("type 0x%02x %v, want 0x%02x %s", uint8(c.typ), c.typ, c.n, c.name)
		}
	}
}

func TestPeerGone(t *testing.T) {
	key := newKey(t).Public()
	for _, why := range []GoneReason{GoneDisconnected, GoneNotHere, 0xf0} {
		b := AppendPeerGone(nil, key, why)
		if got, reason, err := ParsePeerGone(b[HeaderLen:]); got != key || reason != why || err != nil {
			t.Errorf("%v: got %v %v %v", why, got, reason, err)
		}
	}
	if got, why, err := ParsePeerGone(key[:]); got != key || why != GoneDisconnected || err != nil {
		t.Errorf("without a reason: got %v %v %v, want disconnected", got, why, err)
	}
	if _, _, err := ParsePeerGone(key[:31]); err == nil {
		t.Error("31 bytes are no key, but were taken")
	}
	if s := fmt.Sprint(GoneDisconnected, GoneNotHere, GoneReason(9)); s != "disconnected not here reason 9" {
		t.Errorf("got %q", s)
	}
}

func TestRestarting(t *testing.T) {
	b := AppendRestarting(nil, 1500*time.Millisecond, time.Minute)
	if want := []byte{0x15, 0, 0, 0, 8, 0, 0, 0x05, 0xdc, 0, 0, 0xea, 0x60}; !bytes.Equal(b, want) {
		t.Errorf("got %x, want %x", b, want)
	}
	in, try, err := ParseRestarting(b[HeaderLen:])
	if in != 1500*time.Millisecond || try != time.Minute || err != nil {
		t.Errorf("got %v %v %v", in, try, err)
	}
	if _, _, err := ParseRestarting(b[HeaderLen : len(b)-1]); err == nil {
		t.Error("7 bytes were taken")
	}
	in, try, _ = ParseRestarting(AppendRestarting(nil, -time.Second, 1<<62)[HeaderLen:])
	if in != 0 || try != (1<<32-1)*time.Millisecond {
		t.Errorf("out of range: got %v %v", in, try)
	}
}

func TestPingEchoesEightBytes(t *testing.T) {
	for n, ok := range map[int]bool{0: false, 7: false, 8: true, 9: true, 1000: true, 1001: false} {
		b := bytes.Repeat([]byte("12345678"), 126)[:n]
		echo, err := ParsePing(b)
		if (err == nil) != ok || ok && string(echo[:]) != "12345678" {
			t.Errorf("%d bytes: got %q %v", n, echo, err)
		}
	}
}

// frames returns a stream of frames with payloads of the sizes given, and the payloads.
func frames(sizes ...int) (stream []byte, payloads [][]byte) {
	for i, n := range sizes {
		p := bytes.Repeat([]byte{byte(i + 1)}, n)
		payloads = append(payloads, p)
		stream = AppendFrame(stream, Type(i+1), p)
	}
	return stream, payloads
}

// pieces reads a stream in pieces of the sizes that next returns.
type pieces struct {
	b    []byte
	next func() int
}

func (p *pieces) Read(b []byte) (int, error) {
	if len(p.b) == 0 {
		return 0, io.EOF
	}
	n := copy(b, p.b[:min(len(p.b), p.next())])
	p.b = p.b[n:]
	return n, nil
}

func TestReaderWithAnyPieces(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	sizes := []int{0, 1, 31, 32, 1400, smallSize - HeaderLen, smallSize, smallSize + 1, bigSize - HeaderLen, bigSize, bigSize + 1, 3 * bigSize, MaxServerFrame, 0, 5}
	for range 2000 {
		sizes = append(sizes, rng.IntN(1500))
	}
	stream, want := frames(sizes...)
	for name, next := range map[string]func() int{
		"all at once": func() int { return len(stream) },
		"records":     func() int { return 16 << 10 },
		"packets":     func() int { return 1445 },
		"single":      func() int { return 1 },
		"any":         func() int { return 1 + rng.IntN(1<<rng.IntN(18)) },
		"often none":  func() int { return rng.IntN(3) * rng.IntN(5000) },
	} {
		r := NewReader(&pieces{stream, next}, MaxServerFrame)
		for i, p := range want {
			typ, got, err := r.Next()
			if err != nil || typ != Type(i+1) || !bytes.Equal(got, p) {
				t.Fatalf("%s: frame %d: got %v with %d bytes, %v; want %d bytes", name, i, typ, len(got), err, len(p))
			}
		}
		if _, _, err := r.Next(); err != io.EOF {
			t.Errorf("%s: at the end: %v, want EOF", name, err)
		}
	}
}

func TestReaderEveryTruncation(t *testing.T) {
	stream, _ := frames(3, 0, 40)
	ends := map[int]bool{0: true, 8: true, 13: true, len(stream): true}
	for n := range len(stream) + 1 {
		r := NewReader(bytes.NewReader(stream[:n]), 100)
		var err error
		for err == nil {
			_, _, err = r.Next()
		}
		if want := map[bool]error{true: io.EOF, false: io.ErrUnexpectedEOF}[ends[n]]; err != want {
			t.Errorf("first %d bytes: got %v, want %v", n, err, want)
		}
		if _, _, again := r.Next(); again != err {
			t.Errorf("first %d bytes: the next error is %v, want %v again", n, again, err)
		}
	}
}

func TestReaderLimit(t *testing.T) {
	stream, _ := frames(MaxPacket+KeyLen, MaxPacket+KeyLen+1)
	r := NewReader(bytes.NewReader(stream), MaxPacket+KeyLen)
	if _, p, err := r.Next(); len(p) != MaxPacket+KeyLen || err != nil {
		t.Fatalf("at the limit: %d bytes, %v", len(p), err)
	}
	_, _, err := r.Next()
	if !errors.Is(err, ErrFrameTooLong) || !strings.Contains(err.Error(), "65569 bytes, limit 65568") {
		t.Errorf("above the limit: %v", err)
	}
	// A header alone is enough to refuse, and the limit may change between frames.
	r = NewReader(bytes.NewReader([]byte{1, 0, 0, 0, 0, 2, 0xff, 0xff, 0xff, 0xff}), 10)
	r.Next()
	r.SetLimit(1<<31 - 1)
	if _, _, err := r.Next(); !errors.Is(err, ErrFrameTooLong) {
		t.Errorf("4 GiB: %v", err)
	}
}

func TestReaderReturnsDataBeforeTheError(t *testing.T) {
	stream, _ := frames(10, 20)
	broken := errors.New("broken")
	r := NewReader(iotest.DataErrReader(io.MultiReader(bytes.NewReader(stream), iotest.ErrReader(broken))), 100)
	for i := range 2 {
		if _, _, err := r.Next(); err != nil {
			t.Fatalf("frame %d: %v", i, err)
		}
	}
	if _, _, err := r.Next(); err != broken {
		t.Errorf("got %v, want the reader's error", err)
	}
	r = NewReader(&pieces{stream, func() int { return 0 }}, 100)
	if _, _, err := r.Next(); err != io.ErrNoProgress {
		t.Errorf("a reader that returns nothing: %v", err)
	}
}

func TestReaderPreload(t *testing.T) {
	stream, want := frames(10, 2000, 30)
	for cut := range len(stream) + 1 {
		r := NewReader(bytes.NewReader(stream[cut:]), 5000)
		r.Preload(stream[:cut])
		for i, p := range want {
			if _, got, err := r.Next(); !bytes.Equal(got, p) || err != nil {
				t.Fatalf("cut at %d: frame %d: %d bytes, %v", cut, i, len(got), err)
			}
		}
	}
}

func TestReaderIsSmallWhenIdle(t *testing.T) {
	stream, _ := frames(1400, 60000, 1400, bigSize+5, 1400, 1400)
	r := NewReader(bytes.NewReader(stream), 1<<20)
	for range 6 {
		if _, _, err := r.Next(); err != nil {
			t.Fatal(err)
		}
	}
	if r.Buffered() != 0 || r.Ready() {
		t.Fatalf("%d bytes are left", r.Buffered())
	}
	r.r = readFunc(func(b []byte) (int, error) {
		if len(b) != smallSize || r.big != nil || len(r.buf) != smallSize {
			t.Errorf("waits with a buffer of %d bytes", len(b))
		}
		return 0, io.EOF
	})
	if _, _, err := r.Next(); err != io.EOF {
		t.Error(err)
	}
}

type readFunc func([]byte) (int, error)

func (f readFunc) Read(b []byte) (int, error) { return f(b) }

func TestReaderReadsMuchAtOnce(t *testing.T) {
	sizes := make([]int, 1000)
	for i := range sizes {
		sizes[i] = 1400
	}
	stream, _ := frames(sizes...)
	src, reads := bytes.NewReader(stream), 0
	r := NewReader(readFunc(func(b []byte) (int, error) { reads++; return src.Read(b) }), 1<<20)
	for range sizes {
		r.Next()
	}
	if limit := len(stream)/bigSize + 5; reads > limit {
		t.Errorf("%d reads for %d bytes, want at most %d", reads, len(stream), limit)
	}
}

func TestReaderTrustsNoLength(t *testing.T) {
	r := NewReader(bytes.NewReader([]byte{4, 0, 15, 0xff, 0xff, 1, 2, 3}), 1<<20)
	if _, _, err := r.Next(); err != io.ErrUnexpectedEOF {
		t.Error(err)
	}
	largest := 0
	n := 0
	r = NewReader(readFunc(func(b []byte) (int, error) {
		largest = max(largest, len(b)+n)
		switch n++; n {
		case 1:
			return copy(b, []byte{4, 0, 15, 0xff, 0xff}), nil
		case 2:
			return 1, nil
		}
		return 0, io.EOF
	}), 1<<20)
	r.Next()
	if largest > bigSize {
		t.Errorf("a header and one byte made the buffer %d bytes long", largest)
	}
}

// Who announces a long frame and stops behind the header makes the reader hold no more than an idle one does.
func TestReaderGrowsWithWhatArrives(t *testing.T) {
	sent, most := 0, 0
	r := NewReader(readFunc(func(b []byte) (int, error) {
		if sent < smallSize {
			most = max(most, sent+len(b))
		}
		if sent += 256; sent > 60_000 {
			return 0, io.EOF
		}
		if sent == 256 {
			PutHeader(b, FrameSendPacket, MaxPacket)
		}
		return 256, nil
	}), 1<<20)
	if _, _, err := r.Next(); err != io.ErrUnexpectedEOF {
		t.Error(err)
	}
	if most > smallSize {
		t.Errorf("a buffer of %d bytes for a frame of which less than %d have come", most, smallSize)
	}
	// The same where the HTTP server has read the header already.
	r = NewReader(readFunc(func(b []byte) (int, error) {
		if r.big != nil || len(r.buf) != smallSize {
			t.Errorf("waits with a buffer of %d bytes", len(r.buf))
		}
		return 0, io.EOF
	}), 1<<20)
	var h [HeaderLen]byte
	PutHeader(h[:], FrameSendPacket, MaxPacket)
	r.Preload(h[:])
	r.Next()
}

func TestReadyAndBuffered(t *testing.T) {
	stream, _ := frames(10, 20)
	r := NewReader(bytes.NewReader(stream[:len(stream)-1]), 100)
	r.Next()
	if r.Buffered() != 24 || r.Ready() {
		t.Errorf("buffered %d, ready %v; want 24 of 25 bytes, not ready", r.Buffered(), r.Ready())
	}
	r = NewReader(bytes.NewReader(stream), 100)
	r.Next()
	if r.Buffered() != 25 || !r.Ready() {
		t.Errorf("buffered %d, ready %v; want 25 bytes, ready", r.Buffered(), r.Ready())
	}
}

func FuzzReader(f *testing.F) {
	stream, _ := frames(0, 3, 40)
	f.Add(stream, uint16(7))
	f.Add([]byte{4, 0, 0, 16, 0, 1, 2, 3}, uint16(1))
	f.Add([]byte{4, 0xff, 0xff, 0xff, 0xff}, uint16(9))
	f.Fuzz(func(t *testing.T, stream []byte, piece uint16) {
		const limit = 4000
		r := NewReader(&pieces{stream, func() int { return int(piece) + 1 }}, limit)
		var again []byte
		for {
			typ, payload, err := r.Next()
			if err != nil {
				break
			}
			if len(payload) > limit {
				t.Fatalf("%d bytes", len(payload))
			}
			again = AppendFrame(again, typ, payload)
		}
		if !bytes.HasPrefix(stream, again) {
			t.Fatal("frames read and written again differ from the stream")
		}
		// What is left must not be a frame.
		if rest := stream[len(again):]; len(rest) >= HeaderLen {
			n := int(rest[1])<<24 | int(rest[2])<<16 | int(rest[3])<<8 | int(rest[4])
			if n <= limit && len(rest) >= HeaderLen+n {
				t.Fatalf("a whole frame of %d bytes was left", n)
			}
		}
	})
}

func BenchmarkReader(b *testing.B) {
	for _, size := range []int{64, 1400} {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			stream, _ := frames(slicesRepeat(size+KeyLen, 1000)...)
			b.SetBytes(int64(size))
			b.ReportAllocs()
			src := bytes.NewReader(stream)
			r := NewReader(readFunc(func(p []byte) (int, error) {
				if src.Len() == 0 {
					src.Seek(0, io.SeekStart)
				}
				return src.Read(p)
			}), 1<<20)
			for b.Loop() {
				if _, _, err := r.Next(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func slicesRepeat(v, n int) []int {
	s := make([]int, n)
	for i := range s {
		s[i] = v
	}
	return s
}

func newKey(t testing.TB) wgkey.Private {
	t.Helper()
	k, err := wgkey.NewPrivate()
	if err != nil {
		t.Fatal(err)
	}
	return k
}
