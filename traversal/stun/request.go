package stun

import (
	"encoding/binary"

	pion "github.com/pion/stun/v3"
)

// maxUnknown is how many unknown attributes an error response names.
const maxUnknown = 16

// parsed is what a server needs to know of a Binding request.
type parsed struct {
	size        int      // of the message
	id          [16]byte // bytes 4 to 19: cookie and transaction id
	classic     bool     // RFC 3489: without cookie
	fingerprint bool     // has a FINGERPRINT, and a right one

	changes     bool   // has a CHANGE-REQUEST
	change      byte   // its flags
	redirect    bool   // has a RESPONSE-PORT
	redirectTo  uint16 // its port
	pads        bool   // has a PADDING
	paddingSize int    // of its value

	unknown  [maxUnknown]pion.AttrType // that had to be understood
	unknowns int
}

// wantsMore reports whether the request asks for something of RFC 5780.
func (q *parsed) wantsMore() bool { return q.change != 0 || q.redirect || q.pads }

func (q *parsed) addUnknown(t pion.AttrType) {
	if q.unknowns < maxUnknown {
		q.unknown[q.unknowns] = t
		q.unknowns++
	}
}

// parse fills q. Everything but pass means that the message is not answered: RFC 8489 section 6.3 has what does not fit
// discarded without a word.
func (q *parsed) parse(msg []byte) verdict {
	if !framed(msg) {
		return dropMalformed
	}
	switch typ := binary.BigEndian.Uint16(msg); {
	case typ == bindingRequest:
	case typ&0x0110 != 0: // the class: an indication or a response
		return dropNotRequest
	default:
		return dropMethod
	}
	*q = parsed{size: len(msg), classic: binary.BigEndian.Uint32(msg[4:]) != cookie}
	copy(q.id[:], msg[4:])

	var seen integrity
	for at := headerLen; at < len(msg); {
		typ, value, next, ok := nextAttr(msg, at)
		if !ok {
			return dropMalformed
		}
		if typ == pion.AttrFingerprint && !q.classic {
			return q.checkFingerprint(msg, at, value)
		}
		if seen.counts(typ) {
			if v := q.attribute(typ, value); v != pass {
				return v
			}
		}
		at = next
	}
	return pass
}

// integrity tells which attributes count: behind MESSAGE-INTEGRITY only MESSAGE-INTEGRITY-SHA256 and FINGERPRINT do, behind
// MESSAGE-INTEGRITY-SHA256 only FINGERPRINT (RFC 8489 sections 14.5 and 14.6).
type integrity struct{ sha1, sha256 bool }

func (s *integrity) counts(t pion.AttrType) bool {
	switch {
	case s.sha256:
		return false
	case t == pion.AttrMessageIntegritySHA256:
		s.sha256 = true
	case s.sha1:
		return false
	case t == pion.AttrMessageIntegrity:
		s.sha1 = true
	}
	return true
}

// checkFingerprint: RFC 8489 section 14.7. It is the last attribute, and a wrong one means that this is not STUN.
func (q *parsed) checkFingerprint(msg []byte, at int, value []byte) verdict {
	if len(value) != 4 || at+fingerprintLen != len(msg) {
		return dropMalformed
	}
	if binary.BigEndian.Uint32(value) != pion.FingerprintValue(msg[:at]) {
		return dropFingerprint
	}
	q.fingerprint = true
	return pass
}

// attribute takes note of one. Of several of a type the first counts (RFC 8489 section 14).
func (q *parsed) attribute(t pion.AttrType, value []byte) verdict {
	switch t {
	case pion.AttrChangeRequest:
		if len(value) != 4 {
			return dropMalformed
		}
		if !q.changes {
			q.changes, q.change = true, value[3]&(changeAddr|changePort)
		}
	case pion.AttrResponsePort:
		if len(value) != 2 && len(value) != 4 { // RFC 5780 has the filling in the picture, but not in words
			return dropMalformed
		}
		if !q.redirect {
			q.redirect, q.redirectTo = true, binary.BigEndian.Uint16(value)
		}
	case pion.AttrPadding:
		if !q.pads {
			q.pads, q.paddingSize = true, len(value)
		}
	default:
		if t.Required() && !known(t, q.classic) {
			q.addUnknown(t)
		}
	}
	return pass
}

// known are the attributes that must be understood, and are: they have no place in a request without authentication, and are
// ignored for that (RFC 8489 section 6.3). RESPONSE-ADDRESS of RFC 3489 is not among them: nobody may have answers sent to
// others.
func known(t pion.AttrType, classic bool) bool {
	switch t {
	case pion.AttrMappedAddress, pion.AttrXORMappedAddress, pion.AttrErrorCode, pion.AttrUnknownAttributes,
		pion.AttrUsername, pion.AttrRealm, pion.AttrNonce, pion.AttrMessageIntegrity,
		pion.AttrMessageIntegritySHA256, pion.AttrPasswordAlgorithm, pion.AttrUserhash:
		return true
	case pion.AttrSourceAddress, pion.AttrChangedAddress, attrPassword, attrReflectedFrom:
		return classic
	}
	return false
}
