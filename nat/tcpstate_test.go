package nat

import (
	"math/rand/v2"
	"testing"

	"culvert.dev/culvert/internal/packet"
)

// tcpEnd is an end of a simulated connection: enough of RFC 9293 to send what a real one would.
type tcpEnd struct {
	una, nxt uint32 // sent, acknowledged
	rcv      uint32 // expected next
	peerWin  uint32 // right edge of what may be sent
	win      uint16 // offered, unscaled
	scale    uint8
	finSent  bool
	finSeen  bool
}

// tcpSim is a connection through a tracker. Packets are lost before and behind it, and overtake each other on either side.
type tcpSim struct {
	t     *testing.T
	r     *rand.Rand
	tab   *Table
	f     *Flow
	end   [2]tcpEnd
	wires [2][]segment // behind the tracker, towards the end of the same index
	late  func()       // passes a segment that others overtake before the tracker
}

// send passes a segment of end d by the tracker, which has to take it, and puts it on the wire.
func (s *tcpSim) send(d Dir, seg segment) {
	s.t.Helper()
	switch late := s.late; {
	case s.r.IntN(10) == 0:
		return // lost before
	case late == nil && s.r.IntN(6) == 0:
		s.late = func() { s.pass(d, seg) }
		return
	case late != nil && s.r.IntN(3) == 0:
		defer late()
		s.late = nil
	}
	s.pass(d, seg)
}

func (s *tcpSim) pass(d Dir, seg segment) {
	s.t.Helper()
	if !s.tab.Track(s.f, d, s.packet(d, seg), 0) {
		s.t.Fatalf("%v: %+v does not fit; ends %+v, tracked %+v", d, seg, s.end, s.f.extra.Load().tcp.side)
	}
	if s.r.IntN(10) > 0 {
		w := &s.wires[d.Other()]
		*w = append(*w, seg)
		if n := len(*w); n > 1 && s.r.IntN(4) == 0 {
			(*w)[n-1], (*w)[n-2] = (*w)[n-2], (*w)[n-1]
		}
	}
}

func (s *tcpSim) packet(d Dir, seg segment) *packet.Packet {
	a, b := at(inner1, 5000), at(remote, 80)
	if d == Reply {
		a, b = b, a
	}
	return decode(s.t, tcpBytes(a, b, seg))
}

// act lets end d do something that it may do now.
func (s *tcpSim) act(d Dir) {
	e := &s.end[d]
	ack := segment{flags: fACK, seq: e.nxt, ack: e.rcv, win: e.win}
	switch s.r.IntN(6) {
	case 0, 1: // new data, as far as the window goes
		if room := e.peerWin - e.nxt; !e.finSent && int32(room) > 0 {
			ack.n = 1 + s.r.IntN(int(min(room, 9000)))
			s.send(d, ack)
			e.nxt += uint32(ack.n)
		}
	case 2: // repeat from the start
		if n := e.nxt - e.una; n > 0 && !e.finSent {
			ack.seq, ack.n = e.una, int(min(n, 9000))
			s.send(d, ack)
		}
	case 3: // keep-alive
		ack.seq--
		s.send(d, ack)
	default:
		s.send(d, ack)
	}
}

// deliver gives end d the next segment on its wire.
func (s *tcpSim) deliver(d Dir) {
	if len(s.wires[d]) == 0 {
		return
	}
	seg := s.wires[d][0]
	s.wires[d] = s.wires[d][1:]
	e, o := &s.end[d], &s.end[d.Other()]
	if before(e.una, seg.ack) && !before(e.nxt, seg.ack) {
		e.una = seg.ack
	}
	if edge := seg.ack + uint32(seg.win)<<o.scale; before(e.peerWin, edge) {
		e.peerWin = edge
	}
	if seg.seq == e.rcv {
		e.rcv += uint32(seg.n)
		if seg.flags&fFIN != 0 && !e.finSeen {
			e.rcv++
			e.finSeen = true
		}
	} else if end := seg.seq + uint32(seg.n); before(seg.seq, e.rcv) && before(e.rcv, end) {
		e.rcv = end
	}
	e.win = uint16(s.r.IntN(60000)) // what is left of the buffer: may be nothing
	if edge := o.peerWin; before(e.rcv+uint32(e.win)<<e.scale, edge) {
		e.win = uint16((edge-e.rcv)>>e.scale) + 1 // windows do not shrink (RFC 9293 section 3.8.6)
	}
}

// A real connection, with losses, repetitions and reordering, never sends what the tracker refuses, and its RST or FINs are seen.
func TestTrackTakesWhatConnectionsSend(t *testing.T) {
	for seed := range uint64(300) {
		r := rand.New(rand.NewPCG(seed, 9))
		s := &tcpSim{t: t, r: r, tab: New(Config{})}
		isn := [2]uint32{r.Uint32(), r.Uint32()}
		s.end[0] = tcpEnd{una: isn[0] + 1, nxt: isn[0] + 1, rcv: isn[1] + 1, win: 64000, scale: uint8(r.IntN(9))}
		s.end[1] = tcpEnd{una: isn[1] + 1, nxt: isn[1] + 1, rcv: isn[0] + 1, win: 64000, scale: uint8(r.IntN(9))}
		s.end[0].peerWin, s.end[1].peerWin = isn[0]+1+64000, isn[1]+1+64000
		option := func(d Dir) []byte { return []byte{1, 3, 3, s.end[d].scale} }
		syn := segment{flags: fSYN, seq: isn[0], win: 64000, opts: option(Original)}
		p := s.packet(Original, syn)
		s.f = &Flow{Key: p.Key}
		s.tab.Insert(s.f, 0)
		for i, pkt := range []*packet.Packet{
			p, s.packet(Reply, segment{flags: fSYN | fACK, seq: isn[1], ack: isn[0] + 1, win: 64000, opts: option(Reply)}),
			s.packet(Original, segment{flags: fACK, seq: isn[0] + 1, ack: isn[1] + 1, win: 64000}),
		} {
			if !s.tab.Track(s.f, Dir(i%2), pkt, 0) {
				t.Fatalf("packet %d of the handshake", i)
			}
		}
		for range 50 + r.IntN(400) {
			s.act(Dir(r.IntN(2)))
			s.deliver(Dir(r.IntN(2)))
			if s.f.TCP() != TCPEstablished {
				t.Fatalf("seed %d: %v in the midst", seed, s.f.TCP())
			}
		}
		d := Dir(r.IntN(2))
		if seed%2 == 0 { // one end gives up
			e := &s.end[d]
			rst := segment{flags: fRST | fACK, seq: e.nxt, ack: e.rcv}
			if r.IntN(2) == 0 { // has forgotten the connection, and answers to a segment (RFC 9293 section 3.10.7.1)
				rst = segment{flags: fRST, seq: s.end[d.Other()].rcv}
			}
			if !s.tab.Track(s.f, d, s.packet(d, rst), 0) || s.f.TCP() != TCPClose {
				t.Fatalf("seed %d: RST of %v %+v: %v; ends %+v, tracked %+v", seed, d, rst, s.f.TCP(), s.end, s.f.extra.Load().tcp.side)
			}
			continue
		}
		s.finish(seed, d)
	}
}

// finish closes the connection, d first, without further losses.
func (s *tcpSim) finish(seed uint64, d Dir) {
	s.t.Helper()
	for range 200 { // all data arrives
		for d := range Dir(2) {
			e, o := &s.end[d], &s.end[d.Other()]
			s.wires[d] = nil
			s.tab.Track(s.f, d, s.packet(d, segment{flags: fACK, seq: e.una, ack: e.rcv, win: e.win, n: int(min(e.nxt-e.una, 20000))}), 0)
			if o.rcv == e.una {
				o.rcv += min(e.nxt-e.una, 20000)
			}
			e.una = o.rcv
		}
	}
	a, b := &s.end[d], &s.end[d.Other()]
	for i, st := range []struct {
		d    Dir
		seg  segment
		want TCPState
	}{
		{d, segment{flags: fFIN | fACK, seq: a.nxt, ack: b.nxt}, TCPFinWait},
		{d.Other(), segment{flags: fACK, seq: b.nxt, ack: a.nxt + 1}, TCPCloseWait},
		{d.Other(), segment{flags: fFIN | fACK, seq: b.nxt, ack: a.nxt + 1}, TCPLastAck},
		{d, segment{flags: fACK, seq: a.nxt + 1, ack: b.nxt + 1}, TCPTimeWait},
	} {
		if !s.tab.Track(s.f, st.d, s.packet(st.d, st.seg), 0) || s.f.TCP() != st.want {
			s.t.Fatalf("seed %d: packet %d of the end: %v, want %v; ends %+v, tracked %+v", seed, i, s.f.TCP(), st.want, s.end, s.f.extra.Load().tcp.side)
		}
	}
}
