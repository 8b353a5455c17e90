//go:build linux

package load

import (
	"encoding/binary"
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// sendRuns sends numbered datagrams, some of them in a message, and returns when the first went.
func sendRuns(t *testing.T, to netip.AddrPort, size, segments, messages int) (*datagramSocket, time.Time) {
	t.Helper()
	s, err := openSocket(netip.AddrPort{}, to)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.conn.Close() })
	g := newFloodSender(s, testSession, Flood{Size: size, Segments: segments})
	start := time.Now()
	var sent sent
	for range messages {
		if err := g.send(segments, &sent); err != nil || sent.errors > 0 {
			t.Fatalf("%v, %+v", err, sent)
		}
	}
	return s, start
}

// readNumbers reads n datagrams one by one and requires them to be in order.
func readNumbers(t *testing.T, c *net.UDPConn, n int) (from netip.AddrPort) {
	t.Helper()
	b := make([]byte, messageLen)
	for i := range n {
		length, addr, err := c.ReadFromUDPAddrPort(b)
		if err != nil {
			t.Fatalf("after %d of %d: %v", i, n, err)
		}
		if got := binary.BigEndian.Uint64(b[numberAt:]); length < patternAt || got != uint64(i) {
			t.Fatalf("number %d of %d bytes comes at place %d", got, length, i)
		}
		from = addr
	}
	return from
}

func TestLineDelaysBothWaysInOrder(t *testing.T) {
	const delay, packets = 40 * time.Millisecond, 10 * 12
	server := udpSocket(t)
	r := startLine(t, Line{To: portOf(server).String(), Delay: delay})
	client, start := sendRuns(t, r.Addr(), 500, 10, 12)
	from := readNumbers(t, server, packets)
	if took := time.Since(start); took < delay {
		t.Errorf("the way to the server takes %v", took)
	}
	start = time.Now()
	for i := range packets {
		if _, err := server.WriteToUDPAddrPort(numbered(300, uint64(i)), from); err != nil {
			t.Fatal(err)
		}
	}
	client.conn.SetReadDeadline(time.Now().Add(20 * time.Second))
	// The client's socket joins, too.
	got, b := 0, newBatch(client, unix.SYS_RECVMMSG)
	room := make([]byte, messageLen)
	for got < packets {
		b.set(0, room)
		if _, err := b.receive(1); err != nil {
			t.Fatalf("after %d: %v", got, err)
		}
		length, segment := b.message(0)
		if segment == 0 {
			segment = length
		}
		for at := 0; at < length; at += segment {
			if n := binary.BigEndian.Uint64(room[at+numberAt:]); n != uint64(got) || segment != 300 {
				t.Fatalf("number %d of %d bytes comes at place %d", n, segment, got)
			}
			got++
		}
	}
	if took := time.Since(start); took < delay {
		t.Errorf("the way to the client takes %v", took)
	}
	res := r.Result()
	if res.Dropped != 0 || res.Up.Packets != packets || res.Down.Packets != packets || res.Up.Bytes != packets*500 || res.Down.Bytes != packets*300 {
		t.Errorf("got %+v", res)
	}
	if res.Up.Messages >= packets || res.Up.QueuedMost == 0 || res.DelayMillis != 40 {
		t.Errorf("got %+v: runs do not stay together", res)
	}
}

func TestLineCountsWhatItsQueueCannotHold(t *testing.T) {
	server := udpSocket(t)
	const size, segments, messages = 1000, 10, 20
	r := startLine(t, Line{To: portOf(server).String(), Delay: 300 * time.Millisecond, Queue: 55_000})
	sendRuns(t, r.Addr(), size, segments, messages)
	for r.Result().Up.Packets < segments*messages {
		time.Sleep(time.Millisecond) // polls; the test's time limit ends it
	}
	res := r.Result()
	if res.Up.QueueDrops == 0 || res.Dropped != res.Up.QueueDrops || res.Up.QueuedMost > 55_000 {
		t.Errorf("got %+v", res)
	}
	b := make([]byte, messageLen)
	for got := range res.Up.Packets - res.Up.QueueDrops {
		if _, err := server.Read(b); err != nil {
			t.Fatalf("after %d of %+v: %v", got, res, err)
		}
	}
	server.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
	if n, err := server.Read(b); err == nil {
		t.Errorf("%d bytes arrive that count as dropped", n)
	}
}

func TestLineFollowsTheClient(t *testing.T) {
	server := udpSocket(t)
	r := startLine(t, Line{To: portOf(server).String(), Delay: time.Millisecond})
	var from netip.AddrPort
	b := make([]byte, 100)
	for _, name := range []string{"one", "two"} {
		client := udpSocket(t)
		client.WriteToUDPAddrPort([]byte(name), r.Addr())
		n, addr, err := server.ReadFromUDPAddrPort(b)
		if err != nil || string(b[:n]) != name || from.IsValid() && addr != from {
			t.Fatalf("got %q from %v, %v", b[:n], addr, err)
		}
		from = addr
		server.WriteToUDPAddrPort([]byte("to "+name), from)
		if n, _, err := client.ReadFromUDPAddrPort(b); err != nil || string(b[:n]) != "to "+name {
			t.Errorf("got %q, %v", b[:n], err)
		}
	}
}

func TestLineCountsWhatHasNoClient(t *testing.T) {
	server := udpSocket(t)
	r := startLine(t, Line{To: portOf(server).String()})
	server.WriteToUDPAddrPort([]byte("x"), r.servers.addr())
	for r.Result().Dropped == 0 {
		time.Sleep(time.Millisecond) // polls; the test's time limit ends it
	}
	if c := r.Result().Down; c.Packets != 1 || c.SendErrors != 1 {
		t.Errorf("got %+v", c)
	}
}

// A server that is not there yet must cost nothing of what comes later.
func TestLineOutlivesARefusal(t *testing.T) {
	later := udpSocket(t)
	addr := portOf(later)
	later.Close()
	r := startLine(t, Line{To: addr.String()})
	client := udpSocket(t)
	for range 5 {
		client.WriteToUDPAddrPort([]byte("lost"), r.Addr())
	}
	for r.Result().Up.Packets < 5 {
		time.Sleep(time.Millisecond) // polls; the test's time limit ends it
	}
	server, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(addr))
	if err != nil {
		t.Skipf("the port has been taken: %v", err)
	}
	defer server.Close()
	server.SetDeadline(time.Now().Add(20 * time.Second))
	client.WriteToUDPAddrPort([]byte("there"), r.Addr())
	for b := make([]byte, 100); ; {
		n, err := server.Read(b)
		if err != nil {
			t.Fatal(err)
		}
		if string(b[:n]) == "there" {
			return
		}
	}
}

func TestLineRefusesWhatIsImpossible(t *testing.T) {
	for name, l := range map[string]Line{
		"no address":     {Listen: "127.0.0.1:0"},
		"no port":        {Listen: "127.0.0.1", To: "127.0.0.1:1"},
		"a past":         {Listen: "127.0.0.1:0", To: "127.0.0.1:1", Delay: -1},
		"a foreign host": {Listen: "192.0.2.1:0", To: "127.0.0.1:1"},
	} {
		if r, err := l.Start(); err == nil {
			r.Close()
			t.Errorf("%s: no error", name)
		}
	}
}

func TestQueueKeepsOrderAndSlots(t *testing.T) {
	var q queue
	q.init(1000, 8)
	have := make([]int32, 2)
	q.take(have)
	push := func(length int32, due time.Duration) bool {
		q.mu.Lock()
		defer q.mu.Unlock()
		fresh, ok := q.pushLocked(parcel{slot: have[0], length: length, due: due})
		if ok {
			have[0] = fresh
		}
		return ok
	}
	var list [maxBatch]parcel
	for round := range 10 { // around the ring
		for i := range 6 {
			if !push(100, time.Duration(i)) {
				t.Fatalf("round %d: message %d finds no room", round, i)
			}
		}
		if push(100, 9) {
			t.Fatal("there are more slots than there were")
		}
		if n, next := q.pop(list[:], 3); n != 4 || next != 4 || list[3].due != 3 {
			t.Fatalf("got %d of which the last is %+v, next %v", n, list[3], next)
		}
		q.give(list[:4])
		if n, next := q.pop(list[:], 1); n != 0 || next != 4 {
			t.Fatalf("got %d, next %v", n, next)
		}
		if push(801, 9) {
			t.Fatal("there is room for more bytes than allowed")
		}
		if n, _ := q.pop(list[:], 9); n != 2 {
			t.Fatalf("got %d", n)
		}
		q.give(list[:2])
	}
	if q.most() != 600 || len(q.free) != 6 || q.bytes != 0 {
		t.Errorf("%d bytes at most, %d free slots, %d bytes left", q.most(), len(q.free), q.bytes)
	}
	waiting := make(chan time.Duration)
	go func() {
		_, next := q.pop(list[:], 0)
		waiting <- next
	}()
	q.close()
	if got := <-waiting; got != queueClosed {
		t.Errorf("got %v", got)
	}
}

// BenchmarkLine carries runs of full-sized packets, the sender and the receiver included.
func BenchmarkLine(b *testing.B) {
	const size, segments, inFlight = 1420, 44, 32
	server, err := openSocket(netip.MustParseAddrPort("127.0.0.1:0"), netip.AddrPort{})
	if err != nil {
		b.Fatal(err)
	}
	defer server.conn.Close()
	r, err := Line{Listen: "127.0.0.1:0", To: server.addr().String()}.Start()
	if err != nil {
		b.Fatal(err)
	}
	defer r.Close()
	client, err := openSocket(netip.AddrPort{}, r.Addr())
	if err != nil {
		b.Fatal(err)
	}
	defer client.conn.Close()
	server.conn.SetReadDeadline(time.Now().Add(time.Minute))
	g, in := newFloodSender(client, testSession, Flood{Size: size, Segments: segments}), newBatch(server, unix.SYS_RECVMMSG)
	room := make([]byte, maxBatch*messageLen)
	for i := range maxBatch {
		in.set(i, room[i*messageLen:(i+1)*messageLen])
	}
	var sent sent
	b.SetBytes(size * segments)
	b.ReportAllocs()
	b.ResetTimer()
	for i, got := 0, 0; got < b.N*size*segments; {
		for ; i < b.N && i*size*segments-got < inFlight*size*segments; i++ {
			if err := g.send(segments, &sent); err != nil {
				b.Fatal(err)
			}
		}
		n, err := in.receive(maxBatch)
		if err != nil {
			b.Fatalf("%v: %+v", err, r.Result())
		}
		for i := range n {
			length, _ := in.message(i)
			got += length
		}
	}
}
