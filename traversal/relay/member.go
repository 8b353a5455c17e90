package relay

import (
	"context"
	"errors"
	"time"

	"culvert.dev/culvert/internal/wgkey"
)

var (
	errSilent  = errors.New("no answer to a ping")
	errRestart = errors.New("the relay restarts")
	errAborted = errors.New("the network has changed")
)

// dialGrace is how long a dial may take at least before a change of the network ends it.
const dialGrace = time.Second

// member is one relay of a pool, and the goroutine that keeps it connected.
type member struct {
	pool   *Pool
	id     uint32
	server Server
	url    string // normal form
	life   context.Context
	cancel context.CancelFunc
	kick   chan struct{} // the network has changed
	retry  retry

	// The following is guarded by the pool's mutex.
	abort      context.CancelFunc // of the dial that is under way
	conn       *Conn              // open
	last       *Conn              // conn, or the last one there was
	leaving    bool               // the relay has said that it goes away
	state      State
	since      time.Time // of state
	err        error     // why it is not connected
	health     string    // what the relay says is wrong
	reported   time.Time // when that was last logged
	aborts     int       // dials in a row that were given up because the network changed
	rtt        rttSamples
	connects   int
	past       Counters // of connections before last
	complained bool     // err is in the log
}

func newMember(p *Pool, id uint32, s Server) *member {
	t, _ := s.target() // has been checked
	m := &member{pool: p, id: id, server: s, url: t.url, kick: make(chan struct{}, 1), retry: retry{random: p.random}}
	m.life, m.cancel = context.WithCancel(p.life)
	m.since = time.Now()
	return m
}

// hurryLocked takes in that the network has changed. A dial that is under way is given up, but not before it has had some time, and
// more each time: of a network that keeps changing, each change would otherwise undo the last attempt.
func (m *member) hurryLocked() {
	notify(m.kick)
	if m.abort == nil {
		return
	}
	time.AfterFunc(m.grace()-time.Since(m.since), m.abort)
	m.abort = nil // once is enough
}

func (m *member) grace() time.Duration {
	return min(dialGrace<<min(m.aborts, 4), dialTimeout)
}

// run keeps the relay connected until the member's life ends.
func (m *member) run() {
	defer m.cancel()
	for m.life.Err() == nil {
		conn, err := m.dial()
		var pause time.Duration
		switch {
		case err == errAborted:
			m.retry.failures = 0
			continue
		case err != nil:
			pause = m.retry.failed(retryAfter(err))
		default:
			pause, err = m.serve(conn)
		}
		if m.life.Err() != nil || !m.pause(err, pause) {
			return
		}
	}
}

// dial connects. Network ends a dial that has begun before the change.
func (m *member) dial() (*Conn, error) {
	ctx, cancel := context.WithCancel(m.life)
	defer cancel()
	m.update(func() {
		m.state, m.since = StateConnecting, time.Now()
		m.abort = cancel
	})
	conn, err := m.pool.dialer.Dial(ctx, m.server)
	m.update(func() {
		m.abort = nil
		m.aborts++
		if err == nil || ctx.Err() == nil {
			m.aborts = 0
		} else {
			err = errAborted
			select {
			case <-m.kick:
			default:
			}
		}
	})
	return conn, err
}

// pause waits before the next dial; false: the member's life is over.
func (m *member) pause(why error, d time.Duration) bool {
	m.update(func() {
		m.state, m.since, m.err = StateWaiting, time.Now(), why
		if !m.complained && why != errRestart {
			m.complained = true
			m.pool.log.Info("relay not connected", "relay", m.url, "err", why, "retry", d.Round(time.Millisecond))
		}
	})
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-m.kick:
		m.retry.failures = 0
	case <-m.life.Done():
		return false
	}
	return true
}

// update changes the member under the pool's lock.
func (m *member) update(f func()) {
	m.pool.mu.Lock()
	defer m.pool.mu.Unlock()
	f()
}

func (m *member) connected(c *Conn) {
	m.update(func() {
		if m.last != nil {
			m.past = m.past.plus(m.last.Counters())
		}
		m.conn, m.last, m.leaving, m.rtt = c, c, false, rttSamples{}
		m.state, m.since, m.err, m.health = StateConnected, time.Now(), nil, ""
		m.connects++
		m.complained = false
		m.pool.log.Info("relay connected", "relay", m.url, "transport", c.info.Transport, "proxy", c.info.Proxy)
		if m.pool.hasLocked(m) {
			m.pool.changedLocked()
		}
	})
}

// lost takes the connection away from who would send by it, and then sends what it has not sent by others.
func (m *member) lost(c *Conn, reader <-chan error) {
	m.update(func() {
		m.conn, m.leaving = nil, false
		if m.pool.hasLocked(m) {
			m.pool.changedLocked()
		}
	})
	c.Close()
	<-reader
	c.out.unsent(m.pool.sendAgain)
}

// sendAgain sends a packet that another relay was not given, if there is room.
func (p *Pool) sendAgain(to wgkey.Public, packet []byte) {
	now := time.Now()
	p.mu.Lock()
	defer p.mu.Unlock()
	r := p.routes.find(to)
	if r == nil {
		return
	}
	if c := p.connLocked(r.forData(p.views, p.home, now)); c != nil && c.out.offer(to, packet) && c.in.sent() {
		c.out.noteSilence()
	}
}

// serve looks after a connection until it is over. It returns how long to wait before the next, and why.
func (m *member) serve(c *Conn) (pause time.Duration, err error) {
	m.connected(c)
	s := serving{member: m, conn: c, begin: time.Now(), restart: make(chan Message, 1)}
	reader := make(chan error, 1)
	go func() {
		reader <- s.read()
	}()
	pause, err = s.loop()
	m.lost(c, reader)
	return pause, err
}

// retryAfter returns how long the relay asked to stay away when it refused a connection.
func retryAfter(err error) time.Duration {
	var answer *refusal
	if errors.As(err, &answer) {
		return answer.retryAfter
	}
	return 0
}
