package packet

// Fault tells why a packet is refused before any policy looks at it. It indexes a counter array of NumFaults.
type Fault uint8

const (
	FaultNone            Fault = iota
	FaultShort                 // too short for its IP header
	FaultBadVersion            // version is neither 4 nor 6
	FaultBadIPLength           // header or total length disagrees with the buffer
	FaultBadIPChecksum         // IPv4 header checksum
	FaultBadOption             // IPv4 option list malformed, or a source route (RFC 7126 section 4.3)
	FaultBadExtension          // IPv6 extension headers malformed, out of order, too many, or a source route (RFC 5095)
	FaultBadTCP                // TCP header does not fit
	FaultBadUDPLength          // UDP header or length does not fit
	FaultBadICMP               // ICMP header does not fit, or belongs to the other family
	FaultTinyFragment          // a fragment that cuts or overlaps the transport header (RFC 1858, RFC 7112)
	FaultBadFragment           // fragment offset and length impossible
	FaultBadChecksum           // transport checksum, for callers of ChecksumOK
	FaultFragmentOverlap       // fragments of one datagram overlap (RFC 5722); by Reassembler
	FaultFragmentLimit         // no room for the fragment; by Reassembler
	numFaults
)

// NumFaults is the length of an array that Fault indexes.
const NumFaults = int(numFaults)

var faultNames = [NumFaults]string{
	FaultNone:            "none",
	FaultShort:           "short",
	FaultBadVersion:      "bad-version",
	FaultBadIPLength:     "bad-ip-length",
	FaultBadIPChecksum:   "bad-ip-checksum",
	FaultBadOption:       "bad-ip-option",
	FaultBadExtension:    "bad-extension",
	FaultBadTCP:          "bad-tcp-header",
	FaultBadUDPLength:    "bad-udp-length",
	FaultBadICMP:         "bad-icmp-header",
	FaultTinyFragment:    "tiny-fragment",
	FaultBadFragment:     "bad-fragment",
	FaultBadChecksum:     "bad-checksum",
	FaultFragmentOverlap: "fragment-overlap",
	FaultFragmentLimit:   "fragment-limit",
}

// String returns the stable name under which the fault is counted.
func (f Fault) String() string {
	if int(f) < NumFaults {
		return faultNames[f]
	}
	return "unknown"
}
