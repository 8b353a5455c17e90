package stun

import "net/netip"

// maxMessage is the longest message that is read or sent: enough for a PADDING that makes a fragment of what exceeds an MTU of
// 1500.
const maxMessage = 2048

// outgoing is a response and how it leaves.
type outgoing struct {
	msg  []byte
	from place
	to   netip.AddrPort
}

// respond answers one message that arrived at a place, at a time in nanoseconds since the server was made. The response, which
// is appended to dst, leaves from out.from. ok is false if there is none. Every message is counted here.
func (s *Server) respond(dst, msg []byte, at place, from netip.AddrPort, now int64) (out outgoing, ok bool) {
	var q parsed
	v := s.admit(&q, msg, from, now)
	if v != pass {
		s.count.verdicts[v].Add(1)
		return out, false
	}
	out = outgoing{from: at, to: from}
	r := reply{mapped: from, software: s.cfg.Software}
	v = s.choose(&out, &q, &r)
	r.origin = out.from.addrPort()
	if other, ok := at.otherAddr(); ok {
		r.other = other.otherPort().addrPort()
	}
	out.msg = appendReply(dst, &q, &r)
	s.count.verdicts[v].Add(1)
	if q.classic {
		s.count.classic.Add(1)
	}
	if out.from != at || out.to != from {
		s.count.changed.Add(1)
	}
	return out, true
}

// admit reads the message and asks the limits.
func (s *Server) admit(q *parsed, msg []byte, from netip.AddrPort, now int64) verdict {
	if !answerable(from) {
		return dropSource
	}
	if v := q.parse(msg); v != pass {
		return v
	}
	source := sourceOf(from.Addr())
	if v := s.sources.take(source, now); v != pass {
		return v
	}
	if q.wantsMore() {
		switch v := s.discoverers.take(source, now); v {
		case pass:
		case dropRate:
			return dropDiscovery
		default:
			return v
		}
	}
	if !s.total.take(now) {
		return dropTotal
	}
	return pass
}

// choose does what RFC 5780 section 6.1 says: it sets where the response leaves from and goes to. The site's other port is
// always there, its other address may not be: then a request that asks for it is refused, and clients are not told of
// another address (section 7.4); one that asks for the other port alone is served all the same.
func (s *Server) choose(out *outgoing, q *parsed, r *reply) verdict {
	at := out.from
	other, both := at.otherAddr()
	if !both {
		q.refuse(changeAddr, false)
	}
	if q.unknowns > 0 {
		r.code = codeUnknown
		return refused420
	}
	if q.redirect {
		if q.pads || !s.redirects(q.redirectTo) {
			r.code = codeBadRequest
			return refused400
		}
		out.to = netip.AddrPortFrom(out.to.Addr(), q.redirectTo)
	}
	if q.change&changeAddr != 0 {
		out.from = other
	}
	if q.change&changePort != 0 {
		out.from = out.from.otherPort()
	}
	if q.pads {
		r.padding = min(padded(q.paddingSize), maxMessage/2)
	}
	return answered
}

// redirects reports whether a RESPONSE-PORT is one that answers may be sent to: no port of a system service, and none that a
// STUN server is likely to listen on.
func (s *Server) redirects(port uint16) bool {
	if port < 1024 || port == defaultPort {
		return false
	}
	for _, g := range s.sites {
		if port == g.ports[0] || port == g.ports[1] {
			return false
		}
	}
	return true
}
