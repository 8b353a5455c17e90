package filter

import (
	"encoding/binary"

	"culvert.dev/culvert/internal/packet"
)

// applyRules lets the operator's rules decide what the built-in decision d accepts. A destination that embeds IPv4 addresses
// must pass as each of these too: a rule cannot be circumvented by another spelling of the address. How it leaves is for the
// rule to say that matches the destination itself.
func (p *Policy) applyRules(d Decision, from *Peer, k *packet.Key, f form, hasSource bool) Decision {
	s := p.rules
	if s == nil || d.Action != Accept {
		return d
	}
	q := query{
		from:    s.fromNobody[from.ID],
		to:      [2]uint32{s.toPlace[d.Where], none},
		service: s.services.lookup(serviceOf(k.V, k.Proto, k.DstPort)),
	}
	if d.Where == OtherPeer {
		q.to[0] = s.toPeer[d.To]
	}
	sources, destinations := &s.from6, &s.to6
	if k.V == 4 {
		sources, destinations = &s.from4, &s.to4
	}
	if hasSource {
		q.from = sources.lookup(numberOf(&k.Src, k.V == 4))
	}
	q.to[1] = destinations.lookup(numberOf(&k.Dst, k.V == 4))
	d = s.judge(d, &q)
	if f == formNone {
		return d
	}
	inner, n := innerAddrs(f, &k.Dst)
	for _, v4 := range inner[:n] {
		if d.Action != Accept {
			break
		}
		q.to[1] = s.to4.lookup(number{lo: uint64(v4)})
		if e := s.judge(d, &q); e.Action != Accept {
			d = e
		}
	}
	return d
}

// judge changes d, which accepts, to what the first rule of the query says.
func (s *ruleSet) judge(d Decision, q *query) Decision {
	i := s.rows.first(q)
	if i < 0 {
		return d
	}
	r := &s.rules[i]
	d.Action, d.Rule, d.Log = r.Action, r, r.Log
	if r.Action != Accept {
		d.Reason = ReasonRule
	}
	return d
}

// innerAddrs returns the n IPv4 addresses that an address of form f leads to.
func innerAddrs(f form, a *[16]byte) (list [2]uint32, n int) {
	low := binary.BigEndian.Uint32(a[12:])
	switch f {
	case formNone:
		return list, 0
	case form6to4:
		return [2]uint32{binary.BigEndian.Uint32(a[2:])}, 1
	case formTeredo:
		return [2]uint32{binary.BigEndian.Uint32(a[4:]), ^low}, 2
	}
	return [2]uint32{low}, 1
}
