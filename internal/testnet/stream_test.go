package testnet

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// connect opens a stream from a to port 443 of b.
func connect(t testing.TB, a, b *Host) (near, far net.Conn) {
	t.Helper()
	l, err := b.Listen(netip.AddrPortFrom(netip.Addr{}, 443))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	near, err = a.Dial(t.Context(), "tcp", netip.AddrPortFrom(b.Addr(), 443).String())
	if err != nil {
		t.Fatal(err)
	}
	far, err = l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	return near, far
}

func randomBytes(n int) []byte {
	b := make([]byte, n)
	rand.NewChaCha8([32]byte{1}).Read(b)
	return b
}

func TestStreamDeliversEverythingInOrder(t *testing.T) {
	for _, c := range []struct {
		name string
		link LinkConfig
		size int
		max  time.Duration // virtual
	}{
		{"clean", LinkConfig{Latency: 10 * time.Millisecond}, 2 << 20, 2 * time.Second},
		{"lossy", LinkConfig{Latency: 10 * time.Millisecond, Loss: 0.03}, 1 << 20, 30 * time.Second},
		{"everything at once", LinkConfig{Latency: 10 * time.Millisecond, Jitter: 5 * time.Millisecond, Loss: 0.02, Duplicate: 0.05, Reorder: 0.05}, 1 << 20, 30 * time.Second},
		{"slow, short queue", LinkConfig{Latency: 10 * time.Millisecond, Rate: 10e6}, 1 << 20, 2 * time.Second},
		{"narrow", LinkConfig{MTU: 576}, 1 << 20, 2 * time.Second},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := New(Config{Seed: 5})
				a, b := pair(n, c.link)
				near, far := connect(t, a, b)
				up, down := randomBytes(c.size), randomBytes(c.size/3)
				start := time.Now()
				go func() {
					near.Write(up)
					near.(*Stream).CloseWrite()
				}()
				go func() {
					far.Write(down)
					far.(*Stream).CloseWrite()
				}()
				sums := make(chan [32]byte)
				go func() {
					got, err := io.ReadAll(near)
					if err != nil {
						t.Error(err)
					}
					sums <- sha256.Sum256(got)
				}()
				got, err := io.ReadAll(far)
				if err != nil || !bytes.Equal(got, up) {
					t.Errorf("up: %d of %d bytes, %v", len(got), len(up), err)
				}
				if <-sums != sha256.Sum256(down) {
					t.Error("down: other bytes than were sent")
				}
				if took := time.Since(start); took > c.max {
					t.Errorf("took %v, want no more than %v", took, c.max)
				}
				near.Close()
				far.Close()
				time.Sleep(2 * time.Minute)
				synctest.Wait()
				n.mu.Lock()
				defer n.mu.Unlock()
				if len(a.streams)+len(b.streams) != 0 {
					t.Errorf("%d and %d streams left over", len(a.streams), len(b.streams))
				}
			})
		})
	}
}

func TestStreamUsesASlowLink(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := New(Config{})
		a, b := pair(n, LinkConfig{Latency: 20 * time.Millisecond, Rate: 20e6})
		near, far := connect(t, a, b)
		start := time.Now()
		go func() { near.Write(make([]byte, 3<<20)); near.Close() }()
		m, err := io.Copy(io.Discard, far)
		rate := float64(m*8) / time.Since(start).Seconds() / 1e6
		if err != nil || m != 3<<20 || rate < 8 || rate > 20 {
			t.Errorf("%d bytes at %.1f Mbit/s over a link of 20 Mbit/s, %v", m, rate, err)
		}
	})
}

func TestReaderThatStopsHoldsTheWriter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := pair(New(Config{}), LinkConfig{})
		near, far := connect(t, a, b)
		near.SetWriteDeadline(time.Now().Add(30 * time.Second)) // longer than StreamTimeout: the reader is slow, not gone
		sent, err := near.Write(make([]byte, 3<<20))
		if !errors.Is(err, os.ErrDeadlineExceeded) || sent < streamBuffer || sent > 3*streamBuffer {
			t.Fatalf("wrote %d bytes to a reader that does not read: %v", sent, err)
		}
		near.SetWriteDeadline(time.Time{})
		go func() { near.Write(make([]byte, 3<<20-sent)); near.Close() }()
		if m, err := io.Copy(io.Discard, far); m != 3<<20 || err != nil {
			t.Errorf("then %d bytes arrived, %v", m, err)
		}
	})
}

func TestStreamBreaksWhenThePathIsCut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := pair(New(Config{StreamTimeout: 10 * time.Second}), LinkConfig{})
		near, far := connect(t, a, b)
		time.Sleep(time.Minute) // idle connections stay
		a.Link().Cut()
		cut := time.Now()
		near.Write([]byte("x"))
		_, err := near.Read(make([]byte, 1))
		if took := time.Since(cut); !errors.Is(err, syscall.ETIMEDOUT) || took < 10*time.Second || took > 16*time.Second {
			t.Errorf("writer: %v after %v", err, took)
		}
		_, err = far.Read(make([]byte, 1)) // knows by keep-alive only
		if took := time.Since(cut); !errors.Is(err, syscall.ETIMEDOUT) || took > 40*time.Second {
			t.Errorf("reader: %v after %v", err, took)
		}
	})
}

func TestStreamSurvivesAShortCut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := pair(New(Config{}), LinkConfig{})
		near, far := connect(t, a, b)
		a.Link().Cut()
		near.Write([]byte("hello"))
		time.Sleep(5 * time.Second)
		a.Link().Restore()
		buf := make([]byte, 10)
		if m, err := far.Read(buf); string(buf[:m]) != "hello" {
			t.Error(m, err)
		}
	})
}

func TestDialFailsAsAKernelDoes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := pair(New(Config{StreamTimeout: 5 * time.Second}), LinkConfig{})
		dial := func(ctx context.Context, to netip.AddrPort) (error, time.Duration) {
			start := time.Now()
			_, err := a.DialStream(ctx, to)
			return err, time.Since(start)
		}
		to := netip.AddrPortFrom(b.Addr(), 443)
		if err, took := dial(t.Context(), to); !errors.Is(err, syscall.ECONNREFUSED) || took > time.Second {
			t.Errorf("nobody listens: %v after %v", err, took)
		}
		if err, _ := dial(t.Context(), netip.MustParseAddrPort("203.0.113.77:1")); !errors.Is(err, syscall.EHOSTUNREACH) {
			t.Errorf("no such host: %v", err)
		}
		b.Link().Cut()
		if err, took := dial(t.Context(), to); !errors.Is(err, syscall.ETIMEDOUT) || took < 5*time.Second {
			t.Errorf("cut: %v after %v", err, took)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err, took := dial(ctx, to); !errors.Is(err, context.DeadlineExceeded) || took != time.Second {
			t.Errorf("deadline: %v after %v", err, took)
		}
	})
}

func TestCloseWithUnreadDataResets(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := pair(New(Config{}), LinkConfig{})
		near, far := connect(t, a, b)
		near.Write([]byte("never read"))
		time.Sleep(time.Second)
		far.Close()
		if _, err := near.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
			t.Error(err)
		}
		if _, err := near.Write([]byte("x")); !errors.Is(err, syscall.ECONNRESET) {
			t.Error(err)
		}
		if _, err := far.Read(nil); !errors.Is(err, net.ErrClosed) {
			t.Error(err)
		}
	})
}
