package node

import (
	"fmt"
	"slices"
	"strconv"

	"culvert.dev/culvert/internal/show"
)

// FlowStyle says how a flow or an event is written.
type FlowStyle struct {
	Extended  bool // begin with the family
	Timestamp bool // begin events with the time
}

// AppendText appends the flow as a line of conntrack(8), without what has no meaning here (mark, use) and with the peer's name:
//
//	tcp      6 7439 ESTABLISHED src=100.64.0.2 dst=192.0.2.1 sport=40000 dport=443 packets=5 bytes=900 src=192.0.2.1 dst=… [ASSURED] peer=laptop
func (f *FlowEntry) AppendText(b []byte, s FlowStyle) []byte { return f.appendText(b, s, true) }

func (f *FlowEntry) appendText(b []byte, s FlowStyle, counters bool) []byte {
	if s.Extended {
		af := 2 // AF_INET, as conntrack(8) prints it
		if f.Family == "ipv6" {
			af = 10
		}
		b = fmt.Appendf(b, "%-8s %d ", show.Printable(f.Family), af)
	}
	name, number := f.protocol()
	b = fmt.Appendf(b, "%-8s %s %d ", name, number, f.TimeoutS)
	if f.State != "" {
		b = append(append(b, show.Printable(f.State)...), ' ')
	}
	b = f.Original.appendText(b, counters)
	if !f.Answered {
		b = append(b, " [UNREPLIED]"...)
	}
	b = append(b, ' ')
	b = f.Reply.appendText(b, counters)
	if f.Assured {
		b = append(b, " [ASSURED]"...)
	}
	b = append(append(b, " peer="...), show.OrDash(show.Printable(f.Peer))...)
	if f.ReplyPeer != "" {
		b = append(append(b, " reply-peer="...), show.Printable(f.ReplyPeer)...)
	}
	if f.By != "" {
		b = append(append(b, " by="...), show.Printable(f.By)...)
	}
	return append(b, '\n')
}

// protocol returns the name and the number.
func (f *FlowEntry) protocol() (name, number string) {
	for p, name := range protoNames {
		if name == f.Proto {
			return name, strconv.Itoa(int(p))
		}
	}
	return "unknown", show.Printable(f.Proto)
}

func (t *FlowTuple) appendText(b []byte, counters bool) []byte {
	b = t.Src.AppendTo(append(b, "src="...))
	b = t.Dst.AppendTo(append(b, " dst="...))
	number := func(name string, n uint64) { b = strconv.AppendUint(append(b, name...), n, 10) }
	switch {
	case t.ICMP != nil:
		number(" type=", uint64(t.ICMP.Type))
		number(" code=", uint64(t.ICMP.Code))
		number(" id=", uint64(t.ICMP.ID))
	case t.SrcPort != 0 || t.DstPort != 0:
		number(" sport=", uint64(t.SrcPort))
		number(" dport=", uint64(t.DstPort))
	}
	if counters {
		number(" packets=", t.Packets)
		number(" bytes=", t.Bytes)
	}
	return b
}

// AppendText appends the event as conntrack -E writes it; counters only at a flow's end. An event without a flow adds nothing.
func (e *FlowNotice) AppendText(b []byte, s FlowStyle) []byte {
	if e.FlowEntry == nil {
		return b
	}
	b = slices.Grow(b, 256)
	if s.Timestamp {
		b = fmt.Appendf(b, "[%d.%06d]\t", e.Time.Unix(), e.Time.Nanosecond()/1000)
	}
	b = fmt.Appendf(b, "%9s ", "["+show.Printable(e.Event)+"]")
	return e.FlowEntry.appendText(b, s, e.Event == "DESTROY")
}
