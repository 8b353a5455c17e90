package testnet

import (
	"fmt"
	"net/netip"
)

// pool hands out the addresses of a router's prefixes, in order.
type pool struct {
	prefixes []netip.Prefix
	next     []netip.Addr // per prefix
	taken    map[netip.Addr]bool
}

func newPool(prefixes []netip.Prefix) *pool {
	p := &pool{taken: map[netip.Addr]bool{}}
	for _, x := range prefixes {
		p.prefixes = append(p.prefixes, x.Masked())
		p.next = append(p.next, x.Masked().Addr().Next())
	}
	return p
}

// addr hands out an address of the family; false if the pool has none. One that was given back comes last.
func (p *pool) addr(v6 bool) (netip.Addr, bool) {
	for i, x := range p.prefixes {
		if x.Addr().Is6() != v6 {
			continue
		}
		for _, from := range []netip.Addr{p.next[i], x.Addr().Next()} { // the network's own address is no host's
			for a := from; x.Contains(a) && x.Contains(a.Next()); a = a.Next() { // nor is the broadcast address
				if !p.taken[a] {
					p.next[i] = a.Next()
					p.taken[a] = true
					return a, true
				}
			}
		}
	}
	return netip.Addr{}, false
}

// both hands out an address of every family that the pool has.
func (p *pool) both() (list []netip.Addr) {
	for _, v6 := range []bool{false, true} {
		if a, ok := p.addr(v6); ok {
			list = append(list, a)
		}
	}
	return list
}

// prefix hands out a whole prefix of the given length, from the end that addr comes to last.
func (p *pool) prefix(v6 bool, bits int) (netip.Prefix, bool) {
	for _, x := range p.prefixes {
		if x.Addr().Is6() != v6 || x.Bits() >= bits {
			continue
		}
		for a := last(x); x.Contains(a); {
			c := netip.PrefixFrom(a, bits).Masked()
			if !p.taken[c.Addr()] {
				p.taken[c.Addr()] = true // marks the whole of it: nothing else is handed out at this end
				return c, true
			}
			a = c.Addr().Prev()
		}
	}
	return netip.Prefix{}, false
}

// onLink is the length of the longest prefix that a is of; -1 if there is none.
func (p *pool) onLink(a netip.Addr) int {
	bits := -1
	for _, x := range p.prefixes {
		if x.Contains(a) {
			bits = max(bits, x.Bits())
		}
	}
	return bits
}

// reserve takes a as an address that a test has chosen itself.
func (p *pool) reserve(a netip.Addr) {
	if p.taken[a] {
		panic(fmt.Sprintf("testnet: %v is taken", a))
	}
	p.taken[a] = true
}

func (p *pool) release(a netip.Addr) { delete(p.taken, a) }

// last is the highest address of a prefix.
func last(p netip.Prefix) netip.Addr {
	b := p.Masked().Addr().AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}
