package nat

import (
	"encoding/binary"
	"sync"

	"culvert.dev/culvert/internal/packet"
)

// A TCP flow is followed through the states that conntrack knows, by what both ends have sent and acknowledged:
//
//	     SYN            SYN back            SYN|ACK
//	NONE ----> SYN_SENT --------> SYN_SENT2 -------> SYN_RECV
//	               \____________________________________^  |
//	                        SYN|ACK                        | both SYNs acknowledged
//	                                                       v
//	TIME_WAIT <------ LAST_ACK <----- CLOSE_WAIT <----- ESTABLISHED
//	     both FINs       ^  FIN back       ^   FIN acked    |
//	     acknowledged     \___________ FIN_WAIT <-----------/ FIN
//
// A RST that fits the connection leads to CLOSE from anywhere, a SYN from TIME_WAIT or CLOSE back to SYN_SENT or SYN_SENT2.
// Segments outside the window change nothing: they pass, as the end that gets them knows better, but for a RST.

// tcpConn is what Track remembers of a connection, by direction.
type tcpConn struct {
	mu    sync.Mutex // guards the following, and the order of changes of the flow's TCP state, observers included
	side  [2]tcpSide
	scale [2]uint8 // window scale that counts
	flags [2]uint8
}

// tcpSide is what one end has sent.
type tcpSide struct {
	first uint32 // initial sequence number plus one
	end   uint32 // behind the last sequence number sent
	ack   uint32 // the highest acknowledgement sent
	win   uint32 // the largest window offered, in bytes
}

const (
	sideSeen   = 1 << iota // first and end are valid
	sideAcked              // ack and win are valid
	sideScaled             // its SYN had a window scale option
	sideFin                // end lies behind a FIN
)

const (
	maxScale     = 14 // RFC 7323 section 2.3
	optEnd       = 0
	optNop       = 1
	optScale     = 3
	headerTCPLen = 20
)

// Track follows the TCP connection of f by a packet of direction d and sets the flow's TCP state. It reports whether the packet
// fits: false for flags that no connection sends, and for a RST that is not in the window, so that one who does not see the
// connection cannot end it (RFC 5961 section 3, RFC 7857 section 2.2). What does not fit must not be passed on. A SYN on a
// connection that is over starts the flow anew. Other protocols always fit.
func (t *Table) Track(f *Flow, d Dir, p *packet.Packet, now int64) bool {
	if p.Proto != packet.ProtoTCP {
		return true
	}
	if !plausible(p.TCPFlags) {
		return false
	}
	c := &f.extraOf().tcp
	c.mu.Lock()
	defer c.mu.Unlock()
	was := f.TCP()
	next, ok := c.step(was, d, p)
	switch {
	case next == was:
	case was == TCPTimeWait || was == TCPClose:
		f.Touch(now)
		t.reopen(f, next)
	default:
		t.SetTCP(f, next)
	}
	return ok
}

// plausible refuses combinations of flags that no connection sends (RFC 9293 section 3.5).
func plausible(flags uint8) bool {
	syn, fin := flags&packet.TCPSyn != 0, flags&packet.TCPFin != 0
	rst, ack := flags&packet.TCPRst != 0, flags&packet.TCPAck != 0
	switch {
	case rst:
		return !syn && !fin
	case syn:
		return !fin
	}
	return ack
}

// step returns the state after a packet of direction d in state st, and whether the packet fits.
func (c *tcpConn) step(st TCPState, d Dir, p *packet.Packet) (TCPState, bool) {
	const syn, ack = packet.TCPSyn, packet.TCPAck
	switch p.TCPFlags & (syn | ack | packet.TCPRst) {
	case packet.TCPRst, packet.TCPRst | ack:
		if !c.resets(st, d, p) {
			return st, false
		}
		if st == TCPTimeWait { // RFC 1337: it must not cut TIME_WAIT short, and has nothing left to close
			return st, true
		}
		return TCPClose, true
	case syn:
		return c.open(st, d, p), true
	case syn | ack:
		return c.accept(st, d, p)
	}
	return c.data(st, d, p), true
}

// open takes a SYN.
func (c *tcpConn) open(st TCPState, d Dir, p *packet.Packet) TCPState {
	next := TCPSynSent
	if d == Reply {
		next = TCPSynSent2
	}
	switch st {
	case TCPNone, TCPTimeWait, TCPClose: // a new connection
		c.side, c.flags, c.scale = [2]tcpSide{}, [2]uint8{}, [2]uint8{}
	case TCPSynSent, TCPSynSent2: // repeated, perhaps by another connection; or from both sides
		next = max(next, st)
	default: // the end that gets it answers with what it knows (RFC 5961 section 4)
		return st
	}
	c.noteSYN(d, p)
	return next
}

// accept takes a SYN with ACK.
func (c *tcpConn) accept(st TCPState, d Dir, p *packet.Packet) (TCPState, bool) {
	o := d.Other()
	switch {
	case st == TCPNone: // not seen from the start
	case st == TCPSynSent && d == Original:
		return st, false
	case st == TCPSynSent || st == TCPSynSent2 || st == TCPSynRecv:
		if !c.acksSYN(o, p.Ack) { // of an old connection; the other end will say so
			return st, true
		}
	default:
		return st, true
	}
	c.noteSYN(d, p)
	c.noteAck(d, p)
	switch {
	case c.flags[o]&sideSeen == 0:
		c.scale[o] = maxScale
	case c.flags[0]&c.flags[1]&sideScaled == 0:
		c.scale = [2]uint8{} // both have to offer it (RFC 7323 section 2.2)
	}
	return c.handshake(), true
}

// handshake is the state once one SYN has been acknowledged.
func (c *tcpConn) handshake() TCPState {
	if c.flags[0]&c.flags[1]&sideAcked != 0 {
		return TCPEstablished
	}
	return TCPSynRecv
}

// data takes any other segment.
func (c *tcpConn) data(st TCPState, d Dir, p *packet.Packet) TCPState {
	switch st {
	case TCPSynSent, TCPSynSent2, TCPTimeWait, TCPClose:
		return st
	case TCPNone: // not seen from the start: windows are taken for as large as they may be
		c.scale = [2]uint8{maxScale, maxScale}
		c.noteData(d, p)
		st = TCPEstablished
	case TCPSynRecv:
		if !c.fits(d, p) {
			return st
		}
		c.noteData(d, p)
		if st = c.handshake(); st != TCPEstablished {
			return st
		}
	default:
		if !c.fits(d, p) {
			return st
		}
		c.noteData(d, p)
	}
	return c.closing(st)
}

// closing is the state as far as FINs decide it.
func (c *tcpConn) closing(st TCPState) TCPState {
	fins, acked := 0, 0
	for d := range c.side {
		if c.flags[d]&sideFin == 0 {
			continue
		}
		fins++
		if o := d ^ 1; c.flags[o]&sideAcked != 0 && !before(c.side[o].ack, c.side[d].end) {
			acked++
		}
	}
	switch {
	case fins == 0:
		return st
	case fins == 1 && acked == 0:
		return TCPFinWait
	case fins == 1:
		return TCPCloseWait
	case acked < 2:
		return TCPLastAck
	}
	return TCPTimeWait
}

// noteSYN notes the sequence number and options of a SYN.
func (c *tcpConn) noteSYN(d Dir, p *packet.Packet) {
	s := &c.side[d]
	s.first = p.Seq + 1
	s.end = p.Seq + segmentLen(p)
	c.flags[d] = c.flags[d]&^sideScaled | sideSeen
	c.scale[d] = 0
	if n, ok := windowScale(p); ok {
		c.flags[d] |= sideScaled
		c.scale[d] = n
	}
}

// noteAck notes the acknowledgement and window of a segment.
func (c *tcpConn) noteAck(d Dir, p *packet.Packet) {
	s := &c.side[d]
	win := uint32(binary.BigEndian.Uint16(p.Buf[p.L4+14:]))
	if p.TCPFlags&packet.TCPSyn == 0 { // that of a SYN is never scaled
		win <<= c.scale[d]
	}
	if c.flags[d]&sideAcked == 0 {
		c.flags[d] |= sideAcked
		s.ack, s.win = p.Ack, win
		return
	}
	if before(s.ack, p.Ack) {
		s.ack = p.Ack
	}
	s.win = max(s.win, win)
}

// noteData notes all of a segment that is no SYN.
func (c *tcpConn) noteData(d Dir, p *packet.Packet) {
	s := &c.side[d]
	end := p.Seq + segmentLen(p)
	if c.flags[d]&sideSeen == 0 {
		c.flags[d] |= sideSeen
		s.first, s.end = p.Seq, end
	} else if before(s.end, end) {
		s.end = end
	}
	if p.TCPFlags&packet.TCPFin != 0 && end == s.end {
		c.flags[d] |= sideFin
	}
	c.noteAck(d, p)
}

// fits reports whether a segment may change what is known: it lies in the window that the other end has offered, or not a window
// before it, and acknowledges nothing that the other end has not sent.
func (c *tcpConn) fits(d Dir, p *packet.Packet) bool {
	o := d.Other()
	r := &c.side[o]
	if c.flags[o]&sideSeen != 0 && before(r.end, p.Ack) {
		return false
	}
	if c.flags[o]&sideAcked == 0 {
		return true
	}
	win := max(r.win, 1)
	return !before(r.ack+win, p.Seq) && !before(p.Seq+segmentLen(p), r.ack-win)
}

// resets reports whether a RST of direction d may end the connection. The end that gets it takes it at its next expected
// sequence number only (RFC 5961 section 3.2); the NAT has seen that acknowledged or knows it to be a little above.
func (c *tcpConn) resets(st TCPState, d Dir, p *packet.Packet) bool {
	o := d.Other()
	s, r := &c.side[d], &c.side[o]
	switch {
	case (c.flags[0]|c.flags[1])&sideSeen == 0: // nothing is known
		return true
	case c.flags[o]&sideAcked != 0:
		return p.Seq-r.ack <= max(r.win, 1) || c.flags[d]&sideSeen != 0 && p.Seq == s.end
	case c.flags[d]&sideSeen != 0: // takes its own SYN back
		return p.Seq-(s.first-1) <= s.end-(s.first-1)
	case st == TCPSynSent: // refuses the other's SYN (RFC 9293 section 3.10.7.3)
		return p.TCPFlags&packet.TCPAck != 0 && c.acksSYN(o, p.Ack)
	}
	return c.flags[o]&sideSeen != 0 && p.TCPFlags&packet.TCPAck != 0 && !before(r.end, p.Ack)
}

// acksSYN reports whether ack acknowledges the SYN of direction d, and no more than was sent with it.
func (c *tcpConn) acksSYN(d Dir, ack uint32) bool {
	s := &c.side[d]
	return c.flags[d]&sideSeen != 0 && ack-s.first <= s.end-s.first
}

// before compares sequence numbers.
func before(a, b uint32) bool { return int32(a-b) < 0 }

// segmentLen is how far a segment moves the sequence number.
func segmentLen(p *packet.Packet) uint32 {
	n := uint32(len(p.Buf) - p.Data)
	if p.TCPFlags&packet.TCPSyn != 0 {
		n++
	}
	if p.TCPFlags&packet.TCPFin != 0 {
		n++
	}
	return n
}

// windowScale reads the window scale option of a SYN.
func windowScale(p *packet.Packet) (uint8, bool) {
	for o := p.Buf[p.L4+headerTCPLen : p.Data]; len(o) > 0; {
		switch {
		case o[0] == optEnd:
			return 0, false
		case o[0] == optNop:
			o = o[1:]
			continue
		case len(o) < 2 || o[1] < 2 || int(o[1]) > len(o):
			return 0, false
		case o[0] == optScale && o[1] == 3:
			return min(o[2], maxScale), true
		}
		o = o[o[1]:]
	}
	return 0, false
}

// reopen takes a flow back to the beginning: its ports are used again.
func (t *Table) reopen(f *Flow, tcp TCPState) {
	s := t.shardOf(f.Key.Peer)
	s.lock()
	if f.word.Load()&(wordEntered|wordDead) != wordEntered {
		s.mu.Unlock()
		return
	}
	p := s.peers[f.Key.Peer]
	p.queues[f.State()].remove(f)
	p.queues[StateNew].push(f)
	f.set(wordState|wordTCP<<wordTCPShift, uint32(tcp)<<wordTCPShift)
	s.wheel.remove(f)
	s.wheel.add(f, t.due(f))
	s.mu.Unlock()
	t.notify(EventUpdate, f, 0)
}
