//go:build unix

package forward

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

func TestUDPDatagramsOfEverySizePassWhole(t *testing.T) {
	loopbacks(t, func(t *testing.T, host string) {
		leaks(t)
		front := listenUDP(t, host)
		u := serveUDP(t, UDPConfig{Dial: dialTo(echoUDP(t, host).LocalAddr())}, front)
		c := dialUDP(t, front.LocalAddr())
		c.SetWriteBuffer(1 << 20)
		var sum uint64
		for _, size := range []int{0, 1, 1400, 1500, 4097, 60000, 65507} {
			want := bytes.Repeat([]byte{byte(size)}, size)
			send(t, c, want)
			if got := receive(t, c); !bytes.Equal(got, want) {
				t.Fatalf("%d bytes came back as %d", size, len(got))
			}
			sum += uint64(size)
		}
		await(t, "the count", func() bool { s := u.Stats(); return s.ToTarget == sum && s.ToClient == sum })
		if s := u.Stats(); s.Active != 1 || s.Total != 1 || s.Dropped+s.Oversize != 0 {
			t.Errorf("%+v", s)
		}
	})
}

func TestUDPOrderIsKept(t *testing.T) {
	loopbacks(t, func(t *testing.T, host string) {
		const count, window = 2000, 40
		front := listenUDP(t, host)
		u := serveUDP(t, UDPConfig{Dial: dialTo(echoUDP(t, host).LocalAddr())}, front)
		c := dialUDP(t, front.LocalAddr())
		expect := func(i int) {
			if got := binary.BigEndian.Uint32(receive(t, c)); got != uint32(i) {
				t.Fatalf("datagram %d came when %d was due: %+v", got, i, u.Stats())
			}
		}
		send(t, c, binary.BigEndian.AppendUint32(nil, 0))
		expect(0) // now the target is open, so that no more than socket buffers bound what is under way
		received := 1
		for i := 1; i < count; i++ {
			send(t, c, binary.BigEndian.AppendUint32(nil, uint32(i)))
			if i-received == window {
				expect(received)
				received++
			}
		}
		for ; received < count; received++ {
			expect(received)
		}
	})
}

// TestUDPFirstDatagramsWaitForTheTarget also has them in order, and those that come after them.
func TestUDPFirstDatagramsWaitForTheTarget(t *testing.T) {
	target := listenUDP(t, "127.0.0.1")
	front := listenUDP(t, "127.0.0.1")
	open := make(chan struct{})
	u := serveUDP(t, UDPConfig{ProxyProtocol: true, Dial: func(ctx context.Context, from Origin) (net.Conn, error) {
		<-open
		return DialHost(ctx, "udp", target.LocalAddr().String())
	}}, front)
	c := dialUDP(t, front.LocalAddr())
	for i := range maxWaiting + 4 {
		send(t, c, []byte{byte(i)})
	}
	await(t, "four dropped", func() bool { return u.Stats().Dropped == 4 })
	close(open)
	b := make([]byte, 100)
	target.SetReadDeadline(time.Now().Add(testTimeout))
	expect := func(want byte) {
		n, _, err := target.ReadFrom(b)
		if err != nil {
			t.Fatal(err)
		}
		p, err := parseProxy(b[:n])
		if err != nil || !bytes.Equal(p.rest, []byte{want}) || !p.datagram || p.from.Client != addrPort(c.LocalAddr()) || p.from.Local != addrPort(front.LocalAddr()) {
			t.Fatalf("got %+v, %v, want %d", p, err, want)
		}
	}
	for i := range maxWaiting {
		expect(byte(i))
	}
	send(t, c, []byte{99})
	expect(99)
	if got := u.count.waiting.Load(); got != 0 {
		t.Errorf("%d bytes are believed to wait", got)
	}
}

func TestUDPProxyProtocolOfBothFamilies(t *testing.T) {
	loopbacks(t, func(t *testing.T, host string) {
		target := listenUDP(t, host)
		front := listenUDP(t, host)
		u := serveUDP(t, UDPConfig{ProxyProtocol: true, Dial: dialTo(target.LocalAddr())}, front)
		c := dialUDP(t, front.LocalAddr())
		c.SetWriteBuffer(1 << 20)
		want := Origin{addrPort(c.LocalAddr()), addrPort(front.LocalAddr())}
		header := len(appendProxyHeader(nil, proxyDatagram, want))
		b := make([]byte, 1<<16)
		for _, size := range []int{0, 5, 1400, 65507 - header} {
			send(t, c, make([]byte, size))
			target.SetReadDeadline(time.Now().Add(testTimeout))
			n, from, err := target.ReadFrom(b)
			if err != nil {
				t.Fatal(err)
			}
			if p, err := parseProxy(b[:n]); err != nil || p.from != want || !p.datagram || len(p.rest) != size {
				t.Fatalf("got %+v, %v, want %v and %d bytes", p.from, err, want, size)
			}
			target.WriteTo([]byte("bare"), from)
			if got := receive(t, c); string(got) != "bare" {
				t.Fatalf("got %q", got)
			}
		}
		send(t, c, make([]byte, 65507)) // there is no room for the header
		await(t, "one oversize", func() bool { return u.Stats().Oversize == 1 })
		if s := u.Stats(); s.Active != 1 || s.Total != 1 {
			t.Errorf("%+v", s)
		}
	})
}

func TestUDPClientsAreApart(t *testing.T) {
	loopbacks(t, func(t *testing.T, host string) {
		front := listenUDP(t, host)
		target := listenUDP(t, host)
		u := serveUDP(t, UDPConfig{Dial: dialTo(target.LocalAddr())}, front)
		a, b := dialUDP(t, front.LocalAddr()), dialUDP(t, front.LocalAddr())
		seen := make(map[string]net.Addr)
		for i, c := range []*net.UDPConn{a, b} {
			send(t, c, []byte{byte('a' + i)})
			buf := make([]byte, 1)
			target.SetReadDeadline(time.Now().Add(testTimeout))
			_, from, err := target.ReadFrom(buf)
			if err != nil {
				t.Fatal(err)
			}
			seen[string(buf)] = from
		}
		if seen["a"].String() == seen["b"].String() {
			t.Fatal("both clients have one socket")
		}
		// A third socket towards a session's socket: the client must not see it.
		third := listenUDP(t, host)
		third.WriteTo([]byte("forged"), seen["a"])
		// And one towards the client's address, which the client's own socket would have to refuse: it sends by the front.
		third.WriteTo([]byte("mine"), front.LocalAddr())
		buf := make([]byte, 10)
		target.SetReadDeadline(time.Now().Add(testTimeout))
		n, from, err := target.ReadFrom(buf)
		if err != nil || string(buf[:n]) != "mine" || from.String() == seen["a"].String() || from.String() == seen["b"].String() {
			t.Errorf("%q came from %v, %v", buf[:n], from, err)
		}
		target.WriteTo([]byte("real"), seen["a"])
		if got := receive(t, a); string(got) != "real" {
			t.Errorf("client got %q", got)
		}
		await(t, "the count", func() bool { return u.Stats().ToClient == 4 })
		if got := u.Stats(); got.Active != 3 {
			t.Errorf("%+v", got)
		}
	})
}

func TestUDPRefusedTargetEndsOnlyTheSession(t *testing.T) {
	loopbacks(t, func(t *testing.T, host string) {
		leaks(t)
		target := listenUDP(t, host)
		to := target.LocalAddr()
		target.Close()
		front := listenUDP(t, host)
		u := serveUDP(t, UDPConfig{Dial: dialTo(to)}, front)
		c := dialUDP(t, front.LocalAddr())
		for i := range 3 {
			send(t, c, []byte("x"))
			await(t, "the end of a session", func() bool { s := u.Stats(); return s.Total == uint64(i+1) && s.Active == 0 })
		}
		if s := u.Stats(); !strings.Contains(s.LastError, "connection refused") {
			t.Errorf("%+v", s)
		}
		back, err := ListenPacketHost(t.Context(), to.String())
		if err != nil {
			t.Skip("the port is taken by now:", err)
		}
		defer back.Close()
		send(t, c, []byte("again"))
		b := make([]byte, 10)
		back.SetReadDeadline(time.Now().Add(testTimeout))
		if n, _, err := back.ReadFrom(b); err != nil || string(b[:n]) != "again" {
			t.Errorf("%q, %v", b[:n], err)
		}
	})
}

func TestUDPDialFailureIsTriedAgain(t *testing.T) {
	target := echoUDP(t, "127.0.0.1")
	front := listenUDP(t, "127.0.0.1")
	var calls atomic.Int32
	u := serveUDP(t, UDPConfig{Dial: func(ctx context.Context, _ Origin) (net.Conn, error) {
		if calls.Add(1) == 1 {
			return nil, os.NewSyscallError("socket", syscall.EMFILE)
		}
		return DialHost(ctx, "udp", target.LocalAddr().String())
	}}, front)
	c := dialUDP(t, front.LocalAddr())
	send(t, c, []byte("lost"))
	await(t, "a failure", func() bool { s := u.Stats(); return s.DialFailures == 1 && s.Active == 0 })
	send(t, c, []byte("kept"))
	if got := receive(t, c); string(got) != "kept" {
		t.Errorf("got %q", got)
	}
	if s := u.Stats(); !strings.Contains(s.LastError, "too many open files") || s.Dropped != 1 {
		t.Errorf("%+v", s)
	}
}

func TestUDPManySessionsLeaveNothingBehind(t *testing.T) {
	const count = 2000
	leaks(t)
	target := echoUDP(t, "127.0.0.1")
	front := listenUDP(t, "127.0.0.1")
	raiseFiles(t, 3*count)
	u := serveUDP(t, UDPConfig{Dial: dialTo(target.LocalAddr()), MaxSessions: 2 * count, Idle: time.Minute, IdleAnswered: 400 * time.Millisecond}, front)
	goroutines, files := runtime.NumGoroutine(), openFiles(t)
	clients := make([]*net.UDPConn, count)
	for i := range clients {
		clients[i] = dialUDP(t, front.LocalAddr())
	}
	for i, c := range clients {
		send(t, c, fmt.Append(nil, i))
		if got := receive(t, c); string(got) != fmt.Sprint(i) {
			t.Fatalf("client %d got %q", i, got)
		}
	}
	for _, c := range clients {
		c.Close()
	}
	if s := u.Stats(); s.Total != count || s.Evicted != 0 {
		t.Errorf("%+v", s)
	}
	await(t, "no session", func() bool { return u.Stats().Active == 0 })
	await(t, "the baseline", func() bool { return runtime.NumGoroutine() <= goroutines && openFiles(t) <= files })
}

// raiseFiles asks for as many descriptors, or skips the test.
func raiseFiles(t testing.TB, want uint64) {
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil || limit.Cur < want {
		t.Skipf("needs %d descriptors, the limit is %d", want, limit.Cur) // Go raises it to the hard limit at its start
	}
}

func TestUDPAllowFrom(t *testing.T) {
	front := listenUDP(t, "127.0.0.1")
	u := serveUDP(t, UDPConfig{
		Dial:      dialTo(echoUDP(t, "127.0.0.1").LocalAddr()),
		AllowFrom: []netip.Prefix{netip.MustParsePrefix("127.0.0.2/32"), netip.MustParsePrefix("10.0.0.0/8")},
	}, front)
	send(t, dialUDP(t, front.LocalAddr()), []byte("x"))
	await(t, "a refusal", func() bool { return u.Stats().Refused == 1 })
	c, err := net.DialUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 2)}, front.LocalAddr().(*net.UDPAddr))
	if err != nil {
		t.Skip("no 127.0.0.2 here:", err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(testTimeout))
	send(t, c, []byte("y"))
	if got := receive(t, c); string(got) != "y" {
		t.Errorf("got %q", got)
	}
	if s := u.Stats(); s.Refused != 1 || s.Total != 1 {
		t.Errorf("%+v", s)
	}
}

// TestUDPWildcardAnswersFromWhereItWasAsked needs an address that the kernel would not choose by itself.
func TestUDPWildcardAnswersFromWhereItWasAsked(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("only Linux tells where a datagram was sent to")
	}
	for _, wildcard := range []string{"0.0.0.0:0", "[::]:0"} {
		t.Run(wildcard, func(t *testing.T) {
			pc, err := ListenPacketHost(t.Context(), wildcard)
			if err != nil {
				t.Skip(err)
			}
			origins := make(chan Origin, 10)
			target := echoUDP(t, "127.0.0.1")
			serveUDP(t, UDPConfig{Dial: func(ctx context.Context, from Origin) (net.Conn, error) {
				origins <- from
				return DialHost(ctx, "udp", target.LocalAddr().String())
			}}, pc)
			port := addrPort(pc.LocalAddr()).Port()
			hosts := []string{"127.0.0.1", "127.0.0.2", "127.0.0.3"}
			if wildcard != "0.0.0.0:0" {
				hosts = append(hosts, "::1")
			}
			// One socket for all addresses of a family: it has a session for each of them.
			clients := map[bool]*net.UDPConn{true: listenUDP(t, "127.0.0.1")}
			if wildcard != "0.0.0.0:0" {
				clients[false] = listenUDP(t, "::1")
			}
			for _, host := range hosts {
				to := netip.AddrPortFrom(netip.MustParseAddr(host), port)
				c := clients[to.Addr().Is4()]
				c.SetDeadline(time.Now().Add(testTimeout))
				if _, err := c.WriteToUDPAddrPort([]byte(host), to); err != nil {
					t.Fatal(err)
				}
				b := make([]byte, 20)
				n, from, err := c.ReadFromUDPAddrPort(b)
				if err != nil || string(b[:n]) != host || unmap(from) != to {
					t.Errorf("asked %v, %q came from %v, %v", to, b[:n], from, err)
				}
				if got, want := <-origins, (Origin{addrPort(c.LocalAddr()), to}); got != want {
					t.Errorf("origin %v, want %v", got, want)
				}
			}
		})
	}
}

func TestUDPTargetIsAUnixSocket(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("needs abstract names")
	}
	leaks(t)
	path := filepath.Join(t.TempDir(), "log")
	target := listenUnixgram(t, path)
	front := listenUDP(t, "127.0.0.1")
	u := serveUDP(t, UDPConfig{Dial: func(ctx context.Context, _ Origin) (net.Conn, error) {
		return DialHost(ctx, "udp", "unix:"+path)
	}}, front)
	c := dialUDP(t, front.LocalAddr())
	b := make([]byte, 100)
	answer := func(reply string) *net.UnixAddr {
		t.Helper()
		target.SetDeadline(time.Now().Add(testTimeout))
		n, from, err := target.ReadFromUnix(b)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := target.WriteToUnix([]byte(reply+string(b[:n])), from); err != nil {
			t.Fatal(err)
		}
		return from
	}
	send(t, c, []byte("1"))
	session := answer("re ")
	if got := receive(t, c); string(got) != "re 1" {
		t.Fatalf("got %q", got)
	}

	third := listenUnixgram(t, path+"3")
	if _, err := third.WriteToUnix([]byte("forged"), session); !errors.Is(err, syscall.EPERM) {
		t.Errorf("another socket may send to the session: %v", err)
	}

	// Longer than any UDP datagram: dropped and counted, not cut.
	target.SetWriteBuffer(1 << 20)
	if _, err := target.WriteToUnix(make([]byte, 80000), session); err != nil {
		t.Fatal(err)
	}
	await(t, "one oversize", func() bool { return u.Stats().Oversize == 1 })

	// A target that does not read must not stop others: what it has no room for is dropped.
	for range 2000 {
		send(t, c, []byte("flood"))
	}
	await(t, "drops", func() bool { return u.Stats().Dropped > 0 })
	target.Close()
	os.Remove(path)
	target = listenUnixgram(t, path)
	await(t, "the new target", func() bool {
		send(t, c, []byte("2"))
		target.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
		n, _, err := target.ReadFromUnix(b)
		return err == nil && string(b[:n]) == "2"
	})
}

func listenUnixgram(t *testing.T, path string) *net.UnixConn {
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// TestUDPChurn has sessions begin, fail, expire, make room and end with the engine, all at once, for the race detector.
func TestUDPChurn(t *testing.T) {
	leaks(t)
	target := echoUDP(t, "127.0.0.1")
	var calls atomic.Int32
	u := NewUDP(UDPConfig{
		MaxSessions: 20, MaxPerClient: 20, DialTime: 10 * time.Millisecond, Idle: 3 * time.Millisecond, IdleAnswered: 3 * time.Millisecond,
		Dial: func(ctx context.Context, _ Origin) (net.Conn, error) {
			switch calls.Add(1) % 10 {
			case 0:
				return nil, syscall.ENETUNREACH
			case 1:
				<-ctx.Done()
				return nil, ctx.Err()
			case 2:
				c, err := DialHost(ctx, "udp", target.LocalAddr().String())
				return hiddenConn{c}, err
			}
			return DialHost(ctx, "udp", target.LocalAddr().String())
		},
	})
	served := make(chan error, 2)
	var fronts []net.Addr
	for range 2 {
		pc := listenUDP(t, "127.0.0.1")
		fronts = append(fronts, pc.LocalAddr())
		go func() { served <- u.Serve(pc) }()
	}
	var clients sync.WaitGroup
	var answers atomic.Int32
	for i := range 4 {
		clients.Go(func() {
			b := make([]byte, 1400)
			for n := range 150 {
				c, err := net.Dial("udp", fronts[(i+n)%2].String())
				if err != nil {
					t.Error(err)
					return
				}
				for range 3 {
					c.Write(b)
				}
				c.SetReadDeadline(time.Now().Add(time.Duration(n%3) * time.Millisecond))
				if _, err := c.Read(b); err == nil {
					answers.Add(1)
				}
				c.Close()
			}
		})
	}
	await(t, "answers and failures", func() bool {
		s := u.Stats()
		return answers.Load() > 20 && s.DialFailures > 2 && s.Total > 100
	})
	u.Close() // in the middle
	clients.Wait()
	for range 2 {
		if err := <-served; err != nil {
			t.Error(err)
		}
	}
	if s := u.Stats(); s.Active != 0 || u.count.waiting.Load() != 0 {
		t.Errorf("%+v, %d bytes wait", s, u.count.waiting.Load())
	}
}
