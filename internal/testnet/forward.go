package testnet

import "culvert.dev/culvert/internal/packet"

// Verdict is what a Forwarder has decided.
type Verdict uint8

const (
	Drop  Verdict = iota // silently
	Pass                 // on to the other side
	Back                 // translated, and to the side it came from: hairpinning
	Local                // it is for the gateway itself
)

// Forwarder stands between the inside and the outside of a Gateway, and may translate packets in place. Packets are whole
// (fragments have been put together), their checksums right. now is in nanoseconds since the network was made and never
// goes back. The network's lock is held: it must not use the network.
type Forwarder interface {
	Outbound(p *packet.Packet, now int64) Verdict // from the inside, to an address outside or of the gateway's outer end
	Inbound(p *packet.Packet, now int64) Verdict  // from outside, to whatever the network outside routes here
}
