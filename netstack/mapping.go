package netstack

import (
	"net/netip"
	"sync"

	"culvert.dev/culvert/internal/packet"
	"culvert.dev/culvert/nat"
)

// mapKey names a mapping: everything a peer sends from one address and port, or with one echo identifier, leaves through
// one host socket whatever its destination (endpoint-independent mapping, RFC 4787 section 4.1, RFC 5508 section 3.1).
type mapKey struct {
	src   [16]byte
	peer  uint16
	port  uint16 // or echo identifier
	proto uint8
	v     uint8
}

func mapKeyOf(k *packet.Key) mapKey { return mapKey{k.Src, k.Peer, k.SrcPort, k.Proto, k.V} }

// mappings are the live ones.
type mappings struct {
	mu  sync.Mutex // guards the following
	all map[mapKey]any
}

func (m *mappings) init() { m.all = make(map[mapKey]any) }

func (m *mappings) get(k mapKey) any {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.all[k]
}

func (m *mappings) put(k mapKey, v any) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.all[k] = v
}

// drop forgets v, unless another mapping has taken its place.
func (m *mappings) drop(k mapKey, v any) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.all[k] == v {
		delete(m.all, k)
	}
}

// mapping is what UDP and echo mappings have in common: the flows that use it and whom the peer has written to.
type mapping struct {
	n   *Net
	key mapKey

	mu      sync.Mutex // guards the following
	flows   int
	remotes map[netip.Addr]int // flows to each address: the address-dependent filter of RFC 4787 section 5
	closed  bool
}

// attach counts a new flow to addr; it reports false when the mapping has closed meanwhile.
func (m *mapping) attach(addr netip.Addr) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return false
	}
	m.flows++
	m.remotes[addr]++
	return true
}

// detach takes a flow to addr away. It reports true for the last one: the mapping is closed now.
func (m *mapping) detach(addr netip.Addr) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.flows--
	if m.remotes[addr]--; m.remotes[addr] == 0 {
		delete(m.remotes, addr)
	}
	if m.flows == 0 {
		m.closed = true
	}
	return m.closed
}

// solicited reports whether the peer has a flow to addr.
func (m *mapping) solicited(addr netip.Addr) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.remotes[addr] > 0
}

// keyTo is the key of this mapping's flow to an outside address and port (zero for echo).
func (m *mapping) keyTo(to netip.AddrPort) packet.Key {
	return packet.Key{Src: m.key.src, SrcPort: m.key.port, Dst: to.Addr().As16(), DstPort: to.Port(), Peer: m.key.peer, Proto: m.key.proto, V: m.key.v}
}

// received finds the flow that something from a remote end belongs to. known is false for an address that the peer has not
// written to; f is nil for another port of a known address.
func (m *mapping) received(from netip.AddrPort) (f *nat.Flow, known bool) {
	k := m.keyTo(from)
	if f = m.n.table.Lookup(&k); f != nil {
		return f, true
	}
	return nil, m.solicited(from.Addr())
}
