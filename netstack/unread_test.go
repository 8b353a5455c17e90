package netstack

import (
	"bytes"
	"io"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
)

// If this fails a new gVisor counts elsewhere what an endpoint has received; see receiveMemoryAt.
func TestReceiveMemoryIsFound(t *testing.T) {
	if receiveMemoryAt < 0 {
		t.Error("tcp.Endpoint has no rcvMemUsed of type atomicbitops.Int32")
	}
}

// Peers send all they can to connections that nobody reads: the memory is bounded however many there are, one that is read goes on beside
// them, and when all are read nothing is missing.
func TestUnreadIsBounded(t *testing.T) {
	p := newPair(t)
	p.near.unread.bound(1 << 20)
	l := p.listen(t, ap(peerV4, servedPort))
	const conns, each = 80, 128 << 10
	data := make([]byte, each)
	rand.NewChaCha8([32]byte{1}).Read(data)
	var nears [conns]*Conn
	for i := range conns {
		near, far := p.connect(t, l)
		near.SetDeadline(time.Time{})
		far.SetDeadline(time.Time{})
		go func() {
			far.Write(data)
			far.CloseWrite()
		}()
		nears[i] = near
	}
	held := func() (sum int64) {
		for _, c := range nears {
			sum += receiveMemory(c.ep.(*tcp.Endpoint))
		}
		return sum
	}
	// The others have filled their buffers once the one that is read has had its data.
	if got, err := io.ReadAll(nears[0]); err != nil || !bytes.Equal(got, data) {
		t.Fatalf("the one that is read: %d bytes, %v", len(got), err)
	}
	var peak int64
	for end := time.Now().Add(500 * time.Millisecond); time.Now().Before(end); time.Sleep(time.Millisecond) {
		peak = max(peak, held())
	}
	t.Logf("%d KiB are held, %d at most", held()>>10, p.near.unread.most>>10)
	if most := 3 * p.near.unread.most; peak > most { // what is held already is not taken back
		t.Errorf("%d KiB are held, want at most %d", peak>>10, most>>10)
	}
	if peak < p.near.unread.most/4 {
		t.Errorf("only %d KiB are held: nothing was tested", peak>>10)
	}
	var wg sync.WaitGroup
	for i, c := range nears[1:] {
		wg.Go(func() {
			c.SetReadDeadline(time.Now().Add(20 * time.Second))
			if got, err := io.ReadAll(c); err != nil || !bytes.Equal(got, data) {
				t.Errorf("connection %d: %d bytes, %v", i+1, len(got), err)
			}
		})
	}
	wg.Wait()
	waitFor(t, "buffers to be what they were", func() bool {
		p.near.unread.mu.Lock()
		defer p.near.unread.mu.Unlock()
		return len(p.near.unread.limits) == 0
	})
	for i, c := range nears {
		if size := c.ep.SocketOptions().GetReceiveBufferSize(); size < tcpReceiveBuffer {
			t.Errorf("connection %d has %d bytes left of its buffer", i, size)
		}
	}
}

func TestLevel(t *testing.T) {
	for _, c := range []struct {
		held      []int64
		sum, want int64
	}{
		{[]int64{100, 100, 100, 100}, 200, 50},
		{[]int64{1000, 10, 20}, 130, 100},
		{[]int64{0, 0, 90, 90, 90}, 90, 30},
		{[]int64{500}, 300, 300},
		{[]int64{1, 2, 3}, 100, unreadMost}, // all fits
	} {
		if got := level(c.held, c.sum); got != c.want {
			t.Errorf("level(%v, %d) = %d, want %d", c.held, c.sum, got, c.want)
		}
	}
}
