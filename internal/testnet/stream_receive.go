package testnet

import (
	"bytes"
	"syscall"

	"culvert.dev/culvert/internal/packet"
)

// receiver is the half of a stream that receives.
type receiver struct {
	rcv   uint32            // next byte expected
	in    []byte            // read by nobody yet
	early map[uint32][]byte // what came before its turn, by sequence number
	fin   bool              // the other side has said where it ends:
	finAt uint32
	eof   bool // and all before that is here
}

// space is the window to announce.
func (r *receiver) space() int { return max(0, streamBuffer-len(r.in)) }

// receiveTCP gives a segment to its stream or listener.
func (h *Host) receiveTCP(p *packet.Packet) {
	k := streamKey{p.DstAddrPort(), p.SrcAddrPort()}
	if s := h.streams[k]; s != nil {
		s.segment(p)
		return
	}
	if l := h.listenerFor(k.local); l != nil && p.TCPFlags&(packet.TCPSyn|packet.TCPAck|packet.TCPRst) == packet.TCPSyn {
		l.syn(k, p)
		return
	}
	h.unwanted(p)
}

// segment takes one segment of the stream.
func (s *Stream) segment(p *packet.Packet) {
	s.heard = s.h.net.now()
	switch {
	case p.TCPFlags&packet.TCPRst != 0:
		switch {
		case s.state == opening && p.TCPFlags&packet.TCPAck != 0 && p.Ack == s.nxt:
			s.fail(syscall.ECONNREFUSED)
		case s.state != opening && p.Seq == s.rcv:
			s.fail(syscall.ECONNRESET)
		}
	case s.state == opening:
		s.opening(p)
	case p.TCPFlags&packet.TCPSyn != 0:
		if s.state == answering {
			s.sendSYN()
		} else {
			s.emit(packet.TCPAck, s.nxt, nil) // our acknowledgment of it was lost
		}
	case p.TCPFlags&packet.TCPAck == 0:
	default:
		if s.state == answering && !s.confirmed(p) {
			return
		}
		s.data(p)
	}
}

// opening waits for the answer to our SYN.
func (s *Stream) opening(p *packet.Packet) {
	const both = packet.TCPSyn | packet.TCPAck
	if p.TCPFlags&both != both || p.Ack != s.nxt {
		return
	}
	s.rcv = p.Seq + 1
	s.begin(p)
	s.emit(packet.TCPAck, s.nxt, nil)
	s.arm()
}

// confirmed takes the acknowledgment of our SYN by the opener.
func (s *Stream) confirmed(p *packet.Packet) bool {
	if p.Ack != s.nxt {
		return false
	}
	s.begin(p)
	return s.listener.ready(s)
}

// begin makes the stream open.
func (s *Stream) begin(p *packet.Packet) {
	if mss := announcedMSS(p); mss > 0 {
		s.mss = min(s.mss, mss)
	}
	s.una = s.nxt
	s.state = open
	s.peerWindow = window(p)
	s.rto = minRTO * 5
	s.waiting = s.h.net.now()
	close(s.opened)
	s.arm()
}

// data takes acknowledgment, payload and FIN of a segment.
func (s *Stream) data(p *packet.Packet) {
	payload := p.Buf[p.Data:]
	fin := p.TCPFlags&packet.TCPFin != 0
	expected := p.Seq == s.rcv
	s.acknowledged(p.Ack, window(p), len(payload) == 0 && !fin)
	if s.state != open {
		return
	}
	if s.closed && len(payload) > 0 && int32(p.Seq+uint32(len(payload))-s.rcv) > 0 { // nobody will ever read it
		s.reset()
		return
	}
	s.store(p.Seq, payload)
	if fin && !s.fin {
		s.fin, s.finAt = true, p.Seq+uint32(len(payload))
	}
	if s.fin && !s.eof && s.rcv == s.finAt {
		s.rcv++
		s.eof = true
		s.rd.set()
	}
	if len(payload) > 0 || fin || !expected {
		s.emit(packet.TCPAck, s.nxt, nil)
	}
	s.arm()
}

// store takes payload in its turn, or keeps it until then.
func (s *Stream) store(seq uint32, payload []byte) {
	if len(payload) == 0 || s.eof {
		return
	}
	if int32(seq-s.rcv) > 0 {
		if int(seq-s.rcv)+len(payload) <= s.space() {
			s.early[seq] = bytes.Clone(payload)
		}
		return
	}
	s.accept(seq, payload)
	for again := true; again; {
		again = false
		for at, b := range s.early {
			if int32(at-s.rcv) <= 0 {
				delete(s.early, at)
				s.accept(at, b)
				again = true
			}
		}
	}
}

// accept appends what is new of payload, which starts no later than expected, as far as there is room.
func (s *Stream) accept(seq uint32, payload []byte) {
	skip := int(s.rcv - seq)
	if skip >= len(payload) {
		return
	}
	payload = payload[skip:]
	payload = payload[:min(len(payload), s.space())]
	s.in = append(s.in, payload...)
	s.rcv += uint32(len(payload))
	s.rd.set()
}
