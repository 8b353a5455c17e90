package exchange

import (
	"encoding/binary"
	"net/netip"
	"time"
)

// fields are sets of types of fields, as bits.
type fields uint16

func set(types ...int) (s fields) {
	for _, t := range types {
		s |= 1 << t
	}
	return s
}

// fieldsOf returns the fields that a kind has a use for, and those of them that it needs.
func fieldsOf(k Kind) (used, needed fields) {
	switch k {
	case KindCandidates:
		return set(fieldCandidate, fieldHints4, fieldHints6, fieldStart), 0
	case KindTrickle:
		return set(fieldCandidate), set(fieldCandidate)
	case KindStart:
		return set(fieldStart, fieldTechnique, fieldExpect), set(fieldStart)
	case KindProposal:
		used = set(fieldAttempt, fieldProposer, fieldAcceptor)
	case KindAnswer:
		used = set(fieldAttempt, fieldReason)
	case KindGoodbye:
		used = set(fieldReason)
	}
	return used, used
}

// parseHead reads the first headLen bytes of b, which are there.
func parseHead(b []byte) head {
	return head{
		time:    binary.BigEndian.Uint64(b[offTime:]),
		version: b[offVersion],
		kind:    Kind(b[offKind]),
		sender:  binary.BigEndian.Uint64(b[offSender:]),
		echo:    binary.BigEndian.Uint64(b[offEcho:]),
		heard:   binary.BigEndian.Uint64(b[offHeard:]),
		hold:    binary.BigEndian.Uint32(b[offHold:]),
		session: Session(binary.BigEndian.Uint64(b[offSession:])),
	}
}

// parseFields reads what follows the head of a message of a known kind; false if that is malformed.
func parseFields(h *head, b []byte) (m Message, ok bool) {
	m = Message{Kind: h.kind, Session: h.session}
	if h.session == 0 && h.kind != KindGoodbye {
		return m, false
	}
	used, needed := fieldsOf(h.kind)
	var seen fields
	var count [numFields]int
	for len(b) > 0 {
		if len(b) < fieldHead || len(b) < fieldHead+int(b[1]) {
			return m, false
		}
		t, value := b[0], b[fieldHead:fieldHead+int(b[1])]
		b = b[fieldHead+len(value):]
		if t >= numFields || used&(1<<t) == 0 {
			continue
		}
		if count[t]++; count[t] > most(t) {
			return m, false
		}
		seen |= 1 << t
		if !m.parseField(t, value) {
			return m, false
		}
	}
	if m.Technique == 0 && len(m.Expect) > 0 {
		return m, false
	}
	return m, seen&needed == needed
}

// most is how often a field may be in a message.
func most(t byte) int {
	switch t {
	case fieldCandidate:
		return MaxCandidates
	case fieldExpect:
		return MaxExpect
	}
	return 1
}

// parseField reads one field; false if it is malformed.
func (m *Message) parseField(t byte, value []byte) (ok bool) {
	switch t {
	case fieldCandidate:
		var c Candidate
		if c, ok = parseCandidate(value); ok && c.Kind.known() {
			m.Candidates = append(m.Candidates, c)
		}
	case fieldHints4:
		m.Hints4, ok = parseHints(value)
	case fieldHints6:
		m.Hints6, ok = parseHints(value)
	case fieldStart:
		var n uint32
		n, ok = parseNumber(value)
		m.StartIn = time.Duration(n) * time.Microsecond
		ok = ok && m.StartIn <= MaxStartIn
	case fieldAttempt:
		m.Attempt, ok = parseNumber(value)
	case fieldProposer:
		m.Proposer, ok = parseEndpoint(value)
	case fieldAcceptor:
		m.Acceptor, ok = parseEndpoint(value)
	case fieldReason:
		if ok = len(value) > 0; ok {
			m.Reason = Reason(value[0])
		}
	case fieldTechnique:
		if ok = len(value) > 0; ok {
			m.Technique = value[0]
		}
	case fieldExpect:
		var p Ports
		if p, ok = parsePorts(value); ok {
			m.Expect = append(m.Expect, p)
		}
	}
	return ok
}

func parseNumber(b []byte) (uint32, bool) {
	if len(b) < 4 {
		return 0, false
	}
	return binary.BigEndian.Uint32(b), true
}

func parseEndpoint(b []byte) (e netip.AddrPort, ok bool) {
	if len(b) == 0 || b[0] != 4 && b[0] != 6 {
		return e, false
	}
	e, _, ok = cutAddrPort(b[1:], b[0] == 6)
	return e, ok
}

// parseCandidate reads the value of a candidate. One of unknown kind may have another layout, so only its kind is read.
func parseCandidate(b []byte) (c Candidate, ok bool) {
	if len(b) < 1 {
		return c, false
	}
	if c.Kind = CandidateKind(b[0]); !c.Kind.known() {
		return c, true
	}
	if len(b) < candidateFixed {
		return c, false
	}
	flags := b[1]
	c.Preference = binary.BigEndian.Uint16(b[2:])
	if c.WG, b, ok = cutAddrPort(b[candidateFixed:], flags&flagWG6 != 0); !ok {
		return c, false
	}
	switch form := flags >> checkShift & checkMask; form {
	case checkSame:
		if len(b) < 2 {
			return c, false
		}
		c.Check = netip.AddrPortFrom(c.WG.Addr(), binary.BigEndian.Uint16(b))
	case check4, check6:
		c.Check, _, ok = cutAddrPort(b, form == check6)
	}
	return c, ok
}

// cutAddrPort reads an address and a port from the front of b, and returns the rest. IPv4-mapped addresses become IPv4.
func cutAddrPort(b []byte, v6 bool) (e netip.AddrPort, rest []byte, ok bool) {
	n := 4
	if v6 {
		n = 16
	}
	if len(b) < n+2 {
		return e, b, false
	}
	a, _ := netip.AddrFromSlice(b[:n])
	return netip.AddrPortFrom(a.Unmap(), binary.BigEndian.Uint16(b[n:])), b[n+2:], true
}
