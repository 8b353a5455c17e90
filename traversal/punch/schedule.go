package punch

import (
	"math/rand/v2"
	"net/netip"
	"time"

	"culvert.dev/culvert/traversal/exchange"
)

// TTLs of the openers: beyond a carrier's NAT, if there is one, and short of the peer's router. Two, as it is not known where
// these are; one between where there is no room for more packets.
const (
	nearTTL   = 4
	middleTTL = 5
	farTTL    = 7
)

// timing is how a technique is paced.
type timing struct {
	wait  time.Duration // until the side with one port begins: then the other has opened its NAT
	rate  int           // packets a second of that side
	open  int           // likewise of the other, for each socket up to three
	late  time.Duration // when a hard side sends to the peer's one port with full TTL: the peer's guesses are through
	lasts time.Duration // until both sides have sent all
}

func (t Technique) timing() timing {
	switch t {
	case Prediction:
		return timing{wait: 100 * time.Millisecond, rate: 500, open: 700, late: 300 * time.Millisecond, lasts: time.Second}
	case LowPort:
		return timing{wait: 150 * time.Millisecond, rate: 1000, open: 1000, late: 900 * time.Millisecond, lasts: 1200 * time.Millisecond}
	case Sweep:
		return timing{wait: 150 * time.Millisecond, rate: 1000, open: 1000, late: 3500 * time.Millisecond, lasts: 4 * time.Second}
	}
	return timing{wait: 700 * time.Millisecond, rate: 200, open: 170, late: 11200 * time.Millisecond, lasts: 12 * time.Second}
}

const (
	grace  = time.Second            // for the response to the last shot
	repeat = 200 * time.Millisecond // from one pass to the next
	few    = 64                     // ports: so many are sent to more than once

	fewPasses = 3
)

// schedule builds a sequence.
type schedule struct {
	timing
	seq Sequence
}

// pair is what a shot is for.
type pair struct {
	socket int
	to     netip.AddrPort
}

// pass has a list of pairs sent from start on, with one TTL, and returns when it is through. There are never more than MaxPackets
// in all.
func (s *schedule) pass(list []pair, ttl uint8, start time.Duration, rate int) time.Duration {
	if len(list) > 0 {
		s.seq.Rate = max(s.seq.Rate, rate)
	}
	for i, p := range list {
		if s.seq.Total == MaxPackets {
			break
		}
		s.seq.shots = append(s.seq.shots, Shot{Socket: p.socket, To: p.to, TTL: ttl, At: start + time.Duration(i)*time.Second/time.Duration(rate)})
		s.seq.Total++
	}
	return start + time.Duration(len(list))*time.Second/time.Duration(rate)
}

// distinct drops repetitions, which ranges that overlap make.
func distinct(list []pair) []pair {
	known := make(map[pair]bool, len(list))
	kept := list[:0]
	for _, p := range list {
		if !known[p] {
			known[p] = true
			kept = append(kept, p)
		}
	}
	return kept
}

// usable returns the ranges that can be sent to.
func usable(list []exchange.Ports) (kept []exchange.Ports, ports int) {
	for _, r := range list[:min(len(list), exchange.MaxExpect)] {
		if r.Addr.IsValid() && r.From != 0 && r.From <= r.To {
			kept = append(kept, r)
			ports += r.Len()
		}
	}
	return kept, ports
}

// sample returns up to n combinations of some sockets, from the first on, and the ports of ranges, in random order and each at
// most once. Its memory is bounded by n, however many combinations there are.
func sample(rng *rand.Rand, first, sockets int, ranges []exchange.Ports, ports, n int) []pair {
	if sockets <= 0 {
		return nil
	}
	all := sockets * ports
	n = min(n, all)
	list := make([]pair, 0, n)
	moved := make(map[int]int, 2*n) // what a shuffle of all would have exchanged so far
	for i := range n {
		j := i + rng.IntN(all-i)
		at, ok := moved[j]
		if !ok {
			at = j
		}
		if moved[j], ok = moved[i]; !ok {
			moved[j] = i
		}
		list = append(list, pair{first + at/ports, endpoint(ranges, at%ports)})
	}
	return distinct(list)
}

// endpoint is the one at an index of all ranges together.
func endpoint(ranges []exchange.Ports, i int) netip.AddrPort {
	for _, r := range ranges {
		n := r.Len()
		if i < n {
			return at(r, i)
		}
		i -= n
	}
	return netip.AddrPort{} // not reached: i is below the sum
}
