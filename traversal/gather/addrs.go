package gather

import (
	"net/netip"
	"slices"

	"culvert.dev/culvert/internal/hostnet"
)

// SystemAddrs returns the addresses of this host that others may know it by, best first: those that the host sends from, those on
// the same interfaces, others, those of bridges for containers and virtual machines, those that are going to be given up. Of the
// IPv6 addresses in one /64, there is one that stays and one that is temporary (RFC 8981). It is empty if the system does not tell.
func SystemAddrs() []netip.Addr {
	list, err := hostnet.Addresses()
	if err != nil {
		return nil
	}
	internet4, internet6 := netip.MustParseAddr("198.41.0.4"), netip.MustParseAddr("2001:503:ba3e::2:30") // a root server of DNS; nothing is sent
	return choose(list, hostnet.Source(internet4), hostnet.Source(internet6))
}

// choose orders addresses. The sources are what the host sends to the internet from, one per family; they may be invalid.
func choose(list []hostnet.Address, sources ...netip.Addr) (out []netip.Addr) {
	outer := map[string]bool{} // interfaces
	for _, a := range list {
		if slices.Contains(sources, a.Addr) {
			outer[a.Interface] = true
		}
	}
	rank := func(a hostnet.Address) int {
		switch {
		case slices.Contains(sources, a.Addr):
			return 0
		case a.Deprecated:
			return 4
		case outer[a.Interface]:
			return 1
		case a.Internal:
			return 3
		}
		return 2
	}
	list = slices.Clone(list)
	slices.SortStableFunc(list, func(a, b hostnet.Address) int { return rank(a) - rank(b) })
	type kind struct {
		network   netip.Prefix
		temporary bool
	}
	have := map[kind]bool{}
	for _, a := range list {
		if !useful(a.Addr) {
			continue
		}
		if a.Addr.Is6() {
			network, _ := a.Addr.Prefix(64)
			k := kind{network, a.Temporary}
			if have[k] || a.Deprecated && (have[kind{network, true}] || have[kind{network, false}]) {
				continue
			}
			have[k] = true
		}
		out = append(out, a.Addr)
	}
	return out
}

// useful reports whether an address can mean this host to another one. Link-local addresses mean nothing without a zone, and those
// of 192.0.0.0/24 are inside of a translator on this host (RFC 7335).
func useful(a netip.Addr) bool {
	return a.IsGlobalUnicast() && !netip.PrefixFrom(netip.AddrFrom4([4]byte{192, 0, 0, 0}), 24).Contains(a)
}
