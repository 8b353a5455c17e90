package exchange

import (
	"math"
	"time"

	"culvert.dev/culvert/internal/wgkey"
)

// Is reports whether a packet from a relay may be one of this package's. Disco packets of others look the same.
func Is(packet []byte) bool { return len(packet) >= len(magic) && string(packet[:len(magic)]) == magic }

// Open reads a packet that a relay has brought from a peer. The packet is not changed and not kept. The error is a Fault, or a
// Rejection that holds one if the sender has proven itself; either is counted.
func (s *Sealer) Open(packet []byte, from wgkey.Public, now time.Time) (Message, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	p, fault := s.sender(packet, from)
	if fault != 0 {
		s.stats.Rejected[fault]++
		return Message{}, fault
	}
	s.watchClock(now)
	s.stats.Boxes++
	nonce, box := packet[outerLen-nonceLen:outerLen], packet[outerLen:]
	plaintext, err := p.from.aead.Open(s.scratch[:0], nonce, box, p.from.data)
	if err != nil {
		s.stats.Rejected[FaultForged]++
		return Message{}, FaultForged
	}
	m, r := p.open(plaintext, now)
	if r != nil {
		r.From = from
		s.stats.Rejected[r.Fault]++
		return Message{}, r
	}
	s.stats.Opened++
	return m, nil
}

// sender finds out whom a packet is from, as far as can be told before decryption.
func (s *Sealer) sender(packet []byte, from wgkey.Public) (*peer, Fault) {
	switch {
	case !Is(packet):
		return nil, FaultNotOurs
	case len(packet) < minLen || len(packet) > MaxLen:
		return nil, FaultLength
	case wgkey.Public(packet[len(magic):len(magic)+wgkey.Size]) != from:
		return nil, FaultSender
	}
	p := s.peers[from]
	if p == nil {
		return nil, FaultUnknown
	}
	return p, 0
}

// open judges an authentic plaintext of at least headLen bytes, and reads it.
func (p *peer) open(plaintext []byte, now time.Time) (Message, *Rejection) {
	h := parseHead(plaintext)
	if h.version != layoutVersion {
		return Message{}, &Rejection{Fault: FaultVersion, Version: h.version}
	}
	r := &Rejection{Kind: h.kind, Skew: skew(nanos(h.time), now.UnixNano())}
	p.catchUp(&h, now)
	if r.Fault = p.order(&h, r.Skew, now); r.Fault != 0 {
		r.Hello = r.Fault == FaultReplay && h.sender != p.theirs && nanos(h.time) != p.heard
		return Message{}, r
	}
	if h.kind == 0 || h.kind >= numKinds {
		r.Fault = FaultKind
		return Message{}, r
	}
	fresh := h.echo == p.life
	switch {
	case h.sender == 0:
		r.Fault = FaultMalformed
	case h.echo != 0 && !fresh:
		r.Fault, r.Hello = FaultEarlier, true
	case h.echo == 0 && !h.kind.addressesOnly():
		r.Fault, r.Hello = FaultUnconfirmed, true
	}
	if r.Fault != 0 {
		return Message{}, r
	}
	m, ok := parseFields(&h, plaintext[headLen:])
	if !ok {
		r.Fault = FaultMalformed
		return Message{}, r
	}
	m.Sent, m.Fresh = time.Unix(0, int64(h.time)), fresh
	if fresh {
		m.RTT = roundTrip(&h, now)
	}
	return m, nil
}

// order judges the send time, and notes it so that no message is taken twice. Once it has passed, the sender's life is known
// even if the message turns out to be of no use.
func (p *peer) order(h *head, skew time.Duration, now time.Time) Fault {
	sent := nanos(h.time)
	switch {
	case sent <= p.heard:
		return FaultReplay
	case skew > MaxSkew:
		if h.sender != p.aheadLife || sent > p.ahead {
			p.ahead, p.aheadLife = sent, h.sender
		}
		return FaultAhead
	case h.sender == p.aheadLife && sent <= p.ahead:
		return FaultReplay
	}
	p.heard, p.heardAt = sent, now // of a stale message too: its recording is then known as one
	if skew < -MaxSkew {
		return FaultStale
	}
	p.theirs = h.sender
	return 0
}

// catchUp makes the next send time larger than all that the peer says it has heard, which may be from a life of this node whose
// clock was ahead. More than a peer can have accepted is not believed.
func (p *peer) catchUp(h *head, now time.Time) {
	if heard := nanos(h.heard); skew(heard, now.UnixNano()) <= 2*MaxSkew {
		p.sent = max(p.sent, heard)
	}
}

// skew is sent - now, without overflow.
func skew(sent, now int64) time.Duration {
	if now < 0 && sent > math.MaxInt64+now {
		return math.MaxInt64
	}
	return time.Duration(sent - now)
}

// roundTrip is the time since the message was sent that the peer heard last from us, less what it has kept to itself before it
// sent this one. Zero if that cannot be told.
func roundTrip(h *head, now time.Time) time.Duration {
	if h.heard == 0 || h.hold == holdUnknown {
		return 0
	}
	d := skew(now.UnixNano(), nanos(h.heard)) - time.Duration(h.hold)*time.Microsecond
	if d <= 0 || d > MaxSkew {
		return 0
	}
	return d
}
