package relay

import (
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

const ms = time.Millisecond

func TestHomeIsTheNearestButNotForLittle(t *testing.T) {
	up := func(id uint32, rtt time.Duration) view { return view{id: id, up: true, rtt: rtt} }
	for _, c := range []struct {
		name   string
		home   uint32
		relays []view
		want   uint32
	}{
		{"no relay is up", 1, []view{{id: 1}, {id: 2}}, 0},
		{"the first that is up", 0, []view{{id: 1}, up(2, 0)}, 2},
		{"the nearest at first", 0, []view{up(1, 30*ms), up(2, 20*ms)}, 2},
		{"measured before not measured", 0, []view{up(1, 0), up(2, 20*ms)}, 2},
		{"home went down", 1, []view{{id: 1}, up(2, 90*ms)}, 2},
		{"home is not configured any more", 7, []view{up(1, 30*ms), up(2, 20*ms)}, 2},
		{"10 % nearer is not enough", 1, []view{up(1, 100*ms), up(2, 90*ms)}, 1},
		{"21 % nearer is", 1, []view{up(1, 100*ms), up(2, 79*ms)}, 2},
		{"exactly 20 % is not", 1, []view{up(1, 100*ms), up(2, 80*ms)}, 1},
		{"half, but only 2 ms nearer", 1, []view{up(1, 4*ms), up(2, 2*ms)}, 1},
		{"half, and 5 ms nearer", 1, []view{up(1, 10*ms), up(2, 5*ms)}, 2},
		{"home not measured yet", 1, []view{up(1, 0), up(2, 5*ms)}, 1},
		{"the other not measured yet", 1, []view{up(1, 300*ms), up(2, 0)}, 1},
		{"home goes away", 1, []view{{id: 1, up: true, leaving: true, rtt: 5 * ms}, up(2, 90*ms)}, 2},
		{"home goes away and is alone", 1, []view{{id: 1, up: true, leaving: true, rtt: 5 * ms}, {id: 2}}, 1},
		{"a nearer one goes away", 1, []view{up(1, 90*ms), {id: 2, up: true, leaving: true, rtt: 5 * ms}}, 1},
		{"the best of several", 1, []view{up(1, 100*ms), up(2, 50*ms), up(3, 20*ms)}, 3},
	} {
		if got := pickHome(c.home, c.relays); got != c.want {
			t.Errorf("%s: home %d, want %d", c.name, got, c.want)
		}
	}
}

func TestHomeSettles(t *testing.T) {
	// Whatever the round trips are, choosing again with the same ones changes nothing, and home is never much farther than another.
	rng := rand.New(rand.NewPCG(1, 2))
	for range 2000 {
		var relays []view
		for id := range uint32(4) {
			relays = append(relays, view{id: id + 1, up: rng.IntN(4) > 0, rtt: time.Duration(rng.IntN(50)) * ms, leaving: rng.IntN(8) == 0})
		}
		home := pickHome(uint32(rng.IntN(5)), relays)
		if again := pickHome(home, relays); again != home {
			t.Fatalf("home %d, then %d, of %+v", home, again, relays)
		}
	}
}

func TestLeastOfTheLastRoundTrips(t *testing.T) {
	var s rttSamples
	if s.least() != 0 {
		t.Error("a round trip before any was measured")
	}
	for i, c := range []struct{ add, want time.Duration }{
		{10 * ms, 10 * ms}, {90 * ms, 10 * ms}, {20 * ms, 10 * ms}, {30 * ms, 10 * ms}, {40 * ms, 20 * ms}, {5 * ms, 5 * ms},
	} {
		if s.add(c.add); s.least() != c.want {
			t.Errorf("after sample %d: %v, want %v", i, s.least(), c.want)
		}
	}
}

func TestRetryWindows(t *testing.T) {
	highest := func(n int64) int64 { return n - 1 }
	r := retry{random: highest}
	if got := r.lost(time.Hour); got != time.Second-1 {
		t.Errorf("after a long connection: up to %v, want 1 s", got)
	}
	want := []time.Duration{2 * time.Second, 4 * time.Second, 8 * time.Second, 16 * time.Second, 30 * time.Second, 30 * time.Second}
	check := func(want []time.Duration) {
		t.Helper()
		for i, w := range want {
			if got := r.failed(0); got != w-1 {
				t.Errorf("after %d failures: up to %v, want %v", i+1, got, w)
			}
		}
	}
	check(want)
	r.failures = 0
	check(append([]time.Duration{500 * ms, time.Second}, want...)) // never connected
	for range 100 {
		if got := r.failed(0); got != retryMax-1 {
			t.Fatalf("after %d failures: up to %v", r.failures, got)
		}
	}
	if got := r.lost(time.Second); got != retryMax-1 {
		t.Errorf("a connection of 1 s resets the back-off: up to %v", got)
	}
	if got := r.failed(10 * time.Second); got != 10*time.Second+retryMax-1 {
		t.Errorf("Retry-After: %v", got)
	}
	if got := r.failed(24 * time.Hour); got != retryAfterMax+retryMax-1 {
		t.Errorf("Retry-After of a day: %v", got)
	}
	if got := r.restarting(3*time.Second, time.Hour); got != 4*time.Second-1 || r.failures != afterLoss {
		t.Errorf("restart: %v and %d failures", got, r.failures)
	}
	if got := r.restarting(1000*time.Hour, time.Hour); got != restartMax+time.Second-1 {
		t.Errorf("restart in 1000 h: %v", got)
	}
	r.random = func(int64) int64 { return 0 }
	if got := r.failed(0); got != 0 {
		t.Errorf("the window does not begin at zero but %v", got)
	}
}

func TestWatch(t *testing.T) {
	begin := time.Unix(1000, 0)
	at := func(d time.Duration) time.Time { return begin.Add(d) }
	idle := watch{pings: 2, next: at(20 * time.Second)}
	pinged := watch{pings: 2, pending: true, sent: at(0), next: at(idlePing)}
	hurried := pinged
	hurried.urgent = true
	far := pinged
	far.rtt = 400 * ms
	never := time.Time{}
	for _, c := range []struct {
		name           string
		w              watch
		now            time.Duration
		waiting, heard time.Time
		want           verdict
		next           time.Duration // if it waits
	}{
		{"new", watch{}, 0, never, at(0), watchPing, 0},
		{"nothing to do", idle, time.Second, never, at(0), watchWait, 20 * time.Second},
		{"idle for long", idle, 20 * time.Second, never, at(0), watchPing, 0},
		{"data goes out", idle, time.Second, at(900 * ms), at(0), watchWait, 1900 * ms},
		{"data without answer", idle, 1900 * ms, at(900 * ms), at(0), watchPing, 0},
		{"pinged while idle", pinged, time.Second, never, at(-time.Second), watchWait, 5 * time.Second},
		{"pinged while idle, no answer", pinged, 5 * time.Second, never, at(-time.Second), watchDead, 0},
		{"pinged, other frames came", pinged, 5 * time.Second, never, at(time.Second), watchWait, 30 * time.Second},
		{"pinged with data, 0.6 s", pinged, 600 * ms, at(-time.Second), at(-2 * time.Second), watchWait, 700 * ms},
		{"pinged with data, 0.7 s", pinged, 700 * ms, at(-time.Second), at(-2 * time.Second), watchDead, 0},
		{"pinged while idle, then data", pinged, time.Second, at(500 * ms), at(-time.Second), watchWait, 1500 * ms},
		{"pinged while idle, then 1 s of data", pinged, 1500 * ms, at(500 * ms), at(-time.Second), watchDead, 0},
		{"a relay far away", far, 1100 * ms, at(-time.Second), at(-2 * time.Second), watchWait, 1200 * ms},
		{"a relay far away, too late", far, 1200 * ms, at(-time.Second), at(-2 * time.Second), watchDead, 0},
		{"network changed, 0.6 s", hurried, 600 * ms, never, at(-time.Second), watchWait, 700 * ms},
		{"network changed, 0.7 s", hurried, 700 * ms, never, at(-time.Second), watchDead, 0},
		{"network changed, frames come", hurried, 700 * ms, never, at(300 * ms), watchWait, 5 * time.Second},
		{"heard since the ping, then silent", pinged, 1300 * ms, at(200 * ms), at(100 * ms), watchPing, 0},
	} {
		got, next := c.w.step(at(c.now), c.waiting, c.heard)
		if got != c.want || got == watchWait && !next.Equal(at(c.next)) {
			t.Errorf("%s: %d at %v, want %d at %v", c.name, got, next.Sub(begin), c.want, c.next)
		}
	}
	w := watch{rtt: 10 * time.Second}
	if w.patience() != pongWithinMax {
		t.Errorf("patience has no end: %v", w.patience())
	}
}

func TestWhereToSend(t *testing.T) {
	now := time.Unix(1000, 0)
	ago := func(d time.Duration) time.Time { return now.Add(-d) }
	in := func(d time.Duration) time.Time { return now.Add(d) }
	three := []view{{id: 1, up: true, rtt: 10 * ms}, {id: 2, up: true, rtt: 20 * ms}, {id: 3, up: true, rtt: 5 * ms}}
	const home = 1
	with := func(change func([]view)) []view {
		v := slices.Clone(three)
		change(v)
		return v
	}
	for _, c := range []struct {
		name      string
		route     peerRoute
		relays    []view
		known     uint32
		data      uint32
		handshake []uint32
	}{
		{"nothing known", peerRoute{}, three, 0, 1, []uint32{1, 2, 3}},
		{"heard just now", peerRoute{via: 2, heard: ago(time.Second)}, three, 2, 2, nil},
		{"heard long ago", peerRoute{via: 2, heard: ago(time.Minute)}, three, 0, 2, []uint32{1, 2, 3}},
		{"its relay is down", peerRoute{via: 2, heard: now}, with(func(v []view) { v[1].up = false }), 0, 1, []uint32{1, 3}},
		{"its relay goes away", peerRoute{via: 2, heard: now}, with(func(v []view) { v[1].leaving = true }), 0, 1, []uint32{1, 3}},
		{"its relay is down, heard at another", peerRoute{via: 2, heard: now, marks: []mark{{relay: 3, heard: ago(time.Hour)}}},
			with(func(v []view) { v[1].up = false }), 0, 3, []uint32{1, 3}},
		{"not at home", peerRoute{marks: []mark{{relay: 1, away: in(time.Second)}}}, three, 0, 3, []uint32{2, 3}},
		{"was not at home, 10 s ago", peerRoute{marks: []mark{{relay: 1, away: now}}}, three, 0, 1, []uint32{1, 2, 3}},
		{"nowhere", peerRoute{marks: []mark{{relay: 1, away: in(1)}, {relay: 2, away: in(1)}, {relay: 3, away: in(1)}}}, three, 0, 1, []uint32{1, 2, 3}},
		{"nowhere, looked for 0.5 s ago", peerRoute{flooded: ago(500 * ms), marks: []mark{{relay: 1, away: in(1)}, {relay: 2, away: in(1)}, {relay: 3, away: in(1)}}},
			three, 0, 1, nil},
		{"no relay", peerRoute{via: 2, heard: now}, with(func(v []view) { v[0].up, v[1].up, v[2].up = false, false, false }), 0, 0, nil},
		{"only one, and it goes away", peerRoute{}, []view{{id: 1, up: true, leaving: true}}, 0, 1, []uint32{1}},
		{"home is down", peerRoute{}, with(func(v []view) { v[0].up = false }), 0, 3, []uint32{2, 3}},
	} {
		r := c.route
		if got := r.known(c.relays, now); got != c.known {
			t.Errorf("%s: known at %d, want %d", c.name, got, c.known)
		}
		if got := r.forData(c.relays, home, now); got != c.data {
			t.Errorf("%s: data to %d, want %d", c.name, got, c.data)
		}
		if c.known == 0 {
			if got := r.forHandshake(nil, c.relays, now); !slices.Equal(got, c.handshake) {
				t.Errorf("%s: handshakes to %v, want %v", c.name, got, c.handshake)
			}
		}
	}
}

func TestRouteFollowsWhatCame(t *testing.T) {
	now := time.Unix(1000, 0)
	relays := []view{{id: 1, up: true}, {id: 2, up: true}}
	var r peerRoute
	step := func(relay uint32, handshake bool, after time.Duration, via uint32) {
		t.Helper()
		now = now.Add(after)
		was := r.via
		if changed := r.came(relay, handshake, relays, now); r.via != via || changed != (was != via) {
			t.Fatalf("route by %d (changed %v), want %d", r.via, changed, via)
		}
	}
	step(1, true, 0, 1)
	step(2, true, 20*ms, 1)  // the copy that took longer
	step(2, false, 20*ms, 2) // data goes where the peer means it
	step(1, true, 3*time.Second, 1)
	r.gone(1, awayFor, now)
	if r.via != 0 || !r.at(1).away.After(now) {
		t.Fatal("the peer is gone but its route is not")
	}
	step(2, true, 0, 2)
	step(1, true, 0, 2)
	if r.at(1).away.After(now) {
		t.Error("a relay that the peer was just heard by counts as one where it is not")
	}
	relays[1].up = false
	step(1, true, 0, 1)
	r.forget(1)
	if r.via != 0 || len(r.marks) != 1 {
		t.Errorf("a relay is forgotten, but not its marks: %+v", r)
	}
}
