package tunnel

import (
	"encoding/binary"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/crypto/blake2s"
	"golang.zx2c4.com/wireguard/conn"

	"culvert.dev/culvert/internal/wgkey"
)

// message makes a handshake message as far as this package reads one.
func message(typ byte, sender, receiver uint32, to wgkey.Public) []byte {
	var msg []byte
	switch typ {
	case typeInitiation:
		msg = make([]byte, initiationLen)
		binary.LittleEndian.PutUint32(msg[4:], sender)
	case typeResponse:
		msg = make([]byte, responseLen)
		binary.LittleEndian.PutUint32(msg[4:], sender)
		binary.LittleEndian.PutUint32(msg[8:], receiver)
	case typeCookie:
		msg = make([]byte, cookieLen)
		binary.LittleEndian.PutUint32(msg[4:], receiver)
	}
	msg[0] = typ
	if typ != typeCookie {
		key := blake2s.Sum256(append([]byte("mac1----"), to[:]...))
		h, _ := blake2s.New128(key[:])
		h.Write(msg[:len(msg)-32])
		copy(msg[len(msg)-32:], h.Sum(nil))
	}
	return msg
}

var epoch = time.Unix(1_000_000, 0)

func at(ms int) time.Time { return epoch.Add(time.Duration(ms) * time.Millisecond) }

func newTestHandshakes(t *testing.T) (h *handshakes, self, peer wgkey.Public) {
	t.Helper()
	lower, higher := keyPair(t)
	self, peer = lower.Public(), higher.Public()
	h = newHandshakes(self)
	for _, key := range []wgkey.Public{peer, newKey(t).Public(), newKey(t).Public()} {
		h.add(key)
	}
	return h, self, peer
}

// sentInitiation notes an initiation that goes where it is meant to go.
func (h *handshakes) sentInitiation(msg []byte, endpoint string, now time.Time) (key wgkey.Public, failing bool) {
	a, ok := h.begin(msg, endpoint, now)
	if ok {
		h.goes(a.key, a.index, endpoint, now)
	}
	return a.key, a.failing
}

func TestRTTOfInitiator(t *testing.T) {
	h, _, peer := newTestHandshakes(t)
	h.sentInitiation(message(typeInitiation, 7, 0, peer), "x", at(0))
	h.gotAnswer(message(typeResponse, 1, 8, peer), "x", at(10))
	if got := h.rtt(peer); got != 0 {
		t.Errorf("an answer to something else counts: %v", got)
	}
	h.gotAnswer(message(typeResponse, 1, 7, peer), "x", at(30))
	h.gotAnswer(message(typeResponse, 1, 7, peer), "x", at(90))
	if got := h.rtt(peer); got != 30*time.Millisecond {
		t.Errorf("RTT %v, want 30 ms", got)
	}
	if h.unanswered.Load() != 0 {
		t.Error("the initiation still waits")
	}
}

func TestRTTOfResponder(t *testing.T) {
	h, _, peer := newTestHandshakes(t)
	h.sentResponse(message(typeResponse, 9, 1, peer), "x", at(0))
	h.gotTransport(8, false, at(10))
	h.gotTransport(9, false, at(25))
	h.gotTransport(9, false, at(99))
	if got := h.rtt(peer); got != 25*time.Millisecond {
		t.Errorf("RTT %v, want 25 ms", got)
	}
	if h.unconfirmed.Load() != 0 {
		t.Error("the response still waits")
	}
	h.sentResponse(message(typeResponse, 10, 1, peer), "x", at(1000))
	h.gotTransport(11, false, at(1000+int(confirmWithin/time.Millisecond)))
	if h.unconfirmed.Load() != 0 {
		t.Error("a response that nobody confirms slows the receive path for ever")
	}
}

func TestRepeatedInitiationGivesNoRTT(t *testing.T) {
	h, self, peer := newTestHandshakes(t)
	ours := message(typeInitiation, 7, 0, peer)
	h.sentInitiation(ours, "x", at(0))
	v, again := h.gotInitiation(message(typeInitiation, 3, 0, self), "x", at(20))
	if v != insist || string(again) != string(ours) {
		t.Fatalf("verdict %d, message %x", v, again)
	}
	h.gotAnswer(message(typeResponse, 1, 7, peer), "x", at(30))
	if got := h.rtt(peer); got != 0 {
		t.Errorf("RTT %v although it is not known which copy was answered", got)
	}
}

func TestOnlyCrossingInitiationsAreRefused(t *testing.T) {
	theirs := func(self wgkey.Public) []byte { return message(typeInitiation, 3, 0, self) }
	for _, c := range []struct {
		name string
		do   func(h *handshakes, self, peer wgkey.Public)
		msg  func(self wgkey.Public) []byte
		from string
		want verdict
	}{
		{"crossing", nil, theirs, "x", insist},
		{"from elsewhere", nil, theirs, "y", letIn},
		{"noise that only looks like an initiation", nil, func(wgkey.Public) []byte { return make([]byte, initiationLen) }, "x", letIn},
		{"after the answer to ours", func(h *handshakes, _, peer wgkey.Public) {
			h.gotAnswer(message(typeResponse, 1, 7, peer), "x", at(5))
		}, theirs, "x", letIn},
		{"after a cookie: ours was not accepted", func(h *handshakes, _, peer wgkey.Public) {
			h.gotAnswer(message(typeCookie, 0, 7, peer), "x", at(5))
		}, theirs, "x", letIn},
		{"after we have answered theirs", func(h *handshakes, _, peer wgkey.Public) {
			h.sentResponse(message(typeResponse, 9, 1, peer), "x", at(5))
		}, theirs, "x", letIn},
		{"after the peer was removed", func(h *handshakes, _, peer wgkey.Public) { h.remove(peer) }, theirs, "x", letIn},
		{"from where ours went before it went elsewhere", func(h *handshakes, _, peer wgkey.Public) {
			h.sentInitiation(message(typeInitiation, 8, 0, peer), "y", at(5))
		}, theirs, "x", letIn},
		{"when ours was for a stranger", func(h *handshakes, _, peer wgkey.Public) {
			h.remove(peer)
			h.sentInitiation(message(typeInitiation, 8, 0, peer), "x", at(5))
		}, theirs, "x", letIn},
	} {
		h, self, peer := newTestHandshakes(t)
		h.sentInitiation(message(typeInitiation, 7, 0, peer), "x", at(0))
		if c.do != nil {
			c.do(h, self, peer)
		}
		if got, _ := h.gotInitiation(c.msg(self), c.from, at(10)); got != c.want {
			t.Errorf("%s: verdict %d, want %d", c.name, got, c.want)
		}
		if len(h.byEndpoint) != len(h.byOwn) || int(h.unanswered.Load()) != len(h.byOwn) {
			t.Errorf("%s: %d endpoints, %d indices, %d counted", c.name, len(h.byEndpoint), len(h.byOwn), h.unanswered.Load())
		}
	}
}

func TestFailingAfterTenSeconds(t *testing.T) {
	h, _, peer := newTestHandshakes(t)
	try := func(ms int, index uint32) bool {
		key, failing := h.sentInitiation(message(typeInitiation, index, 0, peer), "x", at(ms))
		if key != peer {
			t.Fatalf("at %d ms: wrong peer", ms)
		}
		return failing
	}
	for i, want := range []bool{false, false, true, true} {
		if got := try(i*5000, uint32(i)); got != want {
			t.Errorf("after %d s of silence: failing is %v", 5*i, got)
		}
	}
	if try(600_000, 4) {
		t.Error("failing at the first attempt after a long pause")
	}
	h.gotAnswer(message(typeResponse, 1, 4, peer), "x", at(600_100))
	if try(610_000, 9) {
		t.Error("failing although the last one was answered")
	}
	h.sentResponse(message(typeResponse, 40, 1, peer), "x", at(612_000))
	h.gotTransport(40, false, at(612_050))
	if try(620_000, 10) {
		t.Error("failing although the peer's own initiation succeeded")
	}
}

func TestFailingIsSeenBetweenAttempts(t *testing.T) {
	h, _, peer := newTestHandshakes(t)
	expect := func(ms int, want bool) {
		t.Helper()
		if got := h.isFailing(peer, at(ms)); got != want {
			t.Errorf("at %d ms: failing %v", ms, got)
		}
	}
	expect(0, false)
	h.sentInitiation(message(typeInitiation, 1, 0, peer), "x", at(0))
	expect(4999, false)
	expect(5000, true)
	h.sentInitiation(message(typeInitiation, 2, 0, peer), "x", at(5100))
	expect(5200, true)
	expect(20_000, false) // wireguard-go has given up
	h.gotAnswer(message(typeResponse, 9, 2, peer), "x", at(20_100))
	h.sentInitiation(message(typeInitiation, 3, 0, peer), "x", at(20_200))
	expect(20_300, false)
}

func TestStatsTellTheRTT(t *testing.T) {
	inWorld(t, peerHome, 25, func(t *testing.T, w *world) {
		w.start(t)
		time.Sleep(time.Second)
		synctest.Wait()
		for _, e := range []struct{ at, of *end }{{w.caller, w.peer}, {w.peer, w.caller}} {
			if got := statsOf(t, e.at, e.of.key.Public()).RTT; got != 20*time.Millisecond {
				t.Errorf("RTT %v, want 20 ms", got)
			}
		}
	})
}

// fixedBind receives the same batch for ever and sends nowhere.
type fixedBind struct {
	conn.Bind
	msg []byte
}

func (b fixedBind) Open(uint16) ([]conn.ReceiveFunc, uint16, error) {
	return []conn.ReceiveFunc{func(bufs [][]byte, sizes []int, eps []conn.Endpoint) (int, error) {
		for i := range bufs {
			sizes[i], eps[i] = copy(bufs[i], b.msg), nil
		}
		return len(bufs), nil
	}}, 1, nil
}

func (b fixedBind) Send([][]byte, conn.Endpoint) error { return nil }

func TestWireDoesNotAllocate(t *testing.T) {
	msg := make([]byte, 1452)
	msg[0] = typeTransport
	h, _, peer := newTestHandshakes(t)
	w := &wire{Bind: fixedBind{msg: msg}, log: discard, shakes: h}
	fns, _, err := w.Open(1)
	if err != nil {
		t.Fatal(err)
	}
	bufs, sizes, eps := newBufs(128, 2000), make([]int, 128), make([]conn.Endpoint, 128)
	step := func() {
		fns[0](bufs, sizes, eps)
		w.Send(bufs, nil)
	}
	if n := testing.AllocsPerRun(100, step); n != 0 {
		t.Errorf("%v allocations per batch", n)
	}
	h.sentInitiation(message(typeInitiation, 7, 0, peer), "x", time.Now())
	h.sentResponse(message(typeResponse, 9, 1, peer), "y", time.Now())
	h.sentInitiation(message(typeInitiation, 8, 0, peer), "x", time.Now())
	if n := testing.AllocsPerRun(100, step); n != 0 {
		t.Errorf("%v allocations per batch while handshakes are under way", n)
	}
	if sizes[127] != len(msg) {
		t.Error("transport messages do not pass")
	}
}

func BenchmarkWireReceive(b *testing.B) {
	msg := make([]byte, 1452)
	msg[0] = typeTransport
	key, err := wgkey.NewPrivate()
	if err != nil {
		b.Fatal(err)
	}
	w := &wire{Bind: fixedBind{}, log: discard, shakes: newHandshakes(key.Public())}
	bufs, sizes, eps := newBufs(128, 2000), make([]int, 128), make([]conn.Endpoint, 128)
	for i := range bufs {
		sizes[i] = copy(bufs[i], msg)
	}
	recv := w.receiver(func(bufs [][]byte, sizes []int, eps []conn.Endpoint) (int, error) { return len(bufs), nil }, addrPortOf, true)
	b.ReportAllocs()
	for i := 0; i < b.N; i += 128 { // ns/op is per packet
		recv(bufs, sizes, eps)
	}
}
