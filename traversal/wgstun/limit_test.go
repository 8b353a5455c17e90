package wgstun

import (
	"net/netip"
	"testing"
	"testing/synctest"
	"time"
)

func TestOneClientsFloodLeavesRoomForOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := NewResponder(ResponderConfig{Origin: always(outerV4)})
		defer r.Close()
		flood := func(n int) (answers int) {
			for range n {
				answers += len(exchange(r, echo(clientV4, ServerV4, 1, 1, nil)))
			}
			return answers
		}
		if n := flood(1000); n != 200 {
			t.Errorf("%d answers at once, want 200", n)
		}
		// One of four others might share its bucket by chance, all of them never do.
		others := 0
		for i, a := 0, clientV4.Next(); i < 4; i, a = i+1, a.Next() {
			others += len(exchange(r, udp(netip.AddrPortFrom(a, 50000), ends[0].server, request(t).Raw)))
		}
		if others < 3 {
			t.Errorf("%d of 4 others are answered", others)
		}
		time.Sleep(500 * time.Millisecond)
		if n := flood(1000); n != 50 {
			t.Errorf("%d answers after half a second, want 50", n)
		}
		time.Sleep(time.Hour)
		if n := flood(1000); n != 200 {
			t.Errorf("%d answers after a rest, want 200", n)
		}
		if got := r.Stats().Dropped["rate-limit"]; got < 800+950+800 {
			t.Errorf("counted %d", got)
		}
	})
}

func TestRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, c := range []struct{ rate, want int }{{1, 2}, {1000, 500}, {-1, 500}, {0, 200}} {
			r := NewResponder(ResponderConfig{Origin: always(outerV4), Rate: c.rate})
			n := 0
			for range 500 {
				n += len(exchange(r, echo(clientV4, ServerV4, 1, 1, nil)))
			}
			if n != c.want {
				t.Errorf("rate %d: %d answers at once of 500, want %d", c.rate, n, c.want)
			}
			r.Close()
		}
	})
}
