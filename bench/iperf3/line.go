package iperf3

import (
	"fmt"
	"strings"
)

// lineFormat writes the lines of iperf3's tables.
type lineFormat struct {
	server, bidir bool
}

// prefix is all up to the rate.
func (f lineFormat) prefix(c Counts) string {
	id := "[SUM]"
	if c.Socket != nil {
		id = fmt.Sprintf("[%3d]", *c.Socket)
	}
	if f.bidir {
		way, who := "RX", "C"
		if c.Sender {
			way = "TX"
		}
		if f.server {
			who = "S"
		}
		id += "[" + way + "-" + who + "]"
	}
	return fmt.Sprintf("%s %6.2f-%-6.2f sec  %ss  %ss/sec", id, c.Start, c.End, byteUnits(float64(c.Bytes)), bitUnits(c.BitsPerSecond))
}

// interval writes what one interval has of a stream, or of all of a direction.
func (f lineFormat) interval(b *strings.Builder, c Counts) {
	note := ""
	if c.Omitted != nil && *c.Omitted {
		note = "(omitted)"
	}
	b.WriteString(f.prefix(c))
	switch {
	case c.Reception != nil:
		f.reception(b, c, note)
	case c.Packets != nil && f.bidir:
		fmt.Fprintf(b, " %10s %d  %s\n", "", *c.Packets, note)
	case c.Packets != nil:
		fmt.Fprintf(b, "  %d  %s\n", *c.Packets, note)
	case c.Retransmits != nil && c.TCPInfo != nil:
		fmt.Fprintf(b, "  %3d   %ss       %s\n", *c.Retransmits, byteUnits(float64(c.CongestionWindow)), note)
	default:
		f.retransmits(b, c, note)
	}
}

func (f lineFormat) reception(b *strings.Builder, c Counts, note string) {
	packets := int64(0)
	if c.Packets != nil {
		packets = *c.Packets
	}
	fmt.Fprintf(b, "  %5.3f ms  %d/%d (%.2g%%)  %s\n", c.Jitter, c.Lost, packets, c.LostPercent, note)
}

func (f lineFormat) retransmits(b *strings.Builder, c Counts, note string) {
	count := "   "
	if c.Retransmits != nil {
		count = fmt.Sprintf("%3d", *c.Retransmits)
	}
	fmt.Fprintf(b, "  %s             %s\n", count, note)
}

// both writes the sender's and the receiver's line of a summary; a server writes its own only. local is whether this end sends, which
// sums of UDP do not say.
func (f lineFormat) both(b *strings.Builder, sent, received Counts, local bool) {
	if !f.server || local {
		f.end(b, sent, local, "sender")
	}
	if !f.server || !local {
		f.end(b, received, local, "receiver")
	}
}

// end writes a line of a summary; local is whether this end sends.
func (f lineFormat) end(b *strings.Builder, c Counts, local bool, note string) {
	c.Sender = local
	b.WriteString(f.prefix(c))
	if c.Reception != nil {
		f.reception(b, c, note)
	} else {
		f.retransmits(b, c, note)
	}
}

// byteUnits has powers of 1024 and bitUnits those of 1000: "1.38 GByte", "11.9 Gbit".
func byteUnits(n float64) string { return units(n, 1024, "Byte") }
func bitUnits(n float64) string  { return units(n, 1000, "bit") }

// units writes a number in four places.
func units(n, step float64, unit string) string {
	prefixes := []string{"", "K", "M", "G", "T"}
	i := 0
	for ; n >= step && i < len(prefixes)-1; i++ {
		n /= step
	}
	digits := 0
	switch {
	case n < 9.995:
		digits = 2
	case n < 99.95:
		digits = 1
	}
	return fmt.Sprintf("%4.*f %s%s", digits, n, prefixes[i], unit)
}
