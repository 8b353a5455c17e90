package netstack

import (
	"net/netip"

	"culvert.dev/culvert/internal/packet"
	"culvert.dev/culvert/nat"
)

// Where prefixes are translated one to one, a flow keeps the addresses that its peer uses; only what leaves for the host, and what
// policy judges, has the real ones.

// SetNetmap replaces the prefix translation; nil translates nothing. Flows whose destination it moves are cut.
func (n *Net) SetNetmap(m *nat.Netmap) {
	old := n.netmap.Swap(m)
	n.policyN.Add(1)
	n.table.Recheck(func(f *nat.Flow) bool { return f.Key.Peer == nat.PeerSelf || outside(old, f.Key) == outside(m, f.Key) })
}

// outside is k with the destination that it has outside.
func outside(m *nat.Netmap, k packet.Key) packet.Key {
	m.Out(&k)
	return k
}

// received finds the flow that something from a remote end belongs to, and what the peer knows that end as. known is false for an
// address that the peer has not written to; f is nil for another port of a known address.
func (m *mapping) received(from netip.AddrPort) (f *nat.Flow, as netip.AddrPort, known bool) {
	try := func(as netip.AddrPort) *nat.Flow {
		k := m.keyTo(as)
		f, _ := m.n.table.Lookup(&k)
		return f
	}
	if f = try(from); f != nil {
		return f, from, true
	}
	if maps := m.n.netmap.Load(); maps != nil {
		return m.receivedMapped(maps, from, try)
	}
	return nil, from, m.solicited(from.Addr())
}

// receivedMapped goes through the addresses under which peers may know the remote end: first for the flow, then for the address.
func (m *mapping) receivedMapped(maps *nat.Netmap, from netip.AddrPort, try func(netip.AddrPort) *nat.Flow) (f *nat.Flow, as netip.AddrPort, known bool) {
	known = maps.In(from.Addr(), func(a netip.Addr) bool {
		as = netip.AddrPortFrom(a, from.Port())
		f = try(as)
		return f != nil
	}) || maps.In(from.Addr(), func(a netip.Addr) bool {
		as = netip.AddrPortFrom(a, from.Port())
		return m.written(a) && m.solicited(a)
	})
	if !known {
		as, known = from, m.solicited(from.Addr())
	}
	return f, as, known
}

// keyOfError is the key of the flow that an ICMP error from the host side is about: the one to the remote end to, as the peer knows it.
func (m *mapping) keyOfError(to netip.AddrPort) packet.Key {
	_, as, _ := m.received(to)
	return m.keyTo(as)
}
