package dns

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"golang.org/x/net/dns/dnsmessage"
)

const (
	maxAliases = 16  // of a chain: longer ones are circles or somebody's joke
	maxAddrs   = 256 // of a host
)

// addressesIn returns the addresses of one type that an answer has for its question, through aliases in any order (RFC 1034 section
// 3.6.2). Records of other names are not believed.
func addressesIn(raw []byte, typ dnsmessage.Type) ([]netip.Addr, error) {
	var p dnsmessage.Parser
	if _, err := p.Start(raw); err != nil {
		return nil, fmt.Errorf("header: %w", err)
	}
	q, err := p.Question()
	if err != nil {
		return nil, fmt.Errorf("question: %w", err)
	}
	if err := p.SkipAllQuestions(); err != nil {
		return nil, fmt.Errorf("question: %w", err)
	}
	aliases := make(map[string]string)
	var hosts []addressRecord
	for {
		h, err := p.AnswerHeader()
		if err == dnsmessage.ErrSectionDone {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("record: %w", err)
		}
		if err := readAddressRecord(&p, h, typ, aliases, &hosts); err != nil {
			return nil, fmt.Errorf("record of %s: %w", h.Name.GoString(), err)
		}
	}
	return addressesOfHost(foldName(q.Name), aliases, hosts), nil
}

type addressRecord struct {
	name string // folded
	addr netip.Addr
}

// readAddressRecord moves p behind one record, and keeps it if it is an alias or of the type.
func readAddressRecord(p *dnsmessage.Parser, h dnsmessage.ResourceHeader, typ dnsmessage.Type, aliases map[string]string, hosts *[]addressRecord) error {
	switch {
	case h.Class != dnsmessage.ClassINET, h.Type != typ && h.Type != dnsmessage.TypeCNAME:
		return p.SkipAnswer()
	case h.Type == dnsmessage.TypeCNAME:
		r, err := p.CNAMEResource()
		if err == nil {
			aliases[foldName(h.Name)] = foldName(r.CNAME)
		}
		return err
	case h.Length != addressLen(typ): // readers differ in what they make of it
		return fmt.Errorf("address of %d bytes", h.Length)
	}
	var a netip.Addr
	if typ == dnsmessage.TypeA {
		r, err := p.AResource()
		if err != nil {
			return err
		}
		a = netip.AddrFrom4(r.A)
	} else {
		r, err := p.AAAAResource()
		if err != nil {
			return err
		}
		a = netip.AddrFrom16(r.AAAA)
	}
	if !a.Is4In6() && len(*hosts) < maxAddrs {
		*hosts = append(*hosts, addressRecord{foldName(h.Name), a})
	}
	return nil
}

func addressLen(typ dnsmessage.Type) uint16 {
	if typ == dnsmessage.TypeA {
		return 4
	}
	return 16
}

// addressesOfHost follows the aliases from a name to its end.
func addressesOfHost(name string, aliases map[string]string, hosts []addressRecord) (addrs []netip.Addr) {
	for range maxAliases {
		target, ok := aliases[name]
		if !ok {
			break
		}
		name = target
	}
	for _, h := range hosts {
		if h.name == name && !slices.Contains(addrs, h.addr) {
			addrs = append(addrs, h.addr)
		}
	}
	return addrs
}

func foldName(n dnsmessage.Name) string { return strings.ToLower(n.String()) }
