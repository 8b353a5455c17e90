package node

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"culvert.dev/culvert/internal/config"
	"culvert.dev/culvert/internal/control"
	"culvert.dev/culvert/internal/forward"
	"culvert.dev/culvert/internal/proxy"
	"culvert.dev/culvert/internal/show"
	"culvert.dev/culvert/node/egress"
)

var errNoDeadline = fmt.Errorf("set deadline: %w", errors.Join(os.ErrNoDeadline, errors.ErrUnsupported))

// ServiceStatus is a proxy, a forward, a published port, or the SOCKS5 that the node offers to peers. Counts are since it was
// configured as it is.
type ServiceStatus struct {
	Kind        string   `json:"kind"`   // "SOCKS5", "HTTP", "Forward", "Publish", "exit SOCKS5"
	Listen      []string `json:"listen"` // sockets of this host; of Publish, ports of the mesh addresses
	To          string   `json:"to,omitempty"`
	Active      int      `json:"active"` // connections and UDP sessions at present
	Total       uint64   `json:"total"`
	Failed      uint64   `json:"failed"`     // targets that could not be reached
	Denied      uint64   `json:"denied"`     // clients that may not use it, wrong passwords
	BadLogins   uint64   `json:"bad_logins"` // of them wrong passwords
	SentBytes   uint64   `json:"sent_bytes"` // from clients to targets; of connections that have ended
	RcvdBytes   uint64   `json:"rcvd_bytes"`
	LastError   string   `json:"last_error,omitempty"`
	LastErrorAt Moment   `json:"last_error_at,omitzero"`

	// Of a proxy: whose the last error was, an address or a network of 64 bits, and where it wanted to go; "" where it did not say.
	LastErrorClient string `json:"last_error_client,omitempty"`
	LastErrorTarget string `json:"last_error_target,omitempty"`
}

func proxyStatus(s proxy.Stats) ServiceStatus {
	st := ServiceStatus{
		Active: s.Active + s.Associations, Total: s.Connections, Denied: s.Denied + s.BadLogins, BadLogins: s.BadLogins,
		SentBytes: s.FromClients, RcvdBytes: s.ToClients,
		LastError: s.Last.Reason, LastErrorAt: Moment{s.Last.At}, LastErrorClient: s.Last.Client, LastErrorTarget: s.Last.Target,
	}
	for _, f := range s.Failed {
		st.Failed += f
	}
	return st
}

func forwardStatus(to string, tcp, udp forward.Stats) ServiceStatus {
	st := ServiceStatus{
		To: to, Active: tcp.Active + udp.Active, Total: tcp.Total + udp.Total, Failed: tcp.DialFailures + udp.DialFailures,
		Denied: tcp.Refused + udp.Refused, SentBytes: tcp.ToTarget + udp.ToTarget, RcvdBytes: tcp.ToClient + udp.ToClient,
		LastError: tcp.LastError, LastErrorAt: Moment{tcp.LastErrorAt},
	}
	if udp.LastErrorAt.After(tcp.LastErrorAt) {
		st.LastError, st.LastErrorAt = udp.LastError, Moment{udp.LastErrorAt}
	}
	return st
}

// status lists the services in force.
func (s *services) status() (list []ServiceStatus) {
	for _, svc := range s.list {
		st := svc.stats()
		st.Kind, st.Listen = svc.kind, svc.listen
		list = append(list, st)
	}
	return list
}

// ExitStatus is an exit that proxies of this node have used.
type ExitStatus struct {
	Name   string `json:"name"`
	State  string `json:"state"` // "up", "down", "unknown"
	Since  Moment `json:"since"`
	RTT    Millis `json:"rtt_ms"` // of opening a connection to it; null when not measured
	Active int    `json:"active"`
	Total  uint64 `json:"total"`  // connections and associations by it
	Failed uint64 `json:"failed"` // failures of the exit itself, not of what is behind it

	LastError   string `json:"last_error,omitempty"`
	LastErrorAt Moment `json:"last_error_at,omitzero"`
}

// configuredExits are the peers that proxies and forwards may leave by.
func configuredExits(conf *config.Config) (names []string) {
	for _, p := range conf.Proxies {
		names = append(names, p.Exits...)
		for _, r := range p.Routes {
			if r.Action == config.RouteVia {
				names = append(names, r.Via)
			}
		}
	}
	for _, f := range conf.Forwards {
		names = append(names, f.Exits...)
	}
	return names
}

func exitStatus(list []egress.ExitStatus) (out []ExitStatus) {
	for _, e := range list {
		out = append(out, ExitStatus{
			Name: e.Name, State: e.State.String(), Since: Moment{e.Since}, RTT: Millis(e.RTT), Active: e.Conns, Total: e.Good, Failed: e.Bad,
			LastError: e.Err, LastErrorAt: Moment{e.ErrAt},
		})
	}
	return out
}

func (s Status) writeServices(t io.Writer, now time.Time) {
	if len(s.Services) == 0 {
		return
	}
	fmt.Fprintln(t, "\nSERVICE\tAT\tTO\tACTIVE\tTOTAL\tFAILED\tDENIED\tSENT\tRECEIVED")
	for _, v := range s.Services {
		to := v.To
		if to == "" {
			to = "-"
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%d\t%d\t%d\t%d\t%s\t%s\n", v.Kind, strings.Join(v.Listen, " "), strings.TrimPrefix(to, "to "), v.Active, v.Total, v.Failed, v.Denied,
			show.Bytes(v.SentBytes), show.Bytes(v.RcvdBytes))
		if v.LastError != "" {
			fmt.Fprintf(t, "  %s ago: %s\n", show.Span(now.Sub(v.LastErrorAt.Time)), show.Printable(v.lastError()))
		}
		if v.BadLogins > 0 {
			fmt.Fprintf(t, "  wrong passwords: %d\n", v.BadLogins)
		}
	}
}

// lastError is the last error with whom it befell: "127.0.0.1 to db:5432: connection refused".
func (v *ServiceStatus) lastError() string {
	switch {
	case v.LastErrorClient == "":
		return v.LastError
	case v.LastErrorTarget == "":
		return v.LastErrorClient + ": " + v.LastError
	}
	return v.LastErrorClient + " to " + v.LastErrorTarget + ": " + v.LastError
}

func (s Status) writeExits(t io.Writer, now time.Time) {
	if len(s.Exits) == 0 {
		return
	}
	fmt.Fprintln(t, "\nEXIT\tSTATE\tSINCE\tRTT\tACTIVE\tTOTAL\tFAILED")
	for _, e := range s.Exits {
		since := "-"
		if !e.Since.IsZero() {
			since = show.Span(now.Sub(e.Since.Time))
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%d\t%d\t%d\n", e.Name, e.State, since, e.RTT, e.Active, e.Total, e.Failed)
		if e.State != "up" && e.LastError != "" {
			fmt.Fprintf(t, "  %s ago: %s\n", show.Span(now.Sub(e.LastErrorAt.Time)), e.LastError)
		}
	}
}

func serviceMetrics(list []ServiceStatus, exits []ExitStatus) []control.Metric {
	active := control.Metric{Name: "culvert_service_active", Help: "Connections and UDP sessions of a proxy, forward or published port."}
	total := control.Metric{Name: "culvert_service_connections", Type: control.Counter, Help: "Connections and UDP sessions that a service has had."}
	failed := control.Metric{Name: "culvert_service_failures", Type: control.Counter, Help: "Connections whose target could not be reached."}
	denied := control.Metric{Name: "culvert_service_denied", Type: control.Counter, Help: "Clients that may not use a service, and wrong passwords."}
	logins := control.Metric{Name: "culvert_service_bad_logins", Type: control.Counter, Help: "Wrong passwords that clients of a proxy gave."}
	moved := control.Metric{Name: "culvert_service_bytes", Type: control.Counter, Unit: "bytes", Help: "Carried by connections that have ended and by datagrams; sent is towards the target."}
	up := control.Metric{Name: "culvert_exit_up", Help: "1 for an exit that proxies of this node can use, 0 for one that fails; absent while not known."}
	for _, s := range list {
		labels := []string{"kind", s.Kind, "listen", strings.Join(s.Listen, " ")}
		active.Samples = append(active.Samples, control.One(float64(s.Active), labels...)...)
		total.Samples = append(total.Samples, control.One(float64(s.Total), labels...)...)
		failed.Samples = append(failed.Samples, control.One(float64(s.Failed), labels...)...)
		denied.Samples = append(denied.Samples, control.One(float64(s.Denied), labels...)...)
		logins.Samples = append(logins.Samples, control.One(float64(s.BadLogins), labels...)...)
		moved.Samples = append(moved.Samples, control.One(float64(s.SentBytes), append(labels, "direction", "sent")...)...)
		moved.Samples = append(moved.Samples, control.One(float64(s.RcvdBytes), append(labels, "direction", "received")...)...)
	}
	for _, e := range exits {
		if e.State != "unknown" {
			v := 0.0
			if e.State == "up" {
				v = 1
			}
			up.Samples = append(up.Samples, control.One(v, "exit", e.Name)...)
		}
	}
	return []control.Metric{active, total, failed, denied, logins, moved, up}
}
