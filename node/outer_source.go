package node

import (
	"net/netip"
	"slices"
	"time"
)

// outerSource is one server and what it has said.
type outerSource struct {
	name    string
	server  string           // of STUN, "host:port"; "" for the WG-STUN server
	addrs   []netip.AddrPort // that server had when it was resolved last; used by one round at a time
	service *service

	seen []outerSeen // by the family of the server's address; guarded by outer.mu
}

// finding is the result of one question. Its family is that of the address asked: 4, 6, or 0 where there is one answer only.
type finding struct {
	family   uint8
	endpoint netip.AddrPort
	rtt      time.Duration
	err      error
}

// outerSeen is what a server says by one family.
type outerSeen struct {
	finding
	since   time.Time // of endpoint; zero if it never was known
	checked time.Time
}

// outerChange is a change of one outerSeen.
type outerChange struct {
	was, is netip.AddrPort
	err     error
}

// note enters the results of one round and returns what they change. A family that is not among them is forgotten: the server's
// name has no such address any more.
func (s *outerSource) note(found []finding, now time.Time) (changes []outerChange) {
	answered := slices.ContainsFunc(found, func(f finding) bool { return f.err == nil })
	next := make([]outerSeen, 0, len(found))
	for _, f := range found {
		is := outerSeen{finding: f, since: now, checked: now}
		var was outerSeen
		if i := slices.IndexFunc(s.seen, func(o outerSeen) bool { return o.family == f.family }); i >= 0 {
			was = s.seen[i]
		}
		if was.endpoint == is.endpoint {
			is.since = was.since
		}
		// The first time is told too, but not of a family that the host merely lacks.
		if was.endpoint != is.endpoint || was.checked.IsZero() && !answered {
			changes = append(changes, outerChange{was.endpoint, is.endpoint, is.err})
		}
		next = append(next, is)
	}
	s.seen = next
	return changes
}

// appendStatus appends a line for each family. One by which the server has never answered is left out if there is another: most
// hosts lack a family.
func (s *outerSource) appendStatus(all []OuterStatus) []OuterStatus {
	if len(s.seen) == 0 {
		return append(all, OuterStatus{Source: s.name})
	}
	known := slices.ContainsFunc(s.seen, func(o outerSeen) bool { return !o.since.IsZero() })
	for i, seen := range s.seen {
		if seen.since.IsZero() && (known || i > 0) {
			continue
		}
		line := OuterStatus{
			Source: s.name, Endpoint: seen.endpoint, RTT: Millis(seen.rtt), Since: Moment{seen.since}, Checked: Moment{seen.checked},
		}
		if seen.err != nil {
			line.Err = seen.err.Error()
		}
		all = append(all, line)
	}
	return all
}
