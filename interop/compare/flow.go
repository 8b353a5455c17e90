//go:build linux

package main

import (
	"sync"
	"sync/atomic"
	"time"

	"culvert.dev/culvert/internal/wgkey"
)

// flow sends numbered packets from one client to another through the relay, with at most window of them under way, as a
// TCP connection inside a tunnel would. The relay keeps the order, so the highest number that has arrived says what is
// no longer under way, arrived or lost.
type flow struct {
	from, to *client
	size     int
	window   uint64

	arrived  atomic.Uint64 // packets
	sent     atomic.Uint64
	highest  atomic.Uint64 // number that arrived, from 1
	progress chan struct{} // wakes the sender; holds one
	stop     chan struct{}
	done     sync.WaitGroup
}

// maxBurst is how many packets a sender hands to its socket at once, at most: the batch of a fast WireGuard. Smaller
// windows are sent in quarters, so that the next part is under way while the last one is carried.
const maxBurst = 32

// stall is how long nothing must arrive before what is under way counts as lost: the least time that Linux's TCP waits.
const stall = 200 * time.Millisecond

func startFlow(from, to *client, size, window int) *flow {
	f := &flow{from: from, to: to, size: size, window: uint64(window), progress: make(chan struct{}, 1), stop: make(chan struct{})}
	f.done.Go(func() { to.receive(f.take) })
	f.done.Go(f.send)
	return f
}

func (f *flow) take(_ wgkey.Public, packet []byte) {
	f.arrived.Add(1)
	f.highest.Store(stampOf(packet))
	select {
	case f.progress <- struct{}{}:
	default:
	}
}

func (f *flow) send() {
	f.from.hold()
	burst := max(1, min(maxBurst, f.window/4))
	var (
		b     = frame(f.to.key, f.size)
		n     uint64 // sent
		gone  uint64 // given up
		timer = time.NewTimer(stall)
	)
	defer timer.Stop()
	for {
		under := n - max(gone, f.highest.Load())
		if under+burst > f.window && under > 0 {
			timer.Reset(stall)
			select {
			case <-f.stop:
				return
			case <-f.progress:
			case <-timer.C:
				gone = n
			}
			continue
		}
		select {
		case <-f.stop:
			return
		default:
		}
		for range burst {
			n++
			stamp(b, n)
			if f.from.put(b) != nil {
				return
			}
		}
		if f.from.flush() != nil {
			return
		}
		f.sent.Store(n)
	}
}

// end closes both clients and waits for the flow's goroutines.
func (f *flow) end() {
	close(f.stop)
	f.from.close()
	f.to.close()
	f.done.Wait()
}

// traffic is the sum over several flows.
type traffic struct{ sent, arrived uint64 }

func total(flows []*flow) (t traffic) {
	for _, f := range flows {
		t.sent += f.sent.Load()
		t.arrived += f.arrived.Load()
	}
	return t
}
