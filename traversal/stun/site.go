package stun

import (
	"net/netip"
	"slices"
	"sync/atomic"

	"culvert.dev/culvert/internal/hostnet"
)

// site is a set of addresses of one family with one pair of ports: what RFC 5780 calls a server.
type site struct {
	v6    bool
	ports [2]uint16

	// Addresses that clients may be told of and be answered from. Of a site that listens on the wildcard address they are the
	// host's public ones, and change with it.
	addrs atomic.Pointer[[]netip.Addr]

	wildcard bool
	socks    [2][]*socket // by port; in the order of addrs, or one for the wildcard
}

// place is one of a site's addresses with one of its ports. addr is invalid where it is not known which it is.
type place struct {
	site *site
	addr netip.Addr
	port int // 0 or 1
}

func (p place) addrPort() netip.AddrPort {
	if !p.addr.IsValid() {
		return netip.AddrPort{}
	}
	return netip.AddrPortFrom(p.addr, p.site.ports[p.port])
}

// otherAddr returns the same port of the site's next address; false if there is only one.
func (p place) otherAddr() (place, bool) {
	list := *p.site.addrs.Load()
	i := slices.Index(list, p.addr)
	if i < 0 || len(list) < 2 {
		return p, false
	}
	p.addr = list[(i+1)%len(list)]
	return p, true
}

func (p place) otherPort() place {
	p.port = 1 - p.port
	return p
}

// socket is the one that sends from p; nil if there is none any more.
func (p place) socket() *socket {
	socks := p.site.socks[p.port]
	if p.site.wildcard {
		return socks[0]
	}
	for _, s := range socks {
		if s.addr == p.addr {
			return s
		}
	}
	return nil
}

// publicAddrs are those of the host's addresses that clients elsewhere can be told of. They are sorted.
func publicAddrs(host hostnet.Snapshot, v6 bool) (list []netip.Addr) {
	shared := netip.MustParsePrefix("100.64.0.0/10") // RFC 6598
	for _, a := range host.Addrs {
		if a.Is6() == v6 && a.IsGlobalUnicast() && !a.IsPrivate() && !shared.Contains(a) {
			list = append(list, a)
		}
	}
	return list
}
