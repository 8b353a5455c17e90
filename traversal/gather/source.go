package gather

import (
	"net/netip"
	"slices"
	"time"
)

// source is one server and what it has said. It is guarded by Gatherer.mu, but for name, server and service, which do not change.
type source struct {
	name    string
	server  string           // of STUN, "host:port"; "" for the WG-STUN server
	service *Service         // the WG-STUN server; nil for STUN
	addrs   []netip.AddrPort // that server had when it was resolved last
	seen    []seen           // sorted by family, that of the server's address
	told    bool             // that it does not answer, and it has not since
}

// finding is the result of one question. Its family is that of the address asked: 4, 6, or 0 where there is one answer only.
type finding struct {
	family   uint8
	to       netip.AddrPort
	endpoint netip.AddrPort
	other    netip.AddrPort // OTHER-ADDRESS
	rtt      time.Duration
	err      error
}

// seen is what a server says by one family.
type seen struct {
	finding
	since   time.Time // of endpoint; zero if it never was known
	checked time.Time
}

// change is a change of one seen.
type change struct {
	was, is netip.AddrPort
	err     error
	again   bool // it had been known at some time
}

// note enters the result of one question. changed says that the endpoint is another one than before.
func (s *source) note(f finding, now time.Time) (c change, changed bool) {
	is := seen{finding: f, since: now, checked: now}
	i := slices.IndexFunc(s.seen, func(o seen) bool { return o.family == f.family })
	if i < 0 {
		s.seen = append(s.seen, seen{finding: finding{family: f.family}})
		slices.SortFunc(s.seen, func(a, b seen) int { return int(a.family) - int(b.family) })
		i = slices.IndexFunc(s.seen, func(o seen) bool { return o.family == f.family })
	}
	was := s.seen[i]
	if was.endpoint == is.endpoint {
		is.since = was.since
	}
	s.seen[i] = is
	s.told = s.told && f.err != nil
	return change{was.endpoint, is.endpoint, f.err, !was.since.IsZero()}, was.endpoint != is.endpoint
}

// finish ends a round: families by which the server has not been asked are forgotten, since its name has no such address any more.
// It returns what is wrong if the server has never answered by any, and that is news: one family that the host merely lacks is not
// worth telling.
func (s *source) finish(asked []finding) (fault error) {
	s.seen = slices.DeleteFunc(s.seen, func(o seen) bool {
		return !slices.ContainsFunc(asked, func(f finding) bool { return f.family == o.family })
	})
	for _, o := range s.seen {
		if !o.since.IsZero() {
			return nil
		}
		if fault == nil {
			fault = o.err
		}
	}
	if s.told {
		return nil
	}
	s.told = fault != nil
	return fault
}

// appendStatus appends a line for each family. One by which the server has never answered is left out if there is another: most
// hosts lack a family.
func (s *source) appendStatus(all []Status) []Status {
	if len(s.seen) == 0 {
		return append(all, Status{Source: s.name})
	}
	known := slices.ContainsFunc(s.seen, func(o seen) bool { return !o.since.IsZero() })
	for i, o := range s.seen {
		if o.since.IsZero() && (known || i > 0) {
			continue
		}
		all = append(all, Status{Source: s.name, Endpoint: o.endpoint, RTT: o.rtt, Since: o.since, Checked: o.checked, Err: o.err})
	}
	return all
}
