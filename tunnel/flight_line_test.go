package tunnel

import (
	"bytes"
	"net"
	"net/netip"
	"runtime"
	"runtime/metrics"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
)

// line is one direction of a cable between two binds: it loses nothing, and holds everything that has not been taken at no more
// than its size.
type line struct {
	mu     sync.Mutex // guards the following
	more   sync.Cond
	bytes  bytes.Buffer
	sizes  []int
	closed bool
	shut   bool // who sends waits
	paused bool // who receives waits

	besides func(msg []byte) [][]byte // what else is put in behind a message; nil: nothing
}

func newLine() *line {
	l := &line{}
	l.more.L = &l.mu
	return l
}

func (l *line) put(bufs [][]byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for l.shut && !l.closed {
		l.more.Wait()
	}
	for _, b := range bufs {
		l.putLocked(b)
		if l.besides != nil {
			for _, b := range l.besides(b) {
				l.putLocked(b)
			}
		}
	}
	l.more.Broadcast()
}

func (l *line) putLocked(msg []byte) {
	l.bytes.Write(msg)
	l.sizes = append(l.sizes, len(msg))
}

func (l *line) take(bufs [][]byte, sizes []int) (n int, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for (len(l.sizes) == 0 || l.paused) && !l.closed {
		l.more.Wait()
	}
	if l.closed {
		return 0, net.ErrClosed
	}
	for n < len(bufs) && n < len(l.sizes) {
		sizes[n], _ = l.bytes.Read(bufs[n][:l.sizes[n]])
		n++
	}
	l.sizes = slices.Delete(l.sizes, 0, n)
	l.more.Broadcast()
	return n, nil
}

// set changes what the line does.
func (l *line) set(change func(l *line)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	change(l)
	l.more.Broadcast()
}

// waits returns how many datagrams nobody has taken.
func (l *line) waits() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.sizes)
}

// awaitBelow waits until no more than so many datagrams wait.
func (l *line) awaitBelow(datagrams int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for len(l.sizes) > datagrams {
		l.more.Wait()
	}
}

// lineBind is a bind at one end of a cable.
type lineBind struct {
	in, out *line

	mu   sync.Mutex // guards the following
	from conn.Endpoint
}

func newCable() (a, b *lineBind) {
	x, y := newLine(), newLine()
	at := func(s string) conn.Endpoint { return memEndpoint{netip.MustParseAddrPort(s)} }
	return &lineBind{in: x, out: y, from: at("192.0.2.2:1")}, &lineBind{in: y, out: x, from: at("192.0.2.1:1")}
}

func (b *lineBind) Open(uint16) ([]conn.ReceiveFunc, uint16, error) {
	b.in.set(func(l *line) { l.closed = false })
	return []conn.ReceiveFunc{func(bufs [][]byte, sizes []int, eps []conn.Endpoint) (int, error) {
		n, err := b.in.take(bufs, sizes)
		from := b.sender()
		for i := range n {
			eps[i] = from
		}
		return n, err
	}}, 1, nil
}

func (b *lineBind) Send(bufs [][]byte, _ conn.Endpoint) error {
	b.out.put(bufs)
	return nil
}

func (b *lineBind) Close() error {
	b.in.set(func(l *line) { l.closed = true })
	return nil
}

// sender is where all datagrams seem to come from.
func (b *lineBind) sender() conn.Endpoint {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.from
}

func (b *lineBind) ParseEndpoint(string) (conn.Endpoint, error) { return b.sender(), nil }
func (b *lineBind) SetMark(uint32) error                        { return nil }
func (b *lineBind) BatchSize() int                              { return conn.IdealBatchSize }

// lineEnd is a tunnel at one end of a cable, and what arrives there.
type lineEnd struct {
	*Tunnel
	bind    *lineBind
	dev     *batchTUN
	arrived atomic.Int64
	deliver atomic.Pointer[func([][]byte)]
}

// newLinePair starts two tunnels with a session. limit is that of packets in flight at the end a, which is measured.
func newLinePair(t testing.TB, limit int) (a, b *lineEnd) {
	ba, bb := newCable()
	ka, kb := newKey(t), newKey(t)
	start := func(bind *lineBind, cfg Config, peer Peer) *lineEnd {
		e := &lineEnd{bind: bind}
		e.dev = newBatchTUN(func(packets [][]byte) {
			if f := e.deliver.Load(); f != nil {
				(*f)(packets)
			}
			e.arrived.Add(int64(len(packets)))
		})
		cfg.Bind, cfg.Peers = bind, []Peer{peer}
		tn, err := New(e.dev, cfg)
		if err != nil {
			t.Fatal(err)
		}
		e.Tunnel = tn
		t.Cleanup(func() { tn.Close() })
		if err := tn.Start(); err != nil {
			t.Fatal(err)
		}
		return e
	}
	a = start(ba, Config{PrivateKey: ka, inFlight: limit}, Peer{PublicKey: kb.Public(), AllowedIPs: prefixes("10.9.0.2/32")})
	b = start(bb, Config{PrivateKey: kb, inFlight: limit}, Peer{PublicKey: ka.Public(), AllowedIPs: prefixes("10.9.0.1/32"), Endpoint: "192.0.2.1:1"})
	b.dev.out <- packetsTo(addrA, addrB, 1, 60)
	until(t, "a session", func() bool { return a.arrived.Load() == 1 })
	a.dev.out <- packetsTo(addrB, addrA, 1, 60)
	until(t, "a session both ways", func() bool { return b.arrived.Load() == 1 })
	a.arrived.Store(0)
	b.arrived.Store(0)
	return a, b
}

// until waits for something that is bound to happen.
func until(t testing.TB, what string, happened func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !happened(); time.Sleep(ms) {
		if time.Now().After(deadline) {
			t.Fatalf("there is no end of waiting for %s", what)
		}
	}
}

// feed has packets read from a device, in batches.
func feed(dev *batchTUN, packets [][]byte) {
	for len(packets) > 0 {
		n := min(len(packets), conn.IdealBatchSize)
		select {
		case dev.out <- packets[:n]:
		case <-dev.closed:
			return
		}
		packets = packets[n:]
	}
}

// heapPeak watches the heap until it is stopped, and tells by how much it has grown at most, garbage included.
func heapPeak() (stop func() (bytes uint64)) {
	read := func() uint64 {
		s := []metrics.Sample{{Name: "/memory/classes/heap/objects:bytes"}}
		metrics.Read(s)
		return s[0].Value.Uint64()
	}
	runtime.GC()
	runtime.GC() // the second empties the pools
	before, peak := read(), uint64(0)
	done, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		tick := time.NewTicker(200 * time.Microsecond)
		defer tick.Stop()
		for {
			peak = max(peak, read())
			select {
			case <-tick.C:
			case <-done:
				return
			}
		}
	}()
	return func() uint64 {
		close(done)
		<-stopped
		return peak - min(before, peak)
	}
}

// peerOf is the peer of a tunnel that has one.
func peerOf(t *Tunnel) *device.Peer {
	return t.dev.LookupPeer(device.NoisePublicKey(t.peers.list[0].PublicKey))
}
