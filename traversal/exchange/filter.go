package exchange

import (
	"fmt"
	"net/netip"
)

// Refusal is why a candidate is not used; zero is none.
type Refusal uint8

// Refusals.
const (
	Usable            Refusal = 0
	RefuseKind        Refusal = 1 // unknown
	RefusePort        Refusal = 2 // port 0
	RefuseUnspecified Refusal = 3 // 0.0.0.0/8, ::, and other addresses in ::/96 that are no host's
	RefuseMulticast   Refusal = 4
	RefuseBroadcast   Refusal = 5 // 255.255.255.255, the rest of 240.0.0.0/4, a LAN's own broadcast address
	RefuseLoopback    Refusal = 6
	RefuseLinkLocal   Refusal = 7 // without a zone, which received ones never have: the link is not known
	RefuseMesh        Refusal = 8 // inside the mesh: a tunnel within the tunnel
	RefuseOwn         Refusal = 9 // where this node itself is
	RefuseExcess      Refusal = 10
	RefuseDuplicate   Refusal = 11

	NumRefusals = 12
)

// String says it in words, for counters too.
func (r Refusal) String() string {
	switch r {
	case Usable:
		return "usable"
	case RefuseKind:
		return "unknown kind"
	case RefusePort:
		return "port 0"
	case RefuseUnspecified:
		return "unspecified"
	case RefuseMulticast:
		return "multicast"
	case RefuseBroadcast:
		return "broadcast or reserved"
	case RefuseLoopback:
		return "loopback"
	case RefuseLinkLocal:
		return "link-local"
	case RefuseMesh:
		return "inside the mesh"
	case RefuseOwn:
		return "own endpoint"
	case RefuseExcess:
		return "too many of its kind"
	case RefuseDuplicate:
		return "duplicate"
	}
	return fmt.Sprintf("refusal %d", uint8(r))
}

// defaultPerKind is room for the IPv4 address and some IPv6 addresses of two or three interfaces.
const defaultPerKind = 12

// Filter says which received candidates may be probed. Private addresses pass, for peers on one LAN, and so do the ranges for
// documentation: nobody is there to be disturbed, and labs use them.
type Filter struct {
	Mesh     []netip.Prefix   // what is reached by the tunnel: inner addresses of this node and its peers, AllowedIPs that are no default route
	LAN      []netip.Prefix   // the host's own networks, whose broadcast addresses are refused
	Own      []netip.AddrPort // this node's own endpoints
	Loopback bool             // loopback passes: for tests
	PerKind  int              // how many of one kind pass; 0: 12
}

// Check looks at one candidate on its own: both of its endpoints must be fit to be sent to.
func (f *Filter) Check(c Candidate) Refusal {
	if !c.Kind.known() {
		return RefuseKind
	}
	if r := f.CheckEndpoint(c.WG); r != Usable || !c.Check.IsValid() {
		return r
	}
	return f.CheckEndpoint(c.Check)
}

// CheckEndpoint is for an endpoint by itself, such as those of a proposal.
func (f *Filter) CheckEndpoint(e netip.AddrPort) Refusal {
	a := e.Addr().Unmap()
	e = netip.AddrPortFrom(a, e.Port())
	switch {
	case !a.IsValid() || unspecified(a):
		return RefuseUnspecified
	case e.Port() == 0:
		return RefusePort
	case a.IsMulticast():
		return RefuseMulticast
	case a.Is4() && a.As4()[0] >= 240 || f.directed(a):
		return RefuseBroadcast
	case a.IsLoopback():
		if !f.Loopback {
			return RefuseLoopback
		}
	case a.IsLinkLocalUnicast() && a.Zone() == "":
		return RefuseLinkLocal
	}
	for _, p := range f.Mesh {
		if p.Contains(a.WithZone("")) {
			return RefuseMesh
		}
	}
	for _, own := range f.Own {
		if e == netip.AddrPortFrom(own.Addr().Unmap(), own.Port()) {
			return RefuseOwn
		}
	}
	return Usable
}

// unspecified reports whether a is in 0.0.0.0/8 ("this network", RFC 1122 section 3.2.1.3), or in ::/96 without being ::1: the
// IPv4-compatible addresses that RFC 4291 section 2.5.5.1 has given up.
func unspecified(a netip.Addr) bool {
	if a.Is4() {
		return a.As4()[0] == 0
	}
	b := a.As16()
	return [12]byte(b[:12]) == [12]byte{} && !a.IsLoopback()
}

// directed reports whether a is the broadcast address of one of the host's networks, or its first address, which old hosts take
// for it. Networks of one or two addresses (RFC 3021) have none.
func (f *Filter) directed(a netip.Addr) bool {
	if !a.Is4() {
		return false
	}
	for _, p := range f.LAN {
		if !p.Addr().Is4() || p.Bits() > 30 || !p.Contains(a) {
			continue
		}
		host := ^uint32(0) >> p.Bits()
		b := a.As4()
		n := uint32(b[0])<<24 | uint32(b[1])<<16 | uint32(b[2])<<8 | uint32(b[3])
		if n&host == host || n&host == 0 {
			return true
		}
	}
	return false
}

// Select returns the candidates of a message that may be probed, in their order, and how many were refused why. The same two
// endpoints count once, as the first kind that names them.
func (f *Filter) Select(list []Candidate) (kept []Candidate, refused [NumRefusals]int) {
	limit := f.PerKind
	if limit == 0 {
		limit = defaultPerKind
	}
	var count [numCandidateKinds]int
	for _, c := range list {
		r := f.Check(c)
		switch {
		case r != Usable:
		case known(kept, c):
			r = RefuseDuplicate
		case count[c.Kind] >= limit:
			r = RefuseExcess
		default:
			count[c.Kind]++
			kept = append(kept, c)
			continue
		}
		refused[r]++
	}
	return kept, refused
}

func known(list []Candidate, c Candidate) bool {
	for _, k := range list {
		if k.WG == c.WG && k.Check == c.Check {
			return true
		}
	}
	return false
}
