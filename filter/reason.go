package filter

// Reason tells why a packet was denied. It indexes a counter array of NumReasons.
type Reason uint8

const (
	ReasonNone           Reason = iota
	ReasonUnknownPeer           // no such peer
	ReasonSpoofedSource         // the source belongs to nobody or to another peer
	ReasonBadSource             // the source can be nobody's: multicast, broadcast, loopback, unspecified, this node
	ReasonNoInbound             // AllowInbound is missing
	ReasonNoRouting             // AllowRouting is missing
	ReasonNoLAN                 // AllowLAN is missing
	ReasonSelfPort              // nothing is served there at this node's mesh address
	ReasonOtherPeer             // AllowPeers does not name the owner
	ReasonSamePeer              // the destination lies behind the sender itself
	ReasonMeshUnassigned        // inside the mesh, owned by no peer
	ReasonHostAddress
	ReasonLoopback
	ReasonUnspecified
	ReasonBroadcast
	ReasonMulticast
	ReasonReserved
	ReasonLinkLocal
	ReasonMetadata
	ReasonV4Mapped
	ReasonNAT64Local
	ReasonDeniedByConfig
	ReasonRule
	numReasons
)

// NumReasons is the length of an array that Reason indexes.
const NumReasons = int(numReasons)

var reasonTexts = [NumReasons]struct{ name, explain string }{
	ReasonNone:           {"none", "the packet is accepted"},
	ReasonUnknownPeer:    {"unknown-peer", "the packet comes from a peer that is not configured"},
	ReasonSpoofedSource:  {"spoofed-source", "the source address is not among the peer's AllowedIPs"},
	ReasonBadSource:      {"bad-source", "the source address can belong to no peer: it is multicast, broadcast, loopback, unspecified, or this node's own"},
	ReasonNoInbound:      {"no-inbound", "the peer may not open connections to this node: set AllowInbound = yes for it"},
	ReasonNoRouting:      {"no-routing", "the peer may not use this node as an exit: set AllowRouting = yes for it"},
	ReasonNoLAN:          {"no-lan", "the destination lies in a local network of this host: set AllowLAN = yes for the peer"},
	ReasonSelfPort:       {"self-port", "nothing is published at this port of the node's mesh address"},
	ReasonOtherPeer:      {"other-peer", "the destination belongs to another peer: name that one in the sender's AllowPeers"},
	ReasonSamePeer:       {"same-peer", "the destination is among the sender's own AllowedIPs"},
	ReasonMeshUnassigned: {"mesh-unassigned", "the destination lies in the mesh network, but no peer has that address"},
	ReasonHostAddress:    {"host-address", "the destination is an address of this host: publish the port instead"},
	ReasonLoopback:       {"loopback", "the destination is loopback: publish the port instead"},
	ReasonUnspecified:    {"unspecified", "the destination is the unspecified address"},
	ReasonBroadcast:      {"broadcast", "the destination is a broadcast address"},
	ReasonMulticast:      {"multicast", "the destination is a multicast address"},
	ReasonReserved:       {"reserved", "the destination is reserved and belongs to no host"},
	ReasonLinkLocal:      {"link-local", "the destination is link-local: name it in [Exit] AllowTo if that is meant"},
	ReasonMetadata:       {"metadata", "the destination is a cloud metadata service: name it in [Exit] AllowTo if that is meant"},
	ReasonV4Mapped:       {"v4-mapped", "the destination is an IPv4-mapped IPv6 address: use the IPv4 address itself"},
	ReasonNAT64Local:     {"nat64-local", "the destination lies in the local-use NAT64 prefix: name it in [Exit] AllowTo if that is meant"},
	ReasonDeniedByConfig: {"denied-by-config", "the destination is listed in [Exit] DenyTo"},
	ReasonRule:           {"rule", "a rule of [Filter] denies it"},
}

// String returns the stable name under which the reason is counted.
func (r Reason) String() string {
	if int(r) < NumReasons {
		return reasonTexts[r].name
	}
	return "unknown"
}

// Explain returns a sentence for the operator: what is wrong and, where something can be done, what.
func (r Reason) Explain() string {
	if int(r) < NumReasons {
		return reasonTexts[r].explain
	}
	return "unknown reason"
}
