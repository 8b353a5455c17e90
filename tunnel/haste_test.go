package tunnel

import (
	"net"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.zx2c4.com/wireguard/conn"

	"culvert.dev/culvert/internal/wgkey"
)

// slowRelay takes data at so many datagrams a second, and keeps who sends waiting meanwhile.
type slowRelay struct {
	each          time.Duration
	waited, hasty atomic.Int64 // datagrams
}

func (r *slowRelay) Send(_ wgkey.Public, datagrams [][]byte) error {
	time.Sleep(time.Duration(len(datagrams)) * r.each)
	r.waited.Add(int64(len(datagrams)))
	return nil
}

func (r *slowRelay) SendNow(_ wgkey.Public, datagrams [][]byte) error {
	r.hasty.Add(int64(len(datagrams)))
	return nil
}

func (r *slowRelay) Receive(done <-chan struct{}, _ [][]byte, _ []int, _ []wgkey.Public) (int, error) {
	<-done
	return 0, net.ErrClosed
}

// steadyBind takes a millisecond for each batch.
type steadyBind struct{ conn.Bind }

func (steadyBind) Send([][]byte, conn.Endpoint) error {
	time.Sleep(ms)
	return nil
}

// A peer whose relay is slow holds back itself, but nobody else.
func TestSlowRelayHoldsNobodyElseBack(t *testing.T) {
	for _, others := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			r := &slowRelay{each: 50 * ms / batchLen}
			out, e := newFlight(4*batchLen), newRelayEndpoint(wgkey.Public{1})
			w := &wire{Bind: steadyBind{}, link: newRelayLink(r), out: out, answersOnly: true}
			q := new(fakeQueues).of(out)
			queue := make(chan [][]byte, 1024)
			ended := make(chan struct{})
			go func() { // the sender of the peer
				defer close(ended)
				for bufs := range queue {
					q.batches.Add(-1)
					w.Send(bufs, e)
				}
			}()
			in, direct := entrance{flight: out}, 0
			for start := time.Now(); time.Since(start) < 10*time.Second; {
				in.wait()
				out.enter(batchLen)
				q.batches.Add(1)
				queue <- newBufs(batchLen, 100)
				if others {
					in.wait()
					out.enter(batchLen)
					w.Send(newBufs(batchLen, 100), memEndpoint{})
					direct++
				}
			}
			close(queue)
			<-ended
			switch {
			case !others && (r.hasty.Load() > batchLen || r.waited.Load() < 190*batchLen):
				t.Errorf("alone, %d packets waited and %d did not", r.waited.Load(), r.hasty.Load())
			case others && direct < 8000:
				t.Errorf("the other peer was sent %d batches in 10 s, want close to 10,000", direct)
			}
		})
	}
}
