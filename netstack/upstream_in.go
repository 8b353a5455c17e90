package netstack

import (
	"time"

	"culvert.dev/culvert/internal/packet"
	"culvert.dev/culvert/nat"
)

// receive takes one packet that came out of the tunnel. raw is the tunnel's buffer. Only answers pass: packets from the remote end
// of a flow that was opened on this side and that policy still permits by its opener.
func (u *Upstream) receive(b *batch, raw []byte) {
	n, p := u.n, &b.p
	if fault := packet.Decode(p, raw); fault != packet.FaultNone {
		n.counters.fault(fault)
		return
	}
	p.Peer = nat.PeerUpstream
	if p.Frag != packet.Whole && !u.reassemble(p) {
		return
	}
	if !p.ChecksumOK() {
		n.counters.fault(packet.FaultBadChecksum)
		return
	}
	if isICMPError(p) {
		u.receiveError(b, p)
		return
	}
	f := b.lastFlow
	if f == nil || *f.Tuple(b.dir) != p.Key || f.Dead() {
		f, b.dir = n.table.Lookup(&p.Key)
	}
	if !u.permits(b, f) {
		n.counters.drop(dropUpstreamUnsolicited)
		return
	}
	b.lastFlow = f
	u.deliver(b, p, f)
}

// reassemble adds a fragment; it reports whether p is a whole packet now.
func (u *Upstream) reassemble(p *packet.Packet) bool {
	whole, fault := u.frags.Add(p, time.Now())
	if fault == packet.FaultNone && whole != nil {
		fault = packet.Decode(p, whole)
	}
	if fault != packet.FaultNone {
		u.n.counters.fault(fault)
		return false
	}
	p.Peer, p.DF = nat.PeerUpstream, false
	return whole != nil
}

// permits reports whether f is a flow of this tunnel that policy still allows.
func (u *Upstream) permits(b *batch, f *nat.Flow) bool {
	if f == nil || f.Owner != any(u) {
		return false
	}
	if f.Generation.Load() != b.gen && !u.n.upstreamAllowed(f, u, b.policy, b.gen) {
		u.n.table.End(f, nat.Withdrawn)
		return false
	}
	return true
}

// deliver hands an answer to whoever opened the flow.
func (u *Upstream) deliver(b *batch, p *packet.Packet, f *nat.Flow) {
	n, to := u.n, f.Onward(b.dir).Peer
	switch {
	case p.TTL <= 1:
		n.counters.drop(dropTTL)
		u.answer(p, packet.TimeExceeded(p.V))
		return
	case to != nat.PeerSelf && len(p.Buf) > n.cfg.MTU && p.DF:
		n.counters.drop(dropTooBig)
		u.answer(p, packet.TooBig(p.V, n.cfg.MTU))
		return
	}
	if v := u.nat.Translate(p, f, b.dir, b.now); v != nat.Pass {
		n.counters.drop(dropOf(v))
		return
	}
	f.Count(b.dir, 1, len(p.Buf))
	packet.ClampMSS(p, u.mss(p.V))
	u.handOver(p, to)
}

// handOver gives a translated packet to a peer, a hop further, or to the node itself.
func (u *Upstream) handOver(p *packet.Packet, to uint16) {
	if to == nat.PeerSelf {
		u.link.deliver(p)
		return
	}
	u.n.relay(p, to)
}

// receiveError passes an ICMP error on to whoever sent the packet that it is about: path MTU discovery and traceroute depend on it.
func (u *Upstream) receiveError(b *batch, p *packet.Packet) {
	n := u.n
	f := u.flowOfError(p)
	if !u.permits(b, f) || p.TTL <= 1 {
		n.counters.drop(dropICMPError)
		return
	}
	_, d, v := u.nat.TranslateError(p, b.now)
	if v != nat.Pass {
		n.counters.drop(dropICMPError)
		return
	}
	f.Count(d, 1, len(p.Buf))
	u.handOver(p, p.Peer)
}

// flowOfError finds the flow of the packet that an error quotes.
func (u *Upstream) flowOfError(p *packet.Packet) *nat.Flow {
	k, ok := packet.Quoted(p)
	if !ok {
		return nil
	}
	k = k.Reverse()
	k.Peer = nat.PeerUpstream
	f, _ := u.n.table.Lookup(&k)
	return f
}

// answer sends the error e about p, which came out of the tunnel, back into it.
func (u *Upstream) answer(p *packet.Packet, e packet.ICMP) {
	from := u.self.of(p.V)
	if !from.IsValid() || !u.n.mayAnswer(p) {
		return
	}
	raw := newRaw(rawSize)
	if raw.b = packet.AppendICMPError(raw.b, p, from, e); len(raw.b) == 0 {
		raw.release()
		return
	}
	u.push(raw, nat.PeerUpstream)
}
