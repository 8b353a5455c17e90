package agent

import (
	"slices"
	"time"

	"culvert.dev/culvert/internal/wgkey"
	"culvert.dev/culvert/traversal/exchange"
	"culvert.dev/culvert/traversal/path"
)

// setPeers makes the peers those of a roster. Who leaves is told; what is known of those that stay is kept.
func (e *engine) setPeers(r *roster, now time.Time) {
	for _, p := range slices.Clone(e.list) {
		if r.secrets[p.Key] == nil {
			e.goodbye(p, exchange.NotWanted, now)
			e.remove(p, now)
		}
	}
	for _, x := range r.peers {
		p := e.peers[x.Key]
		if p != nil {
			p.Name = x.Name
			e.mark(p)
			if p.Keepalive == x.Keepalive {
				continue
			}
			// A machine has its keepalive for life. The session ends with it; the peer is told by the candidates of the next.
			e.remove(p, now)
		}
		e.add(x, r, now)
	}
	e.dropKeys()
	list := make([]*published, 0, len(e.list))
	for _, p := range e.list {
		list = append(list, p.public)
	}
	e.status.Store(&list)
}

// add begins with a peer.
func (e *engine) add(x Peer, r *roster, now time.Time) {
	e.last++
	p := &peer{
		Peer: x, number: e.last, secret: r.secrets[x.Key], session: exchange.NewSession(),
		answers: newBucket(answersPerPeer, answersPerPeer/2),
		opens:   newBucket(opensPerPeer, 2*opensPerPeer), guesses: newBucket(guessesPerPeer, 2*guessesPerPeer),
		lines:  bucket{rate: 1 / lineEvery.Seconds(), burst: lineBurst},
		hellos: bucket{rate: 1 / helloEvery.Seconds(), burst: 1},
		public: &published{key: x.Key},
	}
	p.machine = path.New(path.Config{
		Self: e.self, Peer: x.Key, Session: p.session, HardNAT: e.cfg.HardNAT, LowPorts: e.cfg.LowPorts, Vanilla: e.cfg.Vanilla,
		Keepalive: x.Keepalive, Seed: uint64(p.session),
	})
	e.peers[x.Key], e.numbers[p.number] = p, p
	e.list = append(e.list, p)
	e.reindex = true
	e.publish(p, now)
	e.seats.changed = true
	e.presence(p, now)
	e.samplePeer(p, now)
	if l := e.cfg.Gather.Local(); l.First {
		e.step(p, path.Gathered{Candidates: l.Candidates, Hints4: l.Hints4, Hints6: l.Hints6, Blocked: l.UDPBlocked}, now)
	}
}

// remove forgets a peer. Its datagrams go by relay again, as the transport sees fit.
func (e *engine) remove(p *peer, now time.Time) {
	e.abandonPunch(p, now)
	e.route(p, path.ModeRelay, path.Route{}, nil, now)
	e.pace.forget(p)
	e.requests.forget(p)
	e.post.forget(p)
	e.due.set(p, time.Time{})
	delete(e.peers, p.Key)
	delete(e.numbers, p.number)
	e.list = slices.DeleteFunc(e.list, func(q *peer) bool { return q == p })
	e.reindex = true
}

// goodbye tells a peer that all is over, if it knows us.
func (e *engine) goodbye(p *peer, why exchange.Reason, now time.Time) {
	if p.theirs != 0 {
		e.seal(p, exchange.Message{Kind: exchange.KindGoodbye, Reason: why}, now)
	}
}

// end is the end of Run: peers are told if Close was called, and sockets closed in any case.
func (e *engine) end() {
	now := time.Now()
	for _, p := range slices.Clone(e.list) {
		select {
		case <-e.closing:
			e.goodbye(p, e.parting, now)
		default:
		}
		e.remove(p, now)
	}
	e.endSockets()
	e.index.Store(newIndex(map[wgkey.Public]*peer{}))
	e.status.Store(new([]*published))
}

// gathered gives this node's candidates to all machines.
func (e *engine) gathered(network bool, now time.Time) {
	l := e.cfg.Gather.Local()
	if !l.First {
		return // Changed is called once more when it is
	}
	network = network || e.moving
	e.moving = false
	for _, p := range e.list {
		e.step(p, path.Gathered{Candidates: l.Candidates, Hints4: l.Hints4, Hints6: l.Hints6, Network: network, Blocked: l.UDPBlocked}, now)
	}
}

// networkChanged has all machines begin anew, with the candidates of the new network as soon as there are some.
func (e *engine) networkChanged(now time.Time) {
	e.moving = true
	for _, p := range e.list {
		p.punched = punchedAt{}
		if p.admitted && p.state.Phase != path.Direct { // all would begin at once
			e.want(p, false, now)
		}
	}
	e.seats.changed = true
	e.gathered(true, now)
}

// presence tells a machine how the peer is reached by relay, if that has changed.
func (e *engine) presence(p *peer, now time.Time) {
	var r path.Relay
	r.Connected, r.NotHere = e.cfg.Relay.Presence(p.Key)
	if r != p.relay {
		p.relay = r
		e.step(p, r, now)
	}
}
