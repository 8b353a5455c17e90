package wgstun

// outcome tells what became of a packet. It indexes an array of counters.
type outcome uint8

const (
	answeredSTUN outcome = iota
	answeredEcho
	malformed     // the IP or transport header
	tooLong       // above the MTU
	fragment      // of a datagram, whatever it is
	options       // IPv4 options or IPv6 extension headers
	otherAddress  // not one of the Responder's
	badSource     // no single host's, or the Responder's own
	rateLimit     // more than one client's share
	otherProtocol // neither UDP nor ICMP
	otherPort     // UDP, not to the STUN port, or from port zero
	otherICMP     // no echo request
	badChecksum   // of the transport
	notSTUN       // UDP to the STUN port that is no Binding request
	noOrigin      // the outer source is not known
	queueFull     // no room for the answer
	numOutcomes
)

var outcomeNames = [numOutcomes]string{
	answeredSTUN:  "stun",
	answeredEcho:  "echo",
	malformed:     "malformed",
	tooLong:       "too-long",
	fragment:      "fragment",
	options:       "ip-options",
	otherAddress:  "other-address",
	badSource:     "bad-source",
	rateLimit:     "rate-limit",
	otherProtocol: "other-protocol",
	otherPort:     "other-port",
	otherICMP:     "other-icmp",
	badChecksum:   "bad-checksum",
	notSTUN:       "not-stun",
	noOrigin:      "no-origin",
	queueFull:     "queue-full",
}

// Stats counts packets since the Responder was made.
type Stats struct {
	STUN, Echo uint64            // answered
	Dropped    map[string]uint64 // by reason; one that never occurred is absent
}

// Stats returns the counters.
func (r *Responder) Stats() Stats {
	s := Stats{STUN: r.counters[answeredSTUN].Load(), Echo: r.counters[answeredEcho].Load(), Dropped: map[string]uint64{}}
	for o := malformed; o < numOutcomes; o++ {
		if n := r.counters[o].Load(); n > 0 {
			s.Dropped[outcomeNames[o]] = n
		}
	}
	return s
}
