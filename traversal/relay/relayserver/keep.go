package relayserver

import (
	"math/rand/v2"
	"net"
	"time"

	"culvert.dev/culvert/traversal/relay/derp"
)

const (
	// keepAliveJitter is added to each interval at random, so that clients that came together do not stay together.
	keepAliveJitter = 5 * time.Second
	// silentAfter is how many keepalives in a row a client that answers pings may leave without a sign of life. TCP notices
	// that a client is gone; this notices it behind a proxy that is not.
	silentAfter = 3
	// stuckLooks is how often housekeeping must find a client in the same write before it cuts it. If the process or the machine
	// was stopped for a while, clients are given time to go on.
	stuckLooks = 3
	// tick is how often housekeeping looks at everybody.
	tick = time.Second
)

// housekeep looks after all clients, so that none needs a timer or a goroutine for it while it is idle.
func (s *Server) housekeep() {
	t := time.NewTicker(tick)
	defer t.Stop()
	for n := 0; ; n++ {
		select {
		case <-s.stop:
			return
		case <-t.C:
		}
		now := s.now()
		s.clients.each(func(c *client) { s.look(c, now) })
		if n%10 == 0 {
			s.limits.sweep(now)
			s.accepts.sweep(now)
		}
		s.renew(time.Now())
	}
}

// look cuts a client that is stuck, retires its writer, and keeps it alive.
func (s *Server) look(c *client, now int64) {
	if s.stuck(c, now) {
		c.kill(endedSlow)
		return
	}
	if c.out.retire(now - int64(lingerTime)) {
		c.wakeup <- false
	}
	if now < c.nextAlive {
		return
	}
	c.nextAlive = now + s.aliveIn()
	if c.info.CanAckPings {
		if c.unanswered++; c.lastRead.Load() >= c.lastAlive {
			c.unanswered = 0
		}
		if c.unanswered >= silentAfter {
			c.kill(endedSilent)
			return
		}
		c.lastAlive = now
		var b [derp.PingLen]byte
		c.control(derp.FramePing, b[:])
	}
	c.control(derp.FrameKeepAlive, nil)
}

// stuck reports whether a client's writer has been inside one write for too long.
func (s *Server) stuck(c *client, now int64) bool {
	since := c.writing.Load()
	if since == 0 || since != c.stuckSince {
		c.stuckSince, c.stuckSeen = since, 0
	}
	c.stuckSeen++
	return since != 0 && now-since > int64(s.cfg.WriteTimeout) && c.stuckSeen >= stuckLooks
}

// aliveIn returns the time to the next keepalive.
func (s *Server) aliveIn() int64 { return int64(s.cfg.KeepAlive + rand.N(keepAliveJitter)) }

// keepAlive makes the kernel notice an idle connection that is gone.
func keepAlive(c *net.TCPConn) {
	c.SetKeepAliveConfig(net.KeepAliveConfig{Enable: true, Idle: time.Minute, Interval: 15 * time.Second, Count: 3})
}
