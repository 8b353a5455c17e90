package proxy

import (
	"encoding/binary"
	"errors"
	"net/netip"
)

// A datagram of an association, RFC 1928 section 7, both ways:
//
//	0      2      3      4
//	+------+------+------+----------+------+----------
//	| RSV  | FRAG | ATYP |   ADDR   | PORT |  DATA
//	+------+------+------+----------+------+----------
//	   2      1      1    4, 16 or     2
//	                      1 + 1..255
//
// FRAG is 0 for a whole datagram. Others are dropped, which the RFC allows and everybody does.
const (
	headerLen    = 2 + 1
	maxHeaderLen = headerLen + 1 + 1 + maxNameLen + 2
	maxDatagram  = 65507 // that IPv4 carries: 65535 less 20 and 8
)

var (
	errVersion         = errors.New("the version is not 5")
	errNoMethod        = errors.New("no method of authentication that both know")
	errPasswordVersion = errors.New("the version of the password method is not 1")
	errLogin           = errors.New("user name or password is wrong")
	errShort           = errors.New("shorter than it says")
	errFragment        = errors.New("a fragment")
	errAddressType     = errors.New("an unknown address type")
)

// parseDatagram splits a datagram of a client. The payload is part of b.
func parseDatagram(b []byte) (to Target, payload []byte, err error) {
	switch {
	case len(b) < headerLen:
		return Target{}, nil, errShort
	case b[2] != 0:
		return Target{}, nil, errFragment
	}
	to, rest, err := parseTarget(b[headerLen:])
	if err != nil {
		return Target{}, nil, err
	}
	return to, rest, nil
}

// parseTarget parses address type, address and port, and returns what is behind them.
func parseTarget(b []byte) (t Target, rest []byte, err error) {
	if len(b) < 2 {
		return Target{}, nil, errShort
	}
	start, size := 1, 0
	switch b[0] {
	case addressIPv4:
		size = 4
	case addressIPv6:
		size = 16
	case addressName:
		start, size = 2, int(b[1])
	default:
		return Target{}, nil, errAddressType
	}
	if len(b) < start+size+2 {
		return Target{}, nil, errShort
	}
	host, port := b[start:start+size], binary.BigEndian.Uint16(b[start+size:])
	rest = b[start+size+2:]
	if b[0] == addressName {
		t, err = targetOf(string(host), port)
		return t, rest, err
	}
	addr, _ := netip.AddrFromSlice(host)
	return Target{Addr: addr.Unmap(), Port: port}, rest, nil
}

// appendHeader writes what stands before the payload.
func appendHeader(b []byte, t Target) []byte { return appendTarget(append(b, 0, 0, 0), t) }
