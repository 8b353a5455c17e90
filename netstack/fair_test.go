package netstack

import (
	"sync"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip/stack"

	"culvert.dev/culvert/internal/packet"
	"culvert.dev/culvert/netstack/hostsock"
)

// fakeTime is a clock that stands still unless told otherwise.
type fakeTime struct{ now int64 }

// newTestQueue is a queue whose clock is the returned one.
func newTestQueue(t testing.TB) (*queue, *fakeTime) {
	q, f := new(queue), new(fakeTime)
	q.init(new(counters))
	q.clock = func() int64 { return f.now }
	t.Cleanup(q.close)
	return q, f
}

var zeroes [65535]byte

func rawItem(peer uint16, size int) item {
	return item{raw: &rawPacket{zeroes[:size:size]}, peer: peer}
}

// segmentItem is a segment of gVisor's: IPv4 and TCP headers and that much data.
func segmentItem(peer uint16, data, mss int) item {
	pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{ReserveHeaderBytes: 40, Payload: buffer.MakeWithData(make([]byte, data))})
	pkt.TransportHeader().Push(20)[12] = 5 << 4
	pkt.NetworkHeader().Push(20)[0] = 0x45
	pkt.GSOOptions = stack.GSO{Type: stack.GSOTCPv4, NeedsCsum: true, MSS: uint16(mss), L3HdrLen: 20}
	return item{pkt: pkt, peer: peer}
}

func datagramItem(peer uint16, n, gso int) item {
	buf := hostsock.NewBufPool(n).Get()
	r := &udpReply{hdr: packet.MakeUDPHeader(ap(outV4, 53), ap(peerV4, 5)), buf: buf, n: n, gso: gso, ttl: 60}
	return item{reply: r, peer: peer}
}

// fill hands over items until one is refused, and returns how many were taken.
func fill(q *queue, peer uint16, size int) int {
	for n := 0; ; n++ {
		if !q.tryPush(rawItem(peer, size)) {
			return n
		}
	}
}

// Two peers that always have something waiting get the same, however large their packets and however many come in.
func TestPeersGetEqualShares(t *testing.T) {
	for _, sizes := range [][2]int{{65000, 1400}, {1400, 1400}, {1400, 60}, {65000, 30000}} {
		q, _ := newTestQueue(t)
		var got [3]int
		for got[1]+got[2] < 200*quantum {
			fill(q, 1, sizes[0]) // the greedy one always tries until it is refused
			for q.peer(2).n < leastItems {
				q.tryPush(rawItem(2, sizes[1]))
			}
			it, ok := q.pop(false)
			if !ok {
				t.Fatal("nothing to read")
			}
			got[it.peer] += int(it.bytes)
		}
		if share := float64(got[1]) / float64(got[1]+got[2]); share < 0.48 || share > 0.52 {
			t.Errorf("packets of %d and %d bytes: the greedy peer got %.3f of the bytes", sizes[0], sizes[1], share)
		}
	}
}

// A peer that sends little is served within one turn of each other peer, whatever they have waiting.
func TestSparsePeerWaitsOneRound(t *testing.T) {
	q, _ := newTestQueue(t)
	for peer := range uint16(10) {
		fill(q, peer+1, 1400)
	}
	q.pop(false)
	q.tryPush(rawItem(99, 60))
	before := 0
	for {
		it, ok := q.pop(false)
		if !ok {
			t.Fatal("the sparse peer's packet is lost")
		}
		if it.peer == 99 {
			break
		}
		before += int(it.bytes)
	}
	if limit := 10 * (quantum + 1400); before > limit {
		t.Errorf("%d bytes went before it, want at most %d", before, limit)
	}
}

func TestFullPeerDoesNotRefuseAnother(t *testing.T) {
	q, _ := newTestQueue(t)
	fill(q, 1, 1400)
	if got := fill(q, 2, 1400); got < leastItems {
		t.Errorf("beside a full peer another may queue %d packets", got)
	}
	q.push(datagramItem(1, 1000, 1000)) // must not wait: two peers are active
	if n := q.counters.snapshot()["queue-full"]; n != 3 {
		t.Errorf("%d counted drops, want 3", n)
	}
}

func TestMemoryIsBoundedForAnyNumberOfPeers(t *testing.T) {
	q, _ := newTestQueue(t)
	total := 0
	for peer := range uint16(200) {
		for range fill(q, peer+1, 1400) {
			total += 1400
		}
	}
	if limit := totalBytes + 200*(leastBytes+1400); total > limit {
		t.Errorf("200 peers hold %d bytes, want at most %d", total, limit)
	}
}

func TestMemoryOfSilentPeersIsGivenBack(t *testing.T) {
	q, now := newTestQueue(t)
	q.setRates(map[uint16]Rate{7: 1e6})
	for peer := range uint16(1000) {
		q.tryPush(rawItem(peer, 100))
	}
	q.sweep()
	for range 1000 {
		q.pop(false)
	}
	q.tryPush(rawItem(3, 100))
	now.now += int64(time.Second)
	q.sweep()
	q.sweep()
	if len(q.peers) != 1 || q.peers[3] == nil {
		t.Errorf("%d peers are remembered, want the one with a packet", len(q.peers))
	}
	if it, ok := q.pop(false); !ok || it.peer != 3 {
		t.Error("its packet is lost")
	}
}

// What the scheduler and the rates count is what leaves the Device.
func TestItemSizeIsWhatLeaves(t *testing.T) {
	for name, make := range map[string]func() item{
		"segment":         func() item { return segmentItem(1, 900, 1340) },
		"large segment":   func() item { return segmentItem(1, 64000, 1340) },
		"whole segments":  func() item { return segmentItem(1, 3*1340, 1340) },
		"datagrams":       func() item { return datagramItem(1, 3500, 1000) },
		"whole datagrams": func() item { return datagramItem(1, 3000, 1000) },
		"empty datagram":  func() item { return datagramItem(1, 0, 1) },
		"packet":          func() item { return rawItem(1, 1000) },
	} {
		t.Run(name, func(t *testing.T) {
			n := newTestNet(t, testPolicy(t, nil))
			it := make()
			want := it.size()
			n.out.push(it)
			got := 0
			for _, b := range newWire(n).take() {
				got += len(b)
			}
			if got != want {
				t.Errorf("%d bytes left, counted %d", got, want)
			}
		})
	}
}

// started runs f and waits until it sleeps in the queue, or is done.
func started(q *queue, peer uint16, f func()) (done chan struct{}) {
	done = make(chan struct{})
	go func() {
		f()
		close(done)
	}()
	for {
		q.mu.Lock()
		waiting := q.peer(peer).waiting
		q.mu.Unlock()
		select {
		case <-done:
			return done
		default:
		}
		if waiting > 0 {
			return done
		}
		time.Sleep(time.Millisecond)
	}
}

func isDone(done chan struct{}) bool {
	select {
	case <-done:
		return true
	default:
		return false
	}
}

func TestWriterWaitsWhileItsPeerIsAlone(t *testing.T) {
	q, _ := newTestQueue(t)
	full := func() bool { return q.peer(1).bytes >= queueBytes }
	for !full() {
		q.push(segmentItem(1, 64000, 1340))
	}
	done := started(q, 1, func() { q.push(segmentItem(1, 1000, 1340)) })
	if isDone(done) {
		t.Fatal("it did not wait")
	}
	q.pop(false)
	q.pop(false)
	<-done

	// When another peer joins, nobody waits any more: segments pile up to the hard bound, datagrams are dropped.
	for !full() {
		q.push(segmentItem(1, 64000, 1340))
	}
	segment := started(q, 1, func() { q.push(segmentItem(1, 64000, 1340)) })
	before := q.peers[1].n
	q.push(datagramItem(2, 1000, 1000))
	<-segment
	if q.peers[1].n != before+1 {
		t.Error("the segment that waited is lost")
	}
	q.push(datagramItem(1, 4000, 1000))
	if n := q.counters.snapshot()["queue-full"]; n != 1 {
		t.Errorf("%d drops, want the datagram", n)
	}
	for !q.peers[1].full(q, hardFactor) {
		q.push(segmentItem(1, 64000, 1340))
	}
	if segment = started(q, 1, func() { q.push(segmentItem(1, 64000, 1340)) }); isDone(segment) {
		t.Error("the hard bound does not hold")
	}
	for !isDone(segment) {
		q.pop(false)
	}
}

func TestClosingWakesWritersAndReader(t *testing.T) {
	q, _ := newTestQueue(t)
	fill(q, 1, 60000)
	writer := started(q, 1, func() {
		if q.push(segmentItem(1, 1000, 1340)) {
			t.Error("a closed queue took a segment")
		}
	})
	q.close()
	<-writer
	if _, ok := q.pop(true); ok || q.tryPush(rawItem(1, 1)) {
		t.Error("a closed queue still works")
	}
}

// Many writers, rates that come and go, one reader, and an end. It is for the race detector.
func TestQueueUnderLoad(t *testing.T) {
	q := new(queue)
	q.init(new(counters))
	var wg sync.WaitGroup
	for peer := range uint16(6) {
		wg.Go(func() {
			for i := range 3000 {
				switch i % 3 {
				case 0:
					q.push(segmentItem(peer, 5000, 1340))
				case 1:
					q.push(datagramItem(peer, 1000, 500))
				default:
					q.tryPush(rawItem(peer, 100))
				}
			}
		})
	}
	wg.Go(func() {
		for i := range 50 {
			q.setRates(map[uint16]Rate{1: Rate(1+i%2) * 1e9, uint16(i % 6): 20e6})
			q.sweep()
			time.Sleep(time.Millisecond)
		}
		q.setRates(nil)
	})
	got, read := 0, make(chan struct{})
	go func() {
		defer close(read)
		for {
			it, ok := q.pop(true)
			if !ok {
				return
			}
			it.release()
			got++
		}
	}()
	wg.Wait()
	for {
		q.mu.Lock()
		left := q.n
		q.mu.Unlock()
		if left == 0 {
			break
		}
		time.Sleep(time.Millisecond)
	}
	q.close()
	<-read
	dropped := 0
	for _, n := range q.counters.snapshot() {
		dropped += int(n)
	}
	if got+dropped != 6*3000 {
		t.Errorf("%d read and %d dropped of %d", got, dropped, 6*3000)
	}
}

func BenchmarkQueue(b *testing.B) {
	for _, peers := range []int{1, 2, 200} {
		b.Run(map[int]string{1: "one peer", 2: "two peers", 200: "200 peers"}[peers], func(b *testing.B) {
			q, _ := newTestQueue(b)
			raw := &rawPacket{make([]byte, 1400)}
			b.ReportAllocs()
			for i := 0; i < b.N; i += 64 {
				for k := range 64 {
					q.tryPush(item{raw: raw, peer: uint16((i + k) % peers)})
				}
				for range 64 {
					q.pop(false)
				}
			}
		})
	}
}
