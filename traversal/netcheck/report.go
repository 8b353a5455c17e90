package netcheck

import (
	"net/netip"
	"time"

	"culvert.dev/culvert/traversal/exchange"
)

// Report is what Run has found: the document of "culvert netcheck --json". Names and meaning of its fields stay; fields may be
// added. Lists are never null. Durations are in milliseconds or seconds, as the names say.
type Report struct {
	Time     time.Time `json:"time"`    // when the run began
	TookMS   int64     `json:"took_ms"` // how long it took
	Local    []Address `json:"addresses"`
	LowPorts bool      `json:"low_ports"` // UDP ports from 600 to 1023 may be bound here
	IPv4     Family    `json:"ipv4"`
	IPv6     Family    `json:"ipv6"`
	Gateways []Gateway `json:"gateways"` // that were asked for port mappings
	Relays   []Relay   `json:"relays"`
	Notes    []string  `json:"notes"` // what could not be found out, and why
}

// Address is one of this host's, without loopback.
type Address struct {
	Address   netip.Addr `json:"address"`
	Interface string     `json:"interface"` // "" if it is not known
	Scope     string     `json:"scope"`     // "public", "private", "shared" (of a carrier, RFC 6598), "link-local"
}

// Answers to questions that may have none.
const (
	Yes     = "yes"
	No      = "no"
	Unknown = "unknown"
)

// Family is what is known of one address family.
type Family struct {
	Address  bool           `json:"address"`  // the host has one that is more than link-local
	UDP      string         `json:"udp"`      // "yes", "no", "unknown": whether servers outside answer
	Servers  []Server       `json:"servers"`  // that were asked
	Endpoint netip.AddrPort `json:"endpoint"` // of one socket, as seen from outside; "" if unknown
	NAT      string         `json:"nat"`      // "yes", "no", "unknown"

	Mapping   string `json:"mapping"`   // RFC 4787 section 4.1, "unknown", or two behaviours with " or " between them
	Filtering string `json:"filtering"` // RFC 4787 section 5, as Mapping
	Hairpin   string `json:"hairpin"`   // "yes", "no", "with inner source", "unknown"
	Ports     Ports  `json:"ports"`

	// Traditional: one outer port for all destinations, and it is the inner one. A static Endpoint, and hole punching without any
	// server, will work.
	Traditional bool `json:"traditional"`

	DoubleNAT    string `json:"double_nat"`               // "yes", "no", "unknown"
	DoubleNATWhy string `json:"double_nat_why,omitempty"` // in words

	Kind    Kind      `json:"kind"`               // all of the above in one word
	Sure    bool      `json:"sure"`               // Kind follows from what was seen; else parts of it are what is usual
	Live    *Lifetime `json:"lifetime,omitempty"` // absent if it was not asked for
	Outlook []Outlook `json:"outlook"`            // by the kinds of the other side; empty if Kind is not known

	Hints exchange.Hints `json:"-"` // what other nodes are told of it
}

// Server is one address of a STUN server.
type Server struct {
	Name    string         `json:"server"`  // as configured
	Address netip.AddrPort `json:"address"` // "" if the name has none of this family
	RTT     float64        `json:"rtt_ms"`  // 0 without an answer
	Two     bool           `json:"two_addresses"`
	Err     string         `json:"error,omitempty"` // why there is no answer
}

// Ports is how outer ports were chosen for some sockets that each sent to one destination.
type Ports struct {
	Sockets int    `json:"sockets"`
	Kept    int    `json:"kept"`   // of these: equal to the inner port
	Parity  int    `json:"parity"` // of these: even for even, odd for odd
	Min     uint16 `json:"min"`
	Max     uint16 `json:"max"`
	Step    int    `json:"step"` // from one mapping to the next; 0 if they do not follow each other
}

// Lifetime is how long a mapping lives that carries nothing.
type Lifetime struct {
	Least float64 `json:"least_s"`         // it lives so long
	Most  float64 `json:"most_s"`          // it is gone after so long; 0 if it never was
	Err   string  `json:"error,omitempty"` // why it is not known, or not in full
}

// Gateway is a router that was asked for port mappings.
type Gateway struct {
	Address   netip.Addr `json:"address"`
	Local     netip.Addr `json:"local"`
	Interface string     `json:"interface"`
	Services  []Service  `json:"services"`
	Grant     *Grant     `json:"grant,omitempty"` // absent: none
}

// Service is one protocol for port mappings.
type Service struct {
	Protocol string  `json:"protocol"` // "pcp", "nat-pmp", "upnp"
	Found    bool    `json:"found"`
	RTT      float64 `json:"rtt_ms"`           // until it was found; 0 if it was not
	External string  `json:"external"`         // the gateway's outer address as it says; "" if it does not
	Detail   string  `json:"detail,omitempty"` // model and version
	Err      string  `json:"error,omitempty"`  // why it cannot be used
}

// Grant is a mapping that the gateway gave for the time of the run.
type Grant struct {
	Protocol string         `json:"protocol"`
	External netip.AddrPort `json:"external"`
	Lifetime float64        `json:"lifetime_s"` // as granted; 0 is for ever
	Usable   bool           `json:"usable"`     // External is an address that strangers can reach
}

// Relay is what came of a connection to a relay.
type Relay struct {
	URL       string  `json:"url"`
	Connected bool    `json:"connected"`
	Refused   bool    `json:"refused"`           // it can be reached, but does not admit the key
	RTT       float64 `json:"rtt_ms"`            // 0 if not connected
	Connect   float64 `json:"connect_ms"`        // time until it was connected
	Transport string  `json:"transport"`         // "derp", "fast-start", "websocket"; "" if not connected
	TLS       string  `json:"tls"`               // version; "" without
	Proxy     string  `json:"proxy,omitempty"`   // it was reached through
	Err       string  `json:"error,omitempty"`   // why it is not connected
	Throwaway bool    `json:"throwaway_key"`     // the key was made for this run
	FromNode  bool    `json:"from_running_node"` // not tried: this is what the running node says
}

// Outlook is how nodes behind one kind of NAT will be reached.
type Outlook struct {
	Peer   Kind   `json:"peer"`
	Result Result `json:"result"`
}

// millis is a duration for JSON, to the microsecond.
func millis(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
