package portmap

import "time"

// epoch follows the seconds that a gateway counts since it forgot its mappings. The zero value has seen none.
type epoch struct {
	seen   bool
	server uint32
	client time.Time
}

// pcp takes the epoch of a PCP response and reports whether the gateway may have lost its state since the last one, by the
// rules of RFC 6887 section 8.5.
func (e *epoch) pcp(server uint32, now time.Time) (lost bool) {
	if e.seen {
		// 1 s of going back may be two responses that have overtaken each other.
		serverDelta := int64(server) - int64(e.server)
		clientDelta := int64(now.Sub(e.client) / time.Second)
		lost = serverDelta < -1 ||
			clientDelta+2 < serverDelta-serverDelta/16 ||
			serverDelta+2 < clientDelta-clientDelta/16
	}
	*e = epoch{true, server, now}
	return lost
}

// pmp is pcp for NAT-PMP, whose clocks may be worse: RFC 6886 section 3.6.
func (e *epoch) pmp(server uint32, now time.Time) (lost bool) {
	if e.seen {
		elapsed := int64(now.Sub(e.client) / time.Second)
		expected := int64(e.server) + elapsed*7/8
		lost = int64(server) < expected-2
	}
	*e = epoch{true, server, now}
	return lost
}
