package iperf3

import "time"

// report ends an interval. One that is short and empty, as ends of tests may leave, is dropped.
func (t *test) report(now time.Time) {
	i := t.interval(now)
	short := now.Sub(t.reported) < max(t.Interval, 0)/10
	t.reported = now
	if short && i.Sum.Bytes == 0 && (i.SumBidirReverse == nil || i.SumBidirReverse.Bytes == 0) {
		return
	}
	if t.keep < 0 || len(t.intervals) < t.keep {
		t.intervals = append(t.intervals, i)
	}
	if t.onInterval != nil {
		t.onInterval(i)
	}
}

// interval measures what happened since the last one.
func (t *test) interval(now time.Time) Interval {
	i := Interval{server: t.server}
	fromClient, fromServer := t.counts(!t.server, now), t.counts(t.server, now)
	i.Streams = append(i.Streams, fromClient...)
	i.Streams = append(i.Streams, fromServer...)
	omitted := t.omitting.Load()
	switch {
	case t.Bidir:
		i.Sum = sumUp(fromClient, &omitted)
		reverse := sumUp(fromServer, &omitted)
		i.SumBidirReverse = &reverse
	case t.Reverse:
		i.Sum = sumUp(fromServer, &omitted)
	default:
		i.Sum = sumUp(fromClient, &omitted)
	}
	return i
}

// counts are the figures of one direction since the last interval.
func (t *test) counts(sender bool, now time.Time) []Counts {
	start, end := t.reported.Sub(t.start).Seconds(), now.Sub(t.start).Seconds()
	omitted := t.omitting.Load()
	var list []Counts
	for _, s := range t.group(sender) {
		n := s.read()
		if !t.ended.IsZero() {
			n = s.final
		}
		socket := s.id
		c := Counts{Socket: &socket, Start: start, End: end, Seconds: end - start, Bytes: n.bytes - s.last.bytes, Omitted: &omitted, Sender: sender}
		c.BitsPerSecond = rate(c.Bytes, c.Seconds)
		if t.udp() {
			packets := n.packets - s.last.packets
			c.Packets = &packets
			if !sender {
				c.Reception = newReception(n.lost-s.last.lost, packets, n.jitter)
			}
		} else {
			c.Retransmits, c.TCPInfo = s.tcp.interval(s)
		}
		s.last = n
		list = append(list, c)
	}
	return list
}

// rate is in bit/s.
func rate(bytes int64, seconds float64) float64 {
	if seconds <= 0 {
		return 0
	}
	return float64(bytes) * 8 / seconds
}

// newReception leaves out what is out of order. Jitter is in seconds.
func newReception(lost, packets int64, jitter float64) *Reception {
	r := &Reception{Jitter: jitter * 1000, Lost: lost}
	if packets > 0 {
		r.LostPercent = 100 * float64(lost) / float64(packets)
	}
	return r
}

// sumUp adds the figures of streams up. Jitter is their mean.
func sumUp(list []Counts, omitted *bool) Counts {
	sum := Counts{Omitted: omitted}
	if len(list) == 0 {
		return sum
	}
	sum.Start, sum.End, sum.Seconds, sum.Sender = list[0].Start, list[0].End, list[0].Seconds, list[0].Sender
	var jitter float64
	for _, c := range list {
		sum.Bytes += c.Bytes
		sum.Retransmits = add(sum.Retransmits, c.Retransmits)
		sum.Packets = add(sum.Packets, c.Packets)
		if c.Reception != nil {
			if sum.Reception == nil {
				sum.Reception = new(Reception)
			}
			sum.Lost += c.Lost
			jitter += c.Jitter
		}
	}
	sum.BitsPerSecond = rate(sum.Bytes, sum.Seconds)
	if sum.Reception != nil {
		packets := int64(0)
		if sum.Packets != nil {
			packets = *sum.Packets
		}
		sum.Reception = newReception(sum.Lost, packets, jitter/1000/float64(len(list)))
	}
	return sum
}

// add adds figures, of which the nil ones are not known.
func add(sum, n *int64) *int64 {
	switch {
	case n == nil:
		return sum
	case sum == nil:
		v := *n
		return &v
	}
	v := *sum + *n
	return &v
}
