package iperf3

import (
	"fmt"
	"io"
	"strings"
)

// Text writes what iperf3 prints when a test starts, with the heading of the lines of intervals.
func (s *Start) Text(w io.Writer) error {
	var b strings.Builder
	switch {
	case s.Accepted != nil:
		fmt.Fprintf(&b, "Accepted connection from %s, port %d\n", s.Accepted.Host, s.Accepted.Port)
	case s.ConnectingTo != nil:
		fmt.Fprintf(&b, "Connecting to host %s, port %d\n", s.ConnectingTo.Host, s.ConnectingTo.Port)
		if s.TestStart.Reverse != 0 {
			fmt.Fprintf(&b, "Reverse mode, remote host %s is sending\n", s.ConnectingTo.Host)
		}
	}
	for _, c := range s.Connected {
		fmt.Fprintf(&b, "[%3d] local %s port %d connected to %s port %d\n", c.Socket, c.LocalHost, c.LocalPort, c.RemoteHost, c.RemotePort)
	}
	b.WriteString(s.heading())
	return flush(w, &b)
}

// heading is above the lines of intervals. Whether retransmissions will be known is a guess: that a stack which tells the size of its
// buffers tells them too.
func (s *Start) heading() string {
	bidir, sends := s.TestStart.Bidir != 0, (s.Accepted == nil) == (s.TestStart.Reverse == 0)
	columns := "Interval           Transfer     Bitrate"
	switch {
	case s.TestStart.Protocol == "UDP" && sends && !bidir:
		columns += "         Total Datagrams"
	case s.TestStart.Protocol == "UDP":
		columns += "         Jitter    Lost/Total Datagrams"
	case (sends || bidir) && s.SendBuffer > 0:
		columns += "         Retr  Cwnd"
	}
	return heading(bidir, columns)
}

func heading(bidir bool, columns string) string {
	if bidir {
		return "[ ID][Role] " + columns + "\n"
	}
	return "[ ID] " + columns + "\n"
}

const separator = "- - - - - - - - - - - - - - - - - - - - - - - - -\n"

// Text writes the lines of an interval, as iperf3 does.
func (i *Interval) Text(w io.Writer) error {
	var b strings.Builder
	f := lineFormat{server: i.server, bidir: i.SumBidirReverse != nil}
	sums := len(i.Streams) > 1 && !f.bidir || len(i.Streams) > 2
	if sums && i.Sum.Start > 0 {
		b.WriteString(separator)
	}
	for n, c := range i.Streams {
		f.interval(&b, c)
		if last := n == len(i.Streams)-1 || i.Streams[n+1].Sender != c.Sender; !sums || !last {
			continue
		}
		if f.bidir && c.Sender == f.server {
			f.interval(&b, *i.SumBidirReverse)
		} else {
			f.interval(&b, i.Sum)
		}
	}
	return flush(w, &b)
}

// Summary writes what iperf3 prints after the last interval.
func (r *Result) Summary(w io.Writer) error {
	var b strings.Builder
	f := lineFormat{server: r.server, bidir: r.End.SumSentBidirReverse != nil}
	columns := "Interval           Transfer     Bitrate"
	switch {
	case r.End.Sum != nil:
		columns += "         Jitter    Lost/Total Datagrams"
	case r.End.SumSent.Retransmits != nil && (!r.server || f.bidir || r.End.SumSent.Sender):
		columns += "         Retr"
	}
	b.WriteString(separator + heading(f.bidir, columns))
	for n, s := range r.End.Streams {
		sent, received := s.ends(&r.End)
		local := s.sender()
		f.both(&b, sent, received, local)
		last := n == len(r.End.Streams)-1 || r.End.Streams[n+1].sender() != local
		if !last || r.Start.TestStart.Streams < 2 {
			continue
		}
		if f.bidir && local == f.server {
			f.both(&b, *r.End.SumSentBidirReverse, *r.End.SumReceivedBidirReverse, local)
		} else {
			f.both(&b, r.End.SumSent, r.End.SumReceived, local)
		}
	}
	if r.ServerOutputText != "" {
		fmt.Fprintf(&b, "\nServer output:\n%s\n", printable(r.ServerOutputText))
	}
	if r.Error == "" && !r.server {
		b.WriteString("\niperf Done.\n")
	}
	return flush(w, &b)
}

// Text writes all that iperf3 prints: the start, the intervals and the summary.
func (r *Result) Text(w io.Writer) error {
	if err := r.Start.Text(w); err != nil {
		return err
	}
	for i := range r.Intervals {
		if err := r.Intervals[i].Text(w); err != nil {
			return err
		}
	}
	return r.Summary(w)
}

// printable keeps the far end from writing to a terminal what is no text.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' && r != '\n' && r != '\t' || r == 0x7f || r >= 0x80 && r < 0xa0 {
			return '?'
		}
		return r
	}, s)
}

// flush writes at once, so that lines of several writers do not mix.
func flush(w io.Writer, b *strings.Builder) error {
	_, err := io.WriteString(w, b.String())
	return err
}

// sender reports whether this end sends on a stream.
func (s *StreamEnd) sender() bool {
	switch {
	case s.UDP != nil:
		return s.UDP.Sender
	case s.Sender != nil:
		return s.Sender.Sender
	}
	return false
}

// ends are the figures of the sender and the receiver.
func (s *StreamEnd) ends(e *End) (sent, received Counts) {
	if s.UDP != nil {
		sent = *s.UDP
		sent.Reception = new(Reception)
		return sent, s.udpReceived(e)
	}
	if s.Sender != nil {
		sent = *s.Sender
	}
	if s.Receiver != nil {
		received = *s.Receiver
	}
	return sent, received
}

// udpReceived are the figures of the receiver. JSON of a UDP stream has the sender's bytes only: those of a test with one stream are in
// the sum, and others follow from the datagrams that were lost, which are of one size.
func (s *StreamEnd) udpReceived(e *End) Counts {
	c := *s.UDP
	switch {
	case s.received != nil:
		return *s.received
	case len(e.Streams) == 1:
		c.End, c.Bytes, c.BitsPerSecond = e.SumReceived.End, e.SumReceived.Bytes, e.SumReceived.BitsPerSecond
	case c.Reception != nil && c.Packets != nil && *c.Packets > 0:
		arrived := max(0, 1-float64(c.Lost)/float64(*c.Packets))
		c.Bytes, c.BitsPerSecond = int64(float64(c.Bytes)*arrived), c.BitsPerSecond*arrived
	}
	return c
}
