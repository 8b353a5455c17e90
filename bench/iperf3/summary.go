package iperf3

import "time"

// results are this end's figures, as the other one gets them.
func (t *test) results(now cpuTimes) *wireResults {
	w := &wireResults{HasRetransmits: -1, Congestion: text(t.congestion), Streams: wireStreams{}}
	w.CPUTotal, w.CPUUser, w.CPUSystem = numbers(t.cpuStart.percent(now))
	for _, s := range t.streams {
		n := s.final
		r := wireStreamResult{
			ID: number(s.id), Bytes: number(n.bytes - s.base.bytes), Retransmits: -1, Jitter: number(n.jitter), Errors: number(n.lost - s.base.lost),
			Packets: number(n.packets), OmittedPackets: number(s.base.packets), EndTime: number(t.ended.Sub(t.start).Seconds()),
		}
		if s.sender {
			w.HasRetransmits = max(w.HasRetransmits, 0)
			if n := s.tcp.total(); n != nil {
				w.HasRetransmits, r.Retransmits = 1, number(*n)
			}
		}
		w.Streams = append(w.Streams, r)
	}
	return w
}

func numbers(a, b, c float64) (number, number, number) { return number(a), number(b), number(c) }

// end is the summary. far is what the other end has counted; nil if it was not asked.
func (t *test) end(far *wireResults, now cpuTimes) End {
	e := End{Streams: []StreamEnd{}}
	e.CPU.HostTotal, e.CPU.HostUser, e.CPU.HostSystem = t.cpuStart.percent(now)
	mine, theirs := t.congestion, ""
	if far != nil {
		e.CPU.RemoteTotal, e.CPU.RemoteUser, e.CPU.RemoteSystem = float64(far.CPUTotal), float64(far.CPUUser), float64(far.CPUSystem)
		theirs = string(far.Congestion)
	}
	if !t.udp() {
		e.SenderCongestion, e.ReceiverCongestion = mine, theirs
		if t.clientSends() == t.server && !t.Bidir {
			e.SenderCongestion, e.ReceiverCongestion = theirs, mine
		}
	}
	forward := t.endOf(!t.server, far, &e)
	backward := t.endOf(t.server, far, &e)
	if !t.clientSends() {
		forward = backward
	}
	e.SumSent, e.SumReceived, e.Sum = forward.sent, forward.received, forward.both
	if t.Bidir {
		e.SumSentBidirReverse, e.SumReceivedBidirReverse, e.SumBidirReverse = &backward.sent, &backward.received, backward.both
	}
	return e
}

// summary is of the streams of one direction.
type summary struct {
	sent, received Counts
	both           *Counts // of UDP
}

// endOf sums one direction up and adds its streams to e.
func (t *test) endOf(sender bool, far *wireResults, e *End) (sum summary) {
	var sent, received, both []Counts
	for _, s := range t.group(sender) {
		a, b := t.bothEnds(s, far)
		if t.udp() {
			u := a
			u.Reception = b.Reception
			if u.Packets == nil {
				u.Packets = b.Packets
			}
			u.Sender = sender
			e.Streams = append(e.Streams, StreamEnd{UDP: &u, received: &b})
			both = append(both, u)
			a.Reception, a.Sender, b.Sender = new(Reception), true, false
		} else {
			e.Streams = append(e.Streams, StreamEnd{Sender: &a, Receiver: &b})
		}
		sent, received = append(sent, a), append(received, b)
	}
	sum.sent, sum.received = sumUp(sent, nil), sumUp(received, nil)
	if t.udp() {
		all := sumUp(both, nil)
		all.End, all.Seconds = sum.received.End, sum.received.Seconds
		sum.both = &all
	}
	return sum
}

// bothEnds are the figures of the sender and of the receiver of a stream, one of which is far away. What the far one did not say is
// taken to be as it was here, except for counts.
func (t *test) bothEnds(s *stream, far *wireResults) (sent, received Counts) {
	near := t.nearEnd(s)
	distant := Counts{Socket: near.Socket, End: near.End, Seconds: near.Seconds, Sender: s.sender}
	var w *wireStreamResult
	if far != nil {
		w = far.of(s.id)
	}
	if w != nil {
		t.farEnd(&distant, s, w)
	}
	if s.sender {
		return near, distant
	}
	return distant, near
}

// nearEnd are this end's figures of a stream.
func (t *test) nearEnd(s *stream) Counts {
	id, elapsed := s.id, t.ended.Sub(t.start).Seconds()
	c := Counts{Socket: &id, End: elapsed, Seconds: elapsed, Bytes: s.final.bytes - s.base.bytes, Sender: s.sender}
	c.BitsPerSecond = rate(c.Bytes, elapsed)
	if !t.udp() {
		if c.Retransmits = s.tcp.total(); c.Retransmits != nil {
			c.TCPExtremes = &s.tcp.extremes
		}
		return c
	}
	packets := s.final.packets - s.base.packets
	c.Packets = &packets
	if !s.sender {
		c.Reception = newReception(s.final.lost-s.base.lost, packets, s.final.jitter)
		outOfOrder := s.final.outOfOrder - s.base.outOfOrder
		c.OutOfOrder = &outOfOrder
	}
	return c
}

// farEnd fills in the other end's figures of a stream.
func (t *test) farEnd(c *Counts, s *stream, w *wireStreamResult) {
	if elapsed := float64(w.EndTime - w.StartTime); elapsed > 0 && elapsed < (365*24*time.Hour).Seconds() {
		c.End, c.Seconds = elapsed, elapsed
	}
	c.Bytes = max(w.Bytes.int(), 0)
	c.BitsPerSecond = rate(c.Bytes, c.Seconds)
	switch {
	case !t.udp():
		if n := w.Retransmits.int(); !s.sender && n >= 0 {
			c.Retransmits = &n
			c.TCPExtremes = new(TCPExtremes) // not told; iperf3 says 0 too
		}
		return
	case w.OmittedPackets > 0:
		n := max((w.Packets - w.OmittedPackets).int(), 0)
		c.Packets = &n
	default: // this end knows best how many were omitted
		n := max(w.Packets.int()-s.base.packets, 0)
		c.Packets = &n
	}
	if s.sender {
		c.Reception = newReception(max((w.Errors-w.OmittedErrors).int(), 0), *c.Packets, max(float64(w.Jitter), 0))
		none := int64(0)
		c.OutOfOrder = &none // not told; iperf3 says 0 too
	}
}
