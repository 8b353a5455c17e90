package relayserver

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"culvert.dev/culvert/internal/wgkey"
	"culvert.dev/culvert/traversal/relay/derp"
)

func TestPeerGoneGoesToThoseThatHadPackets(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer(t, Config{Admit: everybody})
		a, b, c, d := join(t, s, newKey(t)), join(t, s, newKey(t)), join(t, s, newKey(t)), join(t, s, newKey(t))
		a.send(b.public, []byte("1"))
		b.receive()
		a.send(c.public, []byte("2"))
		c.receive()
		d.send(a.public, []byte("3")) // d has had nothing from a
		a.receive()
		a.conn.Close()
		b.expectGone(a.public, derp.GoneDisconnected)
		c.expectGone(a.public, derp.GoneDisconnected)
		d.sync()
	})
}

func TestSameKeyTwice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer(t, Config{Admit: everybody})
		key, b := newKey(t), join(t, s, newKey(t))
		first := join(t, s, key)
		expect := func(p *peer, text string) {
			t.Helper()
			b.send(key.Public(), []byte(text))
			if _, data := p.receive(); string(data) != text {
				t.Errorf("got %q, want %q", data, text)
			}
		}
		expect(first, "alone")
		second := join(t, s, key)
		expect(second, "the newer one")
		first.sync() // it writes
		expect(first, "the one that wrote last")
		second.frame(derp.FrameNotePreferred, []byte{1})
		second.sync()
		expect(second, "any frame counts")
		second.send(b.public, []byte("x"))
		if from, _ := b.receive(); from != key.Public() {
			t.Errorf("from %v", from.Short())
		}
		third := join(t, s, key)
		expect(third, "the newest")
		first.sync()
		third.sync()
		second.sync()
		first.sync() // the order of last writes is now third, second, first
		first.conn.Close()
		synctest.Wait()
		expect(second, "the one that wrote last of those that are left")
		second.sync()
		third.conn.Close()
		synctest.Wait()
		first = join(t, s, key)
		second.conn.Close()
		synctest.Wait()
		expect(first, "the one that is left")
		b.sync() // no PeerGone: the key is still here
		first.conn.Close()
		b.expectGone(key.Public(), derp.GoneDisconnected)
		b.send(key.Public(), initiation())
		b.expectGone(key.Public(), derp.GoneNotHere)
	})
}

func TestIdleClientsAreKeptAlive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer(t, Config{Admit: everybody})
		a := join(t, s, newKey(t))
		last := time.Now()
		for range 5 {
			typ, payload, err := a.r.Next()
			if typ != derp.FrameKeepAlive || len(payload) != 0 || err != nil {
				t.Fatalf("got %v %x %v, want KeepAlive", typ, payload, err)
			}
			if d := time.Since(last); d < 60*time.Second || d > 66*time.Second {
				t.Errorf("keepalive after %v", d)
			}
			last = time.Now()
		}
	})
}

func TestClientsThatAnswerPingsArePinged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer(t, Config{Admit: everybody})
		a := joinAs(t, s, newKey(t), derp.ClientInfo{Version: 2, CanAckPings: true})
		answer := true
		pings := 0
		start := time.Now()
		for {
			typ, payload, err := a.r.Next()
			if err != nil {
				break
			}
			if typ == derp.FramePing {
				if pings++; pings == 10 {
					answer, start = false, time.Now()
				}
				if answer {
					a.frame(derp.FramePong, payload)
				}
			}
		}
		if d := time.Since(start); pings < 10 || d < 2*time.Minute || d > 5*time.Minute {
			t.Errorf("cut %v after the last answer, %d pings", d, pings)
		}
		synctest.Wait()
		if n := s.Stats().Ended["silent"]; n != 1 {
			t.Errorf("%d ended as silent", n)
		}
	})
}

func TestDrain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer(t, Config{Admit: everybody})
		var all []*peer
		for range 11 {
			all = append(all, join(t, s, newKey(t)))
		}
		result := make(chan error, 1)
		go func() { result <- s.Drain(context.Background(), 10*time.Second, time.Minute) }()
		var times []time.Duration
		for _, p := range all {
			typ, payload := p.next()
			in, try, err := derp.ParseRestarting(payload)
			if typ != derp.FrameRestarting || try != time.Minute || err != nil {
				t.Fatalf("got %v %v %v", typ, try, err)
			}
			times = append(times, in)
		}
		slices.Sort(times)
		for i, d := range times {
			if want := time.Duration(i) * time.Second; d != want {
				t.Errorf("client %d is told %v, want %v", i, d, want)
			}
		}
		if _, why := attach(t, s, "192.0.2.1"); why != refusedDraining {
			t.Errorf("a new client: %v", why)
		}
		all[0].send(all[1].public, []byte("still served"))
		all[1].receive()
		for i, p := range all {
			select {
			case err := <-result:
				t.Fatalf("ended with %d clients left: %v", len(all)-i, err)
			default:
			}
			p.conn.Close()
			synctest.Wait()
		}
		if err := <-result; err != nil {
			t.Error(err)
		}
		if !s.Stats().Draining {
			t.Error("does not say that it drains")
		}
	})
}

func TestDrainEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer(t, Config{Admit: everybody})
		p := join(t, s, newKey(t))
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		err := s.Drain(ctx, 0, time.Minute) // nobody reads its frames
		if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "1 clients") {
			t.Error(err)
		}
		if typ, _ := p.next(); typ != derp.FrameRestarting {
			t.Errorf("got %v", typ)
		}
	})
}

func TestPresence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var events []string
		names := map[wgkey.Public]string{}
		s := newServer(t, Config{Admit: everybody, Presence: func(key wgkey.Public, here bool) {
			events = append(events, fmt.Sprint(names[key], here))
		}})
		key, other := newKey(t), newKey(t)
		names[key.Public()], names[other.Public()] = "a", "b"
		first, second := join(t, s, key), join(t, s, key)
		third := join(t, s, other)
		first.conn.Close()
		synctest.Wait()
		second.conn.Close()
		synctest.Wait()
		join(t, s, key)
		third.conn.Close()
		synctest.Wait()
		s.Close()
		if want := []string{"atrue", "btrue", "afalse", "atrue", "bfalse", "afalse"}; !slices.Equal(events, want) {
			t.Errorf("got %v, want %v", events, want)
		}
	})
}

// synctest.Test fails if anything of the relay is left.
func TestCloseLeavesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer(t, Config{Admit: everybody})
		a, b := join(t, s, newKey(t)), join(t, s, newKey(t))
		stall(a, b)
		half, _ := attach(t, s, "192.0.2.1")
		defer half.Close()
		s.Close()
		s.Close()
		a.expectClosed()
		if st := s.Stats(); st.Clients != 0 || st.QueuedBytes != 0 || s.reserved.Load() != 0 {
			t.Errorf("%+v, %d places", st, s.reserved.Load())
		}
		near, _ := attach(t, s, "192.0.2.1")
		if _, err := near.Read(make([]byte, 1)); err == nil {
			t.Error("a closed relay answers")
		}
		if err := s.Drain(context.Background(), 0, 0); err != nil {
			t.Error(err)
		}
	})
}
