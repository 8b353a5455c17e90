package netstack

import (
	"net/netip"
	"sync"

	"culvert.dev/culvert/internal/packet"
	"culvert.dev/culvert/nat"
)

// Behaviour is how UDP mappings treat different destinations, in the terms of RFC 4787.
type Behaviour struct {
	Mapping   nat.Dependence // section 4.1: when another destination gets another socket
	Filtering nat.Dependence // section 5: from where a datagram may come back
}

// SetBehaviour changes how UDP mappings behave: filtering at once, mapping with the next new flow.
func (n *Net) SetBehaviour(b Behaviour) { n.behaviour.Store(&b) }

// mapKey names a mapping: everything a peer sends from one address and port, or with one echo identifier, leaves through
// one host socket whatever its destination (endpoint-independent mapping, RFC 4787 section 4.1, RFC 5508 section 3.1),
// unless the mapping depends on the destination: then dst and dport tell them apart.
type mapKey struct {
	src   [16]byte
	dst   [16]byte
	peer  uint16
	port  uint16 // or echo identifier
	dport uint16
	proto uint8
	v     uint8
}

func mapKeyOf(k *packet.Key, d nat.Dependence) mapKey {
	m := mapKey{src: k.Src, peer: k.Peer, port: k.SrcPort, proto: k.Proto, v: k.V}
	if k.Proto != packet.ProtoUDP {
		return m
	}
	if d != nat.EndpointIndependent {
		m.dst = k.Dst
	}
	if d == nat.AddressAndPortDependent {
		m.dport = k.DstPort
	}
	return m
}

// carrier is a mapping of either kind.
type carrier interface{ base() *mapping }

// mappings are the live ones.
type mappings struct {
	mu  sync.Mutex // guards the following
	all map[mapKey]carrier
}

func (m *mappings) init() { m.all = make(map[mapKey]carrier) }

func (m *mappings) get(k mapKey) carrier {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.all[k]
}

func (m *mappings) put(c carrier) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.all[c.base().key] = c
}

// drop forgets a mapping, unless another has taken its place.
func (m *mappings) drop(gone *mapping) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if c := m.all[gone.key]; c != nil && c.base() == gone {
		delete(m.all, gone.key)
	}
}

// mapping is what UDP and echo mappings have in common: the flows that use it and whom the peer has written to.
type mapping struct {
	n    *Net
	key  mapKey
	sock interface{ Close() }

	mu      sync.Mutex // guards the following
	flows   int
	remotes map[netip.Addr]int // flows to each address: the address-dependent filter of RFC 4787 section 5
	closed  bool
}

func (m *mapping) init(n *Net, key mapKey) {
	m.n, m.key, m.remotes = n, key, make(map[netip.Addr]int, 1)
}

func (m *mapping) base() *mapping { return m }

// admitMapped gives a new flow its mapping, which open makes if this is the first flow of its source, and enters it. It returns
// nil when there is no room; open has dealt with the packet when it returns nil.
func (n *Net) admitMapped(b *batch, p *packet.Packet, f *nat.Flow, open func(*packet.Packet, mapKey) carrier) *nat.Flow {
	key, dst := mapKeyOf(&p.Key, n.behaviour.Load().Mapping), p.DstAddr()
	c := n.mappings.get(key)
	if c == nil || !c.base().attach(dst) {
		if !n.sockets.acquire(p.Peer, n.table) {
			n.counters.drop(dropSocketLimit)
			return nil
		}
		if c = open(p, key); c == nil {
			n.sockets.release(p.Peer)
			return nil
		}
		c.base().attach(dst)
		n.mappings.put(c)
	}
	f.Owner = c
	if n.insert(b, f) == nil {
		c.base().flowGone(f)
		return nil
	}
	return f
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

// flowGone is told that a flow of the mapping has ended; with the last one the mapping ends too.
func (m *mapping) flowGone(f *nat.Flow) {
	addr := f.Key.DstAddr()
	m.mu.Lock()
	m.flows--
	if m.remotes[addr]--; m.remotes[addr] == 0 {
		delete(m.remotes, addr)
	}
	m.closed = m.flows == 0
	last := m.closed
	m.mu.Unlock()
	if last {
		m.n.mappings.drop(m)
		m.sock.Close()
		m.n.sockets.release(m.key.peer)
	}
}

// solicited reports whether something from addr may come in although no flow goes to its port.
func (m *mapping) solicited(addr netip.Addr) bool {
	if m.key.proto == packet.ProtoUDP {
		switch m.n.behaviour.Load().Filtering {
		case nat.EndpointIndependent:
			return true
		case nat.AddressAndPortDependent:
			return false
		}
	}
	return m.written(addr)
}

// written reports whether the peer has a flow to addr.
func (m *mapping) written(addr netip.Addr) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.remotes[addr] > 0
}

// keyTo is the key of this mapping's flow to an outside address and port (zero for echo).
func (m *mapping) keyTo(to netip.AddrPort) packet.Key {
	return packet.Key{Src: m.key.src, SrcPort: m.key.port, Dst: to.Addr().As16(), DstPort: to.Port(), Peer: m.key.peer, Proto: m.key.proto, V: m.key.v}
}
