package tunnel

import (
	"errors"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.zx2c4.com/wireguard/device"

	"culvert.dev/culvert/internal/wgkey"
)

// fakeQueues says what the queues hold.
type fakeQueues struct{ batches, lost atomic.Int64 }

func (q *fakeQueues) of(f *flight) *fakeQueues {
	f.queue.Store(&measure{func() int { return int(q.batches.Load()) }, func(n int64) { q.lost.Add(n) }})
	return q
}

// How long one who comes in has to wait.
func TestEntranceWaits(t *testing.T) {
	const limit = 6 * batchLen
	for _, c := range []struct {
		name    string
		n       int // packets counted in
		batches int // found in the queues
		after   func(f *flight, q *fakeQueues)
		want    time.Duration
	}{
		{"below the limit, not at all", limit - 1, 100, nil, 0},
		{"not before the device is there", limit, -1, nil, 0},
		{"not for packets that are in no queue", 10 * limit, 0, nil, 0},
		{"until half of the limit has left", limit, 100, func(f *flight, _ *fakeQueues) {
			time.Sleep(10*ms + ms/2)
			f.leave(limit/2 - 1)
			time.Sleep(10 * ms)
			f.leave(1)
		}, 20*ms + ms/2},
		{"until the queues are found to be shorter", limit, 100, func(_ *flight, q *fakeQueues) {
			time.Sleep(20*ms + ms/2)
			q.batches.Store(0)
		}, 21 * ms},
		{"no longer than patience lasts", limit, 100, nil, patience + ms},
		{"for as long as something moves", limit, 100, func(f *flight, q *fakeQueues) {
			for range 10 {
				time.Sleep(patience - ms)
				q.batches.Add(-1)
				time.Sleep(patience - ms)
				f.leave(1)
			}
		}, 20*(patience-ms) + patience},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f, q := newFlight(limit), new(fakeQueues)
				if c.batches >= 0 {
					q.of(f).batches.Store(int64(c.batches))
				}
				f.enter(c.n)
				if c.after != nil {
					go c.after(f, q)
				}
				start := time.Now()
				(&entrance{flight: f}).wait()
				if took := time.Since(start); took < c.want-ms || took > c.want+2*ms {
					t.Errorf("it took %v, want %v", took, c.want)
				}
			})
		})
	}
}

// A line on which a batch takes longer than patience, or that stands still, does not fill the queues by and by.
func TestSlowLinesHoldFewPackets(t *testing.T) {
	const limit = 6 * batchLen
	for _, takes := range []time.Duration{40 * ms, 60 * ms, 300 * ms, 2 * time.Second, time.Hour} {
		t.Run(takes.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f, q := newFlight(limit), new(fakeQueues)
				q.of(f).batches.Store(100)
				over := make(chan struct{})
				go func() {
					for line := time.NewTicker(takes); ; {
						select {
						case <-line.C:
							if f.n.Load() > 0 {
								f.leaves(batchLen)
								f.leave(batchLen)
							}
						case <-over:
							line.Stop()
							return
						}
					}
				}()
				e, most := entrance{flight: f}, int64(0)
				for start := time.Now(); time.Since(start) < time.Minute; {
					e.wait()
					f.enter(batchLen)
					most = max(most, f.n.Load())
				}
				close(over)
				if most > limit+11*batchLen {
					t.Errorf("%d packets were in flight, the limit is %d", most, limit)
				}
			})
		})
	}
}

// The device closes at once while its reader is held back.
func TestCloseWhileTheReaderIsHeld(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		out := newFlight(6 * batchLen)
		new(fakeQueues).of(out).batches.Store(100)
		out.patience = time.Hour
		out.enter(10 * batchLen)
		dev := counted(newBatchTUN(nil), newFlight(1), out, nil)
		ended := make(chan error)
		go func() {
			_, err := dev.Read(nil, nil, 0)
			ended <- err
		}()
		synctest.Wait()
		start := time.Now()
		dev.Close()
		if err := <-ended; !errors.Is(err, os.ErrClosed) || time.Since(start) > lookAgain {
			t.Errorf("after %v: %v", time.Since(start), err)
		}
	})
}

// Room for all wakes all.
func TestRoomWakesAllWhoWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFlight(6 * batchLen)
		new(fakeQueues).of(f).batches.Store(100)
		f.enter(6 * batchLen)
		var wg sync.WaitGroup
		for range 10 {
			wg.Go((&entrance{flight: f}).wait)
		}
		synctest.Wait()
		start := time.Now()
		f.leave(6 * batchLen)
		wg.Wait()
		if took := time.Since(start); took > 0 {
			t.Errorf("the last woke %v late", took)
		}
	})
}

// A correction tells what is lost, and what was not lost after all does not make the count sink.
func TestCountIsCorrected(t *testing.T) {
	f, q := newFlight(1000), new(fakeQueues)
	q.of(f).batches.Store(1)
	f.enter(2000)
	(&entrance{flight: f}).wait()
	if n, lost := f.n.Load(), q.lost.Load(); n != (1+unqueued)*batchLen || n+lost != 2000 {
		t.Errorf("%d packets are counted and %d lost", n, lost)
	}
	f.leave(1900)
	if n := f.n.Load(); n != 0 {
		t.Errorf("%d packets are counted", n)
	}
	var none *flight
	none.enter(1)
	none.leave(1)
	(&entrance{flight: none}).wait()
}

func TestHoldingBackIsNotAllocatedFor(t *testing.T) {
	f := newFlight(6 * batchLen)
	new(fakeQueues).of(f).batches.Store(100)
	in := entrance{flight: f}
	step := func() {
		f.enter(batchLen)
		in.wait()
		f.leave(batchLen)
	}
	if n := testing.AllocsPerRun(1000, step); n != 0 {
		t.Errorf("%v allocations for a batch below the limit", n)
	}
	f.patience = 0
	f.enter(6 * batchLen)
	if n := testing.AllocsPerRun(20, step); n != 0 {
		t.Errorf("%v allocations for a batch that waits", n)
	}
}

// This is the test that fails when wireguard-go names its queues otherwise.
func TestQueuesAreFound(t *testing.T) {
	peers := make([]*device.Peer, 5)
	dev := device.NewDevice(newBatchTUN(nil), newMemNet(0).bind(addressA), bridge(discard))
	defer dev.Close()
	q, err := newQueues(dev)
	if err != nil {
		t.Fatal(err)
	}
	for i := range peers {
		if peers[i], err = dev.NewPeer(device.NoisePublicKey{byte(i + 1)}); err != nil {
			t.Fatal(err)
		}
		q.add(wgkey.Public{byte(i + 1)}, peers[i])
		q.add(wgkey.Public{byte(i + 1)}, peers[i])
	}
	stage := func(p *device.Peer) {
		p.StagePackets(dev.GetOutboundElementsContainer())
	}
	stage(peers[0])
	stage(peers[4])
	stage(peers[4])
	if n := q.stagedNow(); n != 3 || q.inbound() != 0 || q.outbound() != 0 {
		t.Errorf("%d batches are staged, %d and %d queued, want 3 staged", n, q.inbound(), q.outbound())
	}
	for _, c := range []struct {
		remove byte
		want   int
	}{{1, 2}, {1, 2}, {3, 2}, {5, 0}, {2, 0}, {4, 0}} {
		q.remove(wgkey.Public{c.remove})
		if n := q.stagedNow(); n != c.want {
			t.Errorf("without peer %d %d batches are staged, want %d", c.remove, n, c.want)
		}
	}
	if len(q.peers) != 0 || len(q.at) != 0 {
		t.Errorf("%d peers are left", len(q.peers))
	}
}

// Of what waits for a session the peers with the most lose it, once it may be much.
func TestStagedPacketsAreBounded(t *testing.T) {
	dev := device.NewDevice(newBatchTUN(nil), newMemNet(0).bind(addressA), bridge(discard))
	defer dev.Close()
	q, err := newQueues(dev)
	if err != nil {
		t.Fatal(err)
	}
	for i, n := range []int{1, 30, 0} {
		p, err := dev.NewPeer(device.NoisePublicKey{byte(i + 1)})
		if err != nil {
			t.Fatal(err)
		}
		q.add(wgkey.Public{byte(i + 1)}, p)
		for range n {
			p.StagePackets(dev.GetOutboundElementsContainer())
		}
	}
	const limit = 6 * batchLen
	for _, c := range []struct {
		vanished int64
		want     int
	}{{limit - 1, 31}, {1, 1}, {10 * limit, 1}} {
		q.stage(c.vanished, limit)
		if n := q.stagedNow(); n != c.want {
			t.Errorf("%d batches are staged, want %d", n, c.want)
		}
	}
}
