package relayserver

import (
	"fmt"
	"io"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"culvert.dev/culvert/internal/wgkey"
	"culvert.dev/culvert/traversal/relay/derp"
)

// A packet and a frame that is too long come in one read: the packet counts, and its receiver is served on.
func TestPacketBeforeAFrameThatIsTooLong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer(t, Config{Admit: everybody})
		a, b, c := join(t, s, newKey(t)), join(t, s, newKey(t)), join(t, s, newKey(t))
		// The first frame fills the small buffer together with a part of the packet; what follows then comes at once.
		frames := derp.AppendFrame(nil, 0x7f, make([]byte, 2030-derp.HeaderLen))
		frames = derp.AppendFrame(frames, derp.FrameSendPacket, b.public[:], make([]byte, 100))
		frames = derp.AppendFrame(frames, derp.FrameSendPacket, make([]byte, maxFrame+1))
		go a.conn.Write(frames)
		a.expectClosed()
		got := map[derp.Type]bool{}
		for range 2 { // the news of its leaving may overtake the packet
			typ, _ := b.next()
			got[typ] = true
		}
		if !got[derp.FrameRecvPacket] || !got[derp.FramePeerGone] {
			t.Errorf("got %v, want the packet and PeerGone", got)
		}
		c.send(b.public, []byte("x"))
		if from, _ := b.receive(); from != c.public {
			t.Errorf("from %v", from.Short())
		}
		if st := s.Stats(); st.PacketsIn != 2 || st.Ended["protocol"] != 1 {
			t.Errorf("%d packets in, ended %v", st.PacketsIn, st.Ended)
		}
	})
}

// Fake handshakes fill a slow line, as fast as one sender may send them. Data of others goes on.
func TestFloodOfUrgentFramesLeavesRoomForData(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer(t, Config{Admit: everybody})
		victim, flood, x := join(t, s, newKey(t)), join(t, s, newKey(t)), join(t, s, newKey(t))
		count, mu := map[wgkey.Public]int{}, &sync.Mutex{}
		var line, wg sync.WaitGroup
		line.Go(func() { slowLine(victim, urgentRate*8/10, count, mu) })
		const seconds, packets = 20, 10
		stop := make(chan struct{})
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				case <-time.After(time.Millisecond):
					flood.send(victim.public, initiation())
				}
			}
		})
		wg.Go(func() {
			for i := range seconds * packets {
				x.send(victim.public, numbered(i, 1000))
				time.Sleep(time.Second / packets)
			}
		})
		time.Sleep((seconds + 1) * time.Second)
		close(stop)
		wg.Wait()
		victim.conn.Close()
		line.Wait()
		if got := count[x.public]; got < seconds*packets*9/10 {
			t.Errorf("%d of %d arrived beside %d fake handshakes", got, seconds*packets, count[flood.public])
		}
	})
}

// Urgent frames of very many senders fill a batch, but not the whole of it.
func TestUrgentFramesOfManyLeaveRoomForData(t *testing.T) {
	q := newQueued(100, 1<<20, 1000)
	for i := range 99 {
		q.o.put(true, q.senders[i], derp.FrameRecvPacket, nil, make([]byte, 148))
	}
	q.put(99, 0, 1400)
	if got := numbers(q.collect(maxBatch), 99); len(got) != 1 {
		t.Error("the only packet has to wait for a second batch")
	}
}

// Receivers that do not read fill the memory of all queues, as many as it takes. Whoever reads gets its packets.
func TestFullMemoryOfSomeLeavesRoomForOthers(t *testing.T) {
	pool := &chunkPool{limit: 64 << 20}
	senders := []*slot{{}, {}}
	stuck := make([]outbox, 500)
	for i := range stuck {
		stuck[i].pool, stuck[i].maxBytes, stuck[i].maxData = pool, DefaultQueueBytes, DefaultQueuePackets
	}
	for range 300 {
		for i := range stuck {
			stuck[i].put(false, senders[0], derp.FrameRecvPacket, nil, make([]byte, 1400))
		}
	}
	if lent := pool.lent.Load(); lent > pool.limit || lent < pool.limit/2 {
		t.Errorf("%d bytes are lent of %d", lent, pool.limit)
	}
	reading := outbox{pool: pool, maxBytes: DefaultQueueBytes, maxData: DefaultQueuePackets}
	for i := range 1000 { // in batches of ten
		if _, dropped := reading.put(false, senders[1], derp.FrameRecvPacket, nil, make([]byte, 1400)); dropped != 0 {
			t.Fatalf("packet %d displaced %d", i, dropped)
		}
		if i%10 < 9 {
			continue
		}
		chunks, _ := reading.collect(make([]*chunk, 0, maxChunks), maxBatch, 1)
		for _, c := range chunks {
			pool.put(c)
		}
	}
	for i := range stuck {
		stuck[i].close()
	}
	if pool.lent.Load() != 0 {
		t.Errorf("%d bytes are still lent", pool.lent.Load())
	}
}

// What a queue holds in memory is not what is in it: the books must follow through every way a chunk leaves.
func TestHeldMemoryIsCounted(t *testing.T) {
	q := newQueued(20, 50_000, 30)
	check := func() {
		t.Helper()
		if held, lent := q.o.data.held, q.o.pool.lent.Load(); int64(held) != lent {
			t.Fatalf("the queue counts %d bytes, the pool %d", held, lent)
		}
	}
	for i := range 2000 {
		q.put(i%20, i, 20+i*577%30_000)
		check()
		if i%37 == 0 {
			q.collect(i % 20_000)
			check()
		}
	}
	q.all()
	check()
}

// A machine that was stopped for minutes finds clients that could not answer, and writes that could not end.
func TestClientsSurviveAPauseOfTheMachine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer(t, Config{Admit: everybody})
		a, b := join(t, s, newKey(t)), joinAs(t, s, newKey(t), derp.ClientInfo{Version: 2, CanAckPings: true})
		c := s.clients.lookup(b.public).active.Load()
		stall(a, b)
		if c.writing.Load() == 0 {
			t.Fatal("the client is not inside a write")
		}
		later := s.now() + int64(time.Hour)
		s.look(c, later)
		if c.ended.Load() {
			t.Fatalf("cut at once: %v", c.why)
		}
		go func() {
			for { // it reads, but answers nothing
				if _, _, err := b.r.Next(); err != nil {
					return
				}
			}
		}()
		synctest.Wait()
		for i := range silentAfter - 1 { // looks, a minute apart each
			c.nextAlive = 0
			s.look(c, later+int64(i+1)*int64(time.Minute))
			synctest.Wait()
		}
		if c.ended.Load() {
			t.Errorf("cut before it was asked %d times: %v", silentAfter, c.why)
		}
		c.nextAlive = 0
		s.look(c, later+int64(silentAfter)*int64(time.Minute))
		if !c.ended.Load() {
			t.Error("not cut after all")
		}
	})
}

// Who is back before the news of its leaving went out is not reported gone.
func TestWhoIsBackIsNotGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer(t, Config{Admit: everybody})
		key, b := newKey(t), join(t, s, newKey(t))
		join(t, s, key)
		old := &slot{key: key.Public()}
		old.delivered(b.public)
		s.tellGone(old)
		b.sync()
	})
}

// However many addresses take part: connections that never become clients are bounded, and an honest client gets through.
func TestConnectionsThatAreNoClientsAreBounded(t *testing.T) {
	s := newServer(t, Config{Admit: everybody, MaxClients: 100}) // 64 of them may wait
	addr, config := serveFor(t, s, true)
	first := mustDial(t, s, addr, config)
	var idle []net.Conn
	for range 200 {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		idle = append(idle, c)
	}
	second := mustDial(t, s, addr, config)
	first.send(second.public, []byte("x"))
	second.receive()
	for i, c := range idle[:200-64] {
		c.SetReadDeadline(time.Now().Add(10 * time.Second))
		if _, err := c.Read(make([]byte, 1)); err == nil || isTimeout(err) {
			t.Fatalf("connection %d is still open: %v", i, err)
		}
	}
	s.waiting.mu.Lock()
	n := s.waiting.queue.Len()
	s.waiting.mu.Unlock()
	if n > 64 {
		t.Errorf("%d wait", n)
	}
	if n := s.Stats().Refused["half open"]; n < 200-64 {
		t.Errorf("%d refused", n)
	}
}

func isTimeout(err error) bool {
	e, ok := err.(net.Error)
	return ok && e.Timeout()
}

// Whoever announces a body and does not send it is not waited for.
func TestSlowBodyIsCut(t *testing.T) {
	s := newServer(t, Config{HandshakeTimeout: 200 * time.Millisecond})
	addr, _ := serveFor(t, s, false)
	for _, path := range []string{"/derp", "/derp/probe", "/"} {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		fmt.Fprintf(c, "POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n", path)
		c.SetReadDeadline(time.Now().Add(10 * time.Second))
		if _, err := io.Copy(io.Discard, c); err != nil && isTimeout(err) {
			t.Errorf("%s: the relay waits for the body: %v", path, err)
		}
	}
}
