package path

import (
	"net/netip"
	"time"

	"culvert.dev/culvert/nat"
	"culvert.dev/culvert/traversal/exchange"
	"culvert.dev/culvert/traversal/stun"
)

// natKind is a NAT by its behaviour, in the terms of RFC 4787.
type natKind struct{ mapping, filtering nat.Dependence }

const (
	ei  = nat.EndpointIndependent
	ad  = nat.AddressDependent
	apd = nat.AddressAndPortDependent
)

var natKinds = []natKind{{ei, ei}, {ei, ad}, {ei, apd}, {ad, ei}, {ad, ad}, {ad, apd}, {apd, ei}, {apd, ad}, {apd, apd}}

func (k natKind) String() string {
	short := [...]string{"EI", "AD", "APD"}
	return short[k.mapping] + "M/" + short[k.filtering] + "F"
}

func (k natKind) hints() exchange.Hints {
	one := func(d nat.Dependence) stun.Range { return stun.Range{Least: d, Most: d} }
	return exchange.Hints{Known: true, NAT: true, Mapping: one(k.mapping), Filtering: one(k.filtering), Sockets: 1}
}

// natModel is a NAT of random ports: slow, and small enough to be believed.
type natModel struct {
	kind     natKind
	ip       netip.Addr // outside
	lifetime time.Duration
	nextPort uint16
	mappings []*natMapping
	open     *openRouter // instead of all of that
	inner    netip.AddrPort
}

// openRouter keeps ports, and answers strangers itself: a packet that comes before one was sent there is remembered, and those sent
// there later get another port.
type openRouter struct {
	port  uint16
	early map[netip.AddrPort]time.Time // when strangers were last heard
	flows map[netip.AddrPort]*openFlow // by destination
}

type openFlow struct {
	port uint16
	used time.Time
}

const openMemory = 30 * time.Second // of packets without answer

func newOpenRouter(ip netip.Addr, port uint16) *natModel {
	return &natModel{kind: natKind{ei, apd}, ip: ip, open: &openRouter{
		port: port, early: map[netip.AddrPort]time.Time{}, flows: map[netip.AddrPort]*openFlow{},
	}}
}

func (r *openRouter) outbound(to netip.AddrPort, now time.Time) uint16 {
	f := r.flows[to]
	if f == nil || now.Sub(f.used) > openMemory {
		f = &openFlow{port: r.port}
		if at, ok := r.early[to]; ok && now.Sub(at) <= openMemory {
			f.port = r.port + 1
		}
		r.flows[to] = f
	}
	f.used = now
	return f.port
}

func (r *openRouter) inbound(from netip.AddrPort, port uint16, now time.Time) bool {
	if f := r.flows[from]; f != nil && f.port == port && now.Sub(f.used) <= openMemory {
		f.used = now
		return true
	}
	r.early[from] = now
	return false
}

type natMapping struct {
	inside netip.AddrPort
	remote netip.AddrPort // as far as the mapping depends on it
	port   uint16
	used   time.Time
	sentTo map[netip.AddrPort]bool
}

func part(e netip.AddrPort, d nat.Dependence) netip.AddrPort {
	switch d {
	case ei:
		return netip.AddrPort{}
	case ad:
		return netip.AddrPortFrom(e.Addr(), 0)
	}
	return e
}

func (n *natModel) outbound(inside, to netip.AddrPort, now time.Time) netip.AddrPort {
	if n.open != nil {
		return netip.AddrPortFrom(n.ip, n.open.outbound(to, now))
	}
	n.expire(now)
	key := part(to, n.kind.mapping)
	for _, m := range n.mappings {
		if m.inside == inside && m.remote == key {
			m.used = now
			m.sentTo[to] = true
			return netip.AddrPortFrom(n.ip, m.port)
		}
	}
	n.nextPort += 7919 // a prime: no port follows another
	m := &natMapping{inside: inside, remote: key, port: n.nextPort | 1024, used: now, sentTo: map[netip.AddrPort]bool{to: true}}
	n.mappings = append(n.mappings, m)
	return netip.AddrPortFrom(n.ip, m.port)
}

func (n *natModel) inbound(from netip.AddrPort, port uint16, now time.Time) (inside netip.AddrPort, ok bool) {
	if n.open != nil {
		return n.inner, n.open.inbound(from, port, now)
	}
	n.expire(now)
	for _, m := range n.mappings {
		if m.port != port {
			continue
		}
		if n.kind.filtering == ei {
			m.used = now
			return m.inside, true
		}
		for to := range m.sentTo {
			if part(to, n.kind.filtering) == part(from, n.kind.filtering) {
				m.used = now
				return m.inside, true
			}
		}
	}
	return inside, false
}

func (n *natModel) expire(now time.Time) {
	if n.lifetime == 0 {
		return
	}
	kept := n.mappings[:0]
	for _, m := range n.mappings {
		if now.Sub(m.used) < n.lifetime {
			kept = append(kept, m)
		}
	}
	n.mappings = kept
}

// canConnect is the theory: whether two NATs let a check and its answer pass by one and the same pair of endpoints, if both sides
// send to all endpoints they know of again and again.
func canConnect(a, b natKind) bool {
	stunServer := netip.MustParseAddrPort("203.0.113.1:3478")
	sides := [2]struct {
		n     *natModel
		host  netip.AddrPort
		known []netip.AddrPort
	}{}
	for i, k := range []natKind{a, b} {
		sides[i].n = &natModel{kind: k, ip: netip.AddrFrom4([4]byte{198, 51, 100, byte(i + 1)}), nextPort: uint16(20000 + 10000*i)}
		sides[i].host = netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, byte(i), 2}), 51820)
		sides[1-i].known = append(sides[1-i].known, sides[i].n.outbound(sides[i].host, stunServer, time.Time{}))
	}
	for range 6 {
		for i := range sides {
			me, peer := &sides[i], &sides[1-i]
			for _, to := range me.known {
				src := me.n.outbound(me.host, to, time.Time{})
				if to.Addr() != peer.n.ip {
					continue
				}
				if _, ok := peer.n.inbound(src, to.Port(), time.Time{}); !ok {
					continue
				}
				back := peer.n.outbound(peer.host, src, time.Time{})
				if _, ok := me.n.inbound(back, src.Port(), time.Time{}); ok && back == to {
					return true
				}
				if len(peer.known) < 16 {
					peer.known = append(peer.known, src)
				}
			}
		}
	}
	return false
}
