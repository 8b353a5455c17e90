package relay

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"culvert.dev/culvert/internal/wgkey"
	"culvert.dev/culvert/traversal/relay/derp"
)

func TestPoolCarriesPackets(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 20*ms, 5*ms)
		a, b := w.pool(1, 2), w.pool(1, 2)
		time.Sleep(time.Second)
		for _, p := range []*testPool{a, b} {
			if p.home() != 2 || !w.relays[1].isHomeOf(p.key) || w.relays[0].isHomeOf(p.key) {
				t.Errorf("home is relay %d, not the nearest", p.home())
			}
			if s := p.status(1); s.State != StateStandby || s.RTT != 40*ms || s.Transport != "derp" || s.Key != w.relays[0].key.Public() {
				t.Errorf("standby: %+v", s)
			}
		}
		// The initiation goes by both; the copy that is first names the route.
		a.send(t, b.key, string(initiation(1)))
		time.Sleep(time.Second)
		if got := b.take(); len(got) != 2 || got[0].from != a.key || got[0].data != string(initiation(1)) {
			t.Errorf("received %d packets", len(got))
		}
		if b.via(a.key) != 2 || a.via(b.key) != 0 {
			t.Errorf("routes by %d and %d", b.via(a.key), a.via(b.key))
		}
		b.send(t, a.key, "response", "data")
		time.Sleep(time.Second)
		if got := a.take(); len(got) != 2 || got[0].data != "response" || got[1].data != "data" {
			t.Errorf("received %v", got)
		}
		if a.via(b.key) != 2 {
			t.Errorf("the answer's relay is not the route, but %d", a.via(b.key))
		}
		a.send(t, b.key, "more")
		time.Sleep(time.Second)
		if len(w.relays[0].sentTo(b.key)) != 1 || len(w.relays[1].sentTo(b.key)) != 2 {
			t.Errorf("by relay 1: %d, by relay 2: %d packets", len(w.relays[0].sentTo(b.key)), len(w.relays[1].sentTo(b.key)))
		}
		if s := a.status(2); s.PacketsOut != 2 || s.PacketsIn != 2 || s.BytesOut != 148+4 {
			t.Errorf("counters %+v", s.Counters)
		}
	})
}

func TestPoolWithoutRelays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		p := w.pool()
		if err := p.Send(wgkey.Public{1}, [][]byte{[]byte("x")}); !errors.Is(err, ErrNoRelay) {
			t.Errorf("Send: %v", err)
		}
		if _, ok := p.Route(wgkey.Public{1}); ok || len(p.Status()) != 0 {
			t.Error("a route without relays")
		}
		p.Network()
		done := make(chan struct{})
		close(done)
		if _, err := p.Receive(done, [][]byte{nil}, make([]int, 1), make([]wgkey.Public, 1)); err != net.ErrClosed {
			t.Errorf("Receive: %v", err)
		}
		p.Close()
		p.Close()
		if err := p.Send(wgkey.Public{1}, nil); err != net.ErrClosed {
			t.Errorf("Send after Close: %v", err)
		}
		if err := p.SetRelays(nil); err != net.ErrClosed {
			t.Errorf("SetRelays after Close: %v", err)
		}
	})
}

func TestPoolRefusesConfigurations(t *testing.T) {
	key := newKey(t)
	many := []Server{}
	for i := range maxRelays + 1 {
		many = append(many, Server{URL: fmt.Sprintf("https://relay%d", i)})
	}
	for _, c := range []struct {
		cfg  PoolConfig
		want string
	}{
		{PoolConfig{}, "private key"},
		{PoolConfig{Key: key, Relays: []Server{{URL: "x"}}}, "want https://"},
		{PoolConfig{Key: key, Relays: []Server{{URL: "https://a"}, {URL: "https://a:443/"}}}, "twice"},
		{PoolConfig{Key: key, Relays: many}, "at most 16"},
	} {
		if p, err := NewPool(c.cfg); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%v %v, want %q", p, err, c.want)
		}
	}
}

// TestNotHereTellsPeersApart has two peers, each at one of two relays only.
func TestNotHereTellsPeersApart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 5*ms, 20*ms)
		a, first, second := w.pool(1, 2), w.pool(1), w.pool(2)
		time.Sleep(time.Second)
		for _, peer := range []*testPool{first, second} {
			a.send(t, peer.key, string(initiation(1)))
		}
		time.Sleep(time.Second)
		for i, peer := range []*testPool{first, second} {
			r, ok := a.Route(peer.key)
			if want := fmt.Sprintf("http://relay%d", 2-i); !ok || len(r.NotAt) != 1 || r.NotAt[0] != want {
				t.Errorf("peer %d: route %+v, want it not at %s", i+1, r, want)
			}
			a.send(t, peer.key, string(initiation(2)), "data")
		}
		time.Sleep(time.Second)
		for i, peer := range []*testPool{first, second} {
			if got := peer.take(); len(got) != 3 || got[1].data != string(initiation(2)) || got[2].data != "data" {
				t.Errorf("peer %d received %d packets", i+1, len(got))
			}
			if n := len(w.relays[1-i].sentTo(peer.key)); n != 1 {
				t.Errorf("%d packets for peer %d at the relay where it is not", n, i+1)
			}
			peer.send(t, a.key, "answer")
		}
		time.Sleep(time.Second)
		if a.via(first.key) != 1 || a.via(second.key) != 2 {
			t.Errorf("routes by %d and %d", a.via(first.key), a.via(second.key))
		}
		// A peer that is nowhere is looked for at most once a second.
		nowhere := wgkey.Public{1}
		for range 50 {
			a.send(t, nowhere, string(initiation(3)))
			time.Sleep(100 * ms)
		}
		if n := len(w.relays[0].sentTo(nowhere)); n < 4 || n > 7 {
			t.Errorf("%d initiations in 5 s for a peer that is nowhere", n)
		}
	})
}

// TestPeerThatLeaves has a relay say that a peer has left: data goes to the other relay at once.
func TestPeerThatLeaves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 5*ms, 20*ms)
		a, b := w.pool(1, 2), w.pool(1, 2)
		time.Sleep(time.Second)
		b.send(t, a.key, "hello")
		time.Sleep(time.Second)
		if a.via(b.key) != 1 {
			t.Fatalf("route by %d", a.via(b.key))
		}
		w.relays[0].tell(a.key, derp.FramePeerGone, b.key[:])
		time.Sleep(100 * ms)
		a.send(t, b.key, "data")
		time.Sleep(100 * ms)
		if n := len(w.relays[1].sentTo(b.key)); n != 1 {
			t.Errorf("%d packets by the other relay", n)
		}
	})
}

func TestHomeFollowsTheNearestRelay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 10*ms, 15*ms)
		p := w.pool(1, 2)
		changes := 0
		last := 0
		run := func(d time.Duration, want int) {
			t.Helper()
			for end := time.Now().Add(d); time.Now().Before(end); time.Sleep(time.Second) {
				if h := p.home(); h != last {
					changes++
					last = h
				}
			}
			if p.home() != want {
				t.Errorf("home is relay %d, want %d", p.home(), want)
			}
		}
		run(time.Minute, 1)
		w.net.slow(w.hosts[1], 9*ms) // 10 % nearer
		run(10*time.Minute, 1)
		w.net.slow(w.hosts[0], 60*ms) // now home is much farther, which a few pings show
		run(3*time.Minute, 2)
		if !w.relays[1].isHomeOf(p.key) || w.relays[0].isHomeOf(p.key) {
			t.Error("the relays were not told")
		}
		w.net.slow(w.hosts[0], 8*ms)
		run(5*time.Minute, 2)
		if changes != 2 {
			t.Errorf("home changed %d times", changes)
		}
	})
}

func TestIdlePings(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 5*ms)
		var pings atomic.Int32
		w.relays[0].onPing = func() { pings.Add(1) }
		p := w.pool(1)
		time.Sleep(10*time.Minute + 5*time.Second)
		// Two at the beginning, then one each 25 s.
		if n := pings.Load(); n != 2+24 {
			t.Errorf("%d pings in 10 min", n)
		}
		if s := p.status(1); s.Reconnects != 0 || s.State != StateConnected {
			t.Errorf("an idle connection did not last: %+v", s)
		}
	})
}

func TestSetRelaysKeepsConnections(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 5*ms, 10*ms, 15*ms)
		p := w.pool(1, 2)
		time.Sleep(time.Second)
		p.send(t, wgkey.Public{1}, "x")
		if err := p.SetRelays(w.servers(3, 2)); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		if n := len(w.net.attempts(w.hosts[1])); n != 1 {
			t.Errorf("the relay that stays was dialled %d times", n)
		}
		if w.relays[0].connected() != 0 || w.relays[1].connected() != 1 || w.relays[2].connected() != 1 {
			t.Errorf("connected: %d %d %d", w.relays[0].connected(), w.relays[1].connected(), w.relays[2].connected())
		}
		if s := p.Status(); len(s) != 2 || s[0].URL != "http://relay3" || s[1].URL != "http://relay2" || p.home() != 2 {
			t.Errorf("status %+v, home %d", s, p.home())
		}
		if err := p.SetRelays([]Server{{URL: "x"}}); err == nil || len(p.Status()) != 2 {
			t.Error("a list with a fault was taken")
		}
		changed := w.servers(2)
		changed[0].WebSocket = WebSocketNever
		if err := p.SetRelays(changed); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		if n := len(w.net.attempts(w.hosts[1])); n != 2 {
			t.Errorf("a relay whose settings changed was dialled %d times", n)
		}
	})
}

func TestHealthIsShown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 5*ms)
		p := w.pool(1)
		time.Sleep(time.Second)
		for _, text := range []string{"too slow", ""} {
			w.relays[0].tell(p.key, derp.FrameHealth, []byte(text))
			time.Sleep(time.Second)
			if got := p.status(1).Health; got != text {
				t.Errorf("health %q, want %q", got, text)
			}
		}
	})
}

// TestRefusedKey has a relay that accepts nobody: the pool tries ever less often.
func TestRefusedKey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 5*ms)
		w.relays[0].refuse = true
		p := w.pool(1)
		time.Sleep(10 * time.Minute)
		if n := len(w.net.attempts(w.hosts[0])); n < 20 || n > 80 {
			t.Errorf("%d attempts in 10 min", n)
		}
		if s := p.status(1); s.State != StateWaiting || !strings.Contains(s.Err, "may not admit") {
			t.Errorf("status %+v", s)
		}
	})
}

// TestRelayThatDropsConnections accepts, and closes 1 s later, again and again.
func TestRelayThatDropsConnections(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 5*ms)
		p := w.pool(1)
		for range 600 {
			time.Sleep(time.Second)
			w.net.stop(w.hosts[0])
			w.net.start(w.hosts[0])
		}
		if n := len(w.net.attempts(w.hosts[0])); n > 100 {
			t.Errorf("%d attempts in 10 min", n)
		}
		if s := p.status(1); s.Reconnects < 5 {
			t.Errorf("status %+v", s)
		}
	})
}

// TestHandshakesNeverWait has the data lanes of both relays full and a Send of data that waits for room: no handshake message waits
// behind it, be the peer's relay known or not.
func TestHandshakesNeverWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 5*ms, 20*ms)
		a, b := w.pool(1, 2), w.pool(2)
		time.Sleep(3 * time.Second)
		b.send(t, a.key, "hello")
		time.Sleep(time.Second)
		w.net.blackHole(w.hosts[0])
		w.net.blackHole(w.hosts[1])
		stranger := wgkey.Public{1}
		data := strings.Repeat("x", 60_000)
		for range 2 * (dataBytes + memBuffer + writeBytes) / len(data) {
			a.send(t, b.key, data)
			a.send(t, stranger, data)
			if s1, s2 := a.status(1), a.status(2); s1.Dropped > 0 && s2.Dropped > 0 {
				break
			}
		}
		full := func() bool {
			a.mu.Lock()
			defer a.mu.Unlock()
			for _, m := range a.members {
				if m.conn == nil || m.conn.out.data.hasRoom([]byte(data)) {
					return false
				}
			}
			return true
		}
		if !full() {
			t.Fatal("the queues are not full")
		}
		waiting := make(chan time.Duration, 1)
		go func() {
			begin := time.Now()
			a.Send(b.key, [][]byte{[]byte(data)})
			waiting <- time.Since(begin)
		}()
		synctest.Wait()
		for _, to := range []wgkey.Public{b.key, stranger} {
			begin := time.Now()
			for _, size := range []int{148, 92, 64} {
				message := make([]byte, size)
				message[0] = map[int]byte{148: 1, 92: 2, 64: 3}[size]
				if err := a.Send(to, [][]byte{message}); err != nil {
					t.Error(err)
				}
			}
			if took := time.Since(begin); took != 0 {
				t.Errorf("handshakes for %s waited %v", to.Short(), took)
			}
		}
		begin := time.Now()
		if err := a.SendNow(b.key, [][]byte{[]byte(data)}); err != nil || time.Since(begin) != 0 {
			t.Errorf("SendNow: %v after %v", err, time.Since(begin))
		}
		if took := <-waiting; took != sendWait {
			t.Errorf("the data waited %v, want %v", took, sendWait)
		}
	})
}

// TestHealthDoesNotFloodTheLog has a relay that reports something new all the time.
func TestHealthDoesNotFloodTheLog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 5*ms)
		var lines lineCount
		key := newKey(t)
		p, err := NewPool(PoolConfig{Key: key, Relays: w.servers(1), DialTCP: w.net.dial, Logger: slog.New(slog.NewTextHandler(&lines, nil))})
		if err != nil {
			t.Fatal(err)
		}
		defer p.Close()
		time.Sleep(time.Second)
		before := lines.n.Load()
		text := ""
		for i := range 600 {
			text = fmt.Sprint("problem ", i)
			w.relays[0].tell(key.Public(), derp.FrameHealth, []byte(text))
			time.Sleep(100 * ms)
		}
		if n := lines.n.Load() - before; n < 1 || n > 10 {
			t.Errorf("%d lines in a minute", n)
		}
		if got := p.Status()[0].Health; got != text {
			t.Errorf("health %q, want the last", got)
		}
	})
}

type lineCount struct{ n atomic.Int64 }

func (c *lineCount) Write(b []byte) (int, error) {
	c.n.Add(1)
	return len(b), nil
}

// TestRemovedRelayLeavesNoRoute has packets of a connection taken in that is on its way out.
func TestRemovedRelayLeavesNoRoute(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 5*ms, 5*ms)
		p := w.pool(1, 2)
		time.Sleep(time.Second)
		p.mu.Lock()
		gone := p.members[0]
		p.mu.Unlock()
		if err := p.SetRelays(w.servers(2)); err != nil {
			t.Fatal(err)
		}
		peer := wgkey.Public{1}
		p.Pool.heard(gone, peer, false, time.Now())
		p.Pool.gone(gone, peer, derp.GoneNotHere)
		p.mu.Lock()
		defer p.mu.Unlock()
		if r := p.routes.find(peer); r != nil {
			t.Errorf("route %+v by a relay that is not configured any more", r)
		}
	})
}

// TestRelayThatAlwaysRestarts accepts, and says at once that it goes away, again and again.
func TestRelayThatAlwaysRestarts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 5*ms)
		p := w.pool(1)
		for range 6000 {
			time.Sleep(100 * ms)
			w.relays[0].tell(p.key, derp.FrameRestarting, restarting(0, time.Minute))
		}
		if n := len(w.net.attempts(w.hosts[0])); n > 100 {
			t.Errorf("%d attempts in 10 min", n)
		}
	})
}
