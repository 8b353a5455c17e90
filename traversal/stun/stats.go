package stun

import "sync/atomic"

// verdict is what becomes of a message that has arrived.
type verdict uint8

const (
	pass            verdict = iota // well-formed, so far
	answered                       // with a success response
	refused400                     // with an error response
	refused420                     // with an error response
	dropMalformed                  // not STUN, or not well-formed, or longer than maxMessage
	dropNotRequest                 // an indication or a response
	dropMethod                     // a request for something else than Binding
	dropFingerprint                // with a wrong FINGERPRINT
	dropSource                     // from an address or port where no answer may go
	dropDestination                // to a multicast or broadcast address
	dropRate                       // above the rate of one source
	dropDiscovery                  // above the rate of one source, for what is of RFC 5780
	dropSources                    // too many sources at once
	dropTotal                      // above the rate of all
	numVerdicts
)

// counters are the live form of Stats.
type counters struct {
	verdicts [numVerdicts]atomic.Uint64
	classic  atomic.Uint64
	changed  atomic.Uint64
	unsent   atomic.Uint64
	bytesIn  atomic.Uint64
	bytesOut atomic.Uint64
}

// Stats counts since the server was made.
type Stats struct {
	Requests  uint64 // Binding requests that were answered, with success or an error
	Responses uint64 // success responses
	Errors    uint64 // error responses: 400 and 420
	Classic   uint64 // of Requests: of RFC 3489, without magic cookie
	Changed   uint64 // of Responses: sent from another address or port, or to another port, than the request's
	Unsent    uint64 // responses that the host did not take
	BytesIn   uint64 // of everything that arrived, without headers of IP and UDP
	BytesOut  uint64 // of responses, likewise

	// What was dropped:
	Malformed      uint64 // not STUN, or broken
	NotRequest     uint64 // STUN indications and responses
	OtherMethod    uint64 // STUN requests for something else than Binding, such as TURN's
	BadFingerprint uint64
	BadSource      uint64 // from port 0, or from an address that is no host's
	BadDestination uint64 // to a multicast or broadcast address
	SourceRate     uint64 // above ServerConfig.Rate
	DiscoveryRate  uint64 // above ServerConfig.DiscoveryRate
	TableFull      uint64 // more sources at once than ServerConfig.Sources has room for
	TotalRate      uint64 // above ServerConfig.TotalRate
}

func (c *counters) stats() Stats {
	v := func(i verdict) uint64 { return c.verdicts[i].Load() }
	s := Stats{
		Responses: v(answered), Errors: v(refused400) + v(refused420),
		Classic: c.classic.Load(), Changed: c.changed.Load(), Unsent: c.unsent.Load(),
		BytesIn: c.bytesIn.Load(), BytesOut: c.bytesOut.Load(),
		Malformed: v(dropMalformed), NotRequest: v(dropNotRequest), OtherMethod: v(dropMethod), BadFingerprint: v(dropFingerprint),
		BadSource: v(dropSource), BadDestination: v(dropDestination),
		SourceRate: v(dropRate), DiscoveryRate: v(dropDiscovery), TableFull: v(dropSources), TotalRate: v(dropTotal),
	}
	s.Requests = s.Responses + s.Errors
	return s
}
