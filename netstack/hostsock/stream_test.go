//go:build linux

package hostsock

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"syscall"
	"testing"
	"time"
)

// streamPair returns both ends of a connection of the standard library, and a Stream over the first.
func streamPair(t *testing.T, network string) (s *Stream, own, far net.Conn) {
	t.Helper()
	addr := "127.0.0.1:0"
	if network == "unix" {
		addr = t.TempDir() + "/s"
	}
	l, err := net.Listen(network, addr)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if own, err = net.Dial(network, l.Addr().String()); err != nil {
		t.Fatal(err)
	}
	if far, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { own.Close(); far.Close() })
	far.SetDeadline(time.Now().Add(patience))
	if s, err = NewStream(own.(syscall.Conn)); err != nil {
		t.Fatal(err)
	}
	return s, own, far
}

func TestStreamOverSocketsOfTheStandardLibrary(t *testing.T) {
	for _, network := range []string{"tcp", "unix"} {
		t.Run(network, func(t *testing.T) {
			s, own, far := streamPair(t, network)
			want := pattern(3, 4<<20)
			go func() {
				if n, err := s.Writev([][]byte{want[:1], nil, want[1 : 1<<20], want[1<<20:]}); n != len(want) || err != nil {
					t.Errorf("Writev: %d, %v", n, err)
				}
				own.(interface{ CloseWrite() error }).CloseWrite()
			}()
			if got, err := io.ReadAll(far); err != nil || !bytes.Equal(got, want) {
				t.Fatalf("the far end got %d bytes, %v", len(got), err)
			}
			go func() {
				far.Write(want)
				far.Close()
			}()
			var got []byte
			for pool := NewBufPool(1 << 16); ; {
				b, n, err := s.Recv(pool)
				if err == io.EOF {
					break
				}
				if err != nil {
					t.Fatal(err)
				}
				got = append(got, b.B[:n]...)
				b.Release()
			}
			if !bytes.Equal(got, want) {
				t.Errorf("received %d bytes", len(got))
			}
		})
	}
}

// The owner's deadlines and Close end calls of the Stream that wait.
func TestStreamIsItsOwners(t *testing.T) {
	for name, end := range map[string]func(net.Conn){
		"deadline": func(c net.Conn) { c.SetDeadline(time.Unix(1, 0)) },
		"Close":    func(c net.Conn) { c.Close() },
	} {
		want := map[string]error{"deadline": os.ErrDeadlineExceeded, "Close": net.ErrClosed}[name]
		t.Run(name, func(t *testing.T) {
			s, own, _ := streamPair(t, "tcp")
			ends := make(chan error, 2)
			go func() { _, _, err := s.Recv(NewBufPool(100)); ends <- err }()
			go func() { _, err := s.Writev([][]byte{make([]byte, 64<<20)}); ends <- err }() // nobody reads it
			time.Sleep(20 * time.Millisecond)
			end(own)
			for range 2 {
				if err := <-ends; !errors.Is(err, want) {
					t.Errorf("ended with %v, want %v", err, want)
				}
			}
		})
	}
}
