package relay

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"net"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"culvert.dev/culvert/internal/wgkey"
	"culvert.dev/culvert/traversal/relay/derp"
)

// connTo connects to a relay in memory, whose host it returns. The end of the test closes the connection.
func connTo(t *testing.T, f *fakeRelay, latency time.Duration) (*Conn, *memNet, *memHost) {
	t.Helper()
	n := newMemNet()
	h := n.listen("relay.example:80", latency, f.serve)
	d := newDialer(t)
	d.DialTCP = n.dial
	c, err := d.Dial(t.Context(), Server{URL: "http://relay.example"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		c.Close()
		n.kill(h)
	})
	return c, n, h
}

// pump calls Recv until the connection is over, and hands messages on.
func pump(c *Conn) (<-chan Message, <-chan error) {
	messages, over := make(chan Message, 1000), make(chan error, 1)
	go func() {
		for {
			m, err := c.Recv()
			if err != nil {
				over <- err
				return
			}
			m.Packet = bytes.Clone(m.Packet)
			messages <- m
		}
	}()
	return messages, over
}

func TestPing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeRelay(t)
		c, _, _ := connTo(t, f, 10*ms)
		pump(c)
		if rtt, err := c.Ping(t.Context()); err != nil || rtt != 20*ms {
			t.Errorf("round trip %v %v, want 20 ms", rtt, err)
		}
		f.silent.Store(true)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := c.Ping(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("ping without answer: %v", err)
		}
		go func() {
			time.Sleep(time.Second)
			c.Close()
		}()
		if _, err := c.Ping(t.Context()); !errors.Is(err, net.ErrClosed) {
			t.Errorf("ping of a connection that was closed meanwhile: %v", err)
		}
		if _, err := c.Ping(t.Context()); !errors.Is(err, net.ErrClosed) {
			t.Errorf("ping of a closed connection: %v", err)
		}
		if len(c.pings.waiting) != 0 {
			t.Errorf("%d pings are kept", len(c.pings.waiting))
		}
	})
}

func TestPingsAreBounded(t *testing.T) {
	var s pings
	at := time.Unix(1000, 0)
	for i := range 10 * maxPings {
		var token [8]byte
		binary.BigEndian.PutUint64(token[:], uint64(i))
		s.add(token, ping{sent: at.Add(time.Duration(i)), rtt: make(chan time.Duration, 1)})
	}
	var last [8]byte
	binary.BigEndian.PutUint64(last[:], 10*maxPings-1)
	if _, ok := s.waiting[last]; len(s.waiting) != maxPings || !ok {
		t.Errorf("%d pings wait, the newest %v", len(s.waiting), ok)
	}
}

// TestFramesOfTheRelay has what a relay may send after the handshake, and what becomes of it.
func TestFramesOfTheRelay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeRelay(t)
		c, _, _ := connTo(t, f, ms)
		defer c.Close()
		self, peer := c.key.Public(), wgkey.Public{9}
		messages, _ := pump(c)
		f.tell(self, derp.FrameKeepAlive, nil)
		f.tell(self, 0x77, []byte("later version"))
		f.tell(self, derp.FrameRecvPacket, []byte("too short for a key"))
		f.tell(self, derp.FramePong, []byte("unasked!"))
		f.tell(self, derp.FramePong, nil)
		f.tell(self, derp.FramePeerPresent, peer[:])
		f.tell(self, derp.FrameRecvPacket, append(peer[:], "data"...))
		f.tell(self, derp.FramePeerGone, peer[:])
		f.tell(self, derp.FramePeerGone, append(peer[:], 1))
		f.tell(self, derp.FrameHealth, []byte("disk\x1b full\n\xff"))
		f.tell(self, derp.FrameHealth, bytes.Repeat([]byte("x"), 1000))
		f.tell(self, derp.FrameRestarting, restarting(1500*ms, time.Minute))
		synctest.Wait()
		for _, want := range []Message{
			{Kind: MessagePacket, Peer: peer, Packet: []byte("data")},
			{Kind: MessageGone, Peer: peer, Reason: derp.GoneDisconnected},
			{Kind: MessageGone, Peer: peer, Reason: derp.GoneNotHere},
			{Kind: MessageHealth, Text: "disk  full ?"},
			{Kind: MessageHealth, Text: strings.Repeat("x", maxHealth)},
			{Kind: MessageRestarting, ReconnectIn: 1500 * ms, TryFor: time.Minute},
		} {
			got := <-messages
			if got.Kind != want.Kind || got.Peer != want.Peer || string(got.Packet) != string(want.Packet) || got.Reason != want.Reason ||
				got.Text != want.Text || got.ReconnectIn != want.ReconnectIn || got.TryFor != want.TryFor {
				t.Errorf("got %+v, want %+v", got, want)
			}
		}
		// A ping is answered with its first 8 bytes.
		f.mu.Lock()
		f.clients[self].key = wgkey.Public{} // handle ignores pongs, so that nothing else may come
		f.mu.Unlock()
		c.NotePreferred(true)
		time.Sleep(10 * ms)
		if len(messages) != 0 {
			t.Errorf("%d more messages", len(messages))
		}
	})
}

func TestFramesThatEndTheConnection(t *testing.T) {
	for _, c := range []struct {
		name  string
		frame []byte
		want  string
	}{
		{"over 1 MiB", []byte{byte(derp.FrameRecvPacket), 0, 0x10, 0, 1}, "too long"},
		{"PeerGone without key", derp.AppendFrame(nil, derp.FramePeerGone, make([]byte, 31)), "PeerGone"},
		{"Restarting without times", derp.AppendFrame(nil, derp.FrameRestarting, make([]byte, 7)), "Restarting"},
		{"Ping too short", derp.AppendFrame(nil, derp.FramePing, make([]byte, 7)), "Ping"},
		{"ServerInfo by somebody else", derp.AppendFrame(nil, derp.FrameServerInfo, make([]byte, 80)), "does not open"},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFakeRelay(t)
				conn, _, _ := connTo(t, f, ms)
				_, over := pump(conn)
				f.mu.Lock()
				f.clients[conn.key.Public()].c.Write(c.frame)
				f.mu.Unlock()
				if err := <-over; !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), "http://relay.example") {
					t.Errorf("error %v, want %q in it", err, c.want)
				}
				conn.Close()
			})
		})
	}
}

func TestSilentRelayTimesOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeRelay(t)
		c, _, _ := connTo(t, f, ms)
		_, over := pump(c)
		for range 5 { // keep-alives put it off
			time.Sleep(60 * time.Second)
			f.tell(c.key.Public(), derp.FrameKeepAlive, nil)
		}
		begin := time.Now()
		err := <-over
		if took := time.Since(begin); !strings.Contains(err.Error(), "silent") || took < 112*time.Second || took > 121*time.Second {
			t.Errorf("%v after %v", err, took)
		}
		c.Close()
	})
}

func TestPingIsAnsweredWithEightBytes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client, server := memPipe("client", "relay", ms)
		f := newFakeRelay(t)
		s := &session{dialer: newDialer(t), target: &target{url: "x"}, bottom: client, stream: client}
		c := newConn(s)
		c.info.Key = f.key.Public()
		c.start()
		defer c.Close()
		pump(c)
		server.Write(derp.AppendFrame(nil, derp.FramePing, []byte("12345678 and more")))
		frames := derp.NewReader(server, 1<<20)
		if kind, payload, err := frames.Next(); err != nil || kind != derp.FramePong || string(payload) != "12345678" {
			t.Errorf("%v %q %v", kind, payload, err)
		}
	})
}

// TestFullQueue has a relay that reads nothing: what waits is bounded, Send waits for 50 ms, the oldest data is dropped, and
// handshakes neither wait nor are dropped for data.
func TestFullQueue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeRelay(t)
		c, n, h := connTo(t, f, ms)
		n.blackHole(h)
		to := wgkey.Public{1}
		batch := func(i byte) (b [][]byte) {
			for range 64 {
				b = append(b, bytes.Repeat([]byte{i}, 1400))
			}
			return b
		}
		waited := 0
		for i := range 40 {
			begin := time.Now()
			if err := c.Send(to, batch(byte(i))); err != nil {
				t.Fatal(err)
			}
			switch took := time.Since(begin); took {
			case 0:
			case sendWait:
				waited++
			default:
				t.Fatalf("Send took %v", took)
			}
		}
		if waited < 20 {
			t.Errorf("only %d of 40 Sends waited", waited)
		}
		begin, dropped := time.Now(), c.Counters().Dropped
		for i := range 10 {
			c.Send(to, [][]byte{initiation(byte(i))})
			if err := c.SendNow(to, batch(39)); err != nil { // and neither does this
				t.Fatal(err)
			}
		}
		if c.Counters().Dropped == dropped {
			t.Error("SendNow has dropped nothing")
		}
		if took := time.Since(begin); took != 0 {
			t.Errorf("handshakes waited for %v", took)
		}
		if c.out.data.len() > dataBytes || cap(c.out.data.buf) > 3*dataBytes {
			t.Errorf("%d bytes wait in %d", c.out.data.len(), cap(c.out.data.buf))
		}
		if c.Counters().Dropped < 40*64*1400/2/1437 {
			t.Errorf("dropped %d", c.Counters().Dropped)
		}
		go func() {
			time.Sleep(ms)
			c.Close()
		}()
		if err := c.Send(to, batch(1)); err != net.ErrClosed && err != nil {
			t.Errorf("Send while it was closed: %v", err)
		}
		var kinds []byte
		last := byte(0)
		c.out.unsent(func(_ wgkey.Public, p []byte) {
			kinds = append(kinds, p[0])
			last = p[0]
		})
		if len(kinds) < 300 || !bytes.Equal(kinds[:10], bytes.Repeat([]byte{1}, 10)) || last != 39 && last != 1 || kinds[10] < 30 {
			t.Errorf("%d unsent, first %v, last %d", len(kinds), kinds[:min(12, len(kinds))], last)
		}
	})
}

func TestTooLongPackets(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeRelay(t)
		c, _, _ := connTo(t, f, ms)
		defer c.Close()
		messages, _ := pump(c)
		self := c.key.Public()
		err := c.Send(self, [][]byte{[]byte("a"), make([]byte, derp.MaxPacket+1), []byte("b"), make([]byte, derp.MaxPacket)})
		if err == nil || !strings.Contains(err.Error(), "longer than") {
			t.Errorf("error %v", err)
		}
		for _, want := range []int{1, 1, derp.MaxPacket} {
			if m := <-messages; len(m.Packet) != want {
				t.Errorf("received %d bytes, want %d", len(m.Packet), want)
			}
		}
	})
}

// TestHandshakesOvertakeData fills the data lane while the connection is stuck.
func TestHandshakesOvertakeData(t *testing.T) {
	var o outbox
	o.init()
	to := wgkey.Public{1}
	data := bytes.Repeat([]byte("d"), 1000)
	for range 100 {
		o.put(to, [][]byte{data, disco(), initiation(1)}, false)
	}
	o.control(derp.FramePing, make([]byte, 8))
	out, _ := o.take(nil, time.Unix(1000, 0))
	r := derp.NewReader(bytes.NewReader(out), 1<<20)
	var order []int
	for {
		kind, payload, err := r.Next()
		if err != nil {
			break
		}
		order = append(order, len(payload))
		if (kind == derp.FramePing) != (len(order) == 1) {
			t.Errorf("frame %d is %v", len(order), kind)
		}
	}
	for i, n := range order[1:] {
		if (n == derp.KeyLen+1000) != (i >= 200) {
			t.Fatalf("frame %d has %d bytes", i, n)
		}
	}
	if len(out) > 2*writeBytes+2000 || len(order) < 250 {
		t.Errorf("%d frames in %d bytes", len(order), len(out))
	}
}

func TestControlFramesAreBounded(t *testing.T) {
	var o outbox
	o.init()
	for range 1000 {
		if err := o.control(derp.FramePong, make([]byte, 8)); err != nil {
			t.Fatal(err)
		}
	}
	if o.ctl.len() > controlBytes {
		t.Errorf("%d bytes of control frames wait", o.ctl.len())
	}
}

// TestLaneAgainstModel compares a lane with a slice of packets.
func TestLaneAgainstModel(t *testing.T) {
	l := lane{max: 4000}
	var model [][]byte
	size := func() (n int) {
		for _, p := range model {
			n += packetOverhead + len(p)
		}
		return n
	}
	to := wgkey.Public{7}
	seed := uint32(1)
	next := func(n uint32) uint32 { seed = seed*1664525 + 1013904223; return seed >> 8 % n }
	for range 20000 {
		if next(5) < 3 {
			p := bytes.Repeat([]byte{byte(next(256))}, int(next(1500)))
			dropped := uint64(0)
			for len(model) > 0 && size()+packetOverhead+len(p) > l.max {
				model = model[1:]
				dropped++
			}
			model = append(model, p)
			if got := l.push(to, p); got != dropped {
				t.Fatalf("dropped %d, want %d", got, dropped)
			}
		} else if len(model) > 0 {
			f := l.pop()
			if !bytes.Equal(f, derp.AppendFrame(nil, derp.FrameSendPacket, to[:], model[0])) {
				t.Fatal("another frame came out")
			}
			model = model[1:]
		}
		if l.len() != size() || cap(l.buf) > 4*l.max {
			t.Fatalf("%d bytes in %d, want %d", l.len(), cap(l.buf), size())
		}
	}
}

// TestLimitOfTheRelay sends faster than the relay allows. What goes out keeps to the limit; who sends is slowed down, and where
// that is not enough the excess is dropped here.
func TestLimitOfTheRelay(t *testing.T) {
	for _, c := range []struct {
		rate, burst int
		drops       bool
	}{{1_000_000, 70_000, false}, {10_000, 2_000, true}} {
		synctest.Test(t, func(t *testing.T) {
			f := newFakeRelay(t)
			f.info.TokenBucketBytesPerSecond, f.info.TokenBucketBytesBurst = c.rate, c.burst
			conn, _, _ := connTo(t, f, ms)
			defer conn.Close()
			pump(conn)
			to := wgkey.Public{1}
			begin := time.Now()
			packet := make([]byte, 1000-packetOverhead)
			for i := range 2000 {
				conn.Send(to, [][]byte{packet})
				if i%10 == 0 {
					time.Sleep(5 * ms)
				}
			}
			conn.Send(to, [][]byte{initiation(1)})
			time.Sleep(3 * ms)
			sent := f.sentTo(to)
			if !slices.ContainsFunc(sent, func(p string) bool { return isUrgent([]byte(p)) }) {
				t.Error("a handshake waits for tokens")
			}
			took := time.Since(begin).Seconds()
			rate := float64(c.rate)
			most := rate*took + float64(c.burst) + 2000
			if got := float64(len(sent)) * 1000; got > most || got < 0.9*rate*took-2000 {
				t.Errorf("%.0f bytes in %.2f s, allowed are %.0f", got, took, most)
			}
			if got := conn.Counters().Dropped; got > 0 != c.drops {
				t.Errorf("dropped %d", got)
			}
		})
	}
}

func TestBucket(t *testing.T) {
	var b bucket
	b.set(1000, 0)
	if b.burst != 16<<10 {
		t.Errorf("burst %v without one given", b.burst)
	}
	b = bucket{}
	b.set(100_000, 1000)
	at := time.Unix(1000, 0)
	if n, _ := b.allow(at); n != 1000 {
		t.Errorf("%d bytes at first, want the burst", n)
	}
	b.spend(2000) // more than there was
	n, wait := b.allow(at)
	if n != 0 || wait < 10*ms || wait > 20*ms {
		t.Errorf("%d bytes, wait %v, with 1000 bytes of debt at 100,000 a second", n, wait)
	}
	if n, _ = b.allow(at.Add(wait)); n < 1 {
		t.Errorf("after the wait there is still nothing")
	}
	if n, _ = b.allow(at.Add(time.Hour)); n != 1000 {
		t.Errorf("%d bytes after an hour, want the burst", n)
	}
	b.set(0, 0)
	b.spend(1 << 40)
	if b.rate != 0 {
		t.Error("a limit of 0 is one")
	}
}

// FuzzFrames feeds the client what a relay might send, from the first byte behind the HTTP answer on.
func FuzzFrames(f *testing.F) {
	key, relayKey := newKey(f), newKey(f)
	hello := derp.AppendFrame(nil, derp.FrameServerKey, derp.ServerKeyPayload(relayKey.Public()))
	info, err := derp.SealServerInfo(relayKey, key.Public(), derp.ServerInfo{Version: 2, TokenBucketBytesPerSecond: 1})
	if err != nil {
		f.Fatal(err)
	}
	hello = derp.AppendFrame(hello, derp.FrameServerInfo, info)
	peer := wgkey.Public{1}
	f.Add([]byte{}, false)
	f.Add(hello[:20], false)
	for _, frame := range [][]byte{
		derp.AppendFrame(nil, derp.FrameRecvPacket, peer[:], []byte("x")), derp.AppendPeerGone(nil, peer, 1), derp.AppendRestarting(nil, 1, 2),
		derp.AppendFrame(nil, derp.FramePing, make([]byte, 8)), derp.AppendFrame(nil, derp.FramePong, make([]byte, 8)),
		derp.AppendFrame(nil, derp.FrameHealth, []byte("\xff\x1b")), derp.AppendFrame(nil, derp.FrameServerInfo, info), {4, 0xff, 0xff, 0xff, 0xff},
	} {
		f.Add(frame, true)
	}
	f.Fuzz(func(t *testing.T, sent []byte, afterHello bool) {
		if afterHello {
			sent = append(hello[:len(hello):len(hello)], sent...)
		}
		stream := &scripted{r: bufio.NewReader(bytes.NewReader(sent))}
		s := &session{dialer: &Dialer{Key: key}, target: &target{url: "x"}, bottom: stream, stream: stream}
		c := newConn(s)
		if err := c.handshake(s); err != nil {
			if afterHello {
				t.Fatalf("handshake: %v", err)
			}
			return
		}
		for {
			m, err := c.Recv()
			if err != nil {
				break
			}
			if len(m.Packet) > derp.MaxServerFrame || strings.ContainsFunc(m.Text, func(r rune) bool { return r < ' ' }) || m.ReconnectIn < 0 {
				t.Fatalf("message %+v", m)
			}
		}
		if c.out.ctl.len() > controlBytes {
			t.Fatalf("%d bytes of control frames", c.out.ctl.len())
		}
	})
}

// scripted is a connection that says what it was told to.
type scripted struct {
	net.Conn
	r *bufio.Reader
}

func (s *scripted) Read(b []byte) (int, error)  { return s.r.Read(b) }
func (s *scripted) Write(b []byte) (int, error) { return len(b), nil }
func (s *scripted) Close() error                { return nil }
func (s *scripted) LocalAddr() net.Addr         { return memAddr("a") }
func (s *scripted) RemoteAddr() net.Addr        { return memAddr("b") }
