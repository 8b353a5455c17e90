package relay

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"culvert.dev/culvert/internal/wgkey"
	"culvert.dev/culvert/traversal/relay/derp"
)

// maxRelays bounds how many relays a pool has: a handshake for a peer whose relay is not known goes to all of them.
const maxRelays = 16

// ErrNoRelay says that no relay is connected.
var ErrNoRelay = errors.New("no relay is connected")

// PoolConfig says what a Pool is. Only Key is required.
type PoolConfig struct {
	Key    wgkey.Private
	Relays []Server       // 16 at most
	Logger *slog.Logger   // nil discards
	Roots  *x509.CertPool // as in Dialer

	// Changed is called when a relay was connected or lost, and when a peer turns out to be at one or not: Status, Presence and
	// Route may have changed. It is called with the pool locked: it must neither block nor call the pool.
	Changed func()

	// DialTCP opens TCP connections, as in Dialer.
	DialTCP func(ctx context.Context, network, addr string) (net.Conn, error)
}

// Pool is all relays of a node. It keeps a connection to each of them, so that another is ready when one fails:
//
//	                 dial                 pong late, closed, told to leave
//	connecting ------------> connected -----------------------------------.
//	     ^                                                                |
//	     '------------------------------ waiting <------------------------'
//
// The nearest is home, where peers that know nothing better send to. A goroutine per relay dials, judges the connection and waits;
// one per connection reads, one writes; one notices when the host has been asleep.
type Pool struct {
	cfg    PoolConfig
	log    *slog.Logger
	dialer Dialer
	random func(n int64) int64

	life   context.Context // ends with the pool
	end    context.CancelFunc
	routed atomic.Uint64 // counts changes of routes: readers remember what they have already told
	in     inbox
	wg     sync.WaitGroup

	mu      sync.Mutex // guards the following
	closed  bool
	members []*member
	views   []view // of members, in the same order
	nextID  uint32
	home    uint32 // id, 0: none
	routes  routeTable
}

// NewPool makes a pool, which connects in the background. It may have no relays. The error is one of the configuration.
func NewPool(cfg PoolConfig) (*Pool, error) {
	return newPool(cfg, rand.Int64N)
}

func newPool(cfg PoolConfig, random func(n int64) int64) (*Pool, error) {
	if cfg.Key.IsZero() {
		return nil, errors.New("relays: no private key")
	}
	p := &Pool{cfg: cfg, log: cfg.Logger, random: random, routes: newRouteTable()}
	if p.log == nil {
		p.log = slog.New(slog.DiscardHandler)
	}
	p.dialer = Dialer{Key: cfg.Key, Roots: cfg.Roots, DialTCP: cfg.DialTCP, Logger: p.log}
	p.life, p.end = context.WithCancel(context.Background())
	p.in.init()
	if err := p.SetRelays(cfg.Relays); err != nil {
		p.end()
		return nil, err
	}
	p.wg.Go(func() {
		watchSleep(p.life, hostSlept, func(d time.Duration) {
			p.log.Debug("the host has slept, checking all relays", "for", d)
			p.Network()
		})
	})
	return p, nil
}

// SetRelays replaces the relays. Connections to those that stay the same stay. After an error nothing has changed.
func (p *Pool) SetRelays(relays []Server) error {
	if err := checkRelays(relays); err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return net.ErrClosed
	}
	old := p.members
	p.members = nil
	for _, s := range relays {
		p.members = append(p.members, p.memberLocked(s, old))
	}
	for _, m := range old {
		if !p.hasLocked(m) {
			p.routes.forget(m.id)
			m.cancel()
		}
	}
	p.changedLocked()
	return nil
}

func checkRelays(relays []Server) error {
	if len(relays) > maxRelays {
		return fmt.Errorf("%d relays: at most %d", len(relays), maxRelays)
	}
	seen := map[string]bool{}
	for _, s := range relays {
		t, err := s.target()
		if err != nil {
			return err
		}
		if seen[t.url] {
			return fmt.Errorf("relay %s: given twice", t.url)
		}
		seen[t.url] = true
	}
	return nil
}

// memberLocked returns the member for s: the old one if there is one that is the same.
func (p *Pool) memberLocked(s Server, old []*member) *member {
	for _, m := range old {
		if m.server.same(s) {
			return m
		}
	}
	p.nextID++
	m := newMember(p, p.nextID, s)
	p.wg.Go(m.run)
	return m
}

func (p *Pool) hasLocked(m *member) bool {
	for _, o := range p.members {
		if o == m {
			return true
		}
	}
	return false
}

// Close ends all connections and returns when nothing of the pool runs any more.
func (p *Pool) Close() error {
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	p.end()
	p.wg.Wait()
	return nil
}

// Network says that the host's network has changed: every connection is checked now, and every relay that is not connected is
// dialled now.
func (p *Pool) Network() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, m := range p.members {
		m.hurryLocked()
	}
}

// Send sends datagrams to a peer by the relay where it is; it copies them. A peer whose relay is not known is looked for: its
// handshakes go to several relays, its data to the likeliest. When a relay takes nothing, Send waits for up to 50 ms and then
// drops the oldest data. It returns ErrNoRelay, or net.ErrClosed after Close.
func (p *Pool) Send(to wgkey.Public, datagrams [][]byte) error {
	return p.sendBy(to, datagrams, (*Conn).Send)
}

// SendNow is Send that does not wait: when a relay takes nothing the oldest data is dropped at once.
func (p *Pool) SendNow(to wgkey.Public, datagrams [][]byte) error {
	return p.sendBy(to, datagrams, (*Conn).SendNow)
}

// sender is one of the two ways to send by a connection.
type sender func(*Conn, wgkey.Public, [][]byte) error

func (p *Pool) sendBy(to wgkey.Public, datagrams [][]byte, by sender) error {
	now := time.Now()
	for range maxRelays {
		err := p.send(to, datagrams, by, now)
		if !errors.Is(err, net.ErrClosed) {
			return err
		}
		// The connection has ended, and the pool is about to learn of it, or is closed itself.
		if p.life.Err() != nil {
			return net.ErrClosed
		}
	}
	return ErrNoRelay
}

func (p *Pool) send(to wgkey.Public, datagrams [][]byte, by sender, now time.Time) error {
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		return net.ErrClosed
	}
	r := p.routes.want(to)
	via := r.known(p.views, now)
	if via == 0 {
		return p.lookFor(to, r, datagrams, by, now)
	}
	c := p.connLocked(via)
	p.mu.Unlock()
	return p.hand(c, to, datagrams, by)
}

// hand gives datagrams to a connection.
func (p *Pool) hand(c *Conn, to wgkey.Public, datagrams [][]byte, by sender) error {
	err := by(c, to, datagrams)
	if errors.Is(err, net.ErrClosed) {
		p.noteClosed(c)
	}
	return err
}

// lookFor is send for a peer whose relay is not known. It is called with the lock and gives it back.
func (p *Pool) lookFor(to wgkey.Public, r *peerRoute, datagrams [][]byte, by sender, now time.Time) error {
	data := p.connLocked(r.forData(p.views, p.home, now))
	if data == nil {
		p.mu.Unlock()
		return ErrNoRelay
	}
	var handshake []*Conn
	urgent := 0
	for _, d := range datagrams {
		if isUrgent(d) {
			urgent++
		}
	}
	if urgent > 0 {
		var ids [maxRelays]uint32
		for _, id := range r.forHandshake(ids[:0], p.views, now) {
			handshake = append(handshake, p.connLocked(id))
		}
	}
	p.mu.Unlock()
	if urgent == 0 {
		return p.hand(data, to, datagrams, by)
	}
	var failed error
	for i, d := range datagrams {
		one := datagrams[i : i+1]
		if !isUrgent(d) {
			failed = errors.Join(failed, ignoreClosed(p.hand(data, to, one, by)))
			continue
		}
		for _, c := range handshake {
			failed = errors.Join(failed, ignoreClosed(p.hand(c, to, one, by)))
		}
	}
	return failed
}

// ignoreClosed drops the error of a connection that ended meanwhile: the others have got their copy.
func ignoreClosed(err error) error {
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

// connLocked returns the open connection of a member, nil if there is none.
func (p *Pool) connLocked(id uint32) *Conn {
	for _, m := range p.members {
		if m.id == id {
			return m.conn
		}
	}
	return nil
}

// Receive waits for datagrams and copies each into its buffer, its length into sizes and its sender into from. It returns how many;
// net.ErrClosed once done or the pool is closed. Datagrams longer than their buffer are dropped.
func (p *Pool) Receive(done <-chan struct{}, bufs [][]byte, sizes []int, from []wgkey.Public) (n int, err error) {
	return p.in.receive(done, p.life.Done(), bufs, sizes, from)
}

// heard takes in that a packet of a peer's came by a member.
func (p *Pool) heard(m *member, peer wgkey.Public, handshake bool, now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.hasLocked(m) { // on its way out
		return
	}
	if p.routes.hear(peer).came(m.id, handshake, p.views, now) {
		p.routed.Add(1)
		p.tellChanged()
	}
}

// gone takes in that a member says that a peer is gone.
func (p *Pool) gone(m *member, peer wgkey.Public, why derp.GoneReason) {
	while := leftFor
	if why == derp.GoneNotHere {
		while = awayFor
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if r := p.routes.find(peer); r != nil && p.hasLocked(m) { // of others we do not want to know
		r.gone(m.id, while, time.Now())
		p.routed.Add(1)
		p.tellChanged()
	}
}

// changedLocked takes in that a member has changed: what is known of all of them, and who is home.
func (p *Pool) changedLocked() {
	p.views = p.views[:0]
	for _, m := range p.members {
		p.views = append(p.views, view{id: m.id, up: m.conn != nil, leaving: m.leaving, rtt: m.rtt.least()})
	}
	p.routed.Add(1)
	p.tellChanged()
	was := p.home
	p.home = pickHome(was, p.views)
	if p.home == was {
		return
	}
	for _, m := range p.members {
		if m.conn != nil && (m.id == was || m.id == p.home) {
			m.conn.NotePreferred(m.id == p.home)
		}
		if m.id == p.home {
			p.log.Info("relay is home", "relay", m.url, "rtt", m.rtt.least())
		}
	}
}

// noteClosed takes in that a connection is over, before its member has noticed.
func (p *Pool) noteClosed(c *Conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, m := range p.members {
		if m.conn == c {
			m.conn = nil
			p.changedLocked()
		}
	}
}
