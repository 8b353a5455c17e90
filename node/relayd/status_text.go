package relayd

import (
	"cmp"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"culvert.dev/culvert/internal/config"
	"culvert.dev/culvert/internal/show"
)

const topClients = 20 // that the text shows

// WriteText writes the status for people: the relay, the clients with the most traffic, and what was refused and dropped. Ages are
// relative to now.
func (s Status) WriteText(w io.Writer, now time.Time) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	s.writeRelay(t, now)
	s.writeServers(t)
	s.writeClients(t, now)
	writeCounts(t, "REFUSED", "CONNECTIONS", s.Refused, refusalTexts)
	writeCounts(t, "CUT", "CLIENTS", s.Ended, endingTexts)
	writeCounts(t, "DROPPED", "PACKETS", s.Dropped, dropTexts)
	return t.Flush()
}

func (s Status) writeRelay(t io.Writer, now time.Time) {
	listen := make([]string, len(s.Listen))
	for i, a := range s.Listen {
		listen[i] = a.String()
	}
	fmt.Fprintf(t, "relay\t%s\n", show.Printable(s.Name))
	fmt.Fprintf(t, "version\t%s, up %s\n", show.Printable(s.Version), show.Span(time.Duration(s.UptimeS)*time.Second))
	fmt.Fprintf(t, "url\t%s\n", show.Printable(s.Offer.URL))
	fmt.Fprintf(t, "listens on\tTCP %s\n", strings.Join(listen, ", "))
	fmt.Fprintf(t, "certificate\t%s\n", s.Certificate.text(now))
	if s.Certificate.Pin != "" {
		fmt.Fprintf(t, "pin\t%s\n", s.Certificate.Pin)
	}
	fmt.Fprintf(t, "admits\t%s\n", s.admits())
	if s.AllowError != "" {
		first, _, _ := strings.Cut(s.AllowError, "\n")
		fmt.Fprintf(t, "allow file\tNOT HEEDED: %s\n", show.Printable(first))
	}
	rate := "any rate"
	if s.Limits.RateBits > 0 {
		rate = config.Rate(s.Limits.RateBits).String()
	}
	fmt.Fprintf(t, "limits\t%s of each client, %d clients, %d of one address\n", rate, s.Limits.MaxClients, s.Limits.MaxPerAddress)
	fmt.Fprintf(t, "traffic\treceived %s, sent %s\n", show.Bytes(s.Traffic.RxBytes), show.Bytes(s.Traffic.TxBytes))
}

func (s Status) admits() string {
	switch {
	case s.Open:
		return "every key"
	case s.Allowed == 0:
		return "nobody: culvert relay allow KEY [NAME] admits a node"
	case s.Allowed == 1:
		return "1 key on the allow list"
	}
	return fmt.Sprintf("%d keys on the allow list", s.Allowed)
}

func (c CertificateStatus) text(now time.Time) string {
	switch {
	case c.Source == certNone:
		return "none: plain HTTP, behind a proxy"
	case c.Problem != "":
		return c.Source + ": " + show.Printable(c.Problem)
	case now.After(c.Expires):
		return fmt.Sprintf("%s, for %s, EXPIRED %s ago", c.Source, show.Printable(strings.Join(c.Names, ", ")), show.Span(now.Sub(c.Expires)))
	}
	return fmt.Sprintf("%s, for %s, expires in %s", c.Source, show.Printable(strings.Join(c.Names, ", ")), show.Span(c.Expires.Sub(now)))
}

func (s Status) writeServers(t io.Writer) {
	if u := s.STUN; u != nil {
		ports := make([]string, 0, len(u.Listen))
		for _, a := range u.Listen {
			ports = append(ports, a.String())
		}
		fmt.Fprintf(t, "stun\tUDP %s: %d answered, %d dropped\n", strings.Join(ports, ", "), u.Answered+u.Errors, sum(u.Dropped))
	} else {
		fmt.Fprintln(t, "stun\toff")
	}
	if w := s.WGSTUN; w != nil {
		fmt.Fprintf(t, "wg-stun\tUDP port %d: %d clients, %d answered, %d pings, %d dropped\n", w.Port, w.Clients, w.Answered, w.Echoes, sum(w.Dropped))
	} else {
		fmt.Fprintln(t, "wg-stun\toff")
	}
}

func sum(m map[string]uint64) (n uint64) {
	for _, v := range m {
		n += v
	}
	return n
}

func (s Status) writeClients(t io.Writer, now time.Time) {
	fmt.Fprintf(t, "\nclients: %d\n", len(s.Clients))
	if len(s.Clients) == 0 {
		return
	}
	fmt.Fprintln(t, "KEY\tNAME\tADDRESS\tTRANSPORT\tSINCE\tRECEIVED\tSENT\tQUEUED\tDROPPED")
	for _, c := range s.Clients[:min(topClients, len(s.Clients))] {
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s ago\t%s\t%s\t%s\t%d\n", c.Key.Short(), show.OrDash(show.Printable(c.Name)), c.Address, show.Printable(c.Transport),
			show.Span(now.Sub(c.Since)), show.Bytes(c.RxBytes), show.Bytes(c.TxBytes), show.Bytes(uint64(max(c.QueuedBytes, 0))), c.Dropped)
	}
	if more := len(s.Clients) - topClients; more > 0 {
		fmt.Fprintf(t, "and %d with less traffic: --json has them\n", more)
	}
}

// What the reasons mean.
var (
	refusalTexts = map[string]string{
		"address":      "too many connections of one address: MaxPerAddress",
		"connect-rate": "too many new connections of one address",
		"half-open":    "too many logins of one address that were not finished",
		"full":         "as many clients as MaxClients were connected",
		"draining":     "the relay was stopping",
		"handshake":    "the login was malformed, or too slow",
		"not-allowed":  "the key is not on the allow list",
	}
	endingTexts = map[string]string{
		"slow":        "did not read what was sent to it",
		"silent":      "did not answer pings",
		"protocol":    "sent what is no frame of the protocol",
		"not-allowed": "its key was taken off the allow list",
	}
	dropTexts = map[string]string{
		"queue-full": "the receiver does not read as fast as others send to it",
		"unknown":    "the receiver is not connected",
		"gone":       "the receiver left before it had read them",
	}
)

// writeCounts writes what has occurred, the most frequent first.
func writeCounts(t io.Writer, head, unit string, counts map[string]uint64, texts map[string]string) {
	names := slices.SortedFunc(maps.Keys(counts), func(a, b string) int {
		return cmp.Or(cmp.Compare(counts[b], counts[a]), cmp.Compare(a, b))
	})
	names = slices.DeleteFunc(names, func(name string) bool { return counts[name] == 0 })
	if len(names) == 0 {
		return
	}
	fmt.Fprintf(t, "\n%s\t%s\tBECAUSE\n", head, unit)
	for _, name := range names {
		fmt.Fprintf(t, "%s\t%d\t%s\n", show.Printable(name), counts[name], show.OrDash(texts[name]))
	}
}
