package stun

import (
	"net/netip"

	pion "github.com/pion/stun/v3"
)

// MaxAnswerLen is the length of the longest response of Answer.
const MaxAnswerLen = 128

// Answer appends the response to one Binding request that came from the given address to dst, and returns the longer slice. ok
// is false if the message is to be dropped: no request, not well-formed, or from where no answer may go (port 0, or an address
// that is no single host's); dst is then returned as it was. Answer knows nothing of RFC 5780: who asks for that, or for
// anything else that is not known, gets error 420. The response is at most 2.1 times as long as the request, counted as the
// package comment says. Nothing is allocated if dst has room for MaxAnswerLen bytes more. dst and request must not overlap.
func Answer(dst, request []byte, from netip.AddrPort) (response []byte, ok bool) {
	from = netip.AddrPortFrom(from.Addr().Unmap(), from.Port())
	var q parsed
	if !answerable(from) || q.parse(request) != pass {
		return dst, false
	}
	q.refuse(changeAddr|changePort, true)
	r := reply{mapped: from}
	if q.unknowns > 0 {
		r.code = codeUnknown
	}
	return appendReply(dst, &q, &r), true
}

// refuse makes unknown attributes of what is asked for and not to be had: flags of CHANGE-REQUEST and, with all, the other
// attributes of RFC 5780. A CHANGE-REQUEST without flags asks for nothing; clients of RFC 3489 always send one.
func (q *parsed) refuse(change byte, all bool) {
	if q.change&change != 0 {
		q.addUnknown(pion.AttrChangeRequest)
	}
	if q.redirect && all {
		q.addUnknown(pion.AttrResponsePort)
	}
	if q.pads && all {
		q.addUnknown(pion.AttrPadding)
	}
}

// answerable reports whether from can be one host's: not an unspecified, multicast or broadcast address, not one of
// reserved space (0.0.0.0/8, 240.0.0.0/4), and not port 0.
func answerable(from netip.AddrPort) bool {
	a := from.Addr()
	if !a.IsValid() || from.Port() == 0 || a.IsUnspecified() || a.IsMulticast() {
		return false
	}
	if a.Is4() || a.Is4In6() {
		first := a.Unmap().As4()[0]
		return first != 0 && first < 240
	}
	return true
}
