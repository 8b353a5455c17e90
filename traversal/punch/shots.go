package punch

import (
	"math/rand/v2"
	"net/netip"
	"time"

	"culvert.dev/culvert/traversal/exchange"
)

// Shot is one check to be sent.
type Shot struct {
	Socket int // of the plan, as in Seen
	To     netip.AddrPort
	TTL    uint8         // 0: default. Low ones open this side's NAT and do not reach the peer's
	At     time.Duration // when it is due, counted from the common start
}

// Sequence is the shots of one side in order. It is for one goroutine.
type Sequence struct {
	Total int           // shots in all, at most MaxPackets
	Rate  int           // the most per second
	Lasts time.Duration // from the start until the attempt has failed: both sides have sent all, and a response had time to arrive

	shots []Shot
}

// Next returns the next shot; false when there are no more. It is due at its At and not before.
func (s *Sequence) Next() (Shot, bool) {
	if len(s.shots) == 0 {
		return Shot{}, false
	}
	shot := s.shots[0]
	s.shots = s.shots[1:]
	return shot, true
}

// Shots returns what this side sends, given where the peer expects to be seen, how many sockets were opened, and a seed: the same
// input gives the same sequence. No two shots of one TTL and pass are alike. What the peer says is bounded here; whether it may be
// sent to is for exchange.Filter.CheckPorts.
func (p Plan) Shots(peer []exchange.Ports, sockets int, seed uint64) Sequence {
	s := schedule{timing: p.Technique.timing()}
	ranges, ports := usable(peer)
	sockets = min(sockets, p.Sockets)
	if ports == 0 || sockets <= 0 || p.role == idle {
		return Sequence{}
	}
	rng := rand.New(rand.NewPCG(seed, uint64(p.Technique)))
	switch {
	case p.role == fixed:
		s.guess(rng, ranges, ports, p.Technique)
	case p.role == fresh:
		s.openers(freshPairs(p.Ask, sockets, aims(ranges)), sockets)
	case p.role == run:
		s.openers(runPairs(rng, p.Ask, sockets, ranges, ports), sockets)
	case p.role == following && p.Technique == Prediction:
		s.openers(rounds(sockets, aims(ranges)), sockets)
	case ports <= exchange.MaxExpect:
		s.openers(sample(rng, 0, sockets, ranges, ports, MaxPackets/3), sockets)
	default:
		s.sweep(sample(rng, 0, sockets, ranges, ports, maxSweep), sockets)
	}
	s.seq.Lasts = s.lasts
	if n := len(s.seq.shots); n > 0 {
		s.seq.Lasts = max(s.lasts, s.seq.shots[n-1].At)
	}
	s.seq.Lasts += grace
	return s.seq
}

// guess is for the side that is seen at one port whoever it sends to: to each port that the peer may be at. Ports that follow each
// other come first, in their order.
func (s *schedule) guess(rng *rand.Rand, ranges []exchange.Ports, ports int, t Technique) {
	most := maxSweep
	if t == Birthday {
		most = maxGuesses
	}
	var list []pair
	var plain []exchange.Ports
	for _, r := range ranges {
		if r.Step == 0 {
			plain = append(plain, r)
			continue
		}
		ports -= r.Len()
		for i := range min(r.Len(), most) {
			list = append(list, pair{0, at(r, i)})
		}
	}
	list = distinct(append(list, sample(rng, 0, 1, plain, ports, most)...))
	list = list[:min(len(list), most)]
	passes := 1
	if len(list) <= few {
		passes = fewPasses
	}
	start := s.wait
	for range passes {
		start = s.pass(list, 0, start, s.rate) + repeat
	}
}

// openers is for a hard side that sends to so few ports that the peer does the guessing. The first passes open this side's NAT,
// and are spent before the peer's; the last ones are for what was lost.
func (s *schedule) openers(list []pair, sockets int) {
	rate := s.open * min(sockets, 3)
	end := s.pass(list, nearTTL, 0, rate)
	end = s.pass(list, farTTL, end, rate)
	end = s.pass(list, 0, max(end, s.late), rate)
	if len(list) <= few {
		s.pass(list, 0, end+repeat, rate)
	}
}

// sweep is for a hard side whose peer is one too: both send to all ports that the other may be at.
func (s *schedule) sweep(list []pair, sockets int) {
	rate := s.open * min(sockets, 3)
	start := time.Duration(0)
	if 2*len(list) <= MaxPackets {
		start = s.pass(list, middleTTL, 0, rate) + repeat
	}
	s.pass(list, 0, start, rate)
}

// aims are the ports, at most two, that a side sends to which is to hit one port: those that a counting peer has come to when all
// of its sockets have sent once and twice, or the peer's first two.
func aims(ranges []exchange.Ports) (list []netip.AddrPort) {
	for _, r := range ranges {
		n := r.Len()
		switch {
		case r.Step != 0 && n >= 8:
			list = append(list, at(r, n/2-2), at(r, n-2))
		default:
			for i := range min(n, 2) {
				list = append(list, at(r, i))
			}
		}
	}
	return list[:min(len(list), 2)]
}

// freshPairs gives each socket that has not sent yet one aim.
func freshPairs(first, sockets int, aims []netip.AddrPort) (list []pair) {
	for i := first; i < sockets; i++ {
		list = append(list, pair{i, aims[(i-first)%len(aims)]})
	}
	return list
}

// runPairs gives each socket that has not sent yet one port, all ports being used alike.
func runPairs(rng *rand.Rand, first, sockets int, ranges []exchange.Ports, ports int) (list []pair) {
	targets := sample(rng, 0, 1, ranges, ports, sockets)
	for i := first; i < sockets; i++ {
		list = append(list, pair{i, targets[(i-first)%len(targets)].to})
	}
	return list
}

// rounds has all sockets send to the first aim, then all to the second.
func rounds(sockets int, aims []netip.AddrPort) (list []pair) {
	for _, to := range aims {
		for i := range sockets {
			list = append(list, pair{i, to})
		}
	}
	return list
}
