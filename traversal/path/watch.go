package path

import (
	"time"

	"culvert.dev/culvert/traversal/exchange"
)

const (
	beatEvery = 2 * time.Second // of a path with traffic
	busyFor   = 3 * time.Second // after the last datagram a path counts as one with traffic

	// How long what was sent may remain without a sign of life; a round trip above slowRTT is added.
	askAfter   = 500 * time.Millisecond  // checks are sent
	doubtAfter = time.Second             // datagrams go by relay too, checks are sent faster
	lostAfter  = 2500 * time.Millisecond // datagrams go by relay only
	slowRTT    = 300 * time.Millisecond
	maxSlow    = time.Second

	askEvery   = 200 * time.Millisecond
	doubtEvery = 150 * time.Millisecond

	// beatsMissed is how many checks in a row may remain without answer while datagrams arrive: then this node hears the peer, but
	// the peer does not hear it.
	beatsMissed = 4

	// youngFor is how long a path has to have been good for its loss not to be held against it. Once in forgiveEvery a young one is
	// forgiven too: routers restart whenever they like, and it comes back only after checks and a trial.
	youngFor     = 30 * time.Second
	forgiveEvery = 2 * time.Minute

	// idleLoss is after how long a pause the loss of a path is put down to a NAT that has forgotten it.
	idleLoss = 9 * time.Second

	relayedFor = 3 * time.Second // what the peer sends may come by relay only before it is asked back
	failingFor = 5 * time.Second // without a datagram, while a handshake fails
)

// watching is the part of a Machine that looks after the path in use.
type watching struct {
	keepalive time.Duration
	life      time.Time // last sign of it
	cameAt    time.Time // WireGuard's datagrams by the path
	goodSince time.Time
	awaiting  time.Time // since when a sign of life is owed; zero: none is
	doubted   bool      // only an answer to a check counts as one
	askedAt   time.Time // last check or echo for the watch
	idleFor   time.Duration
	echoing   bool
	failing   bool      // WireGuard's handshakes
	idleLost  time.Time // when a path was lost after a pause
	youngLost time.Time // when a young one was lost
	restUntil time.Time
	rests     int
	restless  time.Time // when traffic began during a rest

	flowAt    time.Time // last datagram in either direction, by any way
	trafficAt time.Time // last Traffic
	relayFrom time.Time // since when what the peer sends comes by relay only
}

func (m *Machine) startWatching() {
	m.life, m.cameAt = m.now, m.now
	m.awaiting, m.doubted, m.relayFrom = time.Time{}, false, time.Time{}
	m.idleFor, m.echoing, m.judging = 0, false, false
	m.watch()
	if m.controlling {
		m.start(timerEvaluate, m.now.Add(evaluateEvery))
	}
}

func (m *Machine) stopWatching() {
	m.stop(timerWatch)
	m.stop(timerEvaluate)
	m.awaiting, m.doubted, m.onesided, m.relayFrom = time.Time{}, false, false, time.Time{}
}

// byEcho reports whether a path shows its life by an echo inside the tunnel, since checks go another way.
func (m *Machine) byEcho(p *pair) bool { return !m.exact(p) }

// beat asks the path in use for a sign of life now.
func (m *Machine) beat() {
	m.owed(m.now)
	m.ask(m.using)
	m.watch()
}

func (m *Machine) ask(p *pair) {
	m.askedAt = m.now
	m.check(p)
	if m.byEcho(p) && !m.echoing {
		m.echoing = true
		m.do(Echo{})
	}
}

// mistrust has the path in use prove itself at once, by an answer.
func (m *Machine) mistrust() {
	m.doubted = true
	if m.awaiting.IsZero() {
		m.awaiting = m.now.Add(-doubtAfter)
	}
	m.watch()
}

// slow is what a long round trip adds to the time that a sign of life may take.
func (m *Machine) slow() time.Duration {
	return min(max(m.using.rtts.median()-slowRTT, 0), maxSlow)
}

// watch does what the silence of the path in use calls for, and says when to look again.
func (m *Machine) watch() {
	p := m.using
	if p == nil || m.trial != nil {
		return
	}
	if m.awaiting.IsZero() {
		next := later(p.lastSent, m.askedAt).Add(m.beatPause())
		if !next.After(m.now) {
			m.beat()
			return
		}
		m.start(timerWatch, next)
		return
	}
	silence := m.now.Sub(m.awaiting) - m.slow()
	ends := m.awaiting.Add(m.slow())
	var next time.Time
	switch {
	case silence >= lostAfter:
		m.lose("it has stopped answering")
		return
	case silence >= doubtAfter:
		m.doubt()
		m.askAgain(doubtEvery)
		next = earlier(m.askedAt.Add(doubtEvery), ends.Add(lostAfter))
	case silence >= askAfter:
		m.askAgain(askEvery)
		next = earlier(m.askedAt.Add(askEvery), ends.Add(doubtAfter))
	default:
		next = ends.Add(askAfter)
	}
	m.start(timerWatch, next)
}

func (m *Machine) askAgain(every time.Duration) {
	if !m.askedAt.Add(every).After(m.now) {
		m.ask(m.using)
	}
}

// doubt sends by relay too.
func (m *Machine) doubt() {
	if m.mode != ModeRoute {
		return
	}
	m.debug("the path is silent", attrRoute(m.using.route))
	m.regather()
	if !m.cfg.Vanilla {
		m.mode = ModeBoth
	}
}

func (m *Machine) beatPause() time.Duration {
	if !m.flowAt.IsZero() && m.now.Sub(m.flowAt) < busyFor {
		return beatEvery
	}
	return m.keepalive
}

// askedOnPath takes in a check of the peer's on the path in use. Where own checks get no answer it is none of a path that works: it
// works in one direction, or somebody repeats what he has recorded.
func (m *Machine) askedOnPath(p *pair) {
	if p.missed >= beatsMissed && m.trial == nil && m.exact(p) {
		m.mistrust()
		return
	}
	m.alive(false)
}

// alive takes in a sign of life. proof is one that shows that the peer hears this node, too.
func (m *Machine) alive(proof bool) {
	if m.byEcho(m.using) {
		return // of checks, which go another way
	}
	m.lives(proof)
}

func (m *Machine) lives(proof bool) {
	m.life = m.now
	if m.trial != nil {
		return
	}
	if m.doubted && !proof {
		return
	}
	m.doubted, m.awaiting = false, time.Time{}
	if m.mode == ModeBoth {
		m.mode = ModeRoute
	}
	if m.now.Sub(m.goodSince) >= maxBan {
		m.pardon(m.using.route)
	}
	m.watch()
}

// traffic takes in what has been sent and received. What was sent calls for a sign of life.
func (m *Machine) traffic(ev Traffic) {
	last := m.trafficAt
	m.trafficAt = m.now
	if ev.Tx+ev.RxRoute+ev.RxRelay > 0 {
		idle := !m.active()
		m.flowAt = m.now
		if idle {
			m.woken()
		}
	}
	if m.using == nil {
		if ev != (Traffic{}) && m.resting() {
			m.endRest()
		}
		return
	}
	if t := m.trial; t != nil {
		if t.running && ev.RxRoute > 0 {
			t.came = true
			m.life, m.cameAt = m.now, m.now
			m.progress()
		}
		return
	}
	m.noteRelayed(ev)
	if ev.RxRoute > 0 {
		m.cameAt = m.now
		m.askBack()
		m.lives(false)
	} else if ev.Tx > 0 {
		m.owed(later(m.life, later(last, m.now.Add(-askAfter/2))))
		m.endIfFailing()
	}
	m.watch()
	if m.using != nil && m.onesided {
		m.consider()
	}
}

// askBack finds out soon whether the peer hears this node, where what arrives shows only that this node hears the peer.
func (m *Machine) askBack() {
	p := m.using
	switch {
	case p.missed == 0 || m.doubted || !m.exact(p):
	case p.missed >= beatsMissed:
		m.mistrust()
	case m.now.Sub(p.lastSent) >= askAfter+m.slow():
		m.ask(p)
	}
}

// owed takes in that a sign of life has been due since a time.
func (m *Machine) owed(since time.Time) {
	if m.awaiting.IsZero() {
		m.idleFor = since.Sub(m.life)
	}
	m.awaiting = earlier(m.awaiting, since)
}

// noteRelayed finds out that the peer sends by relay while this node sends by the path.
func (m *Machine) noteRelayed(ev Traffic) {
	switch {
	case ev.RxRoute > 0:
		m.relayFrom = time.Time{}
	case ev.RxRelay == 0:
	case m.relayFrom.IsZero():
		m.relayFrom = m.now
		if m.mode == ModeRoute && m.now.Sub(m.cameAt) >= askAfter && m.exact(m.using) {
			m.owed(m.now.Add(-doubtAfter)) // the peer has its doubts about the path
		}
	case m.now.Sub(m.relayFrom) >= relayedFor:
		m.noteOnesided()
	}
}

// handshake takes in that WireGuard itself gets no answer, while the path seems to be there. One that is completed during a trial is
// as good as an echo to a WireGuard that has no other endpoint.
func (m *Machine) handshake(ev Handshake) {
	if t := m.trial; t != nil && t.running && m.cfg.Vanilla && !ev.Failing && ev.At.Add(m.skew).After(t.began) {
		t.echoed = true
		m.progress()
	}
	m.failing = ev.Failing
	m.endIfFailing()
}

// endIfFailing gives up a path on which handshakes fail and from which nothing comes.
func (m *Machine) endIfFailing() {
	if !m.failing || m.using == nil || m.trial != nil || m.now.Sub(m.cameAt) < failingFor {
		return
	}
	const why = "WireGuard's handshakes fail on it"
	m.ban(m.using.route, why)
	m.lose(why)
}

// echoed takes in the result of an echo.
func (m *Machine) echoed(ev Echoed) {
	m.echoing = false
	t := m.trial
	switch {
	case t != nil && t.running:
		t.echoed = t.echoed || ev.OK
		t.nextEcho = earlier(t.nextEcho, m.now.Add(echoAgain)) // by which way it came is not known: again, until one has come by the pair
		m.scheduleTrial()
		m.progress()
	case t == nil && m.using != nil && ev.OK && m.mode == ModeRoute && m.byEcho(m.using):
		m.lives(true)
	}
}

// lose goes back to the relay, and looks out for the path.
func (m *Machine) lose(why string) {
	p := m.using
	m.info("back to the relay", attrRoute(p.route), attrReason(why), attrAfter(m.now.Sub(m.goodSince)))
	m.fallbacks++
	m.idleLost = time.Time{}
	switch {
	case m.idleFor >= idleLoss && m.keepalive > minKeepalive:
		m.idleLost = m.now
	case m.idleFor >= idleLoss:
		m.rest()
	case m.now.Sub(m.goodSince) < youngFor:
		if !m.youngLost.IsZero() && m.now.Sub(m.youngLost) < forgiveEvery {
			m.ban(p.route, why)
		}
		m.youngLost = m.now
	}
	m.using, m.mode = nil, ModeRelay
	m.stopWatching()
	p.valid, p.replies = false, 0
	if m.banned(p.route) {
		m.answer(m.agreed, exchange.Banned)
	} else {
		m.answer(m.agreed, pathLost)
	}
	m.lastLost, m.firstValid = p, time.Time{}
	m.fails, m.quiet = 0, false
	m.regather()
	m.lookOut(true)
	m.consider()
	if m.trial == nil && m.ready() {
		m.attempt(true)
	}
}
