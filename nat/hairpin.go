package nat

import "culvert.dev/culvert/internal/packet"

// A hairpinned flow joins two inside ends by their external ones: both addresses of each packet are translated, so that either
// end sees the other's external address and port (RFC 4787 REQ-9 a). In terms of tuples:
//
//	Key    inner X1 -> external X2   as X1 sends it
//	Reply  inner X2 -> external X1   as X2 answers
//
// While X2's filter keeps X1 out, the flow has no Reply: X1 has sent, which is what its own filter wants to know.

// openHairpin opens f, whose destination is an own external address.
func (n *NAT) openHairpin(f *Flow, now int64) Verdict {
	k := &f.Key
	if !n.cfg.Hairpin {
		return Filtered
	}
	far := n.mappingAt(k)
	if far == nil {
		return NoMapping
	}
	near, v := n.acquire(k, &k.Dst)
	if v != Pass {
		return v
	}
	f.Reply = packet.Key{}
	if far == near { // one tuple names both directions
		return hairpinned(n.enter(f, near, nil, now))
	}
	switch v := n.hold(far, f, &near.ext.addr, near.port); v {
	case Pass:
	case Filtered:
		if v := n.enter(f, near, nil, now); v != Pass {
			return v
		}
		return Filtered
	default:
		n.drop(near)
		return v
	}
	f.Reply = packet.Key{
		Src: far.key.inner, Dst: near.ext.addr, SrcPort: far.key.port, DstPort: near.port,
		Peer: far.key.peer, Proto: k.Proto, V: k.V,
	}
	// What X2 has sent to X1 so far is of this conversation.
	if half, _ := n.table.Lookup(&f.Reply); half != nil && half.Reply.V == 0 && !isSelf(half) {
		n.noteAnswer(far, f, &near.ext.addr)
		n.table.Remove(half)
	}
	return hairpinned(n.enter(f, near, far, now))
}

// hairpinned is the verdict on a packet to an own external address for v on one to elsewhere.
func hairpinned(v Verdict) Verdict {
	if v == Pass {
		return Hairpinned
	}
	return v
}

// mappingAt finds the mapping to whose external end packets of key k go, or nil.
func (n *NAT) mappingAt(k *packet.Key) *mapping {
	e := n.externalOf(k.V, &k.Dst)
	if e == nil {
		return nil
	}
	sp := e.space(k.Proto)
	if sp == nil || k.Proto != packet.ProtoTCP && k.Proto != packet.ProtoUDP && k.SrcPort != 0 {
		return nil // an echo request names no mapping
	}
	return sp.find(k.DstPort)
}

// isSelf reports whether f goes from an inside end to its own external end.
func isSelf(f *Flow) bool {
	x := f.extra.Load()
	return x != nil && x.near != nil && x.near.ext.addr == f.Key.Dst && x.near.port == f.Key.DstPort
}

// keep takes a reference that no flow holds; it reports false if the mapping is gone.
func (m *mapping) keep() bool {
	m.shard.mu.Lock()
	defer m.shard.mu.Unlock()
	if m.refs == 0 {
		return false
	}
	m.refs++
	return true
}

// drop gives back a reference that no flow holds.
func (n *NAT) drop(m *mapping) {
	m.shard.mu.Lock()
	stale := n.unrefLocked(m)
	m.shard.mu.Unlock()
	n.endAll(stale)
}

// translateHalf translates a packet of a flow without Reply: of one to the sender's own external end, or of one that was kept out
// by the filter of the other end and may be let in by now.
func (n *NAT) translateHalf(p *packet.Packet, f *Flow, now int64) Verdict {
	x := f.extra.Load()
	if x == nil || x.near == nil || x.far != nil || f.Dead() {
		return NoMapping
	}
	f.Touch(now)
	if isSelf(f) {
		to := f.Key.Reverse()
		packet.Rewrite(p, &to)
		return Hairpinned
	}
	far := n.mappingAt(&f.Key)
	if far == nil {
		return NoMapping
	}
	far.shard.mu.Lock()
	open := n.permittedLocked(far, &x.near.ext.addr, x.near.port)
	far.shard.mu.Unlock()
	if !open || !opens(p) {
		return Filtered
	}
	// The mapping must outlive f: the other end knows its port.
	if !x.near.keep() {
		return NoMapping // f has ended meanwhile
	}
	defer n.drop(x.near)
	if !n.table.Remove(f) {
		return NoMapping
	}
	g := &Flow{Key: f.Key, Owner: f.Owner}
	g.Generation.Store(f.Generation.Load())
	if v := n.Open(g, now); v != Hairpinned {
		return v
	}
	return n.Translate(p, g, Original, now)
}
