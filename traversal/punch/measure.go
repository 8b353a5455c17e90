package punch

import (
	"net/netip"
)

// measured is what STUN servers have seen of the sockets of a plan.
type measured struct {
	addr  netip.Addr // where most ports were seen: the one of several outer addresses that counts
	ports []uint16   // at addr, in the order of asking
	exact []uint16   // one for each socket that was seen at one port only, by two destinations or more
	asked int        // sockets that were seen
}

// measure sorts what was seen. Of several outer addresses, which a NAT may deal out for each mapping anew, that with most ports is
// taken: the rest is bad luck.
func measure(seen []Seen) (m measured) {
	count := map[netip.Addr]int{}
	for _, s := range seen {
		for _, at := range s.Mapped {
			a := at.Addr().Unmap()
			if count[a]++; count[a] > count[m.addr] {
				m.addr = a
			}
		}
	}
	for _, s := range seen {
		same, n := true, 0
		for _, at := range s.Mapped {
			same = same && at.Port() == s.Mapped[0].Port()
			if at.Addr().Unmap() == m.addr && at.Port() != 0 {
				m.ports = append(m.ports, at.Port())
				n++
			}
		}
		if n > 0 {
			m.asked++
		}
		if same && n > 1 {
			m.exact = append(m.exact, s.Mapped[0].Port())
		}
	}
	return m
}

// all reports whether every socket that was asked is seen at one port.
func (m *measured) all() bool { return m.asked > 0 && len(m.exact) == m.asked }

// bounds adds the measured ports to a span.
func (m *measured) bounds(s span) span {
	for _, p := range m.ports {
		s = s.add(p)
	}
	return s
}

// next returns the port that was given last, and the step to the next one: the largest that leads to all ports seen, and of the
// sign of hint. Ports begin anew behind the highest, so that distances are those on a circle. ok is false if the ports do not
// follow each other.
func (m *measured) next(hint int) (last, step int, ok bool) {
	if len(m.ports) == 0 || hint == 0 {
		return 0, 0, false
	}
	sign := 1
	if hint < 0 {
		sign = -1
	}
	first, lowest, highest := m.ports[0], 0, 0
	step = sign * hint
	for _, p := range m.ports {
		d := sign * int(int16(p-first))
		lowest, highest = min(lowest, d), max(highest, d)
		step = gcd(step, max(d, -d))
	}
	last = int(first + uint16(sign*highest))
	return last, sign * step, highest-lowest <= maxGap*len(m.ports)
}

// maxGap is by how much two ports given one after the other may differ: own steps, and what others took in between.
const maxGap = 64

func gcd(a, b int) int {
	for b != 0 {
		a, b = b, a%b
	}
	return a
}
