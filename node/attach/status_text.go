package attach

import (
	"fmt"
	"io"
	"net/netip"
	"strings"
	"text/tabwriter"
	"time"

	"culvert.dev/culvert/internal/show"
)

// WriteText writes the status for people: the device, its peers and why each is reached as it is, relays, and where the sockets are
// seen from outside. Ages are relative to now.
func (s Status) WriteText(w io.Writer, now time.Time) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintf(t, "interface\t%s\n", show.Printable(s.Interface))
	fmt.Fprintf(t, "version\t%s, up %s\n", show.Printable(s.Version), show.Span(time.Duration(s.UptimeS)*time.Second))
	fmt.Fprintf(t, "public key\t%s\n", s.PublicKey)
	fmt.Fprintf(t, "ports\tWireGuard's %d, for checks %d\n", s.ListenPort, s.CheckPort)
	if s.Fault != "" {
		fmt.Fprintf(t, "FAULT\t%s\n", show.Printable(s.Fault))
	}
	s.writePeers(t, now)
	s.writeRelays(t, now)
	s.writeOuter(t, now)
	if d := s.Drops; d.Unknown+d.Foreign+d.Down > 0 {
		fmt.Fprintf(t, "\ndropped\t%d of no peer, %d not from WireGuard, %d while WireGuard had no port\n", d.Unknown, d.Foreign, d.Down)
	}
	return t.Flush()
}

func (s Status) writePeers(t io.Writer, now time.Time) {
	if len(s.Peers) == 0 {
		fmt.Fprintln(t, "\nthe device has no peers")
		return
	}
	fmt.Fprintln(t, "\nPEER\tADDRESSES\tPATH\tENDPOINT\tRTT\tHANDSHAKE\tRECEIVED\tSENT")
	for _, p := range s.Peers {
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", p.PublicKey.Short(), show.OrDash(prefixes(p.Addresses)), show.Printable(p.Path.Kind),
			show.OrDash(show.Printable(p.Path.Endpoint)), showMillis(p.Path.RTT), ago(p.LastHandshake, now), show.Bytes(p.RxBytes), show.Bytes(p.TxBytes))
	}
	fmt.Fprintln(t)
	for _, p := range s.Peers {
		since := ""
		if !p.Path.Since.IsZero() {
			since = " since " + show.Span(now.Sub(p.Path.Since))
		}
		fmt.Fprintf(t, "%s\t%s%s: %s\n", p.PublicKey.Short(), show.Printable(p.Path.Kind), since, show.OrDash(show.Printable(p.Path.Reason)))
	}
}

func (s Status) writeRelays(t io.Writer, now time.Time) {
	fmt.Fprintln(t, "\nRELAY\tSTATE\tRTT\tRECEIVED\tSENT\tERROR")
	for _, r := range s.Relays {
		state := show.Printable(r.State)
		if r.Home {
			state += ", home"
		}
		if !r.Since.IsZero() {
			state += " since " + show.Span(now.Sub(r.Since))
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\n", show.Printable(r.URL), state, showMillis(r.RTT), show.Bytes(r.RxBytes), show.Bytes(r.TxBytes),
			show.OrDash(show.Printable(r.Err)))
	}
}

func (s Status) writeOuter(t io.Writer, now time.Time) {
	if len(s.Outer) == 0 {
		return
	}
	fmt.Fprintln(t, "\nSEEN FROM\tAS\tRTT\tCHECKED")
	for _, o := range s.Outer {
		endpoint := "-"
		if o.Endpoint.IsValid() {
			endpoint = o.Endpoint.String()
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\n", show.Printable(o.Source), endpoint, showMillis(o.RTT), ago(o.Checked, now))
	}
	for _, o := range s.Outer {
		if o.Err != "" {
			fmt.Fprintf(t, "\n%s: %s\n", show.Printable(o.Source), printableLines(o.Err))
		}
	}
}

// printableLines keeps the line breaks of a text: it may have commands to copy.
func printableLines(s string) string {
	lines := strings.Split(s, "\n")
	for i := range lines {
		lines[i] = show.Printable(lines[i])
	}
	return strings.Join(lines, "\n  ")
}

func prefixes(list []netip.Prefix) string {
	var texts []string
	for _, p := range list {
		if p.IsSingleIP() {
			texts = append(texts, p.Addr().String())
		} else {
			texts = append(texts, p.String())
		}
	}
	return strings.Join(texts, ", ")
}

func showMillis(ms float64) string {
	if ms == 0 {
		return "-"
	}
	return fmt.Sprintf("%.1f ms", ms)
}

func ago(at, now time.Time) string {
	if at.IsZero() {
		return "never"
	}
	return show.Span(now.Sub(at)) + " ago"
}
