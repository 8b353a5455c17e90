package config

import (
	"net/netip"
	"slices"
)

// Traversal says how direct paths to peers are sought that are reached by a relay.
type Traversal struct {
	Direct      bool             // seek them at all; default yes
	HardNAT     bool             // with techniques for NATs that map per destination too, which send up to some thousand datagrams; default yes
	PortMapping bool             // ask the gateway for a mapping of the WireGuard port by PCP, NAT-PMP or UPnP; default yes
	Candidates  []netip.AddrPort // where peers can reach the WireGuard port besides: forwards made by hand; none twice
}

// maxCandidates is how many Candidates there may be: messages to peers have room for few more.
const maxCandidates = 8

var traversalKeys = []key[Traversal]{
	{name: "Direct", doc: "no: leave peers behind their relay; default yes",
		set: func(_ *loader, t *Traversal, v value) (err error) {
			t.Direct, err = parseBool(v.text)
			return err
		}},
	{name: "HardNAT", doc: "no: without the techniques that send many datagrams; default yes",
		set: func(_ *loader, t *Traversal, v value) (err error) {
			t.HardNAT, err = parseBool(v.text)
			return err
		}},
	{name: "PortMapping", doc: "no: ask the gateway for no port mapping; default yes",
		set: func(_ *loader, t *Traversal, v value) (err error) {
			t.PortMapping, err = parseBool(v.text)
			return err
		}},
	{name: "Candidate", doc: "ADDRESS:PORT of forwards made by hand to the WireGuard port", list: true,
		set: func(_ *loader, t *Traversal, v value) error {
			for _, element := range splitList(v.text) {
				c, err := parseCandidate(element)
				if err != nil {
					return err
				}
				if slices.Contains(t.Candidates, c) {
					continue
				}
				if len(t.Candidates) == maxCandidates {
					return reject(element, "is one too many: there may be 8")
				}
				t.Candidates = append(t.Candidates, c)
			}
			return nil
		}},
}

// defaultTraversal is what holds where the configuration does not say.
func defaultTraversal() Traversal { return Traversal{Direct: true, HardNAT: true, PortMapping: true} }

// parseCandidate reads ADDRESS:PORT. What no peer could send to is refused.
func parseCandidate(s string) (netip.AddrPort, error) {
	c, err := netip.ParseAddrPort(s)
	if err != nil {
		return c, reject(s, "is not an address with a port, such as 203.0.113.7:51820 or [2001:db8::7]:51820")
	}
	a := c.Addr().Unmap()
	switch {
	case c.Port() == 0:
		return c, reject(s, "has no port")
	case a.Zone() != "", a.IsUnspecified(), a.IsLoopback(), a.IsMulticast(), a.IsLinkLocalUnicast():
		return c, reject(s, "is an address that no peer can send to")
	}
	return netip.AddrPortFrom(a, c.Port()), nil
}
