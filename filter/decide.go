package filter

import (
	"encoding/binary"
	"net/netip"
	"slices"

	"culvert.dev/culvert/internal/packet"
)

// Decide judges the first packet of a flow from peer, in the order of the package comment. It does not allocate. The key
// must be that of a packet with ports: fragments are put together before. k.Peer is not looked at.
//
// ICMP towards this node is accepted whatever its type, which the key does not tell; the node answers echo requests and
// nothing else.
func (p *Policy) Decide(peer uint16, k *packet.Key) Decision {
	from := p.Peer(peer)
	if from == nil {
		return Decision{Action: Drop, Reason: ReasonUnknownPeer}
	}
	if p.PeerOfKey(k.Src, k.V) != peer {
		return Decision{Action: Drop, Reason: ReasonSpoofedSource}
	}
	if c := p.classOf(&k.Src, k.V); c.kind == kindSelf || c.kind == kindHard && c.reason != ReasonMeshUnassigned {
		// A default route makes the peer the owner of all of these. What lies unassigned in the mesh is different: the hub
		// behind a default route has such an address.
		return Decision{Action: Drop, Reason: ReasonBadSource}
	}
	return p.decide(from, k, true)
}

// DecideTo judges a connection that this node makes on behalf of peer, which has no packet and no source: a SOCKS5 request,
// or a question of the operator. A name is resolved before.
func (p *Policy) DecideTo(peer uint16, proto uint8, dst netip.AddrPort) Decision {
	from := p.Peer(peer)
	if from == nil || !dst.Addr().IsValid() {
		return Decision{Action: Drop, Reason: ReasonUnknownPeer}
	}
	k := packet.Key{Dst: dst.Addr().As16(), DstPort: dst.Port(), Proto: proto, V: 6}
	if dst.Addr().Is4() {
		k.V = 4
	}
	return p.decide(from, &k, false)
}

// decide judges what a known peer sends. hasSource is false for a connection that this node makes itself.
func (p *Policy) decide(from *Peer, k *packet.Key, hasSource bool) Decision {
	d, form := p.builtin(from, k)
	d = p.applyRules(d, from, k, form, hasSource)
	if d.Action == Accept {
		d.Via = viaOf(from, &d)
	} else {
		d.Via = ViaDefault
	}
	return d
}

// viaOf returns how accepted traffic leaves. Only the internet can be reached in two ways: the upstream knows nothing of this
// host's networks, so that a rule cannot send traffic to them there.
func viaOf(from *Peer, d *Decision) Via {
	switch {
	case d.Where != Internet:
		return ViaHost
	case d.Rule != nil && d.Rule.Via != ViaDefault:
		return d.Rule.Via
	case d.Via == ViaHost: // nothing behind a tunnel has the addresses of the host's link
		return ViaHost
	case from.Upstream:
		return ViaUpstream
	}
	return ViaHost
}

// builtin decides without the operator's rules. form tells how an accepted destination embeds IPv4 addresses.
func (p *Policy) builtin(from *Peer, k *packet.Key) (d Decision, f form) {
	c := p.classOf(&k.Dst, k.V)
	if c.kind == kindEmbedded {
		f = c.form
		c = p.resolve(c, &k.Dst)
	}
	switch c.kind {
	case kindSelf:
		return p.decideSelf(from, k), f
	case kindPeer:
		return decidePeer(from, c.peer), f
	case kindExit:
		d = decideExit(from, c.where)
		if c.link {
			d.Via = ViaHost
		}
		return d, f
	}
	d = Decision{Action: Reject, Reason: c.reason}
	switch c.reason {
	case ReasonMulticast, ReasonBroadcast:
		d.Action = Drop // an answer would go back once per listener (RFC 1122 section 3.2.2)
	case ReasonOtherPeer:
		d.Where, d.To = OtherPeer, c.peer
	case ReasonDeniedByConfig:
		d.Where = c.where
	}
	return d, f
}

func (p *Policy) decideSelf(from *Peer, k *packet.Key) Decision {
	d := Decision{Action: Reject, Where: Self}
	if k.Proto == packet.ProtoICMPv4 && k.V == 4 || k.Proto == packet.ProtoICMPv6 && k.V == 6 {
		d.Action = Accept
		return d
	}
	need, served := p.ports[port{k.Proto, k.DstPort}]
	switch {
	case !served:
		d.Reason = ReasonSelfPort
	case need == NeedInbound && !from.AllowInbound:
		d.Reason = ReasonNoInbound
	case need != NeedInbound && !from.AllowRouting:
		d.Reason = ReasonNoRouting
	default:
		d.Action = Accept
	}
	return d
}

// decidePeer is the isolation between peers.
func decidePeer(from *Peer, to uint16) Decision {
	d := Decision{Action: Reject, Where: OtherPeer, To: to}
	switch {
	case to == from.ID:
		return Decision{Action: Reject, Reason: ReasonSamePeer}
	case slices.Contains(from.AllowPeers, to):
		d.Action = Accept
	default:
		d.Reason = ReasonOtherPeer
	}
	return d
}

func decideExit(from *Peer, where Where) Decision {
	d := Decision{Action: Reject, Where: where}
	switch {
	case !from.AllowRouting:
		d.Reason = ReasonNoRouting
	case where == LAN && !from.AllowLAN:
		d.Reason = ReasonNoLAN
	default:
		d.Action = Accept
	}
	return d
}

// resolve replaces the class of an IPv6 address that embeds IPv4 by what follows from the latter.
func (p *Policy) resolve(c class, a *[16]byte) class {
	low := binary.BigEndian.Uint32(a[12:])
	switch c.form {
	case form6to4:
		return p.embedded(c, binary.BigEndian.Uint32(a[2:]))
	case formTeredo:
		server := p.embedded(c, binary.BigEndian.Uint32(a[4:]))
		client := p.embedded(c, ^low)
		if server.kind != kindExit || client.kind == kindExit && server.where == LAN {
			return server
		}
		return client
	case formMapped:
		e := p.embedded(c, low)
		if e.kind == kindExit && !c.allow {
			return class{kind: kindSoft, reason: ReasonV4Mapped}
		}
		return e
	}
	return p.embedded(c, low)
}

// embedded returns the class of an address of class c that leads to the IPv4 address v4.
func (p *Policy) embedded(c class, v4 uint32) class {
	e := p.classes4.lookup(number{lo: uint64(v4)})
	switch {
	case e.kind == kindSelf:
		return class{kind: kindHard, reason: ReasonHostAddress}
	case e.kind == kindPeer:
		return class{kind: kindHard, reason: ReasonOtherPeer, peer: e.peer}
	case e.kind == kindHard, e.kind == kindSoft && !c.allow:
		return e
	case c.where == LAN:
		return class{kind: kindExit, where: LAN}
	}
	return class{kind: kindExit, where: e.where}
}
