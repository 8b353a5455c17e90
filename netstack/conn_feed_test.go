package netstack

import (
	"io"
	"net"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
)

// Many connections that send to far ends which take nothing hold little, and those whose far ends read go on beside them.
func TestFeedsShareMemory(t *testing.T) {
	p := newPair(t)
	l := p.listen(t, ap(peerV4, servedPort))
	const conns = 200
	var sent [conns]atomic.Int64
	var mine [conns]net.Conn
	var fars [conns]*Conn
	for i := range conns {
		near, far := p.connect(t, l)
		near.SetDeadline(time.Time{})
		far.SetDeadline(time.Time{})
		far.ep.SocketOptions().SetReceiveBufferSize(tcpMinBuffer, true)
		a, b := kernelPair(t, "tcp")
		go near.SpliceFrom(a, &sent[i])
		mine[i], fars[i] = b, far
	}
	for _, c := range mine {
		go c.Write(make([]byte, 16<<20))
	}
	var total, last int64
	same := 0
	waitFor(t, "all to be stuck", func() bool {
		total = 0
		for i := range sent {
			total += sent[i].Load()
		}
		if total != last {
			last, same = total, 0
		}
		same++
		return same > 20
	})
	// What the far ends have received is theirs.
	if most := int64(4*feedBudget + conns*tcpDefaultBuffer/2); total > most {
		t.Errorf("%d MiB were taken, want at most %d", total>>20, most>>20)
	}
	got, err := io.CopyN(io.Discard, fars[0], 1<<20)
	if err != nil {
		t.Errorf("%d bytes of a connection that reads: %v", got, err)
	}
}

// However many send, the goroutines that work for them are few, and end with what they do.
func TestFeedersAreFew(t *testing.T) {
	p := newPair(t)
	l := p.listen(t, ap(peerV4, servedPort))
	var moved atomic.Int64
	const conns = 100
	var mine [conns]net.Conn
	for i := range conns {
		near, far := p.connect(t, l)
		near.SetDeadline(time.Time{})
		far.SetDeadline(time.Time{})
		a, b := kernelPair(t, "tcp")
		go near.SpliceFrom(a, &moved)
		go io.Copy(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{far})
		mine[i] = b
	}
	for _, c := range mine {
		go c.Write(make([]byte, 256<<10))
	}
	f := &p.near.feeders
	waitFor(t, "all bytes", func() bool {
		f.mu.Lock()
		defer f.mu.Unlock()
		if f.bulk.total > maxFeeders || f.light.total > maxFeeders {
			t.Fatalf("%d feeders and %d", f.bulk.total, f.light.total)
		}
		return moved.Load() == conns*256<<10
	})
	waitFor(t, "few feeders", func() bool {
		f.mu.Lock()
		defer f.mu.Unlock()
		return max(f.bulk.total, f.light.total) <= idleFeeders && f.bulk.queued+f.light.queued == 0
	})
	p.near.Close()
	waitFor(t, "no feeder", func() bool {
		runtime.Gosched()
		f.mu.Lock()
		defer f.mu.Unlock()
		return f.bulk.total+f.light.total == 0
	})
}

// When all who work for large transfers wait, one that has little to say is heard all the same.
func TestFeedsOfLittleDoNotWaitForLarge(t *testing.T) {
	p := newPair(t)
	l := p.listen(t, ap(peerV4, servedPort))
	var wg sync.WaitGroup
	defer wg.Wait()
	for range maxFeeders + 1 {
		near, _ := p.connect(t, l)
		a, mine := kernelPair(t, "tcp")
		mine.Write([]byte("x"))
		near.ep.(*tcp.Endpoint).LockUser() // as if sending took long
		f := &feed{c: near, s: streamOf(a), moved: new(atomic.Int64), bulk: true}
		wg.Go(func() { f.s.Feed(f.take) })
		defer a.SetReadDeadline(time.Unix(1, 0))
		defer near.ep.(*tcp.Endpoint).UnlockUser()
	}
	f := &p.near.feeders
	waitFor(t, "one that has to wait", func() bool {
		f.mu.Lock()
		defer f.mu.Unlock()
		return f.bulk.total == maxFeeders && f.bulk.queued == 1
	})
	near, far := p.connect(t, l)
	a, mine := kernelPair(t, "tcp")
	wg.Go(func() { near.SpliceFrom(a, new(atomic.Int64)) })
	defer near.Abort()
	for range 3 {
		mine.Write([]byte("y"))
		if _, err := io.ReadFull(far, make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
	}
}
