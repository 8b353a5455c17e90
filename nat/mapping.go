package nat

import (
	"encoding/binary"
	"sync"

	"culvert.dev/culvert/internal/packet"
)

// mapShards is a power of two. All mappings of one inner address are in one shard, so that neighbouring ports are found.
const mapShards = 32

// mapKey is what a mapping is found by: the inner end, and as much of the remote end as the mapping behaviour looks at (RFC 4787
// section 4.1); the rest is zero.
type mapKey struct {
	inner, remote    [16]byte
	port, remotePort uint16
	peer             uint16
	proto, v         uint8
}

// mapping ties an inner end to an external one.
type mapping struct {
	key   mapKey
	ext   *external
	port  uint16 // external port or identifier; zero for protocols without
	shard *mapShard

	// guarded by the shard's mutex:
	refs    int  // ends of flows that hold on to it
	retired bool // no longer found by new flows
	// in has the flows that came in through the mapping, and whether its inside end has answered. Kept only where that matters.
	in map[*Flow]bool
}

// mapShard holds the mappings of some inner addresses.
type mapShard struct {
	mu      sync.Mutex // guards the following; a portSpace's mutex is taken inside it, another shard's never
	maps    map[mapKey]*mapping
	permits map[permit]int
}

func (s *mapShard) init() {
	s.maps = make(map[mapKey]*mapping)
	s.permits = make(map[permit]int)
}

// external is an external address.
type external struct {
	addr   [16]byte
	v      uint8
	spaces [3]portSpace
}

const (
	spaceTCP = iota
	spaceUDP
	spaceICMP
)

// space returns the ports of a protocol; nil if it has none.
func (e *external) space(proto uint8) *portSpace {
	switch proto {
	case packet.ProtoTCP:
		return &e.spaces[spaceTCP]
	case packet.ProtoUDP:
		return &e.spaces[spaceUDP]
	case packet.ProtoICMPv4, packet.ProtoICMPv6:
		return &e.spaces[spaceICMP]
	}
	return nil
}

// hashOf spreads inner addresses over shards and external addresses.
func (n *NAT) hashOf(a *[16]byte, peer uint16, v uint8) uint64 {
	h := n.seed ^ uint64(peer)<<8 ^ uint64(v)
	for _, w := range [2]uint64{binary.LittleEndian.Uint64(a[:8]), binary.LittleEndian.Uint64(a[8:])} {
		h = (h ^ w) * 0x9e3779b97f4a7c15
		h ^= h >> 32
	}
	return h
}

// mapKeyOf is the key of the mapping for packets from the source of k to dst.
func (n *NAT) mapKeyOf(k *packet.Key, dst *[16]byte) mapKey {
	mk := mapKey{inner: k.Src, port: k.SrcPort, peer: k.Peer, proto: k.Proto, v: k.V}
	if n.cfg.Mapping >= AddressDependent {
		mk.remote = *dst
	}
	if n.cfg.Mapping == AddressAndPortDependent {
		mk.remotePort = k.DstPort
	}
	return mk
}

// acquire finds or makes the mapping for packets from the source of k to dst, and takes a reference. The external address
// depends on the inner one alone, so that all sessions of a host have the same (paired pooling, RFC 4787 REQ-2).
func (n *NAT) acquire(k *packet.Key, dst *[16]byte) (*mapping, Verdict) {
	pool := n.family(k.V)
	if len(pool) == 0 {
		return nil, NoAddress
	}
	h := n.hashOf(&k.Src, k.Peer, k.V)
	s := &n.shards[h%mapShards]
	mk := n.mapKeyOf(k, dst)
	s.mu.Lock()
	defer s.mu.Unlock()
	if m := s.maps[mk]; m != nil {
		m.refs++
		return m, Pass
	}
	m := &mapping{key: mk, ext: pool[(h>>32)%uint64(len(pool))], shard: s, refs: 1}
	if sp := m.ext.space(k.Proto); sp != nil {
		beside, ok := uint16(0), false
		if n.cfg.Ports == PortContiguous {
			beside, ok = s.besideLocked(&mk)
		}
		if !sp.take(m, beside, ok) {
			return nil, NoPort
		}
	}
	s.maps[mk] = m
	n.mapped.Add(1)
	return m, Pass
}

// besideLocked returns the external port that is to the wanted mapping's as its inner port is to its neighbour's: RTP has an even
// port and RTCP the next (RFC 4787 section 4.2.3).
func (s *mapShard) besideLocked(k *mapKey) (uint16, bool) {
	b := *k
	b.port ^= 1
	m := s.maps[b]
	if m == nil && k.remotePort != 0 {
		b.remotePort ^= 1
		m = s.maps[b]
	}
	if m == nil || (m.port^b.port)&1 != 0 {
		return 0, false
	}
	return m.port ^ 1, true
}

// hold takes a reference to a mapping that was found by its external end, for the flow f, if its filter lets f's packets in from
// remote.
func (n *NAT) hold(m *mapping, f *Flow, remote *[16]byte, port uint16) Verdict {
	s := m.shard
	s.mu.Lock()
	defer s.mu.Unlock()
	if m.retired {
		return NoMapping
	}
	if !n.permittedLocked(m, remote, port) {
		return Filtered
	}
	m.refs++
	if n.cfg.StrictRefresh || n.cfg.Filtering == AddressDependent {
		if m.in == nil {
			m.in = make(map[*Flow]bool)
		}
		m.in[f] = false
	}
	return Pass
}

// flowEvent is told of all that happens in the table.
func (n *NAT) flowEvent(e Event) {
	if e.Kind == EventDestroy {
		n.release(e.Flow)
	}
}

// release lets go of what f held.
func (n *NAT) release(f *Flow) {
	x := f.extra.Load()
	if x == nil {
		return
	}
	if m := x.near; m != nil && n.owns(m) {
		m.shard.mu.Lock()
		n.forbidLocked(m, nearRemote(f))
		stale := n.unrefLocked(m)
		m.shard.mu.Unlock()
		n.endAll(stale)
	}
	if m := x.far; m != nil && n.owns(m) {
		m.shard.mu.Lock()
		if m.in[f] {
			n.forbidLocked(m, farRemote(f))
		}
		delete(m.in, f)
		stale := n.unrefLocked(m)
		m.shard.mu.Unlock()
		n.endAll(stale)
	}
}

// owns reports whether m is a mapping of this NAT: a table may serve several.
func (n *NAT) owns(m *mapping) bool {
	return n.externalOf(m.ext.v, &m.ext.addr) == m.ext
}

// unrefLocked gives up one reference. Where only packets from inside keep a mapping, it returns the flows that came in through
// it and have not been answered, once no other is left: they end with it.
func (n *NAT) unrefLocked(m *mapping) (stale []*Flow) {
	m.refs--
	if m.refs == 0 {
		n.retireLocked(m)
		if sp := m.ext.space(m.key.proto); sp != nil {
			sp.free(m.port)
		}
		return nil
	}
	if !n.cfg.StrictRefresh || m.retired || m.refs > len(m.in) {
		return nil
	}
	for f, answered := range m.in {
		if answered {
			return nil
		}
		stale = append(stale, f)
	}
	n.retireLocked(m)
	return stale
}

// retireLocked makes m unknown to new flows; its port stays taken while flows use it.
func (n *NAT) retireLocked(m *mapping) {
	if m.retired {
		return
	}
	m.retired = true
	delete(m.shard.maps, m.key)
	if sp := m.ext.space(m.key.proto); sp != nil {
		sp.hide(m.port)
	}
	n.mapped.Add(-1)
}

// endStale ends f, which came in through m, if m was given up before f was in the table to be ended with it.
func (n *NAT) endStale(f *Flow, m *mapping) {
	m.shard.mu.Lock()
	stale := m.retired && !m.in[f]
	m.shard.mu.Unlock()
	if stale {
		n.table.End(f, Expired)
	}
}

func (n *NAT) endAll(flows []*Flow) {
	for _, f := range flows {
		n.table.End(f, Expired)
	}
}
