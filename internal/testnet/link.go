package testnet

import (
	"fmt"
	"math/rand/v2"
	"time"
)

// LinkConfig says what a link does to the packets of one direction. Zero values mean the default, which is a good wire.
type LinkConfig struct {
	Latency time.Duration // one way; default 100 µs
	Jitter  time.Duration // up to so much more, evenly distributed; packets keep their order

	Loss      float64       // share of packets that vanish, 0 to 1
	Duplicate float64       // share that arrives twice
	Reorder   float64       // share that is held back, so that later packets overtake it
	ReorderBy time.Duration // for how long; default 2 ms

	MTU   int // bytes of an IP packet; default 1500
	Rate  int // bits per second; 0: no limit
	Queue int // bytes that may wait because of Rate, that of the packet being sent included; default 50 ms worth, at least 16 KiB
}

func (c LinkConfig) withDefaults() LinkConfig {
	if c.Latency <= 0 {
		c.Latency = 100 * time.Microsecond
	}
	if c.ReorderBy <= 0 {
		c.ReorderBy = 2 * time.Millisecond
	}
	if c.MTU <= 0 {
		c.MTU = 1500
	}
	if c.Queue <= 0 {
		c.Queue = max(c.Rate/8/20, 16<<10)
	}
	return c
}

// LinkStats counts the packets of one direction of a link. Sent includes all that were given to the link.
type LinkStats struct {
	Sent, Delivered, Bytes int // Bytes of delivered packets
	Lost                   int // by LinkConfig.Loss or a filter
	Full                   int // no room in the queue
	TooBig                 int // larger than the MTU
	Cut                    int // sent while the link was cut, or on the way then
	Duplicated, Reordered  int
}

// Link is a wire between two nodes. Both directions are alike at first. Changes apply to packets sent from then on.
type Link struct {
	net   *Network
	name  string
	ports [2]*port
	dirs  [2]direction
	down  bool
}

// direction is one half of a link.
type direction struct {
	link   *Link
	to     *port
	cfg    LinkConfig
	rng    *rand.Rand
	actor  actor
	epoch  int   // counts the cuts
	busy   int64 // when the last byte queued so far will have left
	last   int64 // when the packet before arrives
	filter func(b []byte) bool
	stats  LinkStats
}

// connect makes a link from a to b.
func (n *Network) connect(a, b node, name string, cfg LinkConfig) *Link {
	l := &Link{net: n, name: name}
	l.ports[0] = &port{a, l, 0}
	l.ports[1] = &port{b, l, 1}
	for i := range l.dirs {
		act := n.newActor()
		l.dirs[i] = direction{
			link: l, to: l.ports[1-i], cfg: cfg.withDefaults(), actor: act, rng: n.rng(fmt.Sprint("link ", act.id)),
		}
	}
	return l
}

// Set changes both directions.
func (l *Link) Set(cfg LinkConfig) { l.SetUp(cfg); l.SetDown(cfg) }

// SetUp changes the direction from the host or gateway that was attached to the router it was attached to.
func (l *Link) SetUp(cfg LinkConfig) { l.setDir(0, cfg) }

// SetDown changes the direction to the host or gateway.
func (l *Link) SetDown(cfg LinkConfig) { l.setDir(1, cfg) }

func (l *Link) setDir(i int, cfg LinkConfig) {
	l.net.mu.Lock()
	defer l.net.mu.Unlock()
	l.dirs[i].cfg = cfg.withDefaults()
}

// Filter has up and down decide about each packet of their direction, as it is sent: false loses it. They must not use the
// network nor change the packet; nil lets everything pass.
func (l *Link) Filter(up, down func(b []byte) bool) {
	l.net.mu.Lock()
	defer l.net.mu.Unlock()
	l.dirs[0].filter, l.dirs[1].filter = up, down
}

// Cut cuts the link: nothing passes, and what is on the way is lost. Nobody is told.
func (l *Link) Cut() { l.setDown(true) }

// Restore undoes Cut.
func (l *Link) Restore() { l.setDown(false) }

func (l *Link) setDown(down bool) {
	l.net.mu.Lock()
	defer l.net.mu.Unlock()
	l.down = down
	if down {
		l.lose()
	}
}

// lose drops what is on the way: packets remember the epoch they were sent in.
func (l *Link) lose() {
	for i := range l.dirs {
		d := &l.dirs[i]
		d.busy, d.last = 0, 0
		d.epoch++
	}
}

// Stats returns what has happened in the two directions; up as in SetUp.
func (l *Link) Stats() (up, down LinkStats) {
	l.net.mu.Lock()
	defer l.net.mu.Unlock()
	return l.dirs[0].stats, l.dirs[1].stats
}

func (d *direction) send(b []byte) {
	d.stats.Sent++
	// The same number of draws for every packet: what happens to one does not depend on which features are in use.
	lose, twice, back, jitter := d.rng.Float64(), d.rng.Float64(), d.rng.Float64(), d.rng.Float64()
	c := &d.cfg
	switch {
	case d.link.down:
		d.stats.Cut++
		d.drop("link cut", b)
		return
	case len(b) > c.MTU:
		d.stats.TooBig++
		d.drop("larger than the MTU", b)
		return
	case lose < c.Loss, d.filter != nil && !d.filter(b):
		d.stats.Lost++
		d.drop("lost", b)
		return
	}
	now := d.actor.c.now()
	leaves := now
	if c.Rate > 0 {
		perByte := 8e9 / float64(c.Rate)
		waiting := float64(max(0, d.busy-now)) / perByte
		if waiting > 0 && int(waiting)+len(b) > c.Queue {
			d.stats.Full++
			d.drop("queue full", b)
			return
		}
		d.busy = max(d.busy, now) + int64(float64(len(b))*perByte)
		leaves = d.busy
	}
	arrives := leaves + int64(c.Latency) + int64(jitter*float64(c.Jitter))
	if back < c.Reorder {
		d.stats.Reordered++
		arrives += int64(c.ReorderBy)
	} else {
		arrives = max(arrives, d.last)
		d.last = arrives
	}
	d.deliver(arrives, b)
	if twice < c.Duplicate {
		d.stats.Duplicated++
		d.deliver(arrives, append([]byte(nil), b...))
	}
}

func (d *direction) deliver(at int64, b []byte) {
	epoch := d.epoch
	d.actor.at(at, func() {
		if d.epoch != epoch {
			d.stats.Cut++
			d.drop("link cut", b)
			return
		}
		d.stats.Delivered++
		d.stats.Bytes += len(b)
		d.to.node.receive(d.to, b)
	})
}

func (d *direction) drop(why string, b []byte) { d.link.net.trace(d.link.name, why, b) }
