package dns

import (
	"encoding/binary"
	"net/netip"

	"golang.org/x/net/dns/dnsmessage"
)

const (
	typeDS     = 43
	typeDNSKEY = 48

	localTTL  = 30    // seconds: a reload changes what names stand for
	maxAnswer = 60000 // bytes of address records; a host with more addresses is no host

	extendedBadVersion = 1 << 24 // BADVERS (16), its upper bits, in the TTL of OPT
)

// respond answers a question from what this node knows itself. The answer is in at most limit bytes.
func (s *Server) respond(client netip.Addr, query *message, n *qname, e *entry, limit int) []byte {
	s.counters.local.Add(1)
	a := localAnswer{n: n, b: appendHead(make([]byte, 0, minUDPSize), query, dnsmessage.RCodeSuccess)}
	var opt uint32
	class := binary.BigEndian.Uint16(a.b[query.questionEnd-2:])
	switch {
	case query.hasOPT() && query.ttl(query.optRecord())>>16&0xff != 0: // RFC 6891 section 6.1.3
		opt = extendedBadVersion
	case class != uint16(dnsmessage.ClassINET): // nothing here is of another class, and it is not to be asked elsewhere
		a.b[3] |= byte(dnsmessage.RCodeRefused)
	default:
		a.b[2] |= flagAA >> 8
		s.addAnswers(&a, client, query.qtype(), e)
	}
	if query.hasOPT() {
		a.b = appendOPT(a.b, opt|query.ttl(query.optRecord())&flagDO)
		a.b[11] = 1
	}
	if len(a.b) <= limit {
		return a.b
	}
	m, _ := parse(a.b)
	b, _ := fit(&m, limit)
	s.counters.truncated.Add(1)
	return b
}

// addAnswers adds the records of the asked type, else the SOA that says for how long there are none (RFC 2308 section 3). Of all types
// only the first that there is is told (RFC 8482 section 4.1).
func (s *Server) addAnswers(a *localAnswer, client netip.Addr, typ uint16, e *entry) {
	for _, is := range [...]dnsmessage.Type{dnsmessage.TypeA, dnsmessage.TypeAAAA, dnsmessage.TypePTR, dnsmessage.TypeSOA, dnsmessage.TypeNS} {
		if typ != uint16(is) && typ != typeANY || e.absent {
			continue
		}
		switch {
		case is == dnsmessage.TypeA || is == dnsmessage.TypeAAAA:
			for _, addr := range e.addrs {
				if addr.Is4() == (is == dnsmessage.TypeA) && len(a.b) < maxAnswer && (e.loopback || s.cfg.Allow == nil || s.cfg.Allow(client, addr)) {
					a.address(is, addr)
				}
			}
		case is == dnsmessage.TypePTR && e.target != nil:
			a.record(0, is, e.target)
		case is == dnsmessage.TypeSOA && e.top:
			a.soa(e.apex)
		case is == dnsmessage.TypeNS && e.top:
			a.record(0, is, a.appendOwner(nil, 0))
		}
		if a.count > 0 {
			break
		}
	}
	binary.BigEndian.PutUint16(a.b[6:], a.count)
	if a.count == 0 {
		a.soa(e.apex)
		a.b[9] = 1
		if e.absent {
			a.b[3] |= byte(dnsmessage.RCodeNameError)
		}
	}
}

// localAnswer is a message while records are added to it. Names in it are pointers to the question's (RFC 1035 section 4.1.4), which
// also keeps the case in which the client has written them.
type localAnswer struct {
	b     []byte
	n     *qname
	count uint16 // records
}

// appendOwner appends the question's name from label i on.
func (a *localAnswer) appendOwner(b []byte, i int) []byte {
	if i == a.n.n {
		return append(b, 0)
	}
	return binary.BigEndian.AppendUint16(b, 0xc000|uint16(headerLen+int(a.n.starts[i])))
}

func (a *localAnswer) address(typ dnsmessage.Type, addr netip.Addr) {
	v6 := addr.As16()
	data := v6[:]
	if addr.Is4() {
		data = v6[12:]
	}
	a.record(0, typ, data)
}

// record adds a record of the question's name from label i on.
func (a *localAnswer) record(i int, typ dnsmessage.Type, data []byte) {
	a.b = a.appendOwner(a.b, i)
	a.b = binary.BigEndian.AppendUint16(a.b, uint16(typ))
	a.b = binary.BigEndian.AppendUint16(a.b, uint16(dnsmessage.ClassINET))
	a.b = binary.BigEndian.AppendUint32(a.b, localTTL)
	a.b = binary.BigEndian.AppendUint16(a.b, uint16(len(data)))
	a.b = append(a.b, data...)
	a.count++
}

// soa adds the SOA of the zone whose name the last labels are, as RFC 6303 section 3 has it: its server is the zone itself, and no one
// is to be written to. Its last field is for how long there is nothing.
func (a *localAnswer) soa(apex int) {
	zone := a.n.n - apex
	data := a.appendOwner(make([]byte, 0, 40), zone)
	data = append(data, "\x06nobody\x07invalid\x00"...)
	for _, v := range [...]uint32{1, 3600, 1200, 604800, localTTL} {
		data = binary.BigEndian.AppendUint32(data, v)
	}
	a.record(zone, dnsmessage.TypeSOA, data)
}
