package agent

import (
	"fmt"

	"culvert.dev/culvert/traversal/exchange"
)

// Counter is something that an agent counts.
type Counter uint8

// Counters. Those of datagrams say what became of them.
const (
	NotChecks        Counter = iota // neither a check nor a sealed message
	UnknownSessions                 // checks of no session that is known
	Forged                          // checks whose integrity is not a peer's
	ForgedLimited                   // checks not verified, as too many from there were forged
	ChecksOverflowed                // authenticated checks for which the queue had no room

	RequestsSent
	RequestsReceived
	ResponsesSent
	ResponsesLimited  // requests not answered: too many of the peer, or of all
	ResponsesReceived // to a request that waited
	ResponsesUnasked  // of requests unknown, answered already, or too long ago
	ResponsesAstray   // from another address or socket than was asked
	RequestsRefused   // not sent: the peer names too many addresses
	RequestsStale     // not sent: overtaken while they waited for their turn
	RequestsMerged    // not sent: the same was waiting already
	RequestsFailed    // that the socket refused

	SealedSent
	SealedByUDP // of these also, or only, by a direct path
	SealedFailed
	SealedOpened
	SealedUnknown    // from no peer
	SealedElsewhere  // by UDP from no proven address
	SealedMalformed  // not ours, or too long
	SealedOverflowed // for which the queue had no room
	SealedLimited    // not opened: too many of the peer
	SealedRefused    // see exchange.Stats
	SealedReplaced   // not sent: a newer one took its place

	CandidatesRefused // see exchange.Filter
	RouteErrors       // routes that the transport refused

	PunchesLed
	PunchesFollowed
	PunchesDeclined // that the peer asked for, and that were not allowed or possible
	PunchesFound
	PunchPackets
	SocketsOpened
	SocketsClosed

	Suspends // times that the host was asleep, or its clock set

	NumCounters
)

var counterNames = [NumCounters]string{
	"not a check", "unknown session", "forged", "forged limited", "check queue full",
	"requests sent", "requests received", "responses sent", "responses limited", "responses received", "responses unasked",
	"responses astray", "requests refused", "requests stale", "requests merged", "requests failed",
	"sealed sent", "sealed by udp", "sealed failed", "sealed opened", "sealed unknown", "sealed elsewhere", "sealed malformed",
	"sealed queue full", "sealed limited", "sealed refused", "sealed replaced",
	"candidates refused", "route errors",
	"punches led", "punches followed", "punches declined", "punches found", "punch packets", "sockets opened", "sockets closed",
	"suspends",
}

// String names the counter.
func (c Counter) String() string {
	if c < NumCounters {
		return counterNames[c]
	}
	return fmt.Sprintf("counter %d", uint8(c))
}

// Stats counts since the agent was made.
type Stats struct {
	Counts   [NumCounters]uint64
	Exchange exchange.Stats
}

func (a *Agent) count(c Counter) { a.counters[c].Add(1) }

// Stats returns the counters. It may be called from any goroutine.
func (a *Agent) Stats() Stats {
	s := Stats{Exchange: a.sealer.Stats()}
	for i := range s.Counts {
		s.Counts[i] = a.counters[i].Load()
	}
	return s
}
