package relayserver

import (
	"bytes"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"culvert.dev/culvert/traversal/relay/derp"
)

// stall sends one packet to p, which does not read: its writer then sits in a write, and all that follows waits in the queue.
func stall(from, p *peer) {
	from.send(p.public, numbered(-1, 100))
	from.sync()
	synctest.Wait()
}

func TestUrgentFramesOvertakeData(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer(t, Config{Admit: everybody})
		a, b := join(t, s, newKey(t)), join(t, s, newKey(t))
		stall(a, b)
		for i := range 100 {
			a.send(b.public, numbered(i, 1400))
		}
		a.send(b.public, initiation())
		a.send(b.public, disco())
		a.sync()
		b.frame(derp.FramePing, []byte("12345678"))
		synctest.Wait()
		b.receive() // the one that was being written
		var urgent []string
		for range 3 {
			typ, p := b.next()
			switch {
			case typ == derp.FramePong:
				urgent = append(urgent, "pong")
			case derp.LooksLikeHandshake(p[derp.KeyLen:]):
				urgent = append(urgent, "handshake")
			case derp.LooksLikeDisco(p[derp.KeyLen:]):
				urgent = append(urgent, "disco")
			default:
				t.Fatalf("%v %x came first", typ, p[:40])
			}
		}
		if slices.Sort(urgent); !slices.Equal(urgent, []string{"disco", "handshake", "pong"}) {
			t.Errorf("got %v", urgent)
		}
		for i := range 100 {
			if _, data := b.receive(); !bytes.Equal(data, numbered(i, 1400)) {
				t.Fatalf("packet %d is another", i)
			}
		}
	})
}

// Data that looks like handshakes gets ahead only up to a rate.
func TestUrgentFramesAreFewPerSender(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer(t, Config{Admit: everybody, QueuePackets: 1 << 20, QueueBytes: 1 << 20})
		a, b, c := join(t, s, newKey(t)), join(t, s, newKey(t)), join(t, s, newKey(t))
		stall(a, b)
		for range 1000 { // more than the burst
			a.send(b.public, initiation())
		}
		a.sync()
		c.send(b.public, numbered(1, 1400))
		c.sync()
		b.receive()
		for n := 0; ; n++ {
			if from, _ := b.receive(); from == c.public {
				if n > urgentFrames+2*quantum/148 {
					t.Errorf("%d frames came first", n)
				}
				return
			}
		}
	})
}

func TestFullQueueKeepsTheNewest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer(t, Config{Admit: everybody, QueuePackets: 50})
		a, b := join(t, s, newKey(t)), join(t, s, newKey(t))
		stall(a, b)
		for i := range 200 {
			a.send(b.public, numbered(i, 1400))
		}
		a.sync()
		if st := s.Stats(); st.Dropped["queue full"] != 150 || st.QueuedBytes == 0 {
			t.Errorf("%+v", st)
		}
		i := slices.IndexFunc(s.Clients(), func(c ClientStats) bool { return c.Key == b.public })
		if c := s.Clients()[i]; c.Dropped != 150 || c.Queued != 50 || c.QueuedBytes != 50*1437 {
			t.Errorf("%+v", c)
		}
		b.receive()
		for i := 150; i < 200; i++ {
			if _, data := b.receive(); !bytes.Equal(data, numbered(i, 1400)) {
				t.Fatalf("got another packet than %d", i)
			}
		}
	})
}

func TestReaderThatStopsIsCut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer(t, Config{Admit: everybody})
		a, b := join(t, s, newKey(t)), join(t, s, newKey(t))
		b.send(a.public, []byte("x"))
		a.receive()
		stall(a, b)
		a.send(b.public, numbered(1, 1400))
		a.sync()
		start := time.Now()
		a.expectGone(b.public, derp.GoneDisconnected)
		if d := time.Since(start); d < DefaultWriteTimeout || d > DefaultWriteTimeout+2*time.Second {
			t.Errorf("cut after %v", d)
		}
		synctest.Wait()
		if st := s.Stats(); st.Clients != 1 || st.Ended["slow"] != 1 || st.Dropped["gone"] != 1 || st.QueuedBytes != 0 {
			t.Errorf("%+v", st)
		}
	})
}

func TestIdleWritersAreNoGoroutines(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer(t, Config{Admit: everybody, KeepAlive: time.Hour})
		a, b := join(t, s, newKey(t)), join(t, s, newKey(t))
		writers := func() (n int) {
			s.clients.each(func(c *client) {
				c.out.mu.Lock()
				defer c.out.mu.Unlock()
				if c.out.exists {
					n++
				}
			})
			return n
		}
		if n := writers(); n != 2 {
			t.Errorf("%d writers after the pongs, want 2", n)
		}
		time.Sleep(lingerTime + 2*tick)
		if n := writers(); n != 0 {
			t.Errorf("%d writers of idle clients", n)
		}
		for i := range 20 { // they come back, and may go at any time
			a.send(b.public, numbered(i, 100))
			b.receive()
			time.Sleep(lingerTime - 2*time.Second + time.Duration(i)*400*time.Millisecond)
		}
	})
}

// 10 kB/s are slow, but not stopped: a batch of the greatest length would take longer than WriteTimeout.
func TestSlowLineIsNotCut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer(t, Config{Admit: everybody})
		a, b := join(t, s, newKey(t)), join(t, s, newKey(t))
		for i := range 150 {
			a.send(b.public, numbered(i, 1400))
		}
		a.sync()
		buf := make([]byte, 1000)
		for n := 0; n < 150*1437; {
			some, err := b.conn.Read(buf)
			if err != nil {
				t.Fatalf("cut after %d bytes: %v", n, err)
			}
			n += some
			time.Sleep(100 * time.Millisecond)
		}
	})
}
