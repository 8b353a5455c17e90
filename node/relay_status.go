package node

import (
	"fmt"
	"io"
	"time"

	"culvert.dev/culvert/internal/show"
)

// RelayStatus is one relay that the node keeps a connection to. Counters are since the relay was configured, of datagrams as WireGuard
// made them.
type RelayStatus struct {
	URL        string `json:"url"`
	State      string `json:"state"` // "connecting"; "connected"; "standby": connected, another is home; "leaving": it goes away; "waiting": to try again
	Connected  bool   `json:"connected"`
	Home       bool   `json:"home"`                // the one where peers find the node
	RTT        Millis `json:"rtt_ms"`              // null when not measured
	Since      Moment `json:"since"`               // when the state began
	Transport  string `json:"transport,omitempty"` // while connected: "derp", "fast-start" or "websocket"
	Proxy      string `json:"proxy,omitempty"`     // on the way, without user and password
	Err        string `json:"error,omitempty"`     // why there is no connection
	Health     string `json:"health,omitempty"`    // what the relay says is wrong with it
	Reconnects uint64 `json:"reconnects"`          // connections after the first
	RxBytes    uint64 `json:"rx_bytes"`
	TxBytes    uint64 `json:"tx_bytes"`
	RxPackets  uint64 `json:"rx_packets"`
	TxPackets  uint64 `json:"tx_packets"`
	Drops      uint64 `json:"drops"` // datagrams for it that found no room
}

func (s Status) writeRelays(t io.Writer, now time.Time) {
	if len(s.Relays) == 0 {
		return
	}
	fmt.Fprintln(t, "\nRELAY\tSTATE\tRTT\tBY\tRECONNECTS\tRECEIVED\tSENT")
	for _, r := range s.Relays {
		state := show.Printable(r.State)
		if r.Home {
			state += ", home"
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%d\t%s\t%s\n",
			show.Printable(r.URL), state, r.RTT, show.OrDash(show.Printable(r.Transport)), r.Reconnects, show.Bytes(r.RxBytes), show.Bytes(r.TxBytes))
	}
	fmt.Fprintln(t)
	for _, r := range s.Relays {
		fmt.Fprintf(t, "%s\t%s since %s", show.Printable(r.URL), show.Printable(r.State), show.Span(now.Sub(r.Since.Time)))
		if r.Proxy != "" {
			fmt.Fprintf(t, " by %s", show.Printable(r.Proxy))
		}
		if r.Err != "" && !r.Connected {
			fmt.Fprintf(t, ": %s", show.Printable(r.Err))
		}
		if r.Health != "" {
			fmt.Fprintf(t, "; it reports: %s", show.Printable(r.Health))
		}
		if r.Drops > 0 {
			fmt.Fprintf(t, "; %d datagrams found no room", r.Drops)
		}
		fmt.Fprintln(t)
	}
	if s.RelayLost > 0 {
		fmt.Fprintf(t, "lost\t%d datagrams for peers by relay while none was connected\n", s.RelayLost)
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
			if !o.Since.IsZero() {
				endpoint += " since " + show.Span(now.Sub(o.Since.Time))
			}
		} else if o.Err != "" {
			endpoint = show.Printable(o.Err)
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\n", show.Printable(o.Source), endpoint, o.RTT, age(o.Checked, now))
	}
}
