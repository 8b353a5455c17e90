package relay

import (
	"bytes"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"culvert.dev/culvert/internal/wgkey"
)

// receiver is the arguments of receive.
type receiver struct {
	bufs  [][]byte
	sizes []int
	from  []wgkey.Public
}

func newReceiver(n, size int) *receiver {
	r := &receiver{make([][]byte, n), make([]int, n), make([]wgkey.Public, n)}
	for i := range r.bufs {
		r.bufs[i] = make([]byte, size)
	}
	return r
}

func TestInboxHandsOutInOrder(t *testing.T) {
	var b inbox
	b.init()
	for i := range 10 {
		b.put(wgkey.Public{byte(i)}, bytes.Repeat([]byte{byte(i)}, i), nil)
	}
	r := newReceiver(4, 100)
	var got []int
	for len(got) < 10 {
		n, err := b.receive(nil, nil, r.bufs, r.sizes, r.from)
		if err != nil || n == 0 {
			t.Fatal(n, err)
		}
		for i := range n {
			k := int(r.from[i][0])
			if r.sizes[i] != k || !bytes.Equal(r.bufs[i][:k], bytes.Repeat([]byte{byte(k)}, k)) {
				t.Errorf("packet %d has %d bytes", k, r.sizes[i])
			}
			got = append(got, k)
		}
	}
	for i, k := range got {
		if i != k {
			t.Fatalf("order %v", got)
		}
	}
}

func TestReceiveWaitsAndEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var b inbox
		b.init()
		r := newReceiver(4, 100)
		time.AfterFunc(time.Second, func() { b.put(wgkey.Public{1}, []byte("x"), nil) })
		begin := time.Now()
		if n, err := b.receive(nil, nil, r.bufs, r.sizes, r.from); n != 1 || err != nil || time.Since(begin) != time.Second {
			t.Errorf("%d %v after %v", n, err, time.Since(begin))
		}
		for _, which := range []string{"done", "closed"} {
			end := make(chan struct{})
			time.AfterFunc(time.Second, func() { close(end) })
			done, closed := end, (chan struct{})(nil)
			if which == "closed" {
				done, closed = nil, end
			}
			if n, err := b.receive(done, closed, r.bufs, r.sizes, r.from); n != 0 || err != net.ErrClosed {
				t.Errorf("%s: %d %v", which, n, err)
			}
			b.put(wgkey.Public{1}, []byte("x"), nil) // there is something, but it is over
			if n, err := b.receive(done, closed, r.bufs, r.sizes, r.from); n != 0 || err != net.ErrClosed {
				t.Errorf("%s: %d %v although it is over", which, n, err)
			}
			b.receive(nil, nil, r.bufs, r.sizes, r.from)
		}
		if n, err := b.receive(nil, nil, nil, nil, nil); n != 0 || err == nil {
			t.Errorf("without buffers: %d %v", n, err)
		}
	})
}

func TestInboxDropsWhatIsLongerThanItsBuffer(t *testing.T) {
	var b inbox
	b.init()
	r := newReceiver(4, 100)
	for _, n := range []int{101, 100, 5000} {
		b.put(wgkey.Public{}, make([]byte, n), nil)
	}
	if n, err := b.receive(nil, nil, r.bufs, r.sizes, r.from); n != 1 || err != nil || r.sizes[0] != 100 || b.dropped != 2 {
		t.Errorf("%d packets, the first of %d bytes, %d dropped, %v", n, r.sizes[0], b.dropped, err)
	}
}

// TestInboxIsBounded has nobody receive: the reader waits once, then drops, and goes on when there is room again.
func TestInboxIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var b inbox
		b.init()
		packet := make([]byte, 1400)
		begin := time.Now()
		const n = 2000
		for range n {
			b.put(wgkey.Public{}, packet, nil)
		}
		if took := time.Since(begin); took != inboxWait {
			t.Errorf("a full inbox delayed the reader by %v", took)
		}
		if len(b.filling) > inboxBytes || b.dropped < n-inboxBytes/1400 || b.dropped == n {
			t.Errorf("%d bytes wait, %d dropped", len(b.filling), b.dropped)
		}
		r := newReceiver(128, 2000)
		taken := 0
		for taken < n-int(b.dropped) {
			k, err := b.receive(nil, nil, r.bufs, r.sizes, r.from)
			if err != nil {
				t.Fatal(err)
			}
			taken += k
		}
		begin = time.Now()
		b.put(wgkey.Public{}, packet, nil)
		if b.stalled || time.Since(begin) != 0 || len(b.filling) == 0 {
			t.Error("the inbox does not recover")
		}
		// With somebody to receive, a full inbox makes the reader wait instead of dropping.
		dropped := b.dropped
		enough := make(chan struct{})
		go func() {
			for {
				time.Sleep(ms)
				if _, err := b.receive(enough, nil, r.bufs, r.sizes, r.from); err != nil {
					return
				}
			}
		}()
		for range n {
			b.put(wgkey.Public{}, packet, nil)
		}
		if b.dropped != dropped {
			t.Errorf("%d dropped although somebody received", b.dropped-dropped)
		}
		close(enough)
		synctest.Wait()
		time.Sleep(time.Second)
		// A connection that ends does not wait for room.
		done := make(chan struct{})
		close(done)
		begin = time.Now()
		for range n {
			b.put(wgkey.Public{}, packet, done)
		}
		if took := time.Since(begin); took != 0 {
			t.Errorf("a reader that should end waited for %v", took)
		}
	})
}

func TestPacketPathDoesNotAllocate(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector allocates")
	}
	var b inbox
	b.init()
	var o outbox
	o.init()
	r := newReceiver(128, 2000)
	packets := make([][]byte, 128)
	for i := range packets {
		packets[i] = make([]byte, 1400)
	}
	to := wgkey.Public{1}
	var buf []byte
	step := func() {
		for _, p := range packets {
			b.put(to, p, nil)
		}
		for taken := 0; taken < len(packets); {
			n, err := b.receive(nil, nil, r.bufs, r.sizes, r.from)
			if err != nil {
				t.Fatal(err)
			}
			taken += n
		}
		if n, _, err := o.put(to, packets, false); n != len(packets) || err != nil {
			t.Fatal(n, err)
		}
		for buf, _ = o.take(buf[:0], time.Time{}); len(buf) > 0; buf, _ = o.take(buf[:0], time.Time{}) {
		}
	}
	for range 10 {
		step()
	}
	if n := testing.AllocsPerRun(100, step); n != 0 {
		t.Errorf("%v allocations for 128 packets each way", n)
	}
}
