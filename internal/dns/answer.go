package dns

import (
	"net/netip"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

// answer returns the reply to a query, nil when there is to be none. It owns raw and takes at most queryTime.
func (s *Server) answer(client netip.Addr, raw []byte, tcp bool) []byte {
	query, ok := parse(raw)
	if len(raw) < headerLen || query.has(flagQR) { // answering answers would make loops
		return nil
	}
	if refusal := s.refusal(&query, ok, client, len(raw)); refusal != dnsmessage.RCodeSuccess {
		s.counters.refused.Add(1)
		return reply(&query, refusal)
	}
	m, ok := s.resolve(s.routeOf(client), &query, tcp)
	if ok {
		m, ok = s.guard(client, m)
	}
	if !ok {
		s.counters.failures.Add(1)
		return reply(&query, dnsmessage.RCodeServerFailure)
	}
	limit := 0xffff
	if !tcp {
		limit = query.udpSize()
	}
	b, truncated := fit(&m, limit)
	if truncated {
		s.counters.truncated.Add(1)
	}
	return b
}

// refusal returns why a query is not forwarded, RCodeSuccess when it is.
func (s *Server) refusal(query *message, wellFormed bool, client netip.Addr, size int) dnsmessage.RCode {
	switch {
	case query.has(maskOpcode): // RFC 1035 section 4.1.1: only QUERY is forwarded
		return dnsmessage.RCodeNotImplemented
	case !wellFormed, !query.hasQuestion(), size > maxQueryLen:
		return dnsmessage.RCodeFormatError
	case query.qtype() == typeAXFR, query.qtype() == typeIXFR: // a zone is for its secondaries
		return dnsmessage.RCodeRefused
	case query.count(sectionAnswer) > 0, query.count(sectionAuthority) > 0:
		return dnsmessage.RCodeFormatError
	case s.cfg.Admit != nil && !s.cfg.Admit(client):
		return dnsmessage.RCodeRefused
	}
	return dnsmessage.RCodeSuccess
}

// resolve returns an answer with the query's own ID and question, from the route's cache or one of its upstreams.
func (s *Server) resolve(r *Route, query *message, tcp bool) (m message, ok bool) {
	now := time.Now()
	list, changed := r.pool.order(r.upstreams(), now)
	if changed {
		r.cache.flush() // another network may give the same name another address
	}
	if m, ok = r.cache.get(query, now); ok {
		s.counters.cacheHits.Add(1)
		return m, true
	}
	epoch := r.cache.currentEpoch()
	if m, ok = s.forward(r, list, query, tcp); ok {
		r.cache.put(query, &m, epoch, time.Now())
	}
	return m, ok
}
