package tunnel

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/conn"
)

// openBind opens a bind on a free port and returns the ReceiveFuncs for IPv4 and IPv6.
func openBind(t testing.TB, b conn.Bind) (v4, v6 conn.ReceiveFunc, port uint16) {
	t.Helper()
	fns, port, err := b.Open(0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close() })
	if len(fns) != 2 {
		t.Skip("this host lacks IPv4 or IPv6")
	}
	return fns[0], fns[1], port
}

func loopback(v6 bool, port uint16) string {
	if v6 {
		return fmt.Sprintf("[::1]:%d", port)
	}
	return fmt.Sprintf("127.0.0.1:%d", port)
}

// receiveAll reads datagrams until it has n.
func receiveAll(t testing.TB, recv conn.ReceiveFunc, n int) (got [][]byte, from conn.Endpoint) {
	t.Helper()
	bufs, sizes, eps := newBufs(128, 65535), make([]int, 128), make([]conn.Endpoint, 128)
	done := make(chan error, 1)
	go func() {
		for len(got) < n {
			k, err := recv(bufs, sizes, eps)
			if err != nil {
				done <- err
				return
			}
			for i := range k {
				if sizes[i] > 0 {
					got = append(got, bytes.Clone(bufs[i][:sizes[i]]))
					from = eps[i]
				}
			}
		}
		done <- nil
	}()
	select {
	case err := <-done:
		if err != nil {
			t.Fatalf("receive after %d of %d datagrams: %v", len(got), n, err)
		}
	case <-time.After(5 * time.Second):
		t.Fatalf("timeout: want %d datagrams", n)
	}
	return got, from
}

// batches has the shapes that matter to coalescing: each row is a list of datagram sizes sent in one call.
func batches() map[string][]int {
	rep := func(n, size int) (s []int) {
		for range n {
			s = append(s, size)
		}
		return s
	}
	r := rand.New(rand.NewPCG(1, 2))
	mixed := make([]int, 100)
	for i := range mixed {
		mixed[i] = 1 + r.IntN(1500)
	}
	return map[string][]int{
		"one":                     {32},
		"one of the largest":      {65507},
		"two equal":               {148, 148},
		"full batch":              rep(128, 1452),
		"more than 65000 bytes":   rep(46, 1424),
		"more than 64 segments":   rep(128, 96),
		"short tail":              append(rep(20, 1424), 80),
		"short in the middle":     append(append(rep(5, 1424), 80), rep(5, 1424)...),
		"growing":                 {100, 200, 300, 400},
		"shrinking":               {400, 300, 200, 100},
		"small between large":     {1424, 32, 1424, 32, 1424, 32},
		"two of 60000":            {60000, 60000},
		"random":                  mixed,
		"equal, then other equal": append(rep(30, 1424), rep(30, 500)...),
	}
}

func TestBindExchangesBatches(t *testing.T) {
	for _, pair := range []struct {
		name     string
		from, to func() conn.Bind
	}{
		{"own to own", func() conn.Bind { return newBind(discard) }, func() conn.Bind { return newBind(discard) }},
		{"own to standard", func() conn.Bind { return newBind(discard) }, conn.NewStdNetBind},
		{"standard to own", conn.NewStdNetBind, func() conn.Bind { return newBind(discard) }},
	} {
		for _, v6 := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s v6=%v", pair.name, v6), func(t *testing.T) {
				src, dst := pair.from(), pair.to()
				_, _, srcPort := openBind(t, src)
				recv4, recv6, port := openBind(t, dst)
				recv := recv4
				if v6 {
					recv = recv6
				}
				to, err := src.ParseEndpoint(loopback(v6, port))
				if err != nil {
					t.Fatal(err)
				}
				for name, sizes := range batches() {
					if pair.name == "standard to own" && sizes[0] == 65507 {
						continue // StdNetBind appends to the buffer of a single datagram; ours is the subject here
					}
					sent := make([][]byte, len(sizes))
					for i, n := range sizes {
						sent[i] = bytes.Repeat([]byte{byte(i + 1)}, n)
					}
					if err := src.Send(sent, to); err != nil {
						t.Fatalf("%s: %v", name, err)
					}
					got, from := receiveAll(t, recv, len(sent))
					for i := range sent {
						if !bytes.Equal(got[i], sent[i]) {
							t.Fatalf("%s: datagram %d: got %d bytes of %x, want %d of %x", name, i, len(got[i]), got[i][0], len(sent[i]), sent[i][0])
						}
					}
					if want := loopback(v6, srcPort); from.DstToString() != want {
						t.Errorf("%s: sender %s, want %s", name, from.DstToString(), want)
					}
				}
			})
		}
	}
}

// A kernel without the offloads takes other paths through the code.
func TestBindWithoutOffload(t *testing.T) {
	a, b := newBind(discard).(*udpBind), newBind(discard).(*udpBind)
	openBind(t, a)
	_, _, port := openBind(t, b)
	sa, sb := a.v4.Load(), b.v4.Load()
	sa.gso.Store(false)
	if err := sb.raw.Control(func(fd uintptr) { unix.SetsockoptInt(int(fd), unix.IPPROTO_UDP, unix.UDP_GRO, 0) }); err != nil {
		t.Fatal(err)
	}
	sb.gro = false
	recv := newReceiver(sb)
	to, _ := a.ParseEndpoint(loopback(false, port))
	for name, sizes := range batches() {
		sent := make([][]byte, len(sizes))
		for i, n := range sizes {
			sent[i] = bytes.Repeat([]byte{byte(i + 1)}, n)
		}
		if err := a.Send(sent, to); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		got, _ := receiveAll(t, recv.receive, len(sent))
		for i := range sent {
			if !bytes.Equal(got[i], sent[i]) {
				t.Fatalf("%s: datagram %d differs", name, i)
			}
		}
	}
	// Many messages per call, not one.
	if err := a.Send(newBufs(100, 100), to); err != nil {
		t.Fatal(err)
	}
	n, err := recv.receive(newBufs(128, 2000), make([]int, 128), make([]conn.Endpoint, 128))
	if err != nil || n < 50 {
		t.Errorf("one call received %d of 100 waiting datagrams (%v)", n, err)
	}
}

func TestRunLimits(t *testing.T) {
	sizes := func(s ...int) (bufs [][]byte) {
		for _, n := range s {
			bufs = append(bufs, make([]byte, n))
		}
		return bufs
	}
	for _, c := range []struct {
		name  string
		bufs  [][]byte
		want  int // datagrams in the first message
		short int // likewise, of short trains
	}{
		{"one", sizes(100), 1, 1},
		{"equal", sizes(100, 100, 100), 3, 3},
		{"a shorter one ends the run and belongs to it", sizes(100, 99, 99), 2, 2},
		{"a longer one begins another", sizes(100, 101), 1, 1},
		{"an empty one cannot share", sizes(100, 0), 1, 1},
		{"an empty one goes alone", sizes(0, 0), 1, 1},
		{"65000 bytes", newBufs(65, 1000), 64, shortTrain},
		{"46 datagrams of 1424 bytes reach 64 KiB with their headers", newBufs(46, 1424), 45, shortTrain},
		{"64 segments", newBufs(128, 32), 64, 64},
		{"above 65000 bytes at once", sizes(65507, 10), 1, 1},
		{"8 KiB of small ones", newBufs(128, 300), 64, shortTrainBytes / 300},
	} {
		if got := 1 + run(c.bufs, false); got != c.want {
			t.Errorf("%s: %d datagrams in a message, want %d", c.name, got, c.want)
		}
		if got := 1 + run(c.bufs, true); got != c.short {
			t.Errorf("%s: %d datagrams in a short train, want %d", c.name, got, c.short)
		}
	}
}

func TestSimpler(t *testing.T) {
	for _, c := range []struct {
		name           string
		errno          syscall.Errno
		segmented, src bool
		want           remedy
	}{
		{"no checksum offload", unix.EIO, true, true, withoutOffload},
		{"EIO of a plain datagram is none of ours", unix.EIO, false, true, noRemedy},
		{"segments above the path MTU", unix.EINVAL, true, true, withoutSegments},
		{"the same on newer kernels", unix.EMSGSIZE, true, false, withoutSegments},
		{"source address gone", unix.EINVAL, false, true, withoutSource},
		{"interface gone", unix.ENODEV, true, true, withoutSource},
		{"a datagram too large for UDP", unix.EMSGSIZE, false, true, noRemedy},
		{"no route at all", unix.ENETUNREACH, false, false, noRemedy},
		{"refused by a firewall", unix.EPERM, true, true, noRemedy},
	} {
		if got := simpler(c.errno, c.segmented, c.src); got != c.want {
			t.Errorf("%s: remedy %d, want %d", c.name, got, c.want)
		}
	}
}

func TestStickySource(t *testing.T) {
	for _, v6 := range []bool{false, true} {
		a, b := newBind(discard), newBind(discard)
		recvA4, recvA6, _ := openBind(t, a)
		recvB4, recvB6, portB := openBind(t, b)
		recvA, recvB, local := recvA4, recvB4, netip.MustParseAddr("127.0.0.2")
		if v6 {
			recvA, recvB, local = recvA6, recvB6, netip.MustParseAddr("::1")
		}
		// b is called at an address that the kernel would not choose by itself, and has to answer from there.
		to, _ := a.ParseEndpoint(netip.AddrPortFrom(local, portB).String())
		if err := a.Send([][]byte{{1}}, to); err != nil {
			t.Fatal(err)
		}
		_, caller := receiveAll(t, recvB, 1)
		if caller.SrcIP() != local || caller.SrcToString() != local.String() {
			t.Errorf("heard on %v, want %v", caller.SrcIP(), local)
		}
		if err := b.Send([][]byte{{2}, {2}, {2}}, caller); err != nil {
			t.Fatal(err)
		}
		if _, from := receiveAll(t, recvA, 3); from.DstIP() != local {
			t.Errorf("answered from %v, want %v", from.DstIP(), local)
		}
		caller.ClearSrc()
		if caller.SrcIP().IsValid() {
			t.Error("the source is still there after ClearSrc")
		}
		if err := b.Send([][]byte{{3}}, caller); err != nil {
			t.Fatal(err)
		}
		if _, from := receiveAll(t, recvA, 1); !v6 && from.DstIP() != netip.MustParseAddr("127.0.0.1") {
			t.Errorf("after ClearSrc answered from %v", from.DstIP())
		}
	}
}

// A source address that is no longer the host's must not stop the tunnel.
func TestVanishedSourceIsGivenUp(t *testing.T) {
	for _, v6 := range []bool{false, true} {
		a, b := newBind(discard), newBind(discard)
		openBind(t, a)
		recv4, recv6, port := openBind(t, b)
		recv, gone := recv4, netip.MustParseAddr("203.0.113.7")
		if v6 {
			recv, gone = recv6, netip.MustParseAddr("2001:db8::7")
		}
		parsed, _ := a.ParseEndpoint(loopback(v6, port))
		src := source{ifindex: 1}
		copy(src.addr[:], gone.AsSlice())
		e := heardFrom(&parsed.(*udpEndpoint).name, src)
		if err := a.Send(newBufs(5, 100), e); err != nil {
			t.Fatalf("v6=%v: %v", v6, err)
		}
		receiveAll(t, recv, 5)
		if e.hasSource() {
			t.Error("the vanished source is still in use")
		}
		if e.plain.Load() != 0 {
			t.Error("segmentation was blamed for the source")
		}
	}
}

func TestCloseAndReopen(t *testing.T) {
	b := newBind(discard)
	fns, port, err := b.Open(0)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := b.Open(0); !errors.Is(err, conn.ErrBindAlreadyOpen) {
		t.Errorf("second Open: %v", err)
	}
	errs := make(chan error, len(fns))
	for _, fn := range fns {
		go func() {
			_, err := fn(newBufs(128, 100), make([]int, 128), make([]conn.Endpoint, 128))
			errs <- err
		}()
	}
	time.Sleep(10 * time.Millisecond) // let them block; either way they must end
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	for range fns {
		if err := <-errs; !errors.Is(err, net.ErrClosed) {
			t.Errorf("receive after Close: %v, want net.ErrClosed", err)
		}
	}
	if err := b.Close(); err != nil {
		t.Errorf("second Close: %v", err)
	}
	to, _ := b.ParseEndpoint("127.0.0.1:9")
	if err := b.Send([][]byte{{1}}, to); err == nil {
		t.Error("Send on a closed bind succeeds")
	}
	if _, again, err := b.Open(port); err != nil || again != port {
		t.Errorf("reopen port %d: %d, %v", port, again, err)
	}
	b.Close()
}

func TestPortTaken(t *testing.T) {
	for _, addr := range []string{"127.0.0.1:0", "[::1]:0"} {
		pc, err := net.ListenPacket("udp", addr)
		if err != nil {
			t.Skip(err)
		}
		port := pc.LocalAddr().(*net.UDPAddr).AddrPort().Port()
		b := newBind(discard)
		if _, _, err := b.Open(port); !errors.Is(err, syscall.EADDRINUSE) || strings.Contains(err.Error(), "\n") {
			t.Errorf("port taken at %s: %v", addr, err)
		}
		pc.Close()
		if _, _, err := b.Open(port); err != nil {
			t.Errorf("a failed Open left something behind: %v", err)
		}
		b.Close()
	}
}

func TestOneFamilyIsEnough(t *testing.T) {
	lacks := func(family string, err error) func(string, uint16) (*udpSocket, error) {
		return func(network string, port uint16) (*udpSocket, error) {
			if network == family {
				return nil, err
			}
			return listenUDP(network, port)
		}
	}
	for _, c := range []struct{ lacking, has string }{{"udp6", "v4"}, {"udp4", "v6"}} {
		v4, v6, port, err := openPair(0, lacks(c.lacking, syscall.EAFNOSUPPORT))
		if err != nil || port == 0 || (v4 != nil) != (c.has == "v4") || (v6 != nil) != (c.has == "v6") {
			t.Errorf("without %s: %v %v port %d, %v", c.lacking, v4, v6, port, err)
		}
		b := newBind(discard).(*udpBind)
		b.v4.Store(v4)
		b.v6.Store(v6)
		to, _ := b.ParseEndpoint(loopback(c.has == "v4", 9)) // the family that is not there
		if err := b.Send([][]byte{{1}}, to); !errors.Is(err, syscall.EAFNOSUPPORT) {
			t.Errorf("without %s: send: %v", c.lacking, err)
		}
		b.Close()
	}
	calls := 0
	_, _, _, err := openPair(0, func(network string, port uint16) (*udpSocket, error) {
		if calls++; network == "udp6" {
			return nil, syscall.EADDRINUSE
		}
		return listenUDP(network, port)
	})
	if !errors.Is(err, syscall.EADDRINUSE) || calls != 200 {
		t.Errorf("a port that is taken in one family: %v after %d calls, want a bounded number of attempts", err, calls)
	}
	if _, _, _, err := openPair(0, func(string, uint16) (*udpSocket, error) { return nil, syscall.EAFNOSUPPORT }); !errors.Is(err, syscall.EAFNOSUPPORT) {
		t.Errorf("no family at all: %v", err)
	}
}

func TestSetMark(t *testing.T) {
	b := newBind(discard).(*udpBind)
	if err := b.SetMark(7); err != nil {
		t.Errorf("closed: %v", err)
	}
	openBind(t, b)
	if err := b.SetMark(7); err != nil {
		t.Fatal(err)
	}
	var got int
	b.v4.Load().raw.Control(func(fd uintptr) { got, _ = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_MARK) })
	if unix.Geteuid() == 0 && got != 7 {
		t.Errorf("mark %d, want 7", got)
	}
}

func TestParseEndpoint(t *testing.T) {
	b := newBind(discard)
	for in, want := range map[string]string{
		"192.0.2.1:5":          "192.0.2.1:5",
		"[2001:db8::1]:65535":  "[2001:db8::1]:65535",
		"[::ffff:192.0.2.1]:5": "192.0.2.1:5",
		"[fe80::1%1]:5":        "[fe80::1%1]:5",
		"[fe80::1%lo]:5":       "[fe80::1%lo]:5",
	} {
		e, err := b.ParseEndpoint(in)
		if err != nil || e.DstToString() != want {
			t.Errorf("%s: %v, %v", in, e, err)
		}
	}
	for _, in := range []string{"", "192.0.2.1", "example.com:5", "[fe80::1%nosuchif]:5", "192.0.2.1:65536"} {
		if e, err := b.ParseEndpoint(in); err == nil {
			t.Errorf("%q accepted as %v", in, e)
		}
	}
	if err := b.Send([][]byte{{1}}, memEndpoint{}); !errors.Is(err, conn.ErrWrongEndpointType) {
		t.Errorf("foreign endpoint: %v", err)
	}
}

// TestBindDoesNotAllocate covers every path that a data packet takes.
func TestBindDoesNotAllocate(t *testing.T) {
	for _, c := range []struct {
		name    string
		v6      bool
		offload bool
	}{{"v4", false, true}, {"v6", true, true}, {"v4 without offload", false, false}} {
		a, b := newBind(discard).(*udpBind), newBind(discard).(*udpBind)
		recv4, recv6, _ := openBind(t, a)
		echo4, echo6, port := openBind(t, b)
		echo, back := echo4, recv4
		if c.v6 {
			echo, back = echo6, recv6
		}
		if !c.offload {
			a.v4.Load().gso.Store(false)
			b.v4.Load().gso.Store(false)
		}
		to, _ := a.ParseEndpoint(loopback(c.v6, port))
		out := newBufs(128, 500)
		bufs, sizes, eps := newBufs(128, 2000), make([]int, 128), make([]conn.Endpoint, 128)
		drain := func(recv conn.ReceiveFunc) {
			for n := 0; n < len(out); {
				k, err := recv(bufs, sizes, eps)
				if err != nil {
					t.Fatal(err)
				}
				n += k
			}
		}
		roundTrip := func() {
			if err := a.Send(out, to); err != nil {
				t.Fatal(err)
			}
			drain(echo)
			if err := b.Send(out, eps[0]); err != nil {
				t.Fatal(err)
			}
			drain(back)
		}
		roundTrip()
		if raceEnabled {
			continue // sync.Pool drops items at random under the race detector
		}
		if n := testing.AllocsPerRun(50, roundTrip); n >= 1 {
			t.Errorf("%s: %v allocations per 256 packets", c.name, n)
		}
	}
}

// Senders that take turns must not cost an endpoint each time.
func TestEndpointsAreCached(t *testing.T) {
	dst := newBind(discard)
	recv, _, port := openBind(t, dst)
	senders := make([]conn.Bind, 4)
	for i := range senders {
		senders[i] = newBind(discard)
		openBind(t, senders[i])
	}
	seen := map[conn.Endpoint]bool{}
	for range 10 {
		for _, s := range senders {
			to, _ := s.ParseEndpoint(loopback(false, port))
			if err := s.Send([][]byte{{1, 2, 3}}, to); err != nil {
				t.Fatal(err)
			}
			_, from := receiveAll(t, recv, 1)
			seen[from] = true
		}
	}
	if len(seen) > 6*len(senders) { // two of them may share a slot, and take turns there
		t.Errorf("%d endpoints for %d senders", len(seen), len(senders))
	}
}

func BenchmarkBind(b *testing.B) {
	for _, size := range []int{1452, 96} {
		for _, c := range []struct {
			name string
			bind func() conn.Bind
		}{{"own", func() conn.Bind { return newBind(discard) }}, {"standard", conn.NewStdNetBind}} {
			b.Run(fmt.Sprintf("%s/%d", c.name, size), func(b *testing.B) { benchmarkBind(b, c.bind, size, 128) })
		}
	}
	b.Run("own/mss1424", func(b *testing.B) { benchmarkBind(b, func() conn.Bind { return newBind(discard) }, 1424, 92) })
	b.Run("standard/mss1424", func(b *testing.B) { benchmarkBind(b, conn.NewStdNetBind, 1424, 92) })
}

// benchmarkBind moves batches of n datagrams from one bind to another; ns/op is per datagram received.
func benchmarkBind(b *testing.B, bind func() conn.Bind, size, n int) {
	src, dst := bind(), bind()
	openBind(b, src)
	recv, _, port := openBind(b, dst)
	to, _ := src.ParseEndpoint(loopback(false, port))
	backing := newBufs(n, 65535) // as wireguard-go's: StdNetBind appends to the first of a run
	bufs, sizes, eps := newBufs(128, 65535), make([]int, 128), make([]conn.Endpoint, 128)
	out := make([][]byte, n)
	b.SetBytes(int64(size))
	b.ReportAllocs()
	b.ResetTimer()
	for received := 0; received < b.N; {
		for i := range out {
			out[i] = backing[i][:size]
		}
		if err := src.Send(out, to); err != nil {
			b.Fatal(err)
		}
		for got := 0; got < n; {
			k, err := recv(bufs, sizes, eps)
			if err != nil {
				b.Fatal(err)
			}
			for _, s := range sizes[:k] {
				if s > 0 {
					got++
				}
			}
		}
		received += n
	}
	runtime.KeepAlive(eps)
}
