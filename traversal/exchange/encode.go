package exchange

import (
	"encoding/binary"
	"math"
	"net/netip"
	"time"
)

// Layout of the plaintext; the package comment has it in words.
const (
	layoutVersion = 1

	offTime    = 0
	offVersion = 8
	offKind    = 9
	offSender  = 10
	offEcho    = 18
	offHeard   = 26
	offHold    = 34
	offSession = 38
	headLen    = 46

	holdUnknown = math.MaxUint32
)

// Types of fields.
const (
	fieldCandidate = 1
	fieldHints4    = 2
	fieldHints6    = 3
	fieldStart     = 4
	fieldAttempt   = 5
	fieldProposer  = 6
	fieldAcceptor  = 7
	fieldReason    = 8
	fieldTechnique = 9
	fieldExpect    = 10

	numFields = 11
	fieldHead = 2 // type and length
)

// Flags of a candidate: bit 0, and two bits that say where checks go.
const (
	flagWG6        = 1 << 0
	checkShift     = 1
	checkMask      = 3
	checkNone      = 0
	checkSame      = 1
	check4         = 2
	check6         = 3
	candidateFixed = 4 // kind, flags, preference
)

// maxCandidateBytes is what all candidates of a message may take, so that everything else has room besides.
const maxCandidateBytes = MaxLen - minLen - 2*(fieldHead+hintsLen) - (fieldHead + 4)

// head is what every message begins with. Times are nanoseconds since 1970.
type head struct {
	time    uint64
	version uint8
	kind    Kind
	sender  uint64 // life
	echo    uint64 // life of the receiver
	heard   uint64 // send time of the receiver's
	hold    uint32 // microseconds
	session Session
}

func appendHead(b []byte, h *head) []byte {
	b = binary.BigEndian.AppendUint64(b, h.time)
	b = append(b, h.version, byte(h.kind))
	b = binary.BigEndian.AppendUint64(b, h.sender)
	b = binary.BigEndian.AppendUint64(b, h.echo)
	b = binary.BigEndian.AppendUint64(b, h.heard)
	b = binary.BigEndian.AppendUint32(b, h.hold)
	return binary.BigEndian.AppendUint64(b, uint64(h.session))
}

// appendFields appends what follows the head. The message has passed check.
func appendFields(b []byte, m *Message) []byte {
	switch m.Kind {
	case KindCandidates:
		b = appendCandidates(b, m.Candidates)
		if m.Hints4.Known {
			b = appendHints(append(b, fieldHints4, hintsLen), &m.Hints4)
		}
		if m.Hints6.Known {
			b = appendHints(append(b, fieldHints6, hintsLen), &m.Hints6)
		}
		if m.StartIn > 0 {
			b = appendNumber(b, fieldStart, micros(m.StartIn))
		}
	case KindTrickle:
		b = appendCandidates(b, m.Candidates)
	case KindStart:
		b = appendNumber(b, fieldStart, micros(m.StartIn))
		if m.Technique != 0 {
			b = append(b, fieldTechnique, 1, m.Technique)
			b = appendExpect(b, m.Expect)
		}
	case KindProposal:
		b = appendNumber(b, fieldAttempt, m.Attempt)
		b = appendEndpoint(b, fieldProposer, m.Proposer)
		b = appendEndpoint(b, fieldAcceptor, m.Acceptor)
	case KindAnswer:
		b = appendNumber(b, fieldAttempt, m.Attempt)
		b = append(b, fieldReason, 1, byte(m.Reason))
	case KindGoodbye:
		b = append(b, fieldReason, 1, byte(m.Reason))
	}
	return b
}

// micros is d in microseconds; what does not fit is holdUnknown.
func micros(d time.Duration) uint32 {
	if d < 0 || d/time.Microsecond >= holdUnknown {
		return holdUnknown
	}
	return uint32(d / time.Microsecond)
}

func appendNumber(b []byte, field byte, n uint32) []byte {
	return binary.BigEndian.AppendUint32(append(b, field, 4), n)
}

func appendEndpoint(b []byte, field byte, e netip.AddrPort) []byte {
	e = plain(e)
	if e.Addr().Is4() {
		return appendAddrPort(append(b, field, 1+4+2, 4), e)
	}
	return appendAddrPort(append(b, field, 1+16+2, 6), e)
}

func appendCandidates(b []byte, list []Candidate) []byte {
	for _, c := range list {
		wg, check := plain(c.WG), plain(c.Check)
		form := checkForm(wg, check)
		flags := byte(form << checkShift)
		if wg.Addr().Is6() {
			flags |= flagWG6
		}
		b = append(b, fieldCandidate, byte(candidateLen(c)-fieldHead), byte(c.Kind), flags)
		b = binary.BigEndian.AppendUint16(b, c.Preference)
		b = appendAddrPort(b, wg)
		switch form {
		case checkSame:
			b = binary.BigEndian.AppendUint16(b, check.Port())
		case check4, check6:
			b = appendAddrPort(b, check)
		}
	}
	return b
}

func checkForm(wg, check netip.AddrPort) int {
	switch {
	case !check.IsValid():
		return checkNone
	case check.Addr() == wg.Addr():
		return checkSame
	case check.Addr().Is4():
		return check4
	}
	return check6
}

// candidateLen is the length of the field for a candidate.
func candidateLen(c Candidate) int {
	wg, check := plain(c.WG), plain(c.Check)
	n := fieldHead + candidateFixed + wg.Addr().BitLen()/8 + 2
	switch checkForm(wg, check) {
	case checkSame:
		n += 2
	case check4, check6:
		n += check.Addr().BitLen()/8 + 2
	}
	return n
}

func appendAddrPort(b []byte, e netip.AddrPort) []byte {
	if a := e.Addr(); a.Is4() {
		b4 := a.As4()
		b = append(b, b4[:]...)
	} else {
		b16 := a.As16()
		b = append(b, b16[:]...)
	}
	return binary.BigEndian.AppendUint16(b, e.Port())
}
