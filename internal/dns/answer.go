package dns

import (
	"net/netip"

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
	limit := 0xffff
	if !tcp {
		limit = query.udpSize()
	}
	name := nameOf(&query)
	at := s.placeOf(client, &name, query.qtype())
	if at.here {
		return s.respond(client, &query, &name, &at.e, limit)
	}
	m, ok := s.resolve(&at, &query, tcp)
	if ok {
		m, ok = s.guard(client, m)
	}
	if !ok {
		s.counters.failures.Add(1)
		return reply(&query, dnsmessage.RCodeServerFailure)
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

// resolve returns the answer of the resolvers at a place; ok is false when there is none.
func (s *Server) resolve(at *place, query *message, tcp bool) (m message, ok bool) {
	if at.r == nil {
		return m, false
	}
	a, cached, err := at.r.resolve(s.ctx, s.log, query, tcp, at.private)
	if cached {
		s.counters.cacheHits.Add(1)
	}
	return a.m, err == nil
}
