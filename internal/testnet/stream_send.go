package testnet

import (
	"syscall"
	"time"

	"culvert.dev/culvert/internal/packet"
)

// sender is the half of a stream that sends.
type sender struct {
	una, nxt, top uint32 // first byte not acknowledged, next to send, highest sent so far and one more
	out           []byte // from una on, without SYN and FIN
	finQueued     bool
	finSent       bool
	finAcked      bool
	mss           int
	peerWindow    int

	cwnd, threshold int // congestion window and where it stops to double (RFC 5681)
	duplicates      int
	recover         uint32 // duplicates below do not count: they are of what was sent again

	timing   bool // the round-trip time is measured by the acknowledgment of timedSeq
	timedSeq uint32
	timedAt  int64
	best     time.Duration // shortest so far
}

const (
	minRTO       = 200 * time.Millisecond
	keepAlive    = 15 * time.Second // of silence, as Go's net package has it
	keepAliveGap = 5 * time.Second
	lingerOver   = 2 * time.Second  // to acknowledge the last FIN once more
	lingerHalf   = 60 * time.Second // for a FIN that does not come after Close
)

// push sends what the windows allow.
func (s *Stream) push() {
	if s.state != open {
		return
	}
	if s.una == s.top { // nothing is on the way
		s.waiting = s.h.net.now()
	}
	for {
		flight := int(s.nxt - s.una)
		n := min(s.mss, len(s.out)-flight, min(s.cwnd, s.peerWindow)-flight)
		if n <= 0 {
			break
		}
		s.transmit(flight, n)
	}
	if s.finQueued && !s.finSent && int(s.nxt-s.una) == len(s.out) {
		s.emit(packet.TCPFin|packet.TCPAck, s.nxt, nil)
		s.finSent = true
		s.nxt++
		s.top = later(s.top, s.nxt)
	}
	s.arm()
}

// transmit sends n bytes at offset at of the buffer as new.
func (s *Stream) transmit(at, n int) {
	if !s.timing && s.nxt == s.top { // Karn: never by a retransmission
		s.timing, s.timedSeq, s.timedAt = true, s.nxt+uint32(n), s.h.net.now()
	}
	s.emit(packet.TCPAck|packet.TCPPsh, s.nxt, s.out[at:at+n])
	s.nxt += uint32(n)
	s.top = later(s.top, s.nxt)
}

// acknowledged takes the acknowledgment of a segment; pure tells that it carried nothing else.
func (s *Stream) acknowledged(ack uint32, win int, pure bool) {
	n := int(int32(ack - s.una))
	switch {
	case n < 0 || n > int(s.top-s.una):
		return
	case n == 0:
		s.duplicate(pure && win == s.peerWindow)
		s.peerWindow = win
		if win < s.mss { // slow, but there
			s.waiting = s.h.net.now()
		}
		s.push()
		return
	}
	s.peerWindow = win
	data := min(n, len(s.out))
	s.out = s.out[data:]
	s.finAcked = s.finAcked || n > data
	s.una = ack
	s.nxt = later(s.nxt, ack)
	s.finSent = s.finSent || s.finAcked
	s.waiting = s.h.net.now()
	s.duplicates = 0
	s.measure(ack)
	if s.cwnd < s.threshold {
		s.cwnd += min(n, s.mss)
	} else {
		s.cwnd += max(1, s.mss*s.mss/s.cwnd)
	}
	s.wr.set()
	s.push()
}

// duplicate counts acknowledgments that tell of a hole at the receiver; three of them mean a loss. As TCP Tahoe did, the
// stream then starts over from there in slow start; acknowledgments leap over what the receiver has already.
func (s *Stream) duplicate(counts bool) {
	if !counts || s.nxt == s.una || int32(s.una-s.recover) < 0 {
		return
	}
	if s.duplicates++; s.duplicates == 3 {
		s.restart(4 * s.mss)
	}
}

// restart goes back to the first byte that is not acknowledged.
func (s *Stream) restart(cwnd int) {
	s.threshold = max(int(s.nxt-s.una)/2, 2*s.mss)
	s.cwnd = cwnd
	s.timing, s.duplicates, s.recover = false, 0, s.top
	s.nxt, s.finSent = s.una, s.finAcked
}

// measure takes the round-trip time by an acknowledgment (RFC 6298, without the variance: links here are regular).
func (s *Stream) measure(ack uint32) {
	if s.timing && int32(ack-s.timedSeq) >= 0 {
		s.timing = false
		rtt := time.Duration(s.h.net.now() - s.timedAt)
		if s.srtt == 0 {
			s.srtt, s.best = rtt, rtt
		}
		s.srtt += (rtt - s.srtt) / 8
		s.best = min(s.best, rtt)
		if rtt > s.best*5/4+time.Millisecond { // a queue grows: leave slow start before it overflows, as HyStart does
			s.threshold = min(s.threshold, s.cwnd)
		}
	}
	if s.srtt > 0 {
		s.rto = max(minRTO, 2*s.srtt)
	}
}

// arm sets the stream's one timer for what is due next.
func (s *Stream) arm() {
	if s.state == over {
		return
	}
	d := s.rto
	switch {
	case s.state != open, s.nxt != s.una, len(s.out) > 0:
	case s.finAcked && s.eof:
		d = lingerOver
	case s.closed && s.finAcked:
		d = lingerHalf
	default:
		d = keepAlive - time.Duration(s.h.net.now()-s.heard)
		if d <= 0 {
			d = keepAliveGap
		}
	}
	s.due = s.h.net.now() + int64(d)
	if s.timer == 0 || s.timer > s.due {
		s.schedule()
	}
}

// schedule enters the event for the timer. One that is entered already for an earlier time sees to a later one when it runs.
func (s *Stream) schedule() {
	at := s.due
	s.timer = at
	s.h.actor.at(at, func() {
		if s.state == over || s.timer != at {
			return
		}
		s.timer = 0
		if s.due > at {
			s.schedule()
			return
		}
		s.tick()
	})
}

// tick does what arm has set the timer for.
func (s *Stream) tick() {
	now := s.h.net.now()
	limit := int64(s.h.net.cfg.StreamTimeout)
	switch {
	case s.state != open:
		if now-s.waiting >= limit {
			s.fail(syscall.ETIMEDOUT)
			return
		}
		s.rto *= 2
		s.sendSYN()
	case s.nxt != s.una || len(s.out) > 0: // the latter: the window is shut, this is a probe of it
		if now-s.waiting >= limit {
			s.fail(syscall.ETIMEDOUT)
			return
		}
		s.timeout()
	case s.finAcked && (s.eof || s.closed):
		s.forget()
		return
	case now-s.heard >= int64(keepAlive)+limit:
		s.fail(syscall.ETIMEDOUT)
		return
	default:
		s.emit(packet.TCPAck, s.una-1, nil) // to be acknowledged as out of place (RFC 9293 section 3.8.4)
	}
	s.arm()
}

// timeout starts over from the first byte that is not acknowledged.
func (s *Stream) timeout() {
	s.rto = min(s.rto*2, 5*time.Second)
	s.restart(s.mss)
	if s.peerWindow < s.mss && len(s.out) > 0 { // shut: one byte shows whether it still is
		s.emit(packet.TCPAck|packet.TCPPsh, s.una, s.out[:1])
		s.top = later(s.top, s.una+1)
		return
	}
	s.push()
}

// later is the later of two sequence numbers.
func later(a, b uint32) uint32 {
	if int32(b-a) > 0 {
		return b
	}
	return a
}
