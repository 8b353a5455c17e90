package node

import (
	"encoding/json"
	"math"
	"net/netip"
	"time"

	"culvert.dev/culvert/internal/wgkey"
)

// Status is what a node tells of itself: the document of "culvert status --json". Names and meaning of its fields stay;
// fields may be added. It is a snapshot that refers to nothing of the node.
type Status struct {
	Name       string            `json:"name"`
	PublicKey  wgkey.Public      `json:"public_key"`
	Addresses  []netip.Addr      `json:"addresses"` // the node's own, inside the mesh
	ListenPort uint16            `json:"listen_port"`
	UptimeS    int64             `json:"uptime_s"`
	Version    string            `json:"version"`
	Peers      []PeerStatus      `json:"peers"`
	Flows      FlowStatus        `json:"flows"`
	Upstream   *UpstreamStatus   `json:"upstream,omitempty"`   // absent: there is none
	Relays     []RelayStatus     `json:"relays,omitempty"`     // absent: there are none
	RelayLost  uint64            `json:"relay_lost,omitempty"` // datagrams for peers by relay while none was connected
	Outer      []OuterStatus     `json:"outer,omitempty"`      // where the node is seen from outside; absent: nobody is asked
	Candidates []CandidateStatus `json:"candidates,omitempty"` // where peers are told to try this node; absent: no direct paths are sought
	Mappings   []MappingStatus   `json:"port_mappings,omitempty"`
	Services   []ServiceStatus   `json:"services,omitempty"` // proxies, forwards, published ports
	Exits      []ExitStatus      `json:"exits,omitempty"`    // that proxies have used
	Drops      map[string]uint64 `json:"drops"`              // packets by reason; a reason that never occurred may be absent
}

// PeerStatus is one peer. Byte counts are those of WireGuard, since the node started.
type PeerStatus struct {
	Name          string           `json:"name"` // "" when the configuration gives none
	PublicKey     wgkey.Public     `json:"public_key"`
	Addresses     Ranges           `json:"addresses"` // AllowedIPs
	Path          PathStatus       `json:"path"`
	Traversal     *TraversalStatus `json:"traversal,omitempty"` // absent: no direct path is sought
	LastHandshake Moment           `json:"last_handshake"`      // null when there was none
	RxBytes       uint64           `json:"rx_bytes"`            // received from the peer
	TxBytes       uint64           `json:"tx_bytes"`
	Allow         AllowStatus      `json:"allow"`
	RateBits      int64            `json:"rate_bit_s,omitempty"` // of each direction; absent: no limit
	MaxFlows      int              `json:"max_flows,omitempty"`  // absent: the node's own limit
}

// PathStatus is the way to a peer and why it is this one.
type PathStatus struct {
	Kind     string `json:"kind"`            // "direct": by UDP to the peer's own endpoint; "relay"; "none": not known yet, or lost
	Endpoint string `json:"endpoint"`        // address and port, or the relay's URL; "" without a path
	Relay    string `json:"relay,omitempty"` // the relay's URL; absent without one
	RTT      Millis `json:"rtt_ms"`          // null when not measured
	Since    Moment `json:"since"`           // when this path came into use; null for never
	Reason   string `json:"reason"`          // in words
}

// AllowStatus is what a peer may do here.
type AllowStatus struct {
	Inbound bool `json:"inbound"`
	Routing bool `json:"routing"`
	LAN     bool `json:"lan"`
}

// FlowStatus counts the flows that exist now.
type FlowStatus struct {
	TCP  int `json:"tcp"`
	UDP  int `json:"udp"`
	ICMP int `json:"icmp"`
}

// MarshalJSON writes empty lists and maps as such, never as null.
func (s Status) MarshalJSON() ([]byte, error) {
	type plain Status
	if s.Addresses == nil {
		s.Addresses = []netip.Addr{}
	}
	if s.Peers == nil {
		s.Peers = []PeerStatus{}
	}
	if s.Drops == nil {
		s.Drops = map[string]uint64{}
	}
	return json.Marshal(plain(s))
}

// Moment is a point in time; in JSON it is RFC 3339 in UTC to the millisecond, and null for the zero time.
type Moment struct{ time.Time }

const momentFormat = "2006-01-02T15:04:05.000Z"

// MarshalJSON implements json.Marshaler.
func (m Moment) MarshalJSON() ([]byte, error) {
	if m.IsZero() {
		return []byte("null"), nil
	}
	return []byte(m.UTC().Format(`"` + momentFormat + `"`)), nil
}

// UnmarshalJSON implements json.Unmarshaler.
func (m *Moment) UnmarshalJSON(b []byte) error {
	if string(b) == "null" {
		m.Time = time.Time{}
		return nil
	}
	return m.Time.UnmarshalJSON(b)
}

// Millis is a duration; in JSON it is a number of milliseconds, and null for zero.
type Millis time.Duration

// MarshalJSON implements json.Marshaler.
func (m Millis) MarshalJSON() ([]byte, error) {
	if m == 0 {
		return []byte("null"), nil
	}
	return json.Marshal(float64(time.Duration(m).Microseconds()) / 1000)
}

// UnmarshalJSON implements json.Unmarshaler.
func (m *Millis) UnmarshalJSON(b []byte) error {
	var ms *float64
	if err := json.Unmarshal(b, &ms); err != nil {
		return err
	}
	*m = 0
	if ms != nil {
		*m = Millis(math.Round(*ms * float64(time.Millisecond)))
	}
	return nil
}

// Ranges are addresses and networks; a network of one address is written as that address, without its length.
type Ranges []netip.Prefix

// MarshalJSON implements json.Marshaler.
func (r Ranges) MarshalJSON() ([]byte, error) { return json.Marshal(r.strings()) }

// UnmarshalJSON implements json.Unmarshaler.
func (r *Ranges) UnmarshalJSON(b []byte) error {
	var list []string
	if err := json.Unmarshal(b, &list); err != nil {
		return err
	}
	*r = make(Ranges, 0, len(list))
	for _, s := range list {
		p, err := netip.ParsePrefix(s)
		if err != nil {
			var a netip.Addr
			if a, err = netip.ParseAddr(s); err != nil {
				return err
			}
			p = netip.PrefixFrom(a, a.BitLen())
		}
		*r = append(*r, p)
	}
	return nil
}

func (r Ranges) strings() []string {
	list := make([]string, 0, len(r))
	for _, p := range r {
		if p.IsSingleIP() {
			list = append(list, p.Addr().String())
		} else {
			list = append(list, p.String())
		}
	}
	return list
}
