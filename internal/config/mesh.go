package config

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"culvert.dev/culvert/internal/wgkey"
)

// A new node's mesh prefixes: an IPv4 /24 of the shared address space (RFC 6598), which home and office networks do not
// use, and an IPv6 /64 of a unique local prefix (RFC 4193). Both come from the node's key, so that two nodes rarely share
// one and a peer of both needs no renumbering.

var (
	sharedSpace = netip.MustParsePrefix("100.64.0.0/10")
	taken       = []netip.Prefix{
		netip.MustParsePrefix("100.64.0.0/24"),    // addresses by hand, and the in-tunnel STUN address
		netip.MustParsePrefix("100.100.100.0/24"), // resolvers and metadata services of several clouds
	}
)

// meshPrefixes derives both prefixes; neither overlaps one in avoid.
func meshPrefixes(node wgkey.Public, avoid []netip.Prefix) (v4, v6 netip.Prefix, err error) {
	const draws = 1 << 12 // of 2^14 IPv4 prefixes
	avoid = slices.Concat(taken, avoid)
	free := func(p netip.Prefix) bool { return !slices.ContainsFunc(avoid, p.Overlaps) }
	base := sharedSpace.Addr().As4()
	for i := range draws {
		h := sha256.Sum256(fmt.Appendf(node[:], "culvert mesh prefix %d", i))
		if p := netip.PrefixFrom(netip.AddrFrom4([4]byte{base[0], base[1] | h[0]&63, h[1]}), 24); !v4.IsValid() && free(p) {
			v4 = p
		}
		a6 := [16]byte{0: 0xfd}
		copy(a6[1:8], h[2:9]) // 40 bits of global ID, 16 of subnet ID
		if p := netip.PrefixFrom(netip.AddrFrom16(a6), 64); !v6.IsValid() && free(p) {
			v6 = p
		}
		if v4.IsValid() && v6.IsValid() {
			return v4, v6, nil
		}
	}
	return v4, v6, errors.New("choose mesh prefix: this host's networks take all of 100.64.0.0/10 or fd00::/8")
}

// deviceAddrs returns one free address of each of the node's families.
func deviceAddrs(node Interface, peers []Peer) ([]netip.Addr, error) {
	var used []netip.Prefix
	for _, p := range node.Addresses {
		used = append(used, netip.PrefixFrom(p.Addr(), p.Addr().BitLen()))
	}
	for _, p := range peers {
		used = append(used, p.AllowedIPs...)
	}
	var free []netip.Addr
	for _, mesh := range meshes(node) {
		a, ok := freeAddr(mesh, used)
		if !ok {
			return nil, fmt.Errorf("choose an address: all of %s are taken", mesh)
		}
		free = append(free, a)
	}
	return free, nil
}

// meshes returns the prefixes devices get addresses from: those of the node's first address of each family. An address
// without a prefix stands for its /24 or /64.
func meshes(node Interface) []netip.Prefix {
	var list []netip.Prefix
	for _, p := range node.Addresses {
		if slices.ContainsFunc(list, func(q netip.Prefix) bool { return q.Addr().Is4() == p.Addr().Is4() }) {
			continue
		}
		switch {
		case p.IsSingleIP() && p.Addr().Is4():
			p = netip.PrefixFrom(p.Addr(), 24)
		case p.IsSingleIP():
			p = netip.PrefixFrom(p.Addr(), 64)
		}
		list = append(list, p.Masked())
	}
	return list
}

// freeAddr returns the lowest address of mesh that no longer prefix in used covers. It passes over the first, which names
// the network (in IPv6 its routers, RFC 4291 section 2.6.1), and the last, IPv4's broadcast.
func freeAddr(mesh netip.Prefix, used []netip.Prefix) (netip.Addr, bool) {
	end := lastAddr(mesh)
	a := mesh.Addr().Next()
	for mesh.Contains(a) && a != end {
		i := slices.IndexFunc(used, func(p netip.Prefix) bool { return p.Bits() > mesh.Bits() && p.Contains(a) })
		if i < 0 {
			return a, true
		}
		a = lastAddr(used[i]).Next()
	}
	return netip.Addr{}, false
}

func lastAddr(p netip.Prefix) netip.Addr {
	b := p.Masked().Addr().AsSlice()
	for i := p.Bits(); i < 8*len(b); i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}
