package punch

import (
	"errors"
	"fmt"
	"net/netip"

	"culvert.dev/culvert/nat"
	"culvert.dev/culvert/traversal/exchange"
)

// Expect returns where this side's shots will be seen to come from, given what STUN servers have seen of its sockets just now: at
// most exchange.MaxExpect ranges, which the peer is told. It fails if the NAT does not do what the technique needs; then the
// attempt is best ended before a shot is fired. seen has all sockets that were opened, in the order of their numbers.
//
// Counting NATs go on counting for others, so that what Expect says grows old in fractions of a second.
func (p Plan) Expect(seen []Seen, own exchange.Hints) ([]exchange.Ports, error) {
	m := measure(seen)
	if p.role == idle {
		return nil, fmt.Errorf("%v: not for this pair of NATs", p.Technique)
	}
	if len(m.ports) == 0 {
		return nil, fmt.Errorf("%v: no STUN server has seen the sockets", p.Technique)
	}
	list, err := p.expect(seen, &m, own)
	if err != nil {
		return nil, fmt.Errorf("%v: %w", p.Technique, err)
	}
	return list, nil
}

func (p Plan) expect(seen []Seen, m *measured, own exchange.Hints) ([]exchange.Ports, error) {
	switch p.role {
	case fixed:
		if m.bounds(span{}).width() > 1 {
			return nil, errors.New("each destination sees another port")
		}
		return m.single(m.ports[:1]), nil
	case fresh:
		return p.expectFresh(seen, m)
	case run:
		return p.expectRun(seen, m)
	case following:
		return p.expectNext(len(seen), m, own)
	}
	// The rest may find that its NAT is better than the hints had it, where they do not say.
	if m.all() && (!own.Known || own.Mapping.Least == nat.EndpointIndependent) {
		return m.single(m.exact[:min(len(m.exact), exchange.MaxExpect)]), nil
	}
	switch p.role {
	case low:
		return m.expectLow()
	case swept:
		s := m.estimate(own)
		if s.width() > maxBlock {
			return nil, fmt.Errorf("ports are spread from %d to %d", s.low, s.high)
		}
		return m.plain(s.low, s.high), nil
	default:
		s := m.estimate(own)
		if s.width() > (lastPort-firstPort)/2 { // not surely a part of all
			s = span{min(s.low, firstPort), lastPort, 0}
		}
		return m.plain(s.low, s.high), nil
	}
}

// expectFresh names the sockets' own ports, if that of the one that was asked was kept for its first destination.
func (p Plan) expectFresh(seen []Seen, m *measured) (list []exchange.Ports, err error) {
	if err := p.kept(seen); err != nil {
		return nil, err
	}
	for _, s := range seen[p.Ask:] {
		list = append(list, m.single([]uint16{s.Local})...)
	}
	return list[:min(len(list), exchange.MaxExpect)], nil
}

// expectRun is the range that the sockets' own ports are in.
func (p Plan) expectRun(seen []Seen, m *measured) ([]exchange.Ports, error) {
	if err := p.kept(seen); err != nil {
		return nil, err
	}
	var s span
	for _, socket := range seen[p.Ask:] {
		s = s.add(socket.Local)
	}
	return m.plain(s.low, s.high), nil
}

// kept returns an error if the sockets cannot be expected to have their own ports outside.
func (p Plan) kept(seen []Seen) error {
	if len(seen) <= p.Ask {
		return errors.New("too few sockets")
	}
	first := seen[0]
	if len(first.Mapped) == 0 || first.Mapped[0].Port() != first.Local {
		return errors.New("a socket's own port is not kept")
	}
	for _, s := range seen {
		if s.Local == 0 {
			return errors.New("a socket has no port")
		}
	}
	return nil
}

// expectNext is what a counting NAT will give to so many sockets.
func (p Plan) expectNext(sockets int, m *measured, own exchange.Hints) ([]exchange.Ports, error) {
	last, step, ok := m.next(int(own.Step))
	if !ok {
		return nil, errors.New("ports do not follow each other")
	}
	n := window
	switch {
	case p.Technique == Birthday:
		n = wideWindow
	case p.Technique != Prediction && own.Mapping.Most != nat.AddressDependent: // each of the peer's ports has a mapping of its own
		n += min(sockets*p.peerWidth(), maxSweep)
	case p.Technique == Prediction && p.peer.kind != steady:
		n = 2 * sockets
	}
	first := last + step
	r := exchange.Ports{Addr: m.addr, From: uint16(first), To: uint16(first), Step: int16(step)}
	if step > 0 {
		n = min(n, (lastPort-first)/step+1)
		r.To = uint16(first + (n-1)*step)
	} else {
		n = min(n, (first-1)/-step+1)
		r.From = uint16(first + (n-1)*step)
	}
	if first < 1 || first > lastPort || n < 2 {
		return nil, errors.New("ports are about to begin anew")
	}
	return []exchange.Ports{r}, nil
}

// peerWidth is how many ports the peer is expected at in a sweep.
func (p Plan) peerWidth() int {
	if p.peer.kind == ranged {
		return p.peer.width
	}
	return lowWidth
}

// expectLow is the range of low ports, if all that was seen is low.
func (m *measured) expectLow() ([]exchange.Ports, error) {
	s := m.bounds(span{})
	switch {
	case s.low < lowTier || s.high > lowLast:
		return nil, fmt.Errorf("sockets on low ports are seen at %d to %d", s.low, s.high)
	case s.low < lowFirst:
		return m.plain(lowTier, lowLast), nil
	}
	return m.plain(lowFirst, lowLast), nil
}

// estimate is the range that the NAT draws from, by what was measured now and by the hints.
func (m *measured) estimate(own exchange.Hints) span {
	s := span{}
	if own.Known && own.Sockets > 0 {
		s = span{int(own.Min), int(own.Max), int(own.Sockets)}
	}
	return estimate(m.bounds(s))
}

func (m *measured) single(ports []uint16) (list []exchange.Ports) {
	for _, p := range ports {
		list = append(list, exchange.Ports{Addr: m.addr, From: p, To: p})
	}
	return list
}

func (m *measured) plain(low, high int) []exchange.Ports {
	return []exchange.Ports{{Addr: m.addr, From: uint16(low), To: uint16(high)}}
}

// at is an endpoint of a range.
func at(r exchange.Ports, i int) netip.AddrPort { return netip.AddrPortFrom(r.Addr, r.At(i)) }
