package dns

import (
	"encoding/binary"

	"golang.org/x/net/dns/dnsmessage"
)

// Messages are relayed as bytes, not decoded and built again: that keeps every record type, EDNS option and signature as
// it was sent. This file finds the offsets that the relay needs.
//
//	RFC 1035 section 4.1.1, the header:
//	0  ID
//	2  QR(1) Opcode(4) AA TC RD RA Z AD CD RCODE(4)
//	4  QDCOUNT   6  ANCOUNT   8  NSCOUNT   10  ARCOUNT
const (
	headerLen    = 12
	maxNameLen   = 255
	maxQueryLen  = 4096 // an ordinary query has less than 300 bytes, EDNS options included
	minUDPSize   = 512  // RFC 1035 section 4.2.1
	maxUDPSize   = 4096 // the most that goes into one datagram, whatever a client says it can take
	safeUDPSize  = 1232 // what resolvers commonly limit their UDP answers to
	typeOPT      = uint16(dnsmessage.TypeOPT)
	typeIXFR     = 251
	typeAXFR     = 252
	typeANY      = 255
	optRecordLen = 11 // root name, type, class, TTL, data length
)

const (
	flagQR = 1 << 15
	flagAA = 1 << 10
	flagTC = 1 << 9
	flagRD = 1 << 8
	flagRA = 1 << 7
	flagAD = 1 << 5
	flagCD = 1 << 4

	maskOpcode = 0xf << 11
	maskRCode  = 0xf

	flagDO = 1 << 15 // in the TTL of OPT
)

// section numbers follow the order in the message.
type section uint8

const (
	sectionAnswer section = iota
	sectionAuthority
	sectionAdditional
)

// record locates one resource record.
type record struct {
	section     section
	typ, class  uint16
	start       int // the owner's name
	ttlAt       int
	data, end   int // the record's data
	rootOwnered bool
}

// message is a DNS message and the places of its parts. It refers to raw, which it owns.
type message struct {
	raw         []byte // cut behind the last record
	questionEnd int    // headerLen when there is no question
	records     []record
	opt         int // index into records, -1 without EDNS
}

// The accessors of the question need hasQuestion, those of OPT need hasOPT.

func (m *message) id() uint16                { return binary.BigEndian.Uint16(m.raw) }
func (m *message) flags() uint16             { return binary.BigEndian.Uint16(m.raw[2:]) }
func (m *message) setID(v uint16)            { binary.BigEndian.PutUint16(m.raw, v) }
func (m *message) has(flag uint16) bool      { return m.flags()&flag != 0 }
func (m *message) hasQuestion() bool         { return m.questionEnd > headerLen }
func (m *message) question() []byte          { return m.raw[headerLen:m.questionEnd] }
func (m *message) qtype() uint16             { return binary.BigEndian.Uint16(m.raw[m.questionEnd-4:]) }
func (m *message) count(s section) int       { return int(binary.BigEndian.Uint16(m.raw[6+2*int(s):])) }
func (m *message) ttl(r record) uint32       { return binary.BigEndian.Uint32(m.raw[r.ttlAt:]) }
func (m *message) setTTL(r record, v uint32) { binary.BigEndian.PutUint32(m.raw[r.ttlAt:], v) }
func (m *message) rdata(r record) []byte     { return m.raw[r.data:r.end] }
func (m *message) optRecord() record         { return m.records[m.opt] }
func (m *message) rcode() dnsmessage.RCode   { return dnsmessage.RCode(m.flags() & maskRCode) }
func (m *message) hasOPT() bool              { return m.opt >= 0 }
func (m *message) dnssecOK() bool            { return m.hasOPT() && m.ttl(m.optRecord())&flagDO != 0 }
func (m *message) hasOPTData() bool          { return m.hasOPT() && len(m.rdata(m.optRecord())) > 0 }
func (m *message) extendedRCode() (hi uint32) {
	if m.hasOPT() {
		hi = m.ttl(m.optRecord()) >> 24
	}
	return hi
}

// udpSize returns how long a datagram the sender of this query takes (RFC 6891 section 6.2.3).
func (m *message) udpSize() int {
	if !m.hasOPT() {
		return minUDPSize
	}
	return min(max(int(m.optRecord().class), minUDPSize), maxUDPSize)
}

// parse finds the parts of a message with at most one question; ok is false when it is malformed. It does not follow
// compression pointers: whoever reads the names does. raw is kept.
func parse(raw []byte) (m message, ok bool) {
	m = message{raw: raw, questionEnd: headerLen, opt: -1}
	if len(raw) < headerLen {
		return m, false
	}
	switch binary.BigEndian.Uint16(raw[4:]) {
	case 0:
	case 1:
		end, ok := skipName(raw, headerLen, false)
		if !ok || end+4 > len(raw) {
			return m, false
		}
		m.questionEnd = end + 4
	default: // RFC 9619: more than one question has no meaning
		return m, false
	}
	end, ok := m.findRecords()
	if !ok {
		return m, false
	}
	m.raw = raw[:end]
	return m, true
}

// findRecords fills m.records and returns where the last one ends.
func (m *message) findRecords() (end int, ok bool) {
	at := m.questionEnd
	for s := sectionAnswer; s <= sectionAdditional; s++ {
		for range m.count(s) {
			r, ok := readRecord(m.raw, at)
			if !ok {
				return 0, false
			}
			r.section = s
			if r.typ == typeOPT {
				// RFC 6891 section 6.1.1: one, at the root, in the additional section.
				if m.hasOPT() || s != sectionAdditional || !r.rootOwnered {
					return 0, false
				}
				m.opt = len(m.records)
			}
			m.records = append(m.records, r)
			at = r.end
		}
	}
	return at, true
}

func readRecord(raw []byte, at int) (r record, ok bool) {
	name, ok := skipName(raw, at, true)
	if !ok || name+10 > len(raw) {
		return r, false
	}
	r = record{
		start:       at,
		rootOwnered: name == at+1,
		typ:         binary.BigEndian.Uint16(raw[name:]),
		class:       binary.BigEndian.Uint16(raw[name+2:]),
		ttlAt:       name + 4,
		data:        name + 10,
	}
	r.end = r.data + int(binary.BigEndian.Uint16(raw[name+8:]))
	return r, r.end <= len(raw)
}

// skipName returns the offset behind the name at off.
func skipName(raw []byte, off int, pointers bool) (end int, ok bool) {
	for at := off; at < len(raw) && at-off < maxNameLen; {
		switch n := int(raw[at]); {
		case n == 0:
			return at + 1, true
		case n < 0x40:
			at += 1 + n
		case n >= 0xc0 && pointers:
			return at + 2, at+2 <= len(raw)
		default:
			return 0, false
		}
	}
	return 0, false
}

// sameQuestion reports whether b answers a's question: equal but for the case of ASCII letters. Both have one.
func sameQuestion(a, b *message) bool {
	p, q := a.question(), b.question()
	if len(p) != len(q) {
		return false
	}
	for i := range p[:len(p)-4] {
		if lower(p[i]) != lower(q[i]) { // a length byte is below 'A'
			return false
		}
	}
	return string(p[len(p)-4:]) == string(q[len(q)-4:])
}

func lower(c byte) byte {
	if 'A' <= c && c <= 'Z' {
		return c + 'a' - 'A'
	}
	return c
}

// reply builds an answer without records to query, whose sections need not be sound beyond the question.
func reply(query *message, rcode dnsmessage.RCode) []byte {
	b := appendHead(make([]byte, 0, headerLen+len(query.question())+optRecordLen), query, rcode)
	if query.hasOPT() { // RFC 6891 section 6.1.1: an answer to EDNS has EDNS
		binary.BigEndian.PutUint16(b[10:], 1)
		b = appendOPT(b, query.ttl(query.optRecord())&flagDO)
	}
	return b
}

// appendHead appends the header and the question of an answer to query.
func appendHead(b []byte, query *message, rcode dnsmessage.RCode) []byte {
	flags := flagQR | flagRA | query.flags()&(maskOpcode|flagRD|flagCD) | uint16(rcode)&maskRCode
	b = binary.BigEndian.AppendUint16(b, query.id())
	b = binary.BigEndian.AppendUint16(b, flags)
	b = append(b, 0, 0, 0, 0, 0, 0, 0, 0)
	if query.hasQuestion() {
		b[len(b)-7] = 1
		b = append(b, query.question()...)
	}
	return b
}

// appendOPT appends an OPT record without options (RFC 6891 section 6.1.2); flags are the extended RCODE, the version and DO.
func appendOPT(b []byte, flags uint32) []byte {
	b = append(b, 0)
	b = binary.BigEndian.AppendUint16(b, typeOPT)
	b = binary.BigEndian.AppendUint16(b, safeUDPSize)
	b = binary.BigEndian.AppendUint32(b, flags)
	return binary.BigEndian.AppendUint16(b, 0)
}

// fit returns the answer in at most limit bytes. Additional records go first, which is no loss that a client must know of
// (RFC 2181 section 9); if that is not enough, TC is set and only the question and EDNS stay.
func fit(m *message, limit int) (b []byte, truncated bool) {
	if len(m.raw) <= limit {
		return m.raw, m.has(flagTC)
	}
	var opt []byte
	if m.hasOPT() {
		r := m.optRecord()
		opt = m.raw[r.start:r.end]
	}
	keep := m.questionEnd
	for _, r := range m.records {
		if r.section != sectionAdditional {
			keep = r.end
		}
	}
	truncated = keep+len(opt) > limit || m.has(flagTC)
	if keep+len(opt) > limit {
		keep = m.questionEnd
	}
	if keep+len(opt) > limit { // options nobody can use in so little space
		opt = nil
	}
	b = append(append(make([]byte, 0, keep+len(opt)), m.raw[:keep]...), opt...)
	if keep == m.questionEnd {
		clear(b[6:10])
	}
	additional := uint16(0)
	if opt != nil {
		additional = 1
	}
	binary.BigEndian.PutUint16(b[10:], additional)
	if truncated {
		b[2] |= flagTC >> 8
	}
	return b, truncated
}
