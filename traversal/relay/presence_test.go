package relay

import (
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"culvert.dev/culvert/internal/wgkey"
)

func TestPresence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 5*ms, 20*ms)
		var changes atomic.Int32
		p, err := NewPool(PoolConfig{Key: newKey(t), Relays: w.servers(1, 2), DialTCP: w.net.dial, Changed: func() { changes.Add(1) }})
		if err != nil {
			t.Fatal(err)
		}
		defer p.Close()
		peer := w.pool(2)
		nowhere := wgkey.Public{1}
		expect := func(when string, key wgkey.Public, connected, notHere bool) {
			t.Helper()
			if c, n := p.Presence(key); c != connected || n != notHere {
				t.Errorf("%s: connected %v, not here %v", when, c, n)
			}
		}
		expect("at first", peer.key, false, false)
		time.Sleep(time.Second)
		if changes.Load() == 0 {
			t.Error("no change was told when the relays were connected")
		}
		expect("nothing sent", nowhere, true, false)
		for _, key := range []wgkey.Public{peer.key, nowhere} {
			if err := p.Send(key, [][]byte{initiation(1)}); err != nil {
				t.Fatal(err)
			}
		}
		before := changes.Load()
		time.Sleep(time.Second)
		if changes.Load() == before {
			t.Error("no change was told when the relays said where the peers are not")
		}
		expect("at one of two relays", peer.key, true, false)
		expect("at neither relay", nowhere, true, true)
		time.Sleep(awayFor)
		expect("a while later", nowhere, true, false)
		w.net.stop(w.hosts[0])
		w.net.stop(w.hosts[1])
		time.Sleep(10 * time.Second)
		expect("without relays", nowhere, false, false)
	})
}
