package exchange

import (
	"fmt"
	"net/netip"
)

// MaxCandidates is how many candidates one message may carry.
const MaxCandidates = 32

// CandidateKind is where a candidate comes from. Its numbers are on the wire.
type CandidateKind uint8

// Sources of candidates.
const (
	Host          CandidateKind = 1 // an interface of the host
	Reflexive     CandidateKind = 2 // as a STUN server sees it
	Mapped        CandidateKind = 3 // by PCP, NAT-PMP or UPnP
	Static        CandidateKind = 4 // configured
	OwnPort       CandidateKind = 5 // the port of the socket itself on a public address: for forwards made by hand
	PeerReflexive CandidateKind = 6 // as a peer saw it in a check
	LastPair      CandidateKind = 7 // of the path that worked last

	numCandidateKinds = 8
)

// String names the kind, "kind N" if it is unknown.
func (k CandidateKind) String() string {
	switch k {
	case Host:
		return "host"
	case Reflexive:
		return "reflexive"
	case Mapped:
		return "mapped"
	case Static:
		return "static"
	case OwnPort:
		return "own port"
	case PeerReflexive:
		return "peer-reflexive"
	case LastPair:
		return "last pair"
	}
	return fmt.Sprintf("kind %d", uint8(k))
}

func (k CandidateKind) known() bool { return k != 0 && k < numCandidateKinds }

// Candidate is where a node may be reached, as one source says. It is comparable.
type Candidate struct {
	Kind       CandidateKind
	Preference uint16 // the sender's; higher is better. A hint: measured round trips decide

	WG    netip.AddrPort // of the socket that WireGuard uses
	Check netip.AddrPort // of a socket apart that answers checks; invalid where checks go to WG itself

	// Base is the local address and port behind WG: which socket, on which interface. It stays at home: it is not sent, and invalid
	// in what is received.
	Base netip.AddrPort
}

// Target is where checks are sent: Check if there is one, else WG.
func (c Candidate) Target() netip.AddrPort {
	if c.Check.IsValid() {
		return c.Check
	}
	return c.WG
}

// String is for logs and status.
func (c Candidate) String() string {
	if c.Check.IsValid() {
		return fmt.Sprintf("%v %v (checks %v)", c.Kind, c.WG, c.Check)
	}
	return fmt.Sprintf("%v %v", c.Kind, c.WG)
}

// plain returns an endpoint as it is sent: IPv4 as such, and without a zone, which means nothing to another host.
func plain(e netip.AddrPort) netip.AddrPort {
	if !e.IsValid() {
		return netip.AddrPort{}
	}
	return netip.AddrPortFrom(e.Addr().Unmap().WithZone(""), e.Port())
}

// Pack splits a list into parts that each fit into one message, whatever else is in it; the order stays. The first is for a
// message of candidates, the others for trickles. One part is enough for MaxCandidates as long as WG and Check of each share their
// address. The parts alias the list.
func Pack(list []Candidate) (parts [][]Candidate) {
	start, size := 0, 0
	for i, c := range list {
		n := candidateLen(c)
		if i-start == MaxCandidates || size+n > maxCandidateBytes {
			parts = append(parts, list[start:i:i])
			start, size = i, 0
		}
		size += n
	}
	if start < len(list) {
		parts = append(parts, list[start:])
	}
	return parts
}
