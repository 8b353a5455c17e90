package filter

// Action is what becomes of a packet. The zero value denies.
type Action uint8

const (
	Drop   Action = iota // say nothing
	Reject               // answer with a TCP reset, or ICMP administratively prohibited
	Accept
)

// String returns the lower-case name.
func (a Action) String() string {
	switch a {
	case Accept:
		return "accept"
	case Reject:
		return "reject"
	}
	return "drop"
}

// Where is the side on which a destination lies.
type Where uint8

const (
	Nowhere   Where = iota // no place that traffic of a peer may go to
	Self                   // this node's mesh address
	OtherPeer              // behind the peer Decision.To
	LAN                    // the host's local networks
	Internet               // everything else
)

// String returns the lower-case name.
func (w Where) String() string {
	switch w {
	case Self:
		return "self"
	case OtherPeer:
		return "other-peer"
	case LAN:
		return "lan"
	case Internet:
		return "internet"
	}
	return "nowhere"
}

// Via is the way by which accepted traffic leaves for the internet.
type Via uint8

const (
	ViaDefault  Via = iota // in a rule: as the peer's configuration says; never in a decision that accepts
	ViaHost                // the host's own network; for all that is not the internet
	ViaUpstream            // the second tunnel of [Upstream]
)

// String returns the word of the grammar, "" for ViaDefault.
func (v Via) String() string {
	switch v {
	case ViaHost:
		return "host"
	case ViaUpstream:
		return "upstream"
	}
	return ""
}

// Decision is the verdict on the first packet of a flow.
type Decision struct {
	Action Action
	Where  Where
	Reason Reason // why not; ReasonNone with Accept
	Via    Via    // how it leaves, with Accept
	To     uint16 // the peer that owns the destination, with Where OtherPeer
	Log    bool   // the rule wants flows logged
	Rule   *Rule  // the rule that decided, nil where none did; shared, do not change it
}
