//go:build linux

package hostsock

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"runtime"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// tcpPair returns a dialled connection and the far end of it.
func tcpPair(t testing.TB, v uint8) (*TCP, *net.TCPConn) {
	t.Helper()
	l, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(at(v, 0)))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := DialTCP(t.Context(), l.Addr().(*net.TCPAddr).AddrPort(), TCPOptions{Timeout: patience})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	far, err := l.AcceptTCP()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { far.Close() })
	far.SetDeadline(time.Now().Add(patience))
	return c, far
}

func TestDialAndTransfer(t *testing.T) {
	families(t, func(t *testing.T, v uint8) {
		c, far := tcpPair(t, v)
		if c.LocalAddr() != far.RemoteAddr().(*net.TCPAddr).AddrPort() || c.RemoteAddr() != far.LocalAddr().(*net.TCPAddr).AddrPort() {
			t.Errorf("%v to %v, the far end says %v to %v", c.LocalAddr(), c.RemoteAddr(), far.RemoteAddr(), far.LocalAddr())
		}
		// 8 MiB in slices of every kind, read by a slow reader, so that writes are partial.
		want := pattern(1, 8<<20)
		r := rand.New(rand.NewPCG(1, 2))
		go func() {
			for rest := want; len(rest) > 0; {
				var iov [][]byte
				for range r.IntN(200) {
					n := min(r.IntN(5000), len(rest))
					iov = append(iov, rest[:n])
					rest = rest[n:]
				}
				total := 0
				for _, b := range iov {
					total += len(b)
				}
				if n, err := c.Writev(iov); n != total || err != nil {
					t.Errorf("Writev: %d of %d, %v", n, total, err)
					return
				}
			}
			c.CloseWrite()
		}()
		got, err := io.ReadAll(far)
		if err != nil || !bytes.Equal(got, want) {
			t.Fatalf("far end got %d bytes, %v", len(got), err)
		}

		// Half-closed: the other direction goes on, until it ends too.
		go func() {
			far.Write(want)
			far.Close()
		}()
		pool := NewBufPool(60300)
		var back []byte
		for {
			b, n, err := c.Recv(pool)
			if err == io.EOF && b == nil && n == 0 {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			back = append(back, b.B[:n]...)
			b.Release()
		}
		if !bytes.Equal(back, want) {
			t.Fatalf("got %d bytes", len(back))
		}
		if n, err := c.Read(make([]byte, 10)); n != 0 || err != io.EOF {
			t.Errorf("Read behind the end: %d, %v", n, err)
		}
	})
}

func TestWritevOfNothing(t *testing.T) {
	c, far := tcpPair(t, 4)
	for _, iov := range [][][]byte{nil, {}, {nil}, make([][]byte, 300)} {
		if n, err := c.Writev(iov); n != 0 || err != nil {
			t.Errorf("%d slices: %d, %v", len(iov), n, err)
		}
	}
	iov := make([][]byte, 300)
	iov[299] = []byte("last")
	if n, err := c.Writev(iov); n != 4 || err != nil {
		t.Errorf("%d, %v", n, err)
	}
	b := make([]byte, 10)
	if n, _ := far.Read(b); string(b[:n]) != "last" {
		t.Errorf("got %q", b[:n])
	}
}

func TestDialOptions(t *testing.T) {
	families(t, func(t *testing.T, v uint8) {
		l, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(at(v, 0)))
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		c, err := DialTCP(t.Context(), l.Addr().(*net.TCPAddr).AddrPort(), TCPOptions{TTL: 42})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		f := familyOf(v)
		c.control(func(fd int) error {
			for _, o := range []option{
				{f.level, f.ttlOption, 42},
				{f.level, f.recvErr, 0}, // or an ICMP error would end an established connection
				{unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1},
				{unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, keepIdle},
				{unix.IPPROTO_TCP, unix.TCP_NODELAY, 1},
			} {
				if got, err := unix.GetsockoptInt(fd, o.level, o.name); got != o.value || err != nil {
					t.Errorf("option %d of level %d: %d, %v, want %d", o.name, o.level, got, err, o.value)
				}
			}
			return nil
		})
	})
}

func TestDialRefused(t *testing.T) {
	families(t, func(t *testing.T, v uint8) {
		l, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(at(v, 0)))
		if err != nil {
			t.Fatal(err)
		}
		dst := l.Addr().(*net.TCPAddr).AddrPort()
		l.Close()
		c, err := DialTCP(t.Context(), dst, TCPOptions{Timeout: patience})
		var d *DialError
		if c != nil || !errors.As(err, &d) || !errors.Is(err, syscall.ECONNREFUSED) || d.Dst != dst || d.ICMP != nil || d.Timeout() {
			t.Errorf("got %v, %v", c, err)
		}
	})
}

// silent returns an address where connecting gets no answer: a listener whose queue is full.
func silent(t *testing.T) netip.AddrPort {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	if err := errors.Join(unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}), unix.Listen(fd, 0)); err != nil {
		t.Fatal(err)
	}
	dst := localAddr(fd)
	for range 20 {
		c, err := DialTCP(t.Context(), dst, TCPOptions{Timeout: 100 * time.Millisecond})
		if err != nil {
			return dst
		}
		t.Cleanup(func() { c.Close() })
	}
	t.Skip("this host accepts connections beyond the queue")
	return dst
}

func TestDialGivesUp(t *testing.T) {
	dst := silent(t)
	goroutines, files := runtime.NumGoroutine(), openFiles(t)
	var d *DialError

	_, err := DialTCP(t.Context(), dst, TCPOptions{Timeout: 50 * time.Millisecond})
	if !errors.As(err, &d) || !errors.Is(err, os.ErrDeadlineExceeded) || !d.Timeout() || d.Errno != 0 {
		t.Errorf("timeout: %v", err)
	}

	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(50*time.Millisecond, cancel)
	_, err = DialTCP(ctx, dst, TCPOptions{Timeout: patience})
	if !errors.As(err, &d) || !errors.Is(err, context.Canceled) || d.Timeout() {
		t.Errorf("cancel: %v", err)
	}
	if _, err = DialTCP(ctx, dst, TCPOptions{}); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled before: %v", err)
	}

	ctx, cancel = context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err = DialTCP(ctx, dst, TCPOptions{})
	if !errors.As(err, &d) || !errors.Is(err, context.DeadlineExceeded) || !d.Timeout() {
		t.Errorf("deadline: %v", err)
	}

	if n := openFiles(t); n != files {
		t.Errorf("%d open files, %d before", n, files)
	}
	for end := time.Now().Add(patience); runtime.NumGoroutine() > goroutines; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d goroutines, %d before", runtime.NumGoroutine(), goroutines)
		}
	}
}

func openFiles(t *testing.T) int {
	t.Helper()
	d, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Skip(err)
	}
	return len(d)
}

func TestDialWithoutDescriptors(t *testing.T) {
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	defer syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit)
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &syscall.Rlimit{Cur: 0, Max: limit.Max}); err != nil {
		t.Fatal(err)
	}
	if _, err := DialTCP(t.Context(), at(4, 9), TCPOptions{}); !errors.Is(err, syscall.EMFILE) {
		t.Errorf("got %v", err)
	}
}

func TestDialOfNonsense(t *testing.T) {
	for _, dst := range []netip.AddrPort{{}, netip.AddrPortFrom(netip.Addr{}, 80)} {
		if _, err := DialTCP(t.Context(), dst, TCPOptions{}); !errors.Is(err, syscall.EAFNOSUPPORT) {
			t.Errorf("%v: %v", dst, err)
		}
	}
	// A mapped address is the IPv4 address it maps.
	l, err := net.ListenTCP("tcp4", net.TCPAddrFromAddrPort(at(4, 0)))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	dst := l.Addr().(*net.TCPAddr).AddrPort()
	c, err := DialTCP(t.Context(), netip.AddrPortFrom(netip.AddrFrom16(dst.Addr().As16()), dst.Port()), TCPOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if c.RemoteAddr() != dst {
		t.Errorf("got %v, want %v", c.RemoteAddr(), dst)
	}
}

func TestAbortResets(t *testing.T) {
	families(t, func(t *testing.T, v uint8) {
		c, far := tcpPair(t, v)
		if err := c.Abort(); err != nil {
			t.Fatal(err)
		}
		if _, err := far.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("the far end read %v", err)
		}
		if err := c.Close(); err != os.ErrClosed {
			t.Errorf("Close after Abort: %v", err)
		}

		c, far = tcpPair(t, v)
		far.SetLinger(0)
		far.Close()
		if _, _, err := c.Recv(NewBufPool(100)); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("this end read %v", err)
		}
		if _, err := c.Writev([][]byte{[]byte("x")}); !errors.Is(err, syscall.EPIPE) {
			t.Errorf("this end wrote %v", err)
		}
	})
}

func TestCloseWakesBlocked(t *testing.T) {
	for name, end := range map[string]func(*TCP) error{"close": (*TCP).Close, "abort": (*TCP).Abort} {
		t.Run(name, func(t *testing.T) {
			c, _ := tcpPair(t, 4)
			d, _ := tcpPair(t, 4)
			pool := NewBufPool(1000)
			errs := make(chan error, 4)
			go func() {
				_, _, err := c.Recv(pool)
				errs <- err
			}()
			go func() {
				_, err := d.Read(make([]byte, 10))
				errs <- err
			}()
			for _, c := range []*TCP{c, d} {
				go func() {
					_, err := c.Writev([][]byte{make([]byte, 64<<20)})
					errs <- err
				}()
			}
			time.Sleep(20 * time.Millisecond) // so that they block; the test holds if they do not
			local := c.LocalAddr()
			end(c)
			end(d)
			if got := c.LocalAddr(); got != local || !got.IsValid() {
				t.Errorf("the address is %v afterwards, was %v", got, local)
			}
			for range 4 {
				if err := <-errs; err != os.ErrClosed {
					t.Errorf("got %v", err)
				}
			}
			_, _, err := c.Recv(pool)
			_, err2 := c.Writev([][]byte{{1}})
			_, err3 := c.Read(make([]byte, 1))
			for _, err := range []error{err, err2, err3, c.CloseWrite(), c.Close(), c.Abort()} {
				if err != os.ErrClosed {
					t.Errorf("after the end: %v", err)
				}
			}
		})
	}
}

func TestConcurrentTCPCloseHammer(t *testing.T) {
	l, err := net.ListenTCP("tcp4", net.TCPAddrFromAddrPort(at(4, 0)))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				io.Copy(c, c)
				c.Close()
			}()
		}
	}()
	pool := NewBufPool(10000)
	for range 100 {
		c, err := DialTCP(t.Context(), l.Addr().(*net.TCPAddr).AddrPort(), TCPOptions{Timeout: patience})
		if err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		started := make(chan struct{}, 1)
		wg.Go(func() {
			for {
				b, _, err := c.Recv(pool)
				if err != nil {
					return
				}
				b.Release()
				select {
				case started <- struct{}{}:
				default:
				}
			}
		})
		wg.Go(func() {
			for {
				if _, err := c.Writev([][]byte{make([]byte, 5000), make([]byte, 100)}); err != nil {
					return
				}
			}
		})
		<-started
		wg.Go(func() { c.CloseWrite() })
		wg.Go(func() { c.Abort() })
		wg.Go(func() { c.Close() })
		wg.Wait()
	}
}
