package filter

import (
	"net/netip"

	"culvert.dev/culvert/internal/hostnet"
)

// Peer is what the configuration says about one peer. The zero permissions allow nothing but an echo of this node.
type Peer struct {
	ID           uint16 // 1 or above, unique
	Name         string // for errors, explanations and rules
	AllowInbound bool   // may reach ports published at this node's mesh address
	AllowRouting bool   // may use this node as an exit
	AllowLAN     bool   // may reach the host's local networks; AllowRouting is needed as well
	AllowPeers   []uint16
	Upstream     bool // traffic to the internet leaves through the upstream tunnel, unless a rule says otherwise
}

// Route gives a prefix of the mesh to a peer: one entry of its AllowedIPs.
type Route struct {
	Prefix netip.Prefix
	Peer   uint16
}

// Need is the permission that a port of this node asks for.
type Need uint8

const (
	NeedInbound Need = iota // AllowInbound: published ports
	NeedRouting             // AllowRouting: DNS, in-mesh SOCKS5
)

// SelfPort is a port served at this node's mesh address.
type SelfPort struct {
	Proto uint8 // packet.ProtoTCP or packet.ProtoUDP
	Port  uint16
	Need  Need
}

// Config is what a Policy is made of. New copies what it keeps.
type Config struct {
	Self      []netip.Addr     // this node's mesh addresses
	Mesh      []netip.Prefix   // the mesh's own networks: the prefixes of [Interface] Address
	Routes    []Route          // every peer's AllowedIPs
	Peers     []Peer           //
	Host      hostnet.Snapshot // the host's addresses and networks
	Deny      []netip.Prefix   // [Exit] DenyTo
	Allow     []netip.Prefix   // [Exit] AllowTo
	SelfPorts []SelfPort
	Rules     []Rule // in order
	Sets      []Set  // what rules name

	HasUpstream bool // there is an upstream tunnel; without one neither a peer nor a rule may ask for it
}
