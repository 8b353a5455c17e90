package netstack

import (
	"math/rand/v2"
	"testing"

	"culvert.dev/culvert/internal/packet"
)

// flowItem is a packet of one of many flows of a peer, with a mark in its last bytes.
func flowItem(peer uint16, port uint16, size int, mark uint16) item {
	b := make([]byte, size)
	copy(b, udpPacket(ap(outV4, port), ap(peerV4, 5000), 64, nil))
	b[size-2], b[size-1] = byte(mark>>8), byte(mark)
	return item{raw: &rawPacket{b}, peer: peer}
}

func flowOf(it item) (port, mark uint16) {
	b := it.raw.b
	return uint16(b[20])<<8 | uint16(b[21]), uint16(b[len(b)-2])<<8 | uint16(b[len(b)-1])
}

// The packets of each flow leave in the order in which they came, and all leave.
func TestFlowsKeepTheirOrder(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	q, _ := newTestQueue(t)
	var sent, seen [400]uint16
	in := 0
	for round := range 40000 {
		if in < 300 && (in == 0 || rng.IntN(2) == 0) && round < 39000 {
			flow := uint16(rng.IntN(len(sent)))
			if rng.IntN(2) == 0 {
				flow %= 3
			}
			sent[flow]++
			size := 100 + rng.IntN(2)*4000
			if !q.tryPush(flowItem(1, flow, size, sent[flow])) {
				t.Fatal("refused")
			}
			in++
			continue
		}
		it, ok := q.pop(false)
		if !ok {
			break
		}
		in--
		flow, mark := flowOf(it)
		if seen[flow]++; mark != seen[flow] {
			t.Fatalf("round %d, flow %d: packet %d, want %d", round, flow, mark, seen[flow])
		}
	}
	if sent != seen || in != 0 {
		t.Errorf("%d left", in)
	}
	if p := q.peer(1); p.lanes.held != [flowSlots]uint16{} || p.lanes.inExpress != [flowSlots / 64]uint64{} {
		t.Errorf("the slots are not empty")
	}
}

// What a download has waiting does not delay a small packet of another flow, which finds room even where the download has none.
func TestSmallFlowPassesBulk(t *testing.T) {
	q, _ := newTestQueue(t)
	const bulk, small = 1, 2
	for n := uint16(0); !q.peer(1).full(q, 1); n++ {
		q.push(flowItem(1, bulk, 60000, n))
	}
	q.push(flowItem(1, small, 100, 7)) // would wait for ever if it had to
	it, _ := q.pop(false)
	if port, mark := flowOf(it); port != small || mark != 7 {
		t.Errorf("port %d is first", port)
	}
	for range 3 { // the second of a flow waits its turn, so that none has more than one packet's advantage
		q.tryPush(flowItem(1, small, 100, 8))
	}
	if it, _ = q.pop(false); it.raw.b[21] != small {
		t.Errorf("a flow that has nothing waiting any more is not first")
	}
	if it, _ = q.pop(false); it.raw.b[21] != bulk {
		t.Errorf("the second packet of a flow goes before others")
	}
}

// Small flows that together want more than there is leave a download its part.
func TestSmallFlowsLeaveBulkItsPart(t *testing.T) {
	q, _ := newTestQueue(t)
	var bulk, small int
	port := uint16(0)
	for bulk+small < 50<<20 {
		for !q.peer(1).full(q, 1) {
			q.tryPush(flowItem(1, 1, 60000, 0))
		}
		for range 40 {
			port++
			it := flowItem(1, 1000+port%500, 1400, 0)
			it.bytes, it.slot = int32(it.size()), slotOf(&it)
			if q.peer(1).sparse(&it) {
				q.tryPush(it)
			}
		}
		for range 12 {
			it, _ := q.pop(false)
			if p, _ := flowOf(it); p == 1 {
				bulk += int(it.bytes)
			} else {
				small += int(it.bytes)
			}
		}
	}
	if share := float64(bulk) / float64(bulk+small); share < 0.7 {
		t.Errorf("the download gets %.2f of the bytes", share)
	}
}

// A flow has the same slot whatever carries it; fragments stay together.
func TestSlotOfFlow(t *testing.T) {
	raw := rawPacket{udpPacket(ap(outV4, 53), ap(peerV4, 5), 64, nil)}
	reply := udpReply{hdr: packet.MakeUDPHeader(ap(outV4, 53), ap(peerV4, 5))}
	if a, b := slotOf(&item{raw: &raw}), slotOf(&item{reply: &reply}); a != b {
		t.Errorf("slots %d and %d of one flow", a, b)
	}
	first, later := rawPacket{udpPacket(ap(outV4, 53), ap(peerV4, 5), 64, nil)}, rawPacket{udpPacket(ap(outV4, 7777), ap(peerV4, 8888), 64, nil)}
	first.b[6], later.b[6], later.b[7] = 0x20, 0, 9 // more fragments; an offset
	if a, b := slotOf(&item{raw: &first}), slotOf(&item{raw: &later}); a != b {
		t.Errorf("slots %d and %d of one datagram", a, b)
	}
	for _, b := range [][]byte{nil, {0x45}, make([]byte, 20), append([]byte{0x45}, make([]byte, 20)...), append([]byte{0x4f, 0, 0, 0, 0, 0, 0, 0, 0, 17}, make([]byte, 30)...)} {
		slotOf(&item{raw: &rawPacket{b}}) // does not fail
	}
	used := map[uint8]bool{}
	for port := range uint16(256) {
		used[slotOf(&item{raw: &rawPacket{udpPacket(ap(outV4, 40000+port), ap(peerV4, 5), 64, nil)}})] = true
	}
	if len(used) < 128 { // 162 are to be expected of random slots
		t.Errorf("256 ports share %d slots", len(used))
	}
}
