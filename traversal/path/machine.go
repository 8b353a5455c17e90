package path

import (
	"math/rand/v2"
	"slices"
	"time"

	"culvert.dev/culvert/internal/wgkey"
	"culvert.dev/culvert/traversal/exchange"
	"culvert.dev/culvert/traversal/punch"
)

// Limits of what a Machine keeps.
const (
	MaxPairs  = 64
	MaxBans   = 32
	MaxAccept = 8
)

const (
	defaultKeepalive = 25 * time.Second
	minKeepalive     = 10 * time.Second

	// activeFor is how long a peer counts as in use after a datagram.
	activeFor = time.Minute

	// lateAfter is how much later than it was due a step has to come to tell that this host has slept.
	lateAfter = 10 * time.Second
)

// Config of a Machine.
type Config struct {
	Self, Peer wgkey.Public
	Session    exchange.Session // of this machine's messages; not 0
	HardNAT    bool             // techniques of package punch may be used
	LowPorts   bool             // sockets below port 1024 may be bound
	Vanilla    bool             // WireGuard is not embedded: checks have a socket of their own, and no two ways can be used at once
	Keepalive  time.Duration    // between checks of an idle path; default 25 s, at least 10 s
	Seed       uint64           // of what is random: nothing that has to be secret
}

// side is what is known of one of both nodes.
type side struct {
	known          bool // candidates have been told, if only that there are none
	session        exchange.Session
	candidates     []exchange.Candidate
	hints4, hints6 exchange.Hints
}

// Machine is the state of one peer's path. New makes one.
type Machine struct {
	cfg         Config
	controlling bool
	random      *rand.Rand

	now  time.Time     // of this step; never goes back
	skew time.Duration // what makes it so: now is the caller's time and this
	due  [numTimers]time.Time
	acts []Action
	out  []Action

	own, peer side
	relay     Relay
	wanted    Wanted
	since     time.Time // of phase
	phase     Phase     // as of the last step
	begun     time.Time // own candidates were there first

	pairs []*pair
	slot  limit // of all checks

	mode     Mode
	using    *pair // in use; nil with ModeRelay
	used     Use   // as last told
	accepted []Route

	telling
	round
	upgrade
	bans []ban
	watching
	evaluating
	retrying
	escalation

	checks              uint64
	upgrades, fallbacks int
	directAfter         time.Duration
}

// New returns a machine that is Off.
func New(cfg Config) *Machine {
	if cfg.Keepalive == 0 {
		cfg.Keepalive = defaultKeepalive
	}
	cfg.Keepalive = max(cfg.Keepalive, minKeepalive)
	m := &Machine{cfg: cfg, random: rand.New(rand.NewPCG(cfg.Seed, uint64(cfg.Session)))}
	m.controlling = slices.Compare(cfg.Self[:], cfg.Peer[:]) < 0
	m.keepalive = cfg.Keepalive
	m.own.session = cfg.Session
	return m
}

// Step takes an event. The actions are valid until the next Step. Time that goes back is taken as time that stands still.
func (m *Machine) Step(ev Event, now time.Time) []Action {
	m.begin(now)
	m.handle(ev)
	m.fireDue()
	m.sendChecks()
	return m.finish()
}

func (m *Machine) begin(now time.Time) {
	now = now.Add(m.skew)
	if now.Before(m.now) {
		m.skew += m.now.Sub(now)
		now = m.now
	}
	next := m.next()
	m.now = now
	m.acts = m.acts[:0]
	if m.since.IsZero() {
		m.since = now
	}
	if !next.IsZero() && now.Sub(next) > lateAfter {
		m.resume()
	}
}

func (m *Machine) handle(ev Event) {
	switch ev := ev.(type) {
	case Wanted:
		m.want(ev)
	case Gathered:
		m.gathered(ev)
	case Relay:
		m.relayed(ev)
	case Heard:
		m.heard(&ev.Message)
	case Hello:
		m.tell()
	case Asked:
		m.asked(ev.Route)
	case Answered:
		m.answered(ev)
	case Traffic:
		m.traffic(ev)
	case Handshake:
		m.handshake(ev)
	case Echoed:
		m.echoed(ev)
	case Roamed:
		m.roamed(ev.Remote)
	case PunchDone:
		m.punchDone(ev)
	case Unsent:
		m.unsent(ev)
	}
}

// want takes in whether this machine may begin.
func (m *Machine) want(w Wanted) {
	before := m.wanted
	m.wanted = w
	switch {
	case !w.On:
		m.stopRound()
		m.stop(timerStart)
		m.starting = false
	case before.On:
	case m.joinLate():
	case m.fails == 0:
		m.kick(false)
	case m.due[timerRetry].IsZero():
		m.planRetry()
	}
	if w.Active && !before.Active {
		m.woken()
	}
}

func (m *Machine) relayed(r Relay) {
	before := m.relay
	m.relay = r
	if reach, was := m.canReach(), before.Connected && !before.NotHere; reach && !was {
		m.resends = 0
		if m.peer.session == 0 || m.tellPending {
			m.tell()
		}
		if m.mayWake(true) {
			m.kick(false)
		}
	} else if was && !reach && m.using == nil {
		m.lookOut(false)
	}
}

// canReach reports whether messages get to the peer by relay.
func (m *Machine) canReach() bool { return m.relay.Connected && !m.relay.NotHere }

// resume is for a host that has slept: what was owed to it before means nothing any more.
func (m *Machine) resume() {
	m.debug("the host has slept: checking anew")
	if m.trial != nil {
		m.endTrial("the host has slept", false)
	}
	if m.roundOn {
		m.beginRound(m.now)
	}
	m.awaiting = time.Time{}
	if m.using != nil && m.trial == nil {
		m.beat()
	}
	m.regather()
}

func (m *Machine) active() bool {
	return m.wanted.Active || !m.flowAt.IsZero() && m.now.Sub(m.flowAt) < activeFor
}

// Next returns when Step(Tick{}) is due; zero: nothing is.
func (m *Machine) Next() time.Time { return m.outside(m.next()) }

func (m *Machine) next() time.Time {
	t := m.nextCheck()
	for _, d := range m.due {
		t = earlier(t, d)
	}
	return t
}

// outside turns an own time into the caller's.
func (m *Machine) outside(t time.Time) time.Time {
	if t.IsZero() {
		return t
	}
	return t.Add(-m.skew)
}

// finish tells what has changed of the way datagrams go before all else, and what is accepted before what is used.
func (m *Machine) finish() []Action {
	m.out = m.out[:0]
	if routes := m.acceptable(); !slices.Equal(routes, m.accepted) {
		m.accepted = slices.Clone(routes)
		m.out = append(m.out, Accept{Routes: slices.Clone(routes)})
	}
	use := Use{Mode: m.mode}
	if m.mode != ModeRelay {
		use.Route = m.using.route
	}
	if use != m.used {
		m.used = use
		m.out = append(m.out, use)
	}
	if p := m.phaseNow(); p != m.phase {
		m.phase, m.since = p, m.now
	}
	m.out = append(m.out, m.acts...)
	return m.out
}

// acceptable lists the routes on which the peer's datagrams are taken: the one in use, those that have answered, those that the
// peer has asked on, as far as there is room.
func (m *Machine) acceptable() []Route {
	var routes []Route
	add := func(fits func(p *pair) bool) {
		for _, p := range m.pairs {
			if len(routes) < MaxAccept && fits(p) && !slices.Contains(routes, p.route) {
				routes = append(routes, p.route)
			}
		}
	}
	add(func(p *pair) bool { return p == m.using })
	if len(m.pairs) > 0 {
		add(func(p *pair) bool { return m.trial != nil && (p == m.trial.pair || p == m.trial.before) })
		add(func(p *pair) bool { return p.valid })
		add(func(p *pair) bool { return !p.lastAsked.IsZero() && m.now.Sub(p.lastAsked) < askedFor })
	}
	slices.SortFunc(routes, compareRoutes) // so that an order that means nothing does not look like a change
	return routes
}

func (m *Machine) do(a Action) { m.acts = append(m.acts, a) }

// phaseNow derives the phase from what goes on.
func (m *Machine) phaseNow() Phase {
	switch {
	case m.trial != nil && m.trial.running:
		return Trial
	case m.using != nil:
		return Direct
	case m.punching != punch.None:
		return Punching
	case m.roundOn || m.trial != nil:
		return Checking
	case !m.wanted.On && m.peer.session == 0:
		return Off
	case m.peer.session == 0 || !m.own.known || !m.canReach() || m.peerLeft:
		return Waiting
	case !m.due[timerStart].IsZero():
		return Checking
	}
	return Relayed
}
