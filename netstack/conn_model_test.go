package netstack

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"

	"culvert.dev/culvert/filter"
	"culvert.dev/culvert/internal/packet"
	"culvert.dev/culvert/internal/stream"
	"culvert.dev/culvert/nat"
)

var (
	fireSeed = flag.Uint64("fireseed", 1, "of TestConnectionsUnderFire")
	fireTime = flag.Duration("firetime", 1500*time.Millisecond, "how long TestConnectionsUnderFire opens connections")
)

// What the far end of a connection under fire does is the first byte that it reads.
const (
	farEchoes = iota
	farEndsFirst
	farResets
	farCloses
	farIgnores
	farBehaviours
)

// fire is a pair of nodes under random use.
type fire struct {
	*pair
	t    *testing.T
	l    net.Listener
	all  sync.WaitGroup
	ends atomic.Bool

	noise []byte // to say
	local struct {
		sync.Mutex
		net.Listener
	}

	whole, cut atomic.Int64 // conversations
}

// TestConnectionsUnderFire opens connections from many goroutines, ends them in every way, and meanwhile flushes flows and takes the
// peer out of the policy. What arrives must be what was sent, nothing may hang, and flows and connections must not outlive each other.
func TestConnectionsUnderFire(t *testing.T) {
	goroutines := runtime.NumGoroutine()
	t.Run("pair", func(t *testing.T) {
		f := &fire{pair: newPair(t), t: t, noise: make([]byte, 300<<10)}
		rand.NewChaCha8([32]byte{byte(*fireSeed)}).Read(f.noise)
		f.l = f.listen(t, ap(peerV4, servedPort))
		var err error
		if f.local.Listener, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
			t.Fatal(err)
		}
		defer f.local.Close()
		served := make(chan struct{})
		go func() { defer close(served); f.serve() }()
		var workers sync.WaitGroup
		for i := range 12 {
			r := rand.New(rand.NewPCG(*fireSeed, uint64(i)))
			workers.Go(func() {
				for !f.ends.Load() {
					f.converse(r)
				}
			})
		}
		f.disturb(rand.New(rand.NewPCG(*fireSeed, 1000)))
		f.ends.Store(true)
		workers.Wait()
		f.l.Close()
		<-served
		f.all.Wait()
		t.Logf("%d conversations, and %d that were cut", f.whole.Load(), f.cut.Load())
		if f.whole.Load() == 0 || f.cut.Load() == 0 {
			t.Error("nothing was tried")
		}
		waitFor(t, "flows for connections, and none besides", func() bool { return f.near.table.Len() == endpoints(f.near) })
		f.near.FlushFlows(&FlowFilter{})
		f.far.FlushFlows(&FlowFilter{})
		waitFor(t, "the end of all", func() bool {
			return f.near.table.Len()+endpoints(f.near)+f.far.table.Len()+endpoints(f.far) == 0
		})
		waitFor(t, "an empty queue", func() bool {
			f.near.out.mu.Lock()
			defer f.near.out.mu.Unlock()
			return f.near.out.n == 0
		})
	})
	if got := settle(goroutines, runtime.NumGoroutine); got > goroutines {
		buf := make([]byte, 1<<16)
		t.Errorf("%d goroutines, %d before\n%s", got, goroutines, buf[:runtime.Stack(buf, true)])
	}
}

// endpoints counts the connections that gVisor has.
func endpoints(n *Net) (count int) {
	for _, e := range n.stack.RegisteredEndpoints() {
		if e, ok := e.(*tcp.Endpoint); ok && e.EndpointState() != tcp.StateListen {
			count++
		}
	}
	return count
}

// disturb ends flows from outside until it is time.
func (f *fire) disturb(r *rand.Rand) {
	without := testPolicy(f.t, func(c *filter.Config) { c.Routes = nil })
	for until := time.Now().Add(*fireTime); time.Now().Before(until); {
		time.Sleep(time.Duration(r.IntN(20)) * time.Millisecond)
		switch r.IntN(40) {
		case 0:
			before := f.near.Policy()
			f.near.SetPolicy(without)
			f.near.SetPolicy(before)
		case 1:
			f.near.FlushFlows(&FlowFilter{})
		case 2:
			f.far.FlushFlows(&FlowFilter{})
		default:
			f.endOne(r)
		}
	}
}

// endOne ends one flow as its timeout would.
func (f *fire) endOne(r *rand.Rand) {
	n, skip := f.near, r.IntN(12)
	if r.IntN(3) == 0 {
		n = f.far
	}
	var chosen *nat.Flow
	n.table.Each(func(fl *nat.Flow) {
		if skip--; skip == 0 {
			chosen = fl
		}
	})
	if chosen != nil {
		n.table.End(chosen, nat.Expired)
	}
}

func (f *fire) serve() {
	for {
		c, err := f.l.Accept()
		if err != nil {
			return
		}
		f.all.Go(func() { f.answer(c.(*Conn)) })
	}
}

// answer is the far end of a conversation.
func (f *fire) answer(c *Conn) {
	defer c.Close()
	c.SetDeadline(time.Now().Add(testPatience))
	var what [1]byte
	if _, err := io.ReadFull(c, what[:]); err != nil {
		return
	}
	switch what[0] {
	case farEchoes:
		io.Copy(c, struct{ io.Reader }{c})
		c.CloseWrite()
	case farEndsFirst:
		c.CloseWrite()
		io.Copy(io.Discard, c)
	case farResets:
		io.CopyN(io.Discard, c, 5000)
		c.Abort()
	case farIgnores:
		time.Sleep(10 * time.Millisecond)
	}
}

// converse is the near end, directly or by a local connection that is copied.
func (f *fire) converse(r *rand.Rand) {
	ctx, cancel := context.WithTimeout(f.t.Context(), testPatience)
	if r.IntN(20) == 0 {
		ctx, cancel = context.WithTimeout(f.t.Context(), time.Duration(r.IntN(300))*time.Microsecond)
	}
	defer cancel()
	conn, err := f.near.DialTCP(ctx, ap(peerV4, servedPort))
	if err != nil {
		f.cut.Add(1)
		if conn != nil {
			f.t.Error("a connection and an error")
		}
		return
	}
	client := net.Conn(conn)
	switch r.IntN(3) {
	case 0:
		a, b := f.kernelPair()
		f.all.Go(func() { stream.Relay(b, conn, stream.RelayConfig{}) })
		client = a
	case 1:
		a, b := net.Pipe()
		f.all.Go(func() { stream.Relay(b, conn, stream.RelayConfig{}) })
		client = a
	}
	defer client.Close()
	client.SetDeadline(time.Now().Add(testPatience))
	f.talk(r, client)
}

// talk says something and compares the answer.
func (f *fire) talk(r *rand.Rand, c net.Conn) {
	what := byte(r.IntN(farBehaviours))
	said := f.noise[r.IntN(1000):]
	said = said[:1+r.IntN(1<<r.IntN(19))]
	ending := r.IntN(6)
	if _, ok := c.(interface{ CloseWrite() error }); !ok {
		ending = min(ending, 1)
	}
	f.all.Add(1)
	go func() {
		defer f.all.Done()
		c.Write([]byte{what})
		c.Write(said)
		if ending > 1 {
			c.(interface{ CloseWrite() error }).CloseWrite()
		}
		switch conn, ok := c.(*Conn); {
		case ending == 0 && ok:
			conn.Abort()
		case ending == 0:
			c.Close()
		case ending == 1:
			c.SetReadDeadline(time.Now().Add(time.Millisecond))
		}
	}()
	heard, err := io.ReadAll(c)
	if !bytes.HasPrefix(said, heard) {
		f.t.Errorf("behaviour %d: %d bytes came back, and they are not what was sent", what, len(heard))
	}
	if err == nil && what == farEchoes && ending > 1 && len(heard) == len(said) {
		f.whole.Add(1)
		return
	}
	if errors.Is(err, os.ErrDeadlineExceeded) && ending > 1 {
		f.t.Errorf("behaviour %d hangs: %v", what, err)
	}
	f.cut.Add(1)
}

// kernelPair is a connection between two sockets of the kernel.
func (f *fire) kernelPair() (a, b net.Conn) {
	f.local.Lock()
	defer f.local.Unlock()
	a, err := net.Dial("tcp", f.local.Addr().String())
	if err == nil {
		b, err = f.local.Accept()
	}
	if err != nil {
		f.t.Error(err)
		return net.Pipe()
	}
	return a, b
}

// roughPair is a pair whose packets get lost and out of order.
func roughPair(t *testing.T, mtu int, seed uint64) *pair {
	near, err := New(Config{MTU: mtu, Self: []netip.Addr{nodeV4, nodeV6}, Policy: testPolicy(t, nil)})
	if err != nil {
		t.Fatal(err)
	}
	far, err := New(Config{MTU: mtu, Self: []netip.Addr{peerV4, peerV6}, Policy: farPolicy(t)})
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() { carryRoughly(near.dev, far.dev, mtu, rand.New(rand.NewPCG(seed, 1))) })
	wg.Go(func() { carryRoughly(far.dev, near.dev, mtu, rand.New(rand.NewPCG(seed, 2))) })
	t.Cleanup(func() {
		near.Close()
		far.Close()
		wg.Wait()
	})
	return &pair{near, far}
}

// carryRoughly loses every fiftieth packet and turns the order of as many.
func carryRoughly(from, to *Device, mtu int, r *rand.Rand) {
	const offset = 16
	bufs, sizes := make([][]byte, BatchSize), make([]int, BatchSize)
	for i := range bufs {
		bufs[i] = make([]byte, offset+mtu)
	}
	for {
		n, err := from.Read(bufs, sizes, offset)
		if err != nil {
			return
		}
		var kept [][]byte
		for i := range n {
			switch r.IntN(50) {
			case 0:
			case 1:
				kept = append([][]byte{bufs[i][:offset+sizes[i]]}, kept...)
			default:
				kept = append(kept, bufs[i][:offset+sizes[i]])
			}
		}
		if _, err := to.Write(kept, offset); err != nil {
			return
		}
	}
}

func TestLossAndReordering(t *testing.T) {
	for _, mtu := range []int{1280, 1420, 65535} {
		families(t, func(t *testing.T, f family) {
			p := roughPair(t, mtu, 7)
			near, far := p.connect(t, p.listen(t, f.served()))
			want := make([]byte, 256<<10)
			for i := range want {
				want[i] = byte(i * 7 >> 3)
			}
			go func() {
				io.Copy(far, struct{ io.Reader }{far})
				far.CloseWrite()
			}()
			go func() {
				near.Write(want)
				near.CloseWrite()
			}()
			got, err := io.ReadAll(near)
			if err != nil || !bytes.Equal(got, want) {
				t.Errorf("MTU %d: %d bytes, %v", mtu, len(got), err)
			}
		})
	}
}

// Source quench is no news to anybody (RFC 6633), and nobody can redirect what goes through a tunnel.
func TestSourceQuenchAndRedirectDoNotEndAnAttempt(t *testing.T) {
	n := newTestNet(t, testPolicy(t, nil))
	w := newWire(n)
	for _, typ := range []uint8{icmp4Quench, icmp4Redirect} {
		ctx, cancel := context.WithCancel(t.Context())
		syn, result := dialWire(t, n, w, ctx, ap(peerV4, 80))
		w.send(answer(t, syn, packet.ICMP{Type: typ}))
		select {
		case err := <-result:
			t.Errorf("type %d: %v", typ, err)
		case <-time.After(20 * time.Millisecond):
			cancel()
			<-result
		}
		cancel()
	}
}

func TestDialsWhileTheNetCloses(t *testing.T) {
	for range 20 {
		p := newPair(t)
		l := p.listen(t, ap(peerV4, servedPort))
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				c.Close()
			}
		}()
		var dialled atomic.Int64
		var workers sync.WaitGroup
		for range 4 {
			workers.Go(func() {
				for {
					c, err := p.near.DialTCP(t.Context(), ap(peerV4, servedPort))
					switch {
					case errors.Is(err, net.ErrClosed):
						return
					case err == nil:
						dialled.Add(1)
						c.Close()
					}
				}
			})
		}
		waitFor(t, "a connection", func() bool { return dialled.Load() > 0 })
		p.near.Close()
		workers.Wait()
		if left := p.near.table.Len(); left != 0 {
			t.Fatalf("%d flows of a closed node", left)
		}
	}
}
