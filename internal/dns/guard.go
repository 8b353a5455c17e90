package dns

import (
	"net/netip"
	"slices"

	"golang.org/x/net/dns/dnsmessage"
)

// guard takes out of an answer the addresses that the client may not learn: A and AAAA records of every section, and
// HTTPS and SVCB records that hint at such an address. ok is false when the answer cannot be read to the end, in which
// case it must not be passed on.
func (s *Server) guard(client netip.Addr, m message) (message, bool) {
	if s.cfg.Allow == nil || !m.mayHoldAddresses() {
		return m, true
	}
	var d dnsmessage.Message
	if m.oddAddress() || d.Unpack(m.raw) != nil {
		return m, false
	}
	denied := func(r dnsmessage.Resource) bool {
		return slices.ContainsFunc(addressesOf(r), func(a netip.Addr) bool { return !s.cfg.Allow(client, a) })
	}
	answers, before := countAddresses(d.Answers), len(d.Answers)+len(d.Authorities)+len(d.Additionals)
	d.Answers = slices.DeleteFunc(d.Answers, denied)
	d.Authorities = slices.DeleteFunc(d.Authorities, denied)
	d.Additionals = slices.DeleteFunc(d.Additionals, denied)
	removed := before - len(d.Answers) - len(d.Authorities) - len(d.Additionals)
	if removed == 0 {
		return m, true
	}
	s.counters.filtered.Add(uint64(removed))
	if answers > 0 && countAddresses(d.Answers) == 0 {
		s.counters.emptied.Add(1)
	}
	d.AuthenticData = false // what is left is no longer what was validated
	d.Authorities = slices.DeleteFunc(d.Authorities, cannotRepack)
	d.Answers = slices.DeleteFunc(d.Answers, cannotRepack)
	d.Additionals = slices.DeleteFunc(d.Additionals, cannotRepack)
	raw, err := d.Pack()
	if err != nil {
		return m, false
	}
	return parse(raw)
}

// mayHoldAddresses spares most answers the decoding.
func (m *message) mayHoldAddresses() bool {
	return slices.ContainsFunc(m.records, func(r record) bool {
		switch dnsmessage.Type(r.typ) {
		case dnsmessage.TypeA, dnsmessage.TypeAAAA, dnsmessage.TypeHTTPS, dnsmessage.TypeSVCB:
			return true
		}
		return false
	})
}

// oddAddress reports whether an address record has not the length of an address: readers differ in what they make of it.
func (m *message) oddAddress() bool {
	return slices.ContainsFunc(m.records, func(r record) bool {
		n := len(m.rdata(r))
		return r.typ == uint16(dnsmessage.TypeA) && n != 4 || r.typ == uint16(dnsmessage.TypeAAAA) && n != 16
	})
}

func countAddresses(list []dnsmessage.Resource) (n int) {
	for _, r := range list {
		n += len(addressesOf(r))
	}
	return n
}

// addressesOf returns the addresses that a record tells.
func addressesOf(r dnsmessage.Resource) []netip.Addr {
	switch b := r.Body.(type) {
	case *dnsmessage.AResource:
		return []netip.Addr{netip.AddrFrom4(b.A)}
	case *dnsmessage.AAAAResource:
		return []netip.Addr{netip.AddrFrom16(b.AAAA)}
	case *dnsmessage.HTTPSResource:
		return hints(b.SVCBResource)
	case *dnsmessage.SVCBResource:
		return hints(*b)
	}
	return nil
}

// hints returns the addresses in the parameters ipv4hint and ipv6hint (RFC 9460 section 7.3), wherever they stand.
func hints(b dnsmessage.SVCBResource) (list []netip.Addr) {
	for _, p := range b.Params {
		size := 0
		switch p.Key {
		case dnsmessage.SVCParamIPv4Hint:
			size = 4
		case dnsmessage.SVCParamIPv6Hint:
			size = 16
		default:
			continue
		}
		for a := range slices.Chunk(p.Value, size) {
			if addr, ok := netip.AddrFromSlice(a); ok {
				list = append(list, addr)
			}
		}
	}
	return list
}

// cannotRepack reports whether a record's data, which is copied as bytes, may point to names elsewhere in the old message:
// the types of RFC 3597 section 4 that dnsmessage does not know.
func cannotRepack(r dnsmessage.Resource) bool {
	switch uint16(r.Header.Type) {
	case 3, 4, 7, 8, 9, 14, 17, 18, 21, 24, 26, 30, 35: // MD MF MB MG MR MINFO RP AFSDB RT SIG PX NXT NAPTR
		return true
	}
	return false
}
