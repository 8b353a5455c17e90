package attach

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	"culvert.dev/culvert/internal/wgkey"
	"culvert.dev/culvert/internal/wguapi"
	"culvert.dev/culvert/traversal/agent"
	"culvert.dev/culvert/traversal/path"
)

// device is the WireGuard that is driven: a wguapi.Client, or a kernelDevice.
type device interface {
	Get(ctx context.Context) (wguapi.Device, error)
	Set(ctx context.Context, changes ...wguapi.PeerChange) error
}

// transport is a WireGuard device as the agent sees it. One goroutine, run, looks at the device and changes it; what the agent asks
// for is noted, and answered from the last look.
type transport struct {
	device  device
	ports   *ports
	sockets *sockets
	transportConfig

	wake chan struct{} // has room for one: an order, or a datagram that may have moved an endpoint

	mu     sync.Mutex // guards the following
	links  map[wgkey.Public]*link
	seen   wguapi.Device // as of the last look
	fault  error         // of the last look; nil: none
	frozen bool          // endpoints stay as they are
	roomy  bool          // the host had room for the ports of all peers
	turned chan struct{} // closed at the end of the next turn
	flowed time.Time     // when traffic was last seen
}

const (
	lookOften  = 100 * time.Millisecond // while a path is on trial, or an order is not carried out
	lookActive = 250 * time.Millisecond // while anything flows
	lookIdle   = time.Second
	// activeTime is how long a device counts as active after traffic.
	activeTime = 5 * time.Second
	// lookGap is the least time between two looks, whoever asks for one.
	lookGap = 20 * time.Millisecond
)

// transportConfig is what a transport works with.
type transportConfig struct {
	key     wgkey.Private           // of the device
	skip    func(wgkey.Public) bool // peers that are none: the WG-STUN server
	mtu     int                     // of the tunnel
	changed func()                  // called after a look that has found other peers
	rekeyed func()                  // called when the device has another key
	log     *slog.Logger
}

func newTransport(d device, p *ports, s *sockets, cfg transportConfig) *transport {
	return &transport{
		device: d, ports: p, sockets: s, transportConfig: cfg,
		wake: make(chan struct{}, 1), turned: make(chan struct{}), links: map[wgkey.Public]*link{}, roomy: true,
	}
}

// SetRoute implements agent.Transport. accept has no meaning: WireGuard takes what is authentic from anywhere.
func (t *transport) SetRoute(peer wgkey.Public, mode path.Mode, use path.Route, _ []path.Route) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	l := t.links[peer]
	if t.frozen {
		return nil
	}
	if l == nil {
		return fmt.Errorf("route of peer %s: the device has no such peer", peer.Short())
	}
	l.order(mode, use.WG)
	if l.pending {
		t.look()
	}
	return nil
}

// Traffic implements agent.Transport.
func (t *transport) Traffic(peer wgkey.Public) (agent.Traffic, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	l := t.links[peer]
	if l == nil {
		return agent.Traffic{}, false
	}
	return l.traffic, true
}

// OpenSocket implements agent.Transport.
func (t *transport) OpenSocket(family uint8, port uint16) (uint32, uint16, error) {
	return t.sockets.open(family, port)
}

// CloseSocket implements agent.Transport.
func (t *transport) CloseSocket(id uint32) { t.sockets.close(id) }

// SendFrom implements agent.Transport.
func (t *transport) SendFrom(socket uint32, msg []byte, to netip.AddrPort, ttl uint8) error {
	return t.sockets.send(socket, msg, to, ttl)
}

// look has run look at the device soon.
func (t *transport) look() {
	select {
	case t.wake <- struct{}{}:
	default:
	}
}

// delivered is called when a datagram that came by relay was given to WireGuard. If the peer is to be reached directly, that has
// moved it back to the relay.
func (t *transport) delivered(p *port) {
	t.mu.Lock()
	l := t.links[p.key]
	against := l != nil && l.mode != path.ModeRelay && !time.Now().Before(l.reapply)
	t.mu.Unlock()
	if against {
		t.look()
	}
}

// run looks after the device until ctx ends. The first look should have been made already.
func (t *transport) run(ctx context.Context) {
	timer := time.NewTimer(lookGap)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.wake:
		case <-timer.C:
		}
		t.turn(ctx)
		select {
		case <-ctx.Done():
			return
		case <-time.After(lookGap):
		}
		timer.Reset(t.pause(time.Now()))
	}
}

// pause is the time until the next look.
func (t *transport) pause(now time.Time) time.Duration {
	t.mu.Lock()
	defer t.mu.Unlock()
	pause := lookIdle
	if now.Sub(t.flowed) < activeTime {
		pause = lookActive
	}
	for _, l := range t.links {
		if l.pending || l.mode == path.ModeBoth || l.onTrial(now) {
			return lookOften
		}
	}
	return pause
}

// turn looks at the device once, and makes the changes that are due.
func (t *transport) turn(ctx context.Context) error {
	defer t.turnedOnce()
	now := time.Now() // what happens during the look counts as later
	d, err := t.device.Get(ctx)
	if err == nil && d.PrivateKey.IsZero() {
		err = errNoKey
	}
	if err != nil {
		t.noteFault(ctx, err)
		return err
	}
	t.noteFault(ctx, nil)
	t.ports.wireguard.Store(uint32(d.ListenPort))
	if d.PrivateKey != t.key {
		t.rekeyed()
		return errRekeyed
	}
	if t.takeIn(d, now) {
		t.changed()
	}
	t.apply(ctx, now)
	return nil
}

// freeze has endpoints stay as they are from now on.
func (t *transport) freeze() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.frozen = true
}

func (t *transport) turnedOnce() {
	t.mu.Lock()
	defer t.mu.Unlock()
	close(t.turned)
	t.turned = make(chan struct{})
}

// await has run look at the device until a look that began after since satisfies ok, and reports whether one did before ctx ended.
// It returns false for a peer that is gone, too. ok is called with the lock.
func (t *transport) await(ctx context.Context, peer wgkey.Public, since time.Time, ok func(*link) bool) bool {
	for ctx.Err() == nil {
		t.mu.Lock()
		l, turned := t.links[peer], t.turned
		if l == nil {
			t.mu.Unlock()
			return false
		}
		good := l.looked.After(since) && ok(l)
		t.mu.Unlock()
		if good {
			return true
		}
		t.look()
		select {
		case <-turned:
		case <-ctx.Done():
		}
	}
	return false
}

var (
	// errRekeyed is why an attachment ends by itself.
	errRekeyed = errors.New("the private key of the device has changed")
	// errNoKey is a device that was restarted, and not configured yet.
	errNoKey = errors.New("the device has no private key")
)

// noteFault logs when the device stops to answer, and when it answers again.
func (t *transport) noteFault(ctx context.Context, err error) {
	if ctx.Err() != nil {
		return
	}
	t.mu.Lock()
	was := t.fault
	t.fault = err
	t.mu.Unlock()
	switch {
	case err != nil && was == nil:
		t.log.Error("the WireGuard device does not answer: paths stay as they are until it does", "err", err)
	case err == nil && was != nil:
		t.log.Info("the WireGuard device answers again")
	}
}

// takeIn takes in a look at the device, and reports whether other peers were found than before.
func (t *transport) takeIn(d wguapi.Device, now time.Time) (changed bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.seen = d
	roomy := true
	there := make(map[wgkey.Public]bool, len(d.Peers))
	for _, p := range d.Peers {
		if t.skip(p.PublicKey) {
			continue
		}
		there[p.PublicKey] = true
		l := t.links[p.PublicKey]
		if l == nil {
			if l = t.addLocked(p); l == nil {
				roomy = false
				continue
			}
			changed = true
		}
		was := l.traffic
		l.observe(p, now)
		if l.traffic.Tx != was.Tx || l.traffic.RxRoute != was.RxRoute || l.traffic.RxRelay != was.RxRelay {
			t.flowed = now
		}
	}
	t.roomy = roomy
	for key, l := range t.links {
		if !there[key] {
			delete(t.links, key)
			t.ports.close(l.port)
			changed = true
		}
	}
	return changed
}

// addLocked makes the link of a new peer; nil if the host has no room for its port, which is tried again at the next look.
func (t *transport) addLocked(p wguapi.Peer) *link {
	port, err := t.ports.open(p.PublicKey, p.Endpoint, t.mtu)
	if err != nil {
		if t.roomy { // told once
			t.log.Error("a peer of the device is left alone", "peer", p.PublicKey.Short(), "err", err)
		}
		return nil
	}
	l := &link{key: p.PublicKey, port: port}
	if l.isDirect(p.Endpoint) {
		l.before = p.Endpoint
	}
	t.links[p.PublicKey] = l
	return l
}

// apply makes the changes that are due. A peer that the device has lost meanwhile is not added again.
func (t *transport) apply(ctx context.Context, now time.Time) {
	t.mu.Lock()
	var list []due
	for _, l := range t.links {
		if t.frozen {
			break
		}
		if c, any := l.change(now); any {
			list = append(list, due{l, l.orders, c})
		} else {
			l.pending = false
		}
	}
	t.mu.Unlock()
	for _, d := range list {
		if err := t.device.Set(ctx, d.change); err != nil {
			t.noteFault(ctx, err)
			return // the next turn tries again
		}
		if d.change.Endpoint.IsValid() {
			t.log.Debug("endpoint set", "peer", d.link.key.Short(), "endpoint", d.change.Endpoint)
		}
		t.mu.Lock()
		d.link.done(d.change, d.order, now)
		t.mu.Unlock()
	}
}

// due is a change to be made.
type due struct {
	link   *link
	order  uint
	change wguapi.PeerChange
}

// leave puts the endpoints back that would lead nowhere when nobody looks after them any more. It comes after freeze.
func (t *transport) leave(ctx context.Context) {
	d, err := t.device.Get(ctx) // the last look may be a second old
	if err != nil {
		t.noteFault(ctx, err)
		return
	}
	t.takeIn(d, time.Now())
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, l := range t.links {
		if c, any := l.leave(); any {
			if err := t.device.Set(ctx, c); err != nil {
				t.log.Error("the endpoint of a peer stays a port of the relay's, which is closed now", "peer", l.key.Short(), "err", err)
			}
		}
	}
}

// linkState is what is known of one link, for status.
type linkState struct {
	key       wgkey.Public
	at        wguapi.Peer
	port      netip.AddrPort
	direct    bool
	rxRelay   uint64
	txRelay   uint64
	relayLost uint64
	traffic   agent.Traffic
}

// state returns what is known of the device and of all links.
func (t *transport) state() (d wguapi.Device, fault error, links map[wgkey.Public]linkState) {
	t.mu.Lock()
	defer t.mu.Unlock()
	links = make(map[wgkey.Public]linkState, len(t.links))
	for key, l := range t.links {
		links[key] = linkState{
			key: key, at: l.at, port: l.port.addr, direct: l.isDirect(l.at.Endpoint),
			rxRelay: l.port.rxPackets.Load(), txRelay: l.port.txPackets.Load(), relayLost: l.port.lost.Load(), traffic: l.traffic,
		}
	}
	return t.seen, t.fault, links
}
