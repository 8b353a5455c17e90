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

	"culvert.dev/culvert/internal/config"
	"culvert.dev/culvert/internal/show"
)

// WriteText writes the status for people: the node, a table of its peers, and what was dropped. Ages are relative to now.
func (s Status) WriteText(w io.Writer, now time.Time) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	s.writeNode(t)
	s.writePeers(t, now)
	s.writeRelays(t, now)
	s.writeOuter(t, now)
	s.writeCandidates(t, now)
	s.writeUpstream(t, now)
	s.writeServices(t, now)
	s.writeExits(t, now)
	s.writeDrops(t)
	return t.Flush()
}

// Blank lines separate the tables: tabwriter aligns adjacent lines with each other.

func (s Status) writeNode(t io.Writer) {
	addresses := make([]string, 0, len(s.Addresses))
	for _, a := range s.Addresses {
		addresses = append(addresses, a.String())
	}
	fmt.Fprintf(t, "node\t%s\n", show.Printable(s.Name))
	fmt.Fprintf(t, "version\t%s, up %s\n", show.Printable(s.Version), show.Span(time.Duration(s.UptimeS)*time.Second))
	fmt.Fprintf(t, "public key\t%s\n", s.PublicKey)
	fmt.Fprintf(t, "addresses\t%s\n", show.OrDash(strings.Join(addresses, ", ")))
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
			p.Label(), show.OrDash(strings.Join(p.Addresses.strings(), ", ")), show.Printable(p.Path.Kind), show.OrDash(show.Printable(p.Path.Endpoint)),
			p.Path.RTT, age(p.LastHandshake, now), show.Bytes(p.RxBytes), show.Bytes(p.TxBytes), p.Allow)
	}
	fmt.Fprintln(t)
	for _, p := range s.Peers {
		since := ""
		if !p.Path.Since.IsZero() {
			since = fmt.Sprintf(" since %s", show.Span(now.Sub(p.Path.Since.Time)))
		}
		fmt.Fprintf(t, "%s\t%s%s: %s%s%s\n",
			p.Label(), show.Printable(p.Path.Kind), since, show.OrDash(show.Printable(p.Path.Reason)), p.Traversal.line(now), p.limits())
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
		fmt.Fprintf(t, "%s\t%d\t%s\n", show.Printable(r), s.Drops[r], show.OrDash(explainDrop(r)))
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
	return show.Printable(p.Name)
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
	return show.OrDash(strings.Join(list, ","))
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
	return show.Span(now.Sub(m.Time)) + " ago"
}
