package attach

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"culvert.dev/culvert/internal/wgkey"
	"culvert.dev/culvert/traversal/agent"
	"culvert.dev/culvert/traversal/path"
	"culvert.dev/culvert/traversal/relay"
)

// Status is what "culvert attach status --json" prints. Names and meaning of its fields stay, and are those of a node's status where
// they are about the same; fields may be added. Times that never were, and round trips that are not known, are absent.
type Status struct {
	Interface  string        `json:"interface"`
	PublicKey  wgkey.Public  `json:"public_key"`
	ListenPort uint16        `json:"listen_port"` // WireGuard's
	CheckPort  uint16        `json:"check_port"`  // of the socket that checks go by
	UptimeS    int64         `json:"uptime_s"`
	Version    string        `json:"version"`
	Fault      string        `json:"fault,omitempty"` // why the device does not answer
	Peers      []PeerStatus  `json:"peers"`           // without the WG-STUN server
	Relays     []RelayStatus `json:"relays"`
	Outer      []OuterStatus `json:"outer"` // where the sockets are seen from outside
	Candidates []Candidate   `json:"candidates"`
	Drops      DropStatus    `json:"drops"`
}

// PeerStatus is one peer of the device. Byte counts are the device's, since the peer was added.
type PeerStatus struct {
	PublicKey     wgkey.Public     `json:"public_key"`
	Addresses     []netip.Prefix   `json:"addresses"` // AllowedIPs
	Path          PathStatus       `json:"path"`
	LastHandshake time.Time        `json:"last_handshake,omitzero"`
	RxBytes       uint64           `json:"rx_bytes"`
	TxBytes       uint64           `json:"tx_bytes"`
	KeepaliveS    int              `json:"keepalive_s,omitempty"`
	RelayPort     netip.AddrPort   `json:"relay_port"`           // where the device sends what is to go by relay
	RelayRx       uint64           `json:"relay_rx_packets"`     // datagrams that came by relay
	RelayTx       uint64           `json:"relay_tx_packets"`     // that were to go by relay
	RelayLost     uint64           `json:"relay_lost,omitempty"` // of these: no relay was connected
	Traversal     *TraversalStatus `json:"traversal,omitempty"`  // absent: direct paths are not sought
}

// PathStatus is the way to a peer and why it is this one.
type PathStatus struct {
	Kind     string    `json:"kind"`     // "direct", "relay", or "none": not known yet, or lost
	Endpoint string    `json:"endpoint"` // address and port, or the relay's URL; "" without a path
	RTT      float64   `json:"rtt_ms,omitzero"`
	Since    time.Time `json:"since,omitzero"` // when this path came into use
	Reason   string    `json:"reason"`         // in words
}

// TraversalStatus is how a direct path is sought, or looked after.
type TraversalStatus struct {
	Phase       string      `json:"phase"`
	Mode        string      `json:"mode"`
	Local       string      `json:"local,omitempty"`  // kind of the own candidate in use
	Remote      string      `json:"remote,omitempty"` // of the peer's
	Check       string      `json:"check,omitempty"`  // where checks go to
	RTT         float64     `json:"rtt_ms,omitzero"`
	Since       time.Time   `json:"since,omitzero"` // of the phase
	DirectAfter float64     `json:"direct_after_ms,omitzero"`
	Pairs       int         `json:"pairs"`
	Valid       int         `json:"valid"`
	Upgrades    int         `json:"upgrades"`
	Fallbacks   int         `json:"fallbacks"`
	Bans        []BanStatus `json:"bans,omitempty"`
	NextTry     time.Time   `json:"next_try,omitzero"`
	ClockAhead  float64     `json:"clock_ahead_s,omitzero"` // of the peer, if its messages are refused for that
}

// BanStatus is an endpoint that has failed.
type BanStatus struct {
	Endpoint netip.AddrPort `json:"endpoint"`
	Until    time.Time      `json:"until"`
	Reason   string         `json:"reason"`
}

// RelayStatus is one relay.
type RelayStatus struct {
	URL        string    `json:"url"`
	State      string    `json:"state"`
	Connected  bool      `json:"connected"`
	Home       bool      `json:"home"`
	RTT        float64   `json:"rtt_ms,omitzero"`
	Since      time.Time `json:"since,omitzero"`
	Err        string    `json:"error,omitempty"`
	Reconnects uint64    `json:"reconnects"`
	RxBytes    uint64    `json:"rx_bytes"`
	TxBytes    uint64    `json:"tx_bytes"`
	Drops      uint64    `json:"drops"`
}

// OuterStatus is where one server sees a socket: WireGuard's if it is the WG-STUN server, else that of checks.
type OuterStatus struct {
	Source   string         `json:"source"`
	Endpoint netip.AddrPort `json:"endpoint"` // "" when it is not known now
	RTT      float64        `json:"rtt_ms,omitzero"`
	Since    time.Time      `json:"since,omitzero"`
	Checked  time.Time      `json:"checked,omitzero"`
	Err      string         `json:"error,omitempty"`
}

// Candidate is where peers are told that they may reach this device.
type Candidate struct {
	Kind   string         `json:"kind"`
	WG     netip.AddrPort `json:"wireguard"`
	Check  netip.AddrPort `json:"check"`
	Source string         `json:"source"`
}

// DropStatus counts datagrams that were not passed on.
type DropStatus struct {
	Unknown uint64 `json:"unknown"` // from the relay, of no peer
	Foreign uint64 `json:"foreign"` // to a port of a peer's, and not from WireGuard
	Down    uint64 `json:"down"`    // from the relay, while WireGuard has no port
}

// source answers the control socket.
type source struct{ a *Attachment }

func (s source) Status() any     { return s.a.Status() }
func (s source) Health() error   { return s.a.Health() }
func (s source) Version() string { return s.a.cfg.Version }

// Reload has nothing to do: the peers are the device's, and looked at all the time.
func (s source) Reload() error {
	return errors.New("culvert attach follows the peers of the device by itself; for another configuration, start it again")
}

// Health returns nil while the device answers and a relay is connected or a peer is reached.
func (a *Attachment) Health() error {
	s := a.Status()
	if s.Fault != "" {
		return errors.New(s.Fault)
	}
	if slices.ContainsFunc(s.Relays, func(r RelayStatus) bool { return r.Connected }) ||
		slices.ContainsFunc(s.Peers, func(p PeerStatus) bool { return p.Path.Kind == pathDirect }) {
		return nil
	}
	return errors.New("no relay is connected, and no peer is reached directly")
}

// Status tells how the attachment fares. It is a snapshot.
func (a *Attachment) Status() Status {
	now := time.Now()
	d, fault, links := a.transport.state()
	s := Status{
		Interface: a.cfg.Interface, PublicKey: a.key.Public(), ListenPort: d.ListenPort, CheckPort: a.sockets.port(),
		UptimeS: int64(now.Sub(a.started).Seconds()), Version: a.cfg.Version,
		Peers: []PeerStatus{}, Relays: []RelayStatus{}, Outer: []OuterStatus{}, Candidates: []Candidate{},
		Drops: DropStatus{a.ports.dropped.unknown.Load(), a.ports.dropped.foreign.Load(), a.ports.dropped.down.Load()},
	}
	if fault != nil {
		s.Fault = fault.Error()
	}
	relays := a.relays.Status()
	for _, r := range relays {
		s.Relays = append(s.Relays, RelayStatus{
			URL: r.URL, State: r.State.String(), Connected: isConnected(r.State), Home: r.Home, RTT: millis(r.RTT), Since: r.Since, Err: r.Err,
			Reconnects: uint64(r.Reconnects), RxBytes: r.BytesIn, TxBytes: r.BytesOut, Drops: r.Dropped,
		})
	}
	for _, o := range a.gather.Status() {
		line := OuterStatus{Source: o.Source, Endpoint: o.Endpoint, RTT: millis(o.RTT), Since: o.Since, Checked: o.Checked}
		if o.Err != nil {
			line.Err = o.Err.Error()
		}
		s.Outer = append(s.Outer, line)
	}
	for _, c := range a.gather.Candidates() {
		s.Candidates = append(s.Candidates, Candidate{c.Kind.String(), c.WG, c.Check, c.Source})
	}
	for _, p := range d.Peers { // in the device's order
		if l, ok := links[p.PublicKey]; ok {
			s.Peers = append(s.Peers, a.peerStatus(l, relays, now))
		}
	}
	return s
}

func (a *Attachment) peerStatus(l linkState, relays []relay.Status, now time.Time) PeerStatus {
	ps, sought := a.agent.Peer(l.key)
	is := a.paths.note(l, a.relayOf(l.key, relays), now)
	p := PeerStatus{
		PublicKey: l.key, Addresses: l.at.AllowedIPs, LastHandshake: l.at.LastHandshake, RxBytes: l.at.RxBytes, TxBytes: l.at.TxBytes,
		KeepaliveS: int(l.at.Keepalive.Seconds()), RelayPort: l.port, RelayRx: l.rxRelay, RelayTx: l.txRelay, RelayLost: l.relayLost,
		Path: PathStatus{Kind: is.kind, Endpoint: is.endpoint, Since: is.since},
	}
	if p.Addresses == nil {
		p.Addresses = []netip.Prefix{}
	}
	if sought {
		p.Traversal = traversalStatus(ps)
		if is.kind == pathDirect {
			p.Path.RTT = millis(ps.RTT)
		}
	}
	p.Path.Reason = a.reason(is, ps, sought, now)
	return p
}

// reason says in words why a peer is reached as it is, and what could be done.
func (a *Attachment) reason(is pathState, ps agent.PeerStatus, sought bool, now time.Time) string {
	switch {
	case is.kind == pathDirect && sought && ps.Mode == path.ModeRoute:
		return fmt.Sprintf("checks and WireGuard agree: %s to %s", ps.Local, ps.Remote)
	case is.kind == pathDirect:
		return "WireGuard has this endpoint from elsewhere, and it answers"
	case sought:
		return ps.Why(now)
	case !a.cfg.Traversal.Direct:
		return "direct paths are switched off: [Traversal] Direct"
	}
	return "not looked at yet"
}

func traversalStatus(p agent.PeerStatus) *TraversalStatus {
	t := &TraversalStatus{
		Phase: p.Phase.String(), Mode: p.Mode.String(), RTT: millis(p.RTT), Since: p.Since, DirectAfter: millis(p.DirectAfter),
		Pairs: p.Pairs, Valid: p.Valid, Upgrades: p.Upgrades, Fallbacks: p.Fallbacks, NextTry: p.NextTry, ClockAhead: p.ClockAhead.Seconds(),
	}
	if p.Mode != path.ModeRelay {
		t.Check = p.Route.Check.String()
		if p.Local != 0 {
			t.Local = p.Local.String()
		}
		if p.Remote != 0 {
			t.Remote = p.Remote.String()
		}
	}
	for _, b := range p.Bans {
		t.Bans = append(t.Bans, BanStatus{b.Route.WG, b.Until, b.Reason})
	}
	return t
}

func millis(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// isConnected reports whether a relay in that state carries packets.
func isConnected(s relay.State) bool {
	return s == relay.StateConnected || s == relay.StateStandby || s == relay.StateLeaving
}

// relayOf is the relay by which a peer was heard, else home; "" if none is connected.
func (a *Attachment) relayOf(peer wgkey.Public, relays []relay.Status) (url string) {
	r, _ := a.relays.Route(peer)
	for _, s := range relays {
		switch {
		case !isConnected(s.State):
		case s.URL == r.URL:
			return s.URL
		case s.Home:
			url = s.URL
		}
	}
	return url
}
