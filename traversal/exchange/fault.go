package exchange

import (
	"fmt"
	"time"

	"culvert.dev/culvert/internal/wgkey"
)

// Fault is why Open refuses a packet. It is an error. The first ones are told before decryption, the others of packets that the
// sender has sealed without doubt, and then come within a Rejection.
type Fault uint8

// Faults. None of the packets up to FaultForged has cost more than a decryption, up to FaultUnknown more than a look into a map.
const (
	FaultNotOurs     Fault = 1  // does not begin with the magic
	FaultLength      Fault = 2  // too short, or above MaxLen
	FaultSender      Fault = 3  // the relay names another sender than the packet
	FaultUnknown     Fault = 4  // the sender is no peer
	FaultForged      Fault = 5  // the box does not open: sealed by or for somebody else, another version of the envelope, or changed
	FaultVersion     Fault = 6  // a layout of the plaintext that is unknown: another version of Culvert
	FaultReplay      Fault = 7  // not newer than what was heard: a repetition, or overtaken
	FaultStale       Fault = 8  // sent more than MaxSkew ago: kept back, or the clocks differ
	FaultAhead       Fault = 9  // sent more than MaxSkew from now: the clocks differ
	FaultKind        Fault = 10 // a message of unknown kind: of a later version, and to be ignored
	FaultMalformed   Fault = 11 // breaks the layout
	FaultEarlier     Fault = 12 // for an earlier life of this node
	FaultUnconfirmed Fault = 13 // of a kind for which the sender must have heard from this node, and it says it has not

	NumFaults = 14
)

// String names the fault, for counters too.
func (f Fault) String() string {
	switch f {
	case FaultNotOurs:
		return "not ours"
	case FaultLength:
		return "length"
	case FaultSender:
		return "other sender"
	case FaultUnknown:
		return "unknown sender"
	case FaultForged:
		return "forged"
	case FaultVersion:
		return "unknown version"
	case FaultReplay:
		return "replay"
	case FaultStale:
		return "stale"
	case FaultAhead:
		return "from the future"
	case FaultKind:
		return "unknown kind"
	case FaultMalformed:
		return "malformed"
	case FaultEarlier:
		return "for an earlier life"
	case FaultUnconfirmed:
		return "unconfirmed"
	}
	return fmt.Sprintf("fault %d", uint8(f))
}

// Error implements error.
func (f Fault) Error() string { return "exchange packet: " + f.String() }

// Rejection is a Fault of a packet that was authenticated; errors.Is finds the Fault in it.
type Rejection struct {
	Fault Fault
	From  wgkey.Public

	// Skew is the send time minus the receiver's: how far the sender's clock is ahead, less the way. With FaultStale it may be
	// the age of a recording instead. Zero with FaultVersion.
	Skew time.Duration

	Version uint8 // of the sender's layout, with FaultVersion
	Kind    Kind  // of the message, if the version is known

	// Hello says that a message to the sender would make its next ones understood: it does not know our life, or its clock was
	// set back between two lives of its own. Answer with candidates, at a bounded rate: recordings can cause this.
	Hello bool
}

// Error names the peer, and what an operator can do where there is something.
func (r *Rejection) Error() string {
	text := fmt.Sprintf("exchange packet from %s: %s", r.From.Short(), r.Fault.String())
	switch r.Fault {
	case FaultVersion:
		return fmt.Sprintf("%s %d: update the older of both nodes", text, r.Version)
	case FaultStale:
		return fmt.Sprintf("%s: its clock is %v behind ours, or the packet was kept back", text, -r.Skew.Round(time.Second))
	case FaultAhead:
		return fmt.Sprintf("%s: its clock is %v ahead of ours: set both by NTP", text, r.Skew.Round(time.Second))
	}
	return text
}

// Unwrap returns the Fault.
func (r *Rejection) Unwrap() error { return r.Fault }

// Stats counts since the Sealer was made.
type Stats struct {
	Sealed   uint64            // messages
	Boxes    uint64            // that were tried to open: what has cost a decryption
	Opened   uint64            // messages
	Rejected [NumFaults]uint64 // by Fault
}
