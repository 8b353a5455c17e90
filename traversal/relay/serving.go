package relay

import (
	"net"
	"time"

	"culvert.dev/culvert/internal/wgkey"
	"culvert.dev/culvert/traversal/relay/derp"
)

// reportEvery is the least time between two lines about the health of one relay, which it may change as often as it likes.
const reportEvery = 10 * time.Second

// serving is one connection's time.
type serving struct {
	*member
	conn    *Conn
	begin   time.Time
	watch   watch
	restart chan Message // the relay goes away
	leave   time.Time    // when the connection is given up for that; zero if not

	answer <-chan time.Duration // of the ping that is under way
	cancel func()
}

// loop judges the connection whenever something happens that may matter.
func (s *serving) loop() (pause time.Duration, err error) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	defer s.dropPing()
	silence := s.conn.out.silence // of no interest while packets are known to wait for an answer
	var leave <-chan time.Time    // fires at s.leave
	for {
		select {
		case <-timer.C:
		case <-silence:
		case rtt := <-s.answer:
			s.answered(rtt)
		case <-s.kick:
			s.watch.hurry()
		case msg := <-s.restart:
			if s.leave.IsZero() {
				leave = time.After(s.leaveIn(msg))
			}
			continue
		case <-leave:
			return 0, errRestart
		case <-s.conn.done:
			return s.ended()
		case <-s.life.Done():
			return 0, net.ErrClosed
		}
		next, waiting, err := s.judge()
		if err != nil {
			return s.retry.lost(time.Since(s.begin)), err
		}
		timer.Reset(time.Until(next))
		silence = nil
		if !waiting { // else the timer comes when the silence begins to matter
			silence = s.conn.out.silence
		}
	}
}

// ended is for a connection that the other side has ended, or the network.
func (s *serving) ended() (pause time.Duration, err error) {
	select {
	case msg := <-s.restart: // it was the last that came
		if s.leave.IsZero() {
			s.leaveIn(msg)
		}
	default:
	}
	if !s.leave.IsZero() {
		return max(0, time.Until(s.leave)), errRestart
	}
	return s.retry.lost(time.Since(s.begin)), s.conn.reason(nil)
}

// judge acts on what watch says. It returns when to ask it again, and whether packets are waiting for something to come in.
func (s *serving) judge() (next time.Time, waiting bool, err error) {
	for {
		now, since := time.Now(), s.conn.in.waitingSince()
		verdict, next := s.watch.step(now, since, s.conn.in.lastRead())
		switch verdict {
		case watchWait:
			return next, !since.IsZero(), nil
		case watchDead:
			return next, false, errSilent
		}
		s.dropPing()
		if s.answer, s.cancel, err = s.conn.startPing(); err != nil {
			return next, false, err
		}
		s.watch.pinged(now)
	}
}

func (s *serving) dropPing() {
	if s.cancel != nil {
		s.cancel()
		s.answer, s.cancel = nil, nil
	}
}

func (s *serving) answered(rtt time.Duration) {
	s.dropPing()
	s.watch.answered(rtt)
	s.update(func() {
		s.rtt.add(rtt)
		if s.pool.hasLocked(s.member) {
			s.pool.changedLocked()
		}
	})
}

// leaveIn moves traffic to other relays and returns for how long the connection stays: packets on their way still come by it.
func (s *serving) leaveIn(msg Message) time.Duration {
	d := s.retry.restarting(msg.ReconnectIn, time.Since(s.begin))
	s.leave = time.Now().Add(d)
	s.update(func() {
		s.leaving = true
		s.state, s.since = StateLeaving, time.Now()
		s.pool.log.Info("relay restarts", "relay", s.url, "reconnect", d.Round(time.Millisecond))
		if s.pool.hasLocked(s.member) {
			s.pool.changedLocked()
		}
	})
	return d
}

// read takes in what the relay sends until the connection is over.
func (s *serving) read() error {
	var last wgkey.Public
	var told uint64     // value of routed when last was told to the pool
	var until time.Time // for how long that is enough
	for {
		msg, err := s.conn.Recv()
		if err != nil {
			return err
		}
		switch msg.Kind {
		case MessagePacket:
			if len(msg.Packet) > derp.MaxPacket {
				continue
			}
			now, routed := s.conn.in.lastRead(), s.pool.routed.Load()
			if msg.Peer != last || told != routed || now.After(until) {
				s.pool.heard(s.member, msg.Peer, isUrgent(msg.Packet), now)
				last, told, until = msg.Peer, routed, now.Add(time.Second)
			}
			s.pool.in.put(msg.Peer, msg.Packet, s.conn.done)
		case MessageGone:
			s.pool.gone(s.member, msg.Peer, msg.Reason)
		case MessageHealth:
			s.healthChanged(msg.Text)
		case MessageRestarting:
			select {
			case s.restart <- msg:
			default:
			}
		}
	}
}

func (s *serving) healthChanged(text string) {
	s.update(func() {
		if s.health == text {
			return
		}
		s.health = text
		if now := time.Now(); s.reported.IsZero() || now.Sub(s.reported) >= reportEvery {
			s.reported = now
			s.pool.log.Info("relay reports its health", "relay", s.url, "problem", text)
		}
	})
}
