package relayserver

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"testing"
	"time"
)

// tcpPair returns two ends of a connection.
func tcpPair(t *testing.T) (near, far *net.TCPConn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	a, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	b, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Close(); b.Close() })
	return a.(*net.TCPConn), b.(*net.TCPConn)
}

// Whatever the pieces that are written and asked for: all bytes arrive in order, then the end, and nothing is held.
func TestReadingAheadChangesNothing(t *testing.T) {
	near, far := tcpPair(t)
	rng := rand.New(rand.NewPCG(1, 2))
	want := make([]byte, 4<<20)
	for i := range want {
		want[i] = byte(rng.Uint32())
	}
	go func() {
		rng := rand.New(rand.NewPCG(3, 4))
		for left := want; len(left) > 0; {
			n := min(len(left), 1+rng.IntN(70_000))
			far.Write(left[:n])
			left = left[n:]
		}
		far.CloseWrite()
	}()
	var a ahead
	var got []byte
	filled := false
	buf := make([]byte, 40<<10)
	for {
		size := 1 + rng.IntN(2000)
		if rng.IntN(50) == 0 {
			size = len(buf)
		}
		n, err := a.read(near, buf[:size])
		got = append(got, buf[:n]...)
		filled = filled || a.buf != nil
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%d bytes arrived, or others, of %d", len(got), len(want))
	}
	if !filled {
		t.Error("nothing was read ahead")
	}
	if a.buf != nil {
		t.Error("holds a buffer at the end")
	}
}

// A read that waits holds no buffer, although the one before got all it asked for.
func TestReadingAheadWaitsWithoutABuffer(t *testing.T) {
	near, far := tcpPair(t)
	far.Write([]byte("12345"))
	var a ahead
	if n, err := io.ReadFull(readFunc(func(b []byte) (int, error) { return a.read(near, b) }), make([]byte, 5)); n != 5 || err != nil {
		t.Fatal(n, err)
	}
	near.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
	if _, err := a.read(near, make([]byte, 5)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("got %v, want that the deadline has passed", err)
	}
	if a.buf != nil {
		t.Error("waited with a buffer")
	}
	near.Close()
	if _, err := a.read(near, make([]byte, 5)); !errors.Is(err, net.ErrClosed) {
		t.Errorf("got %v", err)
	}
}

type readFunc func([]byte) (int, error)

func (f readFunc) Read(b []byte) (int, error) { return f(b) }
