package stun

import (
	"fmt"
	"net/netip"
	"strings"
	"time"

	"culvert.dev/culvert/nat"
)

// Range is what is known of a behaviour: it is at least Least and at most Most.
type Range struct{ Least, Most nat.Dependence }

// Known reports whether only one behaviour is possible.
func (r Range) Known() bool { return r.Least == r.Most }

// String names the behaviours that are possible, "unknown" for all three.
func (r Range) String() string {
	switch {
	case r.Known():
		return r.Least.String()
	case r == unknownRange:
		return "unknown"
	}
	return r.Least.String() + " or " + r.Most.String()
}

var unknownRange = Range{nat.EndpointIndependent, nat.AddressAndPortDependent}

// Hairpin is what happens to datagrams from inside to an outer address of the NAT's.
type Hairpin uint8

const (
	HairpinUnknown  Hairpin = iota // could not be tried
	HairpinNone                    // they are lost
	HairpinInternal                // they arrive, but from the inner address (RFC 4787 REQ-9 a forbids that)
	HairpinExternal                // they arrive, from the outer address
)

func (h Hairpin) String() string {
	return [...]string{"unknown", "no", "with inner source", "yes"}[h]
}

// Ports is how outer ports are chosen, as seen from some sockets that each sent to one destination first.
type Ports struct {
	Sockets   int    // how many were tried, with success
	Preserved int    // of these: outer port equal to the inner one
	Parity    int    // of these: both even or both odd (RFC 4787 section 4.2.2)
	Min, Max  uint16 // of the outer ports

	// Step is by how much each new mapping's port is above the one before, negative for below; 0 if ports do not follow
	// each other. Foreign traffic in between makes single steps larger; this is the smallest seen.
	Step int
}

// Kept reports whether every socket had its own port outside.
func (p Ports) Kept() bool { return p.Sockets > 0 && p.Preserved == p.Sockets }

// Report is what Discover has found. RFC 5780 warns that NATs may do otherwise under load: take it for a hint.
type Report struct {
	Server  netip.AddrPort
	Mapped  netip.AddrPort // of the first socket, towards Server
	RTT     time.Duration
	NAT     bool // Mapped is not the socket's own address and port
	TwoAddr bool // the server has a second address that answers (RFC 5780)

	Mapping   Range // RFC 4787 section 4.1
	Filtering Range // RFC 4787 section 5; also of a firewall without NAT
	Hairpin   Hairpin
	Ports     Ports

	// Seen is what each destination saw of one and the same socket, in the order they were asked.
	Seen []Observation
}

// Observation is an outer address of a socket's, as one destination sees it.
type Observation struct{ To, Mapped netip.AddrPort }

// String is some lines for people.
func (r Report) String() string {
	var b strings.Builder
	line := func(name, format string, args ...any) {
		fmt.Fprintf(&b, "%-10s %s\n", name, fmt.Sprintf(format, args...))
	}
	line("server", "%v, answers in %v", r.Server, r.RTT.Round(100*time.Microsecond))
	what := "no NAT"
	if r.NAT {
		what = "behind NAT"
	}
	line("address", "%v, %s", r.Mapped, what)
	one := ""
	if !r.TwoAddr {
		one = " (the server has one address)"
	}
	line("mapping", "%v%s", r.Mapping, one)
	line("filtering", "%v%s", r.Filtering, one)
	line("hairpin", "%v", r.Hairpin)
	line("ports", "%d of %d kept, %d with parity, %d to %d", r.Ports.Preserved, r.Ports.Sockets, r.Ports.Parity, r.Ports.Min, r.Ports.Max)
	if r.Ports.Step != 0 {
		line("step", "%+d", r.Ports.Step)
	}
	return b.String()
}
