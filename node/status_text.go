package node

import (
	"cmp"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"

	"culvert.dev/culvert/internal/config"
)

// WriteText writes the status for people: the node, a table of its peers, and what was dropped. Ages are relative to now.
func (s Status) WriteText(w io.Writer, now time.Time) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	s.writeNode(t)
	s.writePeers(t, now)
	s.writeRelays(t, now)
	s.writeOuter(t, now)
	s.writeUpstream(t, now)
	s.writeDrops(t)
	return t.Flush()
}

// Blank lines separate the tables: tabwriter aligns adjacent lines with each other.

func (s Status) writeNode(t io.Writer) {
	addresses := make([]string, 0, len(s.Addresses))
	for _, a := range s.Addresses {
		addresses = append(addresses, a.String())
	}
	fmt.Fprintf(t, "node\t%s\n", printable(s.Name))
	fmt.Fprintf(t, "version\t%s, up %s\n", printable(s.Version), span(time.Duration(s.UptimeS)*time.Second))
	fmt.Fprintf(t, "public key\t%s\n", s.PublicKey)
	fmt.Fprintf(t, "addresses\t%s\n", orDash(strings.Join(addresses, ", ")))
	fmt.Fprintf(t, "listens on\tUDP port %d\n", s.ListenPort)
	fmt.Fprintf(t, "flows\tTCP %d, UDP %d, ICMP %d\n", s.Flows.TCP, s.Flows.UDP, s.Flows.ICMP)
}

func (s Status) writePeers(t io.Writer, now time.Time) {
	if len(s.Peers) == 0 {
		fmt.Fprintln(t, "\nno peers: culvert peer add NAME makes one")
		return
	}
	fmt.Fprintln(t, "\nPEER\tADDRESSES\tPATH\tENDPOINT\tRTT\tHANDSHAKE\tRECEIVED\tSENT\tALLOW")
	for _, p := range s.Peers {
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n",
			p.Label(), orDash(strings.Join(p.Addresses.strings(), ", ")), printable(p.Path.Kind), orDash(printable(p.Path.Endpoint)),
			p.Path.RTT, age(p.LastHandshake, now), bytesOf(p.RxBytes), bytesOf(p.TxBytes), p.Allow)
	}
	fmt.Fprintln(t)
	for _, p := range s.Peers {
		since := ""
		if !p.Path.Since.IsZero() {
			since = fmt.Sprintf(" since %s", span(now.Sub(p.Path.Since.Time)))
		}
		fmt.Fprintf(t, "%s\t%s%s: %s%s\n", p.Label(), printable(p.Path.Kind), since, orDash(printable(p.Path.Reason)), p.limits())
	}
}

func (s Status) writeDrops(t io.Writer) {
	reasons := slices.SortedFunc(maps.Keys(s.Drops), func(a, b string) int {
		return cmp.Or(cmp.Compare(s.Drops[b], s.Drops[a]), cmp.Compare(a, b))
	})
	reasons = slices.DeleteFunc(reasons, func(r string) bool { return s.Drops[r] == 0 })
	if len(reasons) == 0 {
		return
	}
	fmt.Fprintln(t, "\nDROPPED\tPACKETS\tBECAUSE")
	for _, r := range reasons {
		fmt.Fprintf(t, "%s\t%d\t%s\n", printable(r), s.Drops[r], orDash(explainDrop(r)))
	}
}

// limits tells of a peer's own limits, if it has any.
func (p PeerStatus) limits() string {
	var list []string
	if p.RateBits > 0 {
		list = append(list, config.Rate(p.RateBits).String()+" each way")
	}
	if p.MaxFlows > 0 {
		list = append(list, strconv.Itoa(p.MaxFlows)+" flows")
	}
	if len(list) == 0 {
		return ""
	}
	return "; at most " + strings.Join(list, " and ")
}

// Label names a peer for people, even if the configuration does not.
func (p PeerStatus) Label() string {
	if p.Name == "" {
		return p.PublicKey.Short()
	}
	return printable(p.Name)
}

// String lists the permissions as the option --allow takes them.
func (a AllowStatus) String() string {
	var list []string
	for _, x := range []struct {
		is   bool
		name string
	}{{a.Inbound, "inbound"}, {a.Routing, "routing"}, {a.LAN, "lan"}} {
		if x.is {
			list = append(list, x.name)
		}
	}
	return orDash(strings.Join(list, ","))
}

// String returns the form for people, "-" for not measured.
func (m Millis) String() string {
	d := time.Duration(m)
	switch {
	case d == 0:
		return "-"
	case d < 10*time.Millisecond:
		return fmt.Sprintf("%.1f ms", float64(d)/float64(time.Millisecond))
	default:
		return fmt.Sprintf("%d ms", d.Round(time.Millisecond).Milliseconds())
	}
}

func age(m Moment, now time.Time) string {
	if m.IsZero() {
		return "never"
	}
	return span(now.Sub(m.Time)) + " ago"
}

// span writes a duration in its two largest units. Clocks may disagree a little: what is negative counts as zero.
func span(d time.Duration) string {
	s := int64(max(d, 0) / time.Second)
	switch {
	case s < 60:
		return fmt.Sprintf("%ds", s)
	case s < 3600:
		return fmt.Sprintf("%dm%02ds", s/60, s%60)
	case s < 86400:
		return fmt.Sprintf("%dh%02dm", s/3600, s/60%60)
	default:
		return fmt.Sprintf("%dd%02dh", s/86400, s/3600%24)
	}
}

// bytesOf writes a size in binary units with three significant digits.
func bytesOf(n uint64) string {
	if n < 1024 {
		return fmt.Sprintf("%d B", n)
	}
	v, unit := float64(n)/1024, 0
	const units = "KMGTPE"
	for v >= 1023.5 && unit < len(units)-1 {
		v, unit = v/1024, unit+1
	}
	digits := 0
	switch {
	case v < 9.995:
		digits = 2
	case v < 99.95:
		digits = 1
	}
	return fmt.Sprintf("%s %ciB", strconv.FormatFloat(v, 'f', digits, 64), units[unit])
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// printable keeps control characters, which could steer the terminal or break the table, out of the output.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, s)
}
