//go:build linux

package hostsock

import (
	"bytes"
	"encoding/binary"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// hoarder keeps every buffer until it is told to let go.
type hoarder struct {
	sink
	hmu  sync.Mutex // guards the following
	held []*Buf
	free bool
}

func newHoarder() *hoarder { return &hoarder{sink: sink{change: make(chan struct{})}} }

func (h *hoarder) Datagrams(in []Inbound) {
	h.hmu.Lock()
	if !h.free {
		for i := range in {
			// The sink releases what it gets: give it copies.
			b := &Buf{B: bytes.Clone(in[i].Buf.B[:in[i].N]), home: discard{}}
			h.held = append(h.held, in[i].Buf)
			in[i].Buf = b
		}
	}
	h.hmu.Unlock()
	h.sink.Datagrams(in)
}

type discard struct{}

func (discard) put(*Buf) {}

// letGo releases n buffers, all from now on if n is negative.
func (h *hoarder) letGo(n int) {
	h.hmu.Lock()
	defer h.hmu.Unlock()
	if n < 0 {
		n, h.free = len(h.held), true
	}
	for _, b := range h.held[:n] {
		b.Release()
	}
	h.held = h.held[n:]
}

func TestExhaustedBuffersLoseNothing(t *testing.T) {
	families(t, func(t *testing.T, v uint8) {
		const large, flows, each, size = 8, 20, 5, 20000
		p := newTestPoller(t, 1)
		p.loops[0].large.free.Store(large) // before any socket is open
		h := newHoarder()
		from := openUDP(t, p, v, newSink())
		var to []*UDP
		for range flows {
			to = append(to, openUDP(t, p, v, h))
		}
		for i := range each {
			for j, u := range to {
				d := pattern(i, size)
				binary.BigEndian.PutUint32(d, uint32(i*flows+j))
				send(t, from, Datagram{To: at(v, u.LocalPort()), B: d})
			}
		}
		h.await(t, "until exhausted", func() bool { return len(h.data) == large })

		// Small ones pass, on a socket that has nothing large waiting, and errors too.
		s := newSink()
		other := openUDP(t, p, v, s)
		for i := range 100 {
			send(t, from, Datagram{To: at(v, other.LocalPort()), B: pattern(i, smallSize)})
		}
		for i, d := range s.take(t, 100) {
			if !bytes.Equal(d.data, pattern(i, smallSize)) {
				t.Fatalf("small datagram %d is wrong", i)
			}
		}
		c, closed := plainUDP(t, v)
		c.Close()
		send(t, other, Datagram{To: closed, B: []byte("x")})
		s.takeError(t)

		// A loop that waits for buffers sleeps.
		p.awaitStalled(t, flows)
		if used := cpuTime(t, 100*time.Millisecond); used > 50*time.Millisecond {
			t.Errorf("%v of processor time in 100 ms of waiting", used)
		}

		// A socket that is closed while it waits takes nothing with it.
		to[3].Close()
		for i := 1; i <= large/2; i++ {
			h.letGo(1)
			h.await(t, "one more", func() bool { return len(h.data) >= large+i })
		}
		h.letGo(-1)
		h.await(t, "the rest", func() bool { return h.complete(flows, each, 3) })
		h.mu.Lock()
		defer h.mu.Unlock()
		next := map[uint32]uint32{}
		for _, d := range h.data {
			n := binary.BigEndian.Uint32(d.data)
			flow, i := n%flows, n/flows
			if i != next[flow] || len(d.data) != size || !bytes.Equal(d.data[4:], pattern(int(i), size)[4:]) {
				t.Fatalf("flow %d: datagram %d of %d bytes at place %d", flow, i, len(d.data), next[flow])
			}
			next[flow]++
		}
		if s := p.Stats(); s.Stalls == 0 || s.Truncated != 0 {
			t.Errorf("%+v", s)
		}
		p.Close()
		for end := time.Now().Add(patience); p.loops[0].large.free.Load() != large; time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("%d large buffers at the end, want %d", p.loops[0].large.free.Load(), large)
			}
		}
	})
}

// complete reports whether all flows but one have brought all their datagrams. The caller holds mu.
func (s *sink) complete(flows, each, but uint32) bool {
	count := make([]uint32, flows)
	for _, d := range s.data {
		count[binary.BigEndian.Uint32(d.data)%flows]++
	}
	for i, n := range count {
		if n != each && i != int(but) {
			return false
		}
	}
	return true
}

// courier hands buffers to another goroutine, which releases them.
type courier struct {
	to    chan *Buf
	count atomic.Int64
}

func (c *courier) Datagrams(in []Inbound) {
	for _, m := range in {
		c.to <- m.Buf
	}
	c.count.Add(int64(len(in)))
}

func (c *courier) SocketError(*ICMPError) {}

// TestNoWakeUpIsLost releases buffers at the very moments in which the loop finds none.
func TestNoWakeUpIsLost(t *testing.T) {
	const flows, rounds = 8, 500
	p := newTestPoller(t, 1)
	p.loops[0].large.free.Store(2)
	c := &courier{to: make(chan *Buf, 100)}
	from := openUDP(t, p, 4, newSink())
	var batch []Datagram
	for range flows {
		batch = append(batch, Datagram{To: at(4, openUDP(t, p, 4, c).LocalPort()), B: make([]byte, 3000)})
	}
	go func() {
		for {
			select {
			case b := <-c.to:
				b.Release()
			case <-t.Context().Done():
				return
			}
		}
	}()
	for i := range rounds {
		send(t, from, batch...)
		send(t, from, batch...)
		for end := time.Now().Add(patience); c.count.Load() < int64((i+1)*2*flows); runtime.Gosched() {
			if time.Now().After(end) {
				t.Fatalf("round %d: %d datagrams", i, c.count.Load())
			}
		}
	}
	if p.Stats().Stalls == 0 {
		t.Error("no socket ever waited")
	}
}

func TestAwaitAfterReleaseDoesNotSleep(t *testing.T) {
	var s slabs
	woken := 0
	s.init(1, func() { woken++ })
	b := s.take()
	if s.take() != nil {
		t.Fatal("two of one")
	}
	b.Release()
	if s.await() {
		t.Error("waits although one is free")
	}
	b = s.take()
	if !s.await() {
		t.Error("does not wait although none is free")
	}
	b.Release()
	if woken != 1 {
		t.Errorf("woken %d times", woken)
	}
}

// awaitStalled blocks until nearly all of the flows' sockets wait.
func (p *Poller) awaitStalled(t *testing.T, flows int) {
	t.Helper()
	for end := time.Now().Add(patience); p.Stats().Stalls < uint64(flows)-8; {
		if time.Now().After(end) {
			t.Fatalf("%+v", p.Stats())
		}
		time.Sleep(time.Millisecond)
	}
}

// cpuTime returns the processor time the process uses in d, in which the test sleeps.
func cpuTime(t *testing.T, d time.Duration) time.Duration {
	t.Helper()
	used := func() time.Duration {
		var u syscall.Rusage
		if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
			t.Fatal(err)
		}
		return time.Duration(u.Utime.Nano() + u.Stime.Nano())
	}
	before := used()
	time.Sleep(d)
	return used() - before
}

func TestPendingErrorDoesNotSpin(t *testing.T) {
	families(t, func(t *testing.T, v uint8) {
		p := newTestPoller(t, 1)
		s := newSink()
		u := openUDP(t, p, v, s)
		c, closed := plainUDP(t, v)
		c.Close()
		// With a tiny receive buffer the error queue takes one entry or none; the errors beyond are pending without one.
		u.use(func(fd int) error { return setOptions(fd, option{syscall.SOL_SOCKET, syscall.SO_RCVBUF, 1}) })
		for range 500 {
			u.Send([]Datagram{{To: closed, B: make([]byte, 1000)}})
		}
		heard := func() bool {
			s.mu.Lock()
			defer s.mu.Unlock()
			return len(s.errs) > 0 || p.Stats().SilentErrors > 0
		}
		for end := time.Now().Add(patience); !heard(); time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				t.Fatal("no error at all")
			}
		}
		if used := cpuTime(t, 100*time.Millisecond); used > 50*time.Millisecond {
			t.Errorf("%v of processor time in 100 ms of waiting", used)
		}
		// And the socket still works.
		send(t, u, Datagram{To: at(v, u.LocalPort()), B: []byte("self")})
		if d := s.take(t, 1)[0]; string(d.data) != "self" {
			t.Errorf("got %q", d.data)
		}
	})
}

// closer closes its socket at the first event.
type closer struct {
	u     *UDP
	ready chan struct{} // closed when u is set
	calls atomic.Int32
}

func (c *closer) Datagrams(in []Inbound) {
	<-c.ready
	for _, m := range in {
		m.Buf.Release()
	}
	c.calls.Add(1)
	c.u.Close()
}

func (c *closer) SocketError(*ICMPError) {}

func TestCloseFromWithinReceiver(t *testing.T) {
	p := newTestPoller(t, 1)
	s := newSink()
	from := openUDP(t, p, 4, s)
	c := &closer{ready: make(chan struct{})}
	c.u = openUDP(t, p, 4, c)
	to := at(4, c.u.LocalPort())
	for range 50 {
		send(t, from, Datagram{To: to, B: []byte("x")}, Datagram{To: to, B: make([]byte, 5000)})
	}
	close(c.ready)
	send(t, from, Datagram{To: at(4, from.LocalPort()), B: []byte("the loop goes on")})
	s.take(t, 1)
	if n := c.calls.Load(); n != 1 {
		t.Errorf("%d calls", n)
	}
	if n, err := c.u.Send([]Datagram{{To: to, B: []byte("x")}}); n != 0 || err != os.ErrClosed {
		t.Errorf("Send after Close: %d, %v", n, err)
	}
	if err := c.u.SetDF(true); err != os.ErrClosed {
		t.Errorf("SetDF after Close: %v", err)
	}
}

func TestPollerClose(t *testing.T) {
	before := runtime.NumGoroutine()
	p, err := NewPoller(3)
	if err != nil {
		t.Fatal(err)
	}
	s := newSink()
	u := openUDP(t, p, 4, s)
	p.Close()
	p.Close()
	for end := time.Now().Add(patience); runtime.NumGoroutine() > before; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d goroutines, %d before", runtime.NumGoroutine(), before)
		}
	}
	send(t, u, Datagram{To: at(4, u.LocalPort()), B: []byte("nobody reads this")})
	if _, err := p.OpenUDP(4, 0, s); err == nil {
		t.Error("opened a socket on a closed poller")
	}
	if len(s.data) > 0 {
		t.Error("an event after Close")
	}
}

// stopper closes the poller at the first event, which it lets in only once it may.
type stopper struct {
	p     *Poller
	start chan struct{}
	calls atomic.Int32
}

func (s *stopper) Datagrams(in []Inbound) {
	<-s.start
	for _, m := range in {
		m.Buf.Release()
	}
	s.p.Close()
	s.calls.Add(1)
}

func (s *stopper) SocketError(*ICMPError) {}

func TestPollerCloseFromWithinReceiver(t *testing.T) {
	before := runtime.NumGoroutine()
	p := newTestPoller(t, 1)
	s := &stopper{p: p, start: make(chan struct{})}
	for range 20 { // all ready when the loop comes back
		u := openUDP(t, p, 4, s)
		send(t, u, Datagram{To: at(4, u.LocalPort()), B: []byte("stop")})
	}
	close(s.start)
	for end := time.Now().Add(patience); runtime.NumGoroutine() > before; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the loop goes on")
		}
	}
	if n := s.calls.Load(); n != 1 {
		t.Errorf("%d calls", n)
	}
}

func TestConcurrentCloseHammer(t *testing.T) {
	p := newTestPoller(t, 2)
	target := openUDP(t, p, 4, drain{})
	to := at(4, target.LocalPort())
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 100 {
				u, err := p.OpenUDP(4, 0, drain{})
				if err != nil {
					t.Error(err)
					return
				}
				self := at(4, u.LocalPort())
				var users sync.WaitGroup
				for range 2 {
					users.Go(func() {
						for range 10 {
							u.Send([]Datagram{{To: self, B: make([]byte, 3000)}, {To: to, B: []byte("x")}, {To: at(4, 9), B: []byte("refused")}})
							u.SetDF(true)
							u.SetDF(false)
						}
					})
				}
				users.Go(u.Close)
				u.Close()
				users.Wait()
			}
		})
	}
	wg.Wait()
	for _, l := range p.loops {
		if n := len(l.socks); n > 1 {
			t.Errorf("%d sockets left in a loop", n)
		}
	}
}

// drain only releases.
type drain struct{}

func (drain) Datagrams(in []Inbound) {
	for _, m := range in {
		m.Buf.Release()
	}
}

func (drain) SocketError(*ICMPError) {}

func TestManySockets(t *testing.T) {
	want := 5000
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil || limit.Cur < uint64(want)+200 {
		want = max(int(limit.Cur)-200, 100)
		t.Logf("only %d sockets: the limit of open files is %d", want, limit.Cur)
	}
	p := newTestPoller(t, 2)
	goroutines, heap := runtime.NumGoroutine(), heapInUse()
	s := newSink()
	sockets := make([]*UDP, want)
	for i := range sockets {
		sockets[i] = openUDP(t, p, 4, s)
	}
	each := (heapInUse() - heap) / int64(want)
	t.Logf("%d sockets: %d bytes of heap each", want, each)
	if each > 1500 {
		t.Errorf("%d bytes each", each)
	}
	if n := runtime.NumGoroutine(); n > goroutines {
		t.Errorf("%d goroutines, %d before", n, goroutines)
	}
	for i, u := range sockets {
		send(t, u, Datagram{To: at(4, sockets[(i+1)%want].LocalPort()), B: []byte("round")})
	}
	s.take(t, want)
	for _, u := range sockets {
		u.Close()
	}
}

func heapInUse() int64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}
