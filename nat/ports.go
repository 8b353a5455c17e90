package nat

import (
	"math/bits"
	"math/rand/v2"
	"sync"

	"culvert.dev/culvert/internal/packet"
)

// portSpace are the ports of one protocol at one external address, or its ICMP identifiers. A port is taken by one mapping at a
// time and free again when the last flow of that has ended.
type portSpace struct {
	policy PortPolicy
	lo, hi uint16

	mu   sync.Mutex // guards the following
	used [1 << 16 / 64]uint64
	maps map[uint16]*mapping // those that new flows may find
	next uint16              // for PortSequential
	rnd  *rand.ChaCha8
}

// randomTries is how often a random port is drawn before the space is searched from one on: RFC 6056 section 3.3.2 and, behind
// it, 3.3.1.
const randomTries = 8

func (s *portSpace) init(policy PortPolicy, lo, hi uint16, seed [32]byte, address, protocol byte) {
	s.policy, s.lo, s.hi, s.next = policy, lo, hi, lo
	s.maps = make(map[uint16]*mapping)
	seed[30], seed[31] = seed[30]^address, seed[31]^protocol
	s.rnd = rand.NewChaCha8(seed)
}

// take gives m a port by policy; beside is the one that its neighbour's mapping suggests, if ok. It reports false if all are taken.
func (s *portSpace) take(m *mapping, beside uint16, ok bool) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	inner := m.key.port
	var port uint16
	var found bool
	switch s.policy {
	case PortRandom:
		port, found = s.randomLocked(s.rangeOf(m), anyPort)
	case PortSequential:
		port, found = s.nextLocked()
	case PortContiguous:
		if ok && s.freeLocked(beside) {
			port, found = beside, true
			break
		}
		if s.freeLocked(inner) && !s.takenLocked(inner^1) {
			port, found = inner, true
			break
		}
		port, found = s.randomLocked(s.rangeOf(m), pairOf(inner))
		if !found {
			port, found = s.randomLocked(s.rangeOf(m), parityOf(inner))
		}
	default:
		if s.freeLocked(inner) {
			port, found = inner, true
			break
		}
		port, found = s.randomLocked(s.rangeOf(m), anyPort)
	}
	if !found { // RFC 4787 section 4.2.2: rather a port that is less fit than none
		port, found = s.randomLocked(portRange{s.lo, s.hi}, anyPort)
	}
	if !found {
		return false
	}
	s.used[port/64] |= 1 << (port % 64)
	s.maps[port] = m
	m.port = port
	return true
}

// find returns the mapping of a port, or nil.
func (s *portSpace) find(port uint16) *mapping {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.maps[port]
}

// hide makes the port's mapping unknown; the port stays taken.
func (s *portSpace) hide(port uint16) {
	s.mu.Lock()
	delete(s.maps, port)
	s.mu.Unlock()
}

func (s *portSpace) free(port uint16) {
	s.mu.Lock()
	s.used[port/64] &^= 1 << (port % 64)
	s.mu.Unlock()
}

func (s *portSpace) takenLocked(port uint16) bool { return s.used[port/64]>>(port%64)&1 != 0 }

// freeLocked reports whether port may be handed out and is free.
func (s *portSpace) freeLocked(port uint16) bool {
	return port >= s.lo && port <= s.hi && !s.takenLocked(port)
}

// portRange are ports from lo to hi, both included.
type portRange struct{ lo, hi uint16 }

// rangeOf keeps well-known ports apart from the others as far as the configured range reaches (RFC 4787 REQ-3 b). ICMP
// identifiers know no such classes.
func (s *portSpace) rangeOf(m *mapping) portRange {
	const wellKnown = 1023
	r := portRange{s.lo, s.hi}
	if m.key.proto != packet.ProtoTCP && m.key.proto != packet.ProtoUDP {
		return r
	}
	if m.key.port <= wellKnown && r.lo <= wellKnown {
		r.hi = min(r.hi, wellKnown)
	} else if m.key.port > wellKnown && r.hi > wellKnown {
		r.lo = max(r.lo, wellKnown+1)
	}
	return r
}

// choice says which ports of a word of 64 are fit, given which are free.
type choice func(free uint64) uint64

const evenPorts = 0x5555555555555555

func anyPort(free uint64) uint64 { return free }

func evenPort(free uint64) uint64 { return free & evenPorts }

func oddPort(free uint64) uint64 { return free &^ evenPorts }

// evenPair are even ports whose odd neighbour is free too, oddPair odd ones whose even neighbour is.
func evenPair(free uint64) uint64 { return free & (free >> 1) & evenPorts }

func oddPair(free uint64) uint64 { return free & (free << 1) &^ evenPorts }

func parityOf(port uint16) choice {
	if port&1 == 0 {
		return evenPort
	}
	return oddPort
}

func pairOf(port uint16) choice {
	if port&1 == 0 {
		return evenPair
	}
	return oddPair
}

// randomLocked returns a random free port of r that is fit. While few are taken each is as likely as the other.
func (s *portSpace) randomLocked(r portRange, fit choice) (uint16, bool) {
	size := uint64(r.hi) - uint64(r.lo) + 1
	draw := func() uint16 { return r.lo + uint16(s.rnd.Uint64()>>16%size) }
	for range randomTries {
		port := draw()
		if fit(s.freeWordLocked(port/64, r))>>(port%64)&1 != 0 {
			return port, true
		}
	}
	return s.searchLocked(draw(), r, fit)
}

// nextLocked returns the first free port behind the one handed out last.
func (s *portSpace) nextLocked() (uint16, bool) {
	port, ok := s.searchLocked(s.next, portRange{s.lo, s.hi}, anyPort)
	switch {
	case !ok:
		return 0, false
	case port == s.hi:
		s.next = s.lo
	default:
		s.next = port + 1
	}
	return port, true
}

// searchLocked returns the first fit port at or behind from, which is in r, going round at the end of r.
func (s *portSpace) searchLocked(from uint16, r portRange, fit choice) (uint16, bool) {
	first, last := r.lo/64, r.hi/64
	word := from / 64
	mask := ^uint64(0) << (from % 64)
	for range int(last-first) + 2 { // the word of from comes twice: its upper part first, its lower part last
		if w := fit(s.freeWordLocked(word, r)) & mask; w != 0 {
			return word*64 + uint16(bits.TrailingZeros64(w)), true
		}
		mask = ^uint64(0)
		if word++; word > last {
			word = first
		}
	}
	return 0, false
}

// freeWordLocked has a bit for each of the 64 ports of a word that is in r and free.
func (s *portSpace) freeWordLocked(word uint16, r portRange) uint64 {
	w := ^s.used[word]
	if word == r.lo/64 {
		w &= ^uint64(0) << (r.lo % 64)
	}
	if word == r.hi/64 {
		w &= ^uint64(0) >> (63 - r.hi%64)
	}
	return w
}
