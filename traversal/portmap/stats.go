package portmap

import "sync/atomic"

// counters are the live form of Stats.
type counters struct {
	sent, http, answers, malformed, otherSource, mismatch, tooLarge, otherHost atomic.Uint64
	announcements, reboots, created, renewed, lost, deleted, refused           atomic.Uint64
}

// Stats counts since the Mapper was made.
type Stats struct {
	Sent     uint64 // datagrams to gateways, searches by multicast included
	Requests uint64 // by HTTP
	Answers  uint64 // datagrams that were believed

	// What was ignored:
	Malformed   uint64 // datagrams, descriptions and SOAP answers that are none
	OtherSource uint64 // search answers and announcements from elsewhere than the gateway
	Mismatch    uint64 // PCP and NAT-PMP responses to something that was not asked; a wrong nonce is one
	TooLarge    uint64 // HTTP answers above 64 KiB
	OtherHost   uint64 // search answers and descriptions that name another host than the gateway. The gateway itself was asked

	Announcements uint64 // of the gateway's own accord, and news
	Reboots       uint64 // epochs that went back, or did not keep time
	Created       uint64 // mappings, replacements after a loss included
	Renewed       uint64
	Lost          uint64 // mappings that ran out, or that the gateway does not have any more
	Deleted       uint64 // on request
	Refused       uint64 // requests for a mapping that a gateway declined
}

func (c *counters) stats() Stats {
	return Stats{
		Sent: c.sent.Load(), Requests: c.http.Load(), Answers: c.answers.Load(),
		Malformed: c.malformed.Load(), OtherSource: c.otherSource.Load(), Mismatch: c.mismatch.Load(), TooLarge: c.tooLarge.Load(),
		OtherHost:     c.otherHost.Load(),
		Announcements: c.announcements.Load(), Reboots: c.reboots.Load(), Created: c.created.Load(), Renewed: c.renewed.Load(),
		Lost: c.lost.Load(), Deleted: c.deleted.Load(), Refused: c.refused.Load(),
	}
}
