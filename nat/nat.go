package nat

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"sync/atomic"

	"culvert.dev/culvert/internal/packet"
)

// Dependence is how much of a packet's remote end a behaviour looks at, in the terms of RFC 4787: section 4.1 for mapping,
// section 5 for filtering.
type Dependence uint8

const (
	EndpointIndependent Dependence = iota
	AddressDependent
	AddressAndPortDependent
)

func (d Dependence) String() string {
	return [...]string{"endpoint-independent", "address-dependent", "address-and-port-dependent"}[d]
}

// PortPolicy is how a new mapping gets its external port, or its ICMP identifier.
type PortPolicy uint8

const (
	PortPreserve   PortPolicy = iota // the inner one where it is free, else a random one
	PortRandom                       // RFC 6056 sections 3.3.1 and 3.3.2
	PortSequential                   // the next free one; RFC 6056 section 2.2 calls this the traditional algorithm
	PortContiguous                   // the parity, and neighbours as neighbours, where possible (RFC 4787 sections 4.2.2 and 4.2.3)
)

func (p PortPolicy) String() string {
	return [...]string{"preserve", "random", "sequential", "contiguous"}[p]
}

// NATConfig configures a NAT. Table and one address are needed; for the rest, zero means the default.
type NATConfig struct {
	Table   *Table       // flows are entered here; others may use it too
	Outside uint16       // Key.Peer of packets that arrive from outside, such as PeerUpstream; any other peer is inside
	Addrs   []netip.Addr // external addresses, of either or both families; an inner address always gets the same one

	Mapping, Filtering Dependence
	Ports              PortPolicy
	PortMin, PortMax   uint16 // of external ports; default 1024 to 65535. ICMP identifiers: the same, or from 1 on by default

	Hairpin       bool   // packets to an own external address go back inside (RFC 4787 section 6)
	StrictRefresh bool   // only packets from inside keep a flow alive; default: both directions (RFC 4787 REQ-6)
	Seed          uint64 // of random ports, for tests; zero: unpredictable
}

// Verdict is what became of a packet or a flow.
type Verdict uint8

const (
	Pass       Verdict = iota // translated; goes out, or inside
	Hairpinned                // translated; goes back inside
	NoMapping                 // from outside, or to an own address, and no inside end is known; or a protocol that is not translated
	Filtered                  // the inside end has not sent to this remote end, or hairpinning is off
	NoPort                    // no external port is free, or the tuple is in use otherwise
	NoRoom                    // the table refused the flow
	BadPacket                 // not whole, or an ICMP error whose checksum or quote is wrong
	NoAddress                 // there is no external address of the packet's family
	BadState                  // does not fit its TCP connection: a blind RST, flags that make no sense
	numVerdicts
)

// NumVerdicts is the length of an array that Verdict indexes.
const NumVerdicts = int(numVerdicts)

func (v Verdict) String() string {
	return [...]string{
		"pass", "hairpinned", "no-mapping", "filtered", "no-port", "no-room", "bad-packet", "no-address", "bad-state",
	}[v]
}

// NAT translates packets between an inside and an outside as RFC 4787, 5382 and 5508 describe it, over the flows of a Table.
// TCP, UDP and echo messages are translated by address and port or identifier; other protocols by address alone, one inside
// host at a time per remote host. The behaviours that RFC 4787 names are configuration.
//
// A mapping ties an inner end to an external one and lives as long as a flow of the table uses it; timeouts are the
// table's. An external port belongs to one mapping at a time (no overloading, RFC 4787 REQ-3). Packets must be whole: callers
// reassemble and fragment. Hop limits, policy and counting are the caller's, except in Outbound and Inbound.
//
// All methods are safe for concurrent use. Translate takes no lock of the NAT's own but for the first answer of a flow that came
// from outside. Several NATs may share a table, if no external address is in use by two.
//
//	n, err := nat.NewNAT(nat.NATConfig{Table: t, Outside: nat.PeerUpstream, Addrs: addrs})
//	...
//	f, d := t.Lookup(&p.Key)
//	if f == nil {
//		f = &nat.Flow{Key: p.Key, Owner: owner}
//		if v := n.Open(f, now); v != nat.Pass && v != nat.Hairpinned {
//			drops[v]++
//			return
//		}
//	}
//	v := n.Translate(&p, f, d, now)
type NAT struct {
	cfg    NATConfig
	table  *Table
	v4, v6 []*external
	seed   uint64 // of hashes

	shards  [mapShards]mapShard
	stop    func()
	closed  atomic.Bool
	mapped  atomic.Int64
	refresh bool // packets from outside keep a flow alive
}

// NewNAT checks cfg and makes a NAT, which then watches the table; Close it when done.
func NewNAT(cfg NATConfig) (*NAT, error) {
	if cfg.Table == nil {
		return nil, errors.New("nat: no table")
	}
	if len(cfg.Addrs) == 0 {
		return nil, errors.New("nat: no external address")
	}
	if cfg.Mapping > AddressAndPortDependent || cfg.Filtering > AddressAndPortDependent || cfg.Ports > PortContiguous {
		return nil, fmt.Errorf("nat: unknown behaviour: mapping %d, filtering %d, ports %d", cfg.Mapping, cfg.Filtering, cfg.Ports)
	}
	idMin := cfg.PortMin
	if cfg.PortMin == 0 {
		cfg.PortMin, idMin = 1024, 1
	}
	if cfg.PortMax == 0 {
		cfg.PortMax = 65535
	}
	if cfg.PortMin > cfg.PortMax {
		return nil, fmt.Errorf("nat: ports %d to %d: the first is above the last", cfg.PortMin, cfg.PortMax)
	}
	seed := portSeed(cfg.Seed)
	n := &NAT{cfg: cfg, table: cfg.Table, seed: binary.LittleEndian.Uint64(seed[:]), refresh: !cfg.StrictRefresh}
	for i, a := range cfg.Addrs {
		a = a.Unmap()
		if !a.IsValid() || a.IsUnspecified() || a.IsMulticast() {
			return nil, fmt.Errorf("nat: %s cannot be an external address", a)
		}
		e := &external{addr: a.As16(), v: 6}
		list := &n.v6
		if a.Is4() {
			e.v, list = 4, &n.v4
		}
		if n.externalOf(e.v, &e.addr) != nil {
			return nil, fmt.Errorf("nat: external address %s is given twice", a)
		}
		for j := range e.spaces {
			lo := cfg.PortMin
			if j == spaceICMP {
				lo = idMin
			}
			e.spaces[j].init(cfg.Ports, lo, cfg.PortMax, seed, byte(i), byte(j))
		}
		*list = append(*list, e)
	}
	for i := range n.shards {
		n.shards[i].init()
	}
	n.stop = n.table.Observe(n.flowEvent)
	return n, nil
}

// portSeed is the seed of the random ports.
func portSeed(fixed uint64) (seed [32]byte) {
	if fixed == 0 {
		rand.Read(seed[:]) // never fails
		return seed
	}
	binary.LittleEndian.PutUint64(seed[:], fixed*0x9e3779b97f4a7c15)
	return seed
}

// Close stops watching the table and forgets all mappings. Flows stay and may still be translated; none can be opened. Before
// another NAT gets the same addresses they should be ended, as it does not know which ports they use.
func (n *NAT) Close() {
	n.closed.Store(true)
	n.stop()
	for i := range n.shards {
		s := &n.shards[i]
		s.mu.Lock()
		for _, m := range s.maps {
			n.retireLocked(m)
		}
		s.mu.Unlock()
	}
}

// Mappings is the number of mappings in use.
func (n *NAT) Mappings() int { return int(n.mapped.Load()) }

// Open gives the first packet of a flow from inside its mapping and enters the flow into the table. f has Key and Owner set; Open
// sets Reply. Keys of ICMP must be those of an echo request, keys of TCP those of a SYN. Only after Pass and Hairpinned
// may the packet be translated. An own external address may be the source of PeerSelf alone; it gets a mapping like others.
//
// A packet to an own external address goes back inside where hairpinning is on. If the filter of the other inside end does not
// let it in, the verdict is Filtered, but the flow is entered all the same, without a Reply tuple: its own side is
// open to the other from then on, as if the packet had gone out and come back.
func (n *NAT) Open(f *Flow, now int64) Verdict { return n.open(f, &f.Key.Dst, now) }

// OpenTo is Open for a packet whose destination is translated too, as by a Netmap: it goes to the address to, port kept.
func (n *NAT) OpenTo(f *Flow, to netip.Addr, now int64) Verdict {
	to = to.Unmap()
	if !to.IsValid() || to.Is4() != (f.Key.V == 4) {
		return NoAddress
	}
	dst := to.As16()
	if dst != f.Key.Dst && n.externalOf(f.Key.V, &dst) != nil {
		return Filtered
	}
	return n.open(f, &dst, now)
}

func (n *NAT) open(f *Flow, dst *[16]byte, now int64) Verdict {
	k := &f.Key
	if n.closed.Load() || !translatable(k) || k.Peer != PeerSelf && n.externalOf(k.V, &k.Src) != nil {
		return NoMapping
	}
	if n.externalOf(k.V, dst) != nil {
		return n.openHairpin(f, now)
	}
	m, v := n.acquire(k, dst)
	if v != Pass {
		return v
	}
	f.Reply = packet.Key{
		Src: *dst, Dst: m.ext.addr, SrcPort: k.DstPort, DstPort: m.port,
		Peer: n.cfg.Outside, Proto: k.Proto, V: k.V,
	}
	return n.enter(f, m, nil, now)
}

// enter puts f into the table, which holds on to the mappings near (the opener's) and far (that of the inside end it goes to).
func (n *NAT) enter(f *Flow, near, far *mapping, now int64) Verdict {
	f.extra.Store(&extra{near: near, far: far})
	if near != nil {
		n.permit(near, f)
	}
	if n.table.Insert(f, now) {
		if far != nil && n.cfg.StrictRefresh {
			n.endStale(f, far)
		}
		return Pass
	}
	n.release(f)
	f.extra.Store(nil)
	if taken, _ := n.table.Lookup(&f.Reply); taken != nil && f.Reply.V != 0 {
		return NoPort
	}
	return NoRoom
}

// translatable reports whether the NAT can carry a flow of key k: not where a checksum that packet.Rewrite does not know covers
// the addresses.
func translatable(k *packet.Key) bool {
	const dccp, udpLite = 33, 136
	switch k.Proto {
	case packet.ProtoICMPv4, packet.ProtoICMPv6:
		return k.DstPort == 0
	}
	return k.Proto != dccp && k.Proto != udpLite
}

// externalOf returns the own external address a, or nil.
func (n *NAT) externalOf(v uint8, a *[16]byte) *external {
	for _, e := range n.family(v) {
		if e.addr == *a {
			return e
		}
	}
	return nil
}

func (n *NAT) family(v uint8) []*external {
	if v == 4 {
		return n.v4
	}
	return n.v6
}
