package relay

import (
	"context"
	"math/rand/v2"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// TestNoStorm restarts a relay that has 1,000 clients: once closing all connections and coming back after 3 s, once with a
// Restarting hint. It counts when they dial.
func TestNoStorm(t *testing.T) {
	clients := 1000
	if raceEnabled {
		clients = 200 // which is what it can do in the same time
	}
	for _, c := range []struct {
		name string
		hint time.Duration
	}{{"closed", 0}, {"told", 2 * time.Second}} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, 5*ms)
				relay, host := w.relays[0], w.hosts[0]
				drawn := make([]jitter, clients)
				pools := make([]*Pool, clients)
				for i := range pools {
					p, err := newPool(PoolConfig{Key: newKey(t), Relays: w.servers(1), DialTCP: drawn[i].dial(t, w.net)}, drawn[i].random)
					if err != nil {
						t.Fatal(err)
					}
					pools[i] = p
					defer p.Close()
				}
				time.Sleep(10 * time.Second)
				if n := relay.connected(); n != clients {
					t.Fatalf("%d connected", n)
				}
				before := len(w.net.attempts(host))
				begin := time.Now()
				if c.hint > 0 {
					for _, p := range pools {
						relay.tell(p.cfg.Key.Public(), 0x15, restarting(c.hint, time.Minute))
					}
				}
				w.net.stop(host)
				time.AfterFunc(3*time.Second, func() { w.net.start(host) })
				connected := time.Duration(0)
				for connected == 0 && time.Since(begin) < time.Minute {
					time.Sleep(100 * ms)
					if relay.connected() == clients {
						connected = time.Since(begin)
					}
				}
				attempts := w.net.attempts(host)[before:]
				perTenth := map[int]int{}
				peak, early := 0, 0
				for _, at := range attempts {
					after := at.Sub(begin)
					slot := int(after / (100 * ms))
					perTenth[slot]++
					peak = max(peak, perTenth[slot])
					if after < c.hint {
						early++
					}
				}
				t.Logf("%d attempts, at most %d in 100 ms, all connected after %v", len(attempts), peak, connected)
				switch {
				case connected == 0 || connected > 35*time.Second:
					t.Errorf("all were connected after %v, want 35 s at most", connected)
				case peak > clients/5+20:
					t.Errorf("%d attempts in 100 ms, want %d at most", peak, clients/5+20)
				case early > 0:
					t.Errorf("%d attempts before the time the relay gave", early)
				case len(attempts) > 8*clients:
					t.Errorf("%d attempts by %d clients", len(attempts), clients)
				}
				for slot := 0; slot < 10; slot++ {
					if at := slot + int(c.hint/(100*ms)); perTenth[at] < clients/20-5 {
						t.Errorf("only %d attempts in tenth %d: they are not spread evenly", perTenth[at], slot)
					}
				}
			})
		})
	}
}

// jitter draws the waits of one pool, and sees to it that it dials only once they are over.
type jitter struct {
	mu  sync.Mutex
	due time.Time
	n   int // attempts
}

func (j *jitter) random(n int64) int64 {
	j.mu.Lock()
	defer j.mu.Unlock()
	d := rand.Int64N(n)
	j.due = time.Now().Add(time.Duration(d))
	return d
}

func (j *jitter) dial(t *testing.T, w *memNet) func(context.Context, string, string) (net.Conn, error) {
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		j.mu.Lock()
		if now := time.Now(); j.n > 0 && (j.due.IsZero() || now.Before(j.due)) {
			t.Errorf("a pool dials at %v, %v before its wait is over", now, j.due.Sub(now))
		}
		j.due = time.Time{}
		j.n++
		j.mu.Unlock()
		return w.dial(ctx, network, addr)
	}
}
