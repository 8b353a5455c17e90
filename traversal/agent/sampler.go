package agent

import (
	"time"

	"culvert.dev/culvert/traversal/path"
)

const (
	sampleTrial = 50 * time.Millisecond  // of peers that are moving: it is what ends a trial
	sampleFast  = 250 * time.Millisecond // of peers for which something flows
	sampleSlow  = 2 * time.Second        // of all
	roamedAgain = 10 * time.Second       // a machine that knows nothing of its peer yet has no use for the news
	flowFor     = 5 * time.Second        // after the last datagram something may yet flow: a path that is cut is silent at first
)

// sampler asks the transport what flows. Peers are looked at together: an idle node wakes up once in two seconds for that, however
// many peers it has.
type sampler struct {
	all   time.Time // when all were looked at last
	fast  time.Time // when those with traffic were
	trial time.Time // when those that are moving were
	moves int       // how many are moving
	flows int       // how many have traffic
}

// due is when to sample next; zero: there are no peers.
func (s *sampler) due(e *engine) time.Time {
	if len(e.list) == 0 {
		return time.Time{}
	}
	at := s.all.Add(sampleSlow)
	if fast := s.fast.Add(sampleFast); s.flows > 0 && fast.Before(at) {
		at = fast
	}
	if trial := s.trial.Add(sampleTrial); s.moves > 0 && trial.Before(at) {
		at = trial
	}
	return at
}

// moving reports whether it is being found out if WireGuard's datagrams get through.
func (p *peer) moving() bool { return p.mode == path.ModeBoth || p.state.Phase == path.Trial }

// sample looks at the counters that are due.
func (e *engine) sample(now time.Time) {
	s := &e.sampler
	all := now.Sub(s.all) >= sampleSlow
	fast := all || s.flows > 0 && now.Sub(s.fast) >= sampleFast
	trial := fast || s.moves > 0 && now.Sub(s.trial) >= sampleTrial
	if !trial {
		return
	}
	s.trial = now
	if fast {
		s.fast = now
	}
	if all {
		s.all = now
	}
	for _, p := range e.list {
		if all || fast && p.flowing || p.moving() {
			e.samplePeer(p, now)
		}
	}
	if all {
		e.survey(now)
	}
	e.countFlows()
}

// countFlows notes how many peers are to be sampled often.
func (e *engine) countFlows() {
	e.sampler.flows, e.sampler.moves = 0, 0
	for _, p := range e.list {
		if p.flowing {
			e.sampler.flows++
		}
		if p.counted = p.moving(); p.counted {
			e.sampler.moves++
		}
	}
}

// survey looks at what changes without anybody saying so.
func (e *engine) survey(now time.Time) {
	eager := false
	for _, p := range e.list {
		e.presence(p, now)
		if p.active(now) != p.toldActive {
			e.want(p, p.admitted, now)
		}
		eager = eager || p.mode != path.ModeRoute && (p.active(now) || p.looking())
	}
	e.beEager(eager)
}

// looking reports whether a path is being looked for.
func (p *peer) looking() bool {
	return p.state.Phase == path.Checking || p.state.Phase == path.Trial || p.state.Phase == path.Punching
}

// beEager has this node's own situation looked at more closely while somebody waits for a path: that takes some seconds, and is
// best known when plain checks have failed.
func (e *engine) beEager(on bool) {
	if on != e.eager {
		e.eager = on
		e.cfg.Gather.Eager(on)
	}
}

// samplePeer tells the machine what has flowed since the last sample, and what WireGuard thinks of it.
func (e *engine) samplePeer(p *peer, now time.Time) {
	t, ok := e.cfg.Transport.Traffic(p.Key)
	if !ok {
		return
	}
	was := p.traffic
	p.traffic = t
	if !p.sampled { // what was before this agent is of no interest
		p.sampled = true
		was.Tx, was.RxRoute, was.RxRelay = t.Tx, t.RxRoute, t.RxRelay
	}
	d := path.Traffic{Tx: grown(t.Tx, was.Tx), RxRoute: grown(t.RxRoute, was.RxRoute), RxRelay: grown(t.RxRelay, was.RxRelay)}
	flows := d != path.Traffic{}
	if flows {
		p.moved = now
	}
	if flows || p.flowing || p.mode != path.ModeRelay {
		e.step(p, d, now)
	}
	p.flowing = !p.moved.IsZero() && now.Sub(p.moved) < flowFor
	if t.Failing != was.Failing || !t.LastHandshake.Equal(was.LastHandshake) {
		e.step(p, path.Handshake{Failing: t.Failing, At: t.LastHandshake}, now)
	}
	if t.Roamed.IsValid() && (t.Roamed != was.Roamed || now.Sub(p.roamed) >= roamedAgain) {
		p.roamed = now
		e.step(p, path.Roamed{Remote: plain(t.Roamed)}, now)
	}
}

// grown is the difference of a counter, which begins at zero if WireGuard's peer is another one than before.
func grown(is, was uint64) uint64 {
	if is < was {
		return is
	}
	return is - was
}
