package iperf3

import (
	"context"
	"crypto/rand"
	"errors"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	streams "culvert.dev/culvert/internal/stream"
)

const (
	// failureGrace is how long a stream's error waits for the control connection to say why.
	failureGrace = 2 * time.Second
	defaultIdle  = 2 * time.Minute
	restPause    = 250 * time.Millisecond // without data, after which a client's is all in
	restTime     = 10 * time.Second       // for all of it
)

// test is a test that runs, at either end. Its streams have goroutines of their own; everything else is done by one, in run.
type test struct {
	Params
	server     bool
	idle       time.Duration
	onInterval func(Interval)
	keep       int // intervals to keep; negative for all

	streams    []*stream
	payload    []byte // one block, of a sender
	epoch      time.Time
	stop       chan struct{} // closed when senders must end
	stopOnce   sync.Once
	full       chan struct{} // closed when the bytes or blocks that were asked for are through
	fullOnce   sync.Once
	failed     chan error // the first error of a stream
	senders    sync.WaitGroup
	all        sync.WaitGroup
	sending    atomic.Int64 // senders that have not ended
	claimed    atomic.Int64 // blocks that senders took
	arrived    atomic.Int64 // bytes that receivers got, for the same purpose
	moved      atomic.Int64 // bytes in both directions
	omitting   atomic.Bool
	congestion string
	cpuStart   cpuTimes

	// The following belong to run.
	start     time.Time // what times in results count from
	reported  time.Time
	ended     time.Time
	intervals []Interval
}

func newTest(p Params, server bool) *test {
	return &test{
		Params: p, server: server, keep: -1, idle: defaultIdle,
		epoch: time.Now(), stop: make(chan struct{}), full: make(chan struct{}), failed: make(chan error, 1), cpuStart: readCPU(),
	}
}

// fillPayload makes the block that senders send: bytes that nothing on the way can compress, or iperf3's repeating pattern.
func (t *test) fillPayload() {
	t.payload = make([]byte, t.Length)
	if !t.RepeatingPayload {
		rand.Read(t.payload)
		return
	}
	for i := range t.payload {
		t.payload[i] = '0' + byte(i%10)
	}
}

// begin starts the streams.
func (t *test) begin() {
	now := time.Now()
	t.start, t.reported = now, now
	t.omitting.Store(t.Omit > 0)
	t.fillPayload()
	for _, s := range t.streams {
		if s.sender {
			t.sending.Add(1)
		}
	}
	for _, s := range t.streams {
		s.tcp.begin(s)
		switch {
		case s.sender:
			t.all.Add(1)
			t.senders.Go(func() {
				defer t.all.Done()
				send := t.sendTCP
				if t.udp() {
					send = t.sendDatagrams
				}
				if err := send(s); err != nil {
					t.ranInto(err)
				} else {
					t.sentAll()
				}
			})
		case s.conn != nil && t.udp():
			t.all.Go(func() { t.ranInto(t.receiveDatagrams(s)) })
		case s.conn != nil:
			t.all.Go(func() { t.ranInto(t.receiveTCP(s)) })
		}
	}
}

// ranInto notes why a stream ended.
func (t *test) ranInto(err error) {
	if err == nil || isClosed(t.stop) {
		return
	}
	select {
	case t.failed <- err:
	default:
	}
}

// limit is how many blocks the client waits for; 0 means that time ends the test.
func (t *test) limit() int64 {
	if t.server {
		return 0
	}
	return t.amount()
}

// amount is how many blocks a test is to have; 0 if that is not agreed.
func (t *test) amount() int64 {
	if t.Bytes > 0 {
		return (t.Bytes + int64(t.Length) - 1) / int64(t.Length)
	}
	return t.Blocks
}

// awaitRest waits for what is under way when a client that was to send an amount says that it has: its word may overtake its data, and
// a short test would be measured as nothing. It gives up when nothing comes in any more, or it takes too long.
func (t *test) awaitRest(ctx context.Context) {
	if t.amount() == 0 || t.serverSends() {
		return
	}
	look := time.NewTicker(restPause / 50)
	defer look.Stop()
	began := time.Now()
	last, seen := began, int64(-1)
	for now := began; now.Sub(last) < restPause && now.Sub(began) < restTime && ctx.Err() == nil; now = <-look.C {
		got := int64(0)
		for _, s := range t.streams {
			got += s.read().bytes - s.base.bytes
		}
		if got != seen {
			last, seen = now, got
		}
		if got >= t.amount()*int64(t.Length) {
			break
		}
	}
	t.ended = last
}

// claim reports whether there is one more block to send.
func (t *test) claim() bool {
	limit := t.limit()
	return limit == 0 || t.omitting.Load() || t.claimed.Add(1) <= limit
}

// sentAll is called by senders that have no more to send.
func (t *test) sentAll() {
	if t.sending.Add(-1) == 0 && t.limit() > 0 {
		t.fullOnce.Do(func() { close(t.full) })
	}
}

// received counts what came in, towards the end of the test too.
func (t *test) received(n int) {
	t.moved.Add(int64(n))
	limit := t.limit()
	if limit == 0 || t.omitting.Load() {
		return
	}
	want := limit * int64(t.Length)
	if t.Bytes > 0 {
		want = t.Bytes
	}
	if t.arrived.Add(int64(n)) >= want {
		t.fullOnce.Do(func() { close(t.full) })
	}
}

// heard is what the control connection said.
type heard struct {
	state state
	err   error
}

// listen waits for the next state while a test runs. first is called as soon as something is heard.
func (c *control) listen(first func()) <-chan heard {
	ch := make(chan heard, 1)
	go func() {
		s, err := c.readState(true)
		first()
		ch <- heard{s, err}
	}()
	return ch
}

var errTimeUp = errors.New("the time is up")

// run waits for the end of the test and reports intervals until then. It returns what the control connection said, or errTimeUp
// after limit or when the client has what it asked for, or another error.
func (t *test) run(ctx context.Context, control <-chan heard, limit time.Duration) (state, error) {
	finish := t.start.Add(limit)
	omit, tick, end, grace := newAlarm(t.Omit), newAlarm(t.nextTick(finish, limit)), newAlarm(limit), newAlarm(0)
	defer func() { omit.Stop(); tick.Stop(); end.Stop(); grace.Stop() }()
	idle := make(chan struct{})
	watch := streams.NewWatch(t.idle, t.moved.Load, func() { close(idle) })
	defer watch.Stop()
	var failure error
	for {
		select {
		case <-ctx.Done():
			return 0, ErrInterrupted
		case h := <-control:
			return h.state, h.err
		case <-end.C:
			return 0, errTimeUp
		case <-t.full:
			return 0, errTimeUp
		case <-idle:
			return 0, ErrIdle
		case failure = <-t.failed:
			grace.Reset(failureGrace)
		case <-grace.C:
			return 0, failure
		case <-omit.C:
			t.endOmit(time.Now())
			tick.Reset(t.nextTick(finish, limit))
		case <-tick.C:
			t.report(time.Now())
			tick.Reset(t.nextTick(finish, limit))
		}
	}
}

// newAlarm is a timer that never goes off if d is not positive.
func newAlarm(d time.Duration) *time.Timer {
	if d <= 0 {
		d = 1<<63 - 1
	}
	return time.NewTimer(d)
}

// nextTick is when the next interval ends, without drift. One that would end with the test, or nearly, is left to finish.
func (t *test) nextTick(finish time.Time, limit time.Duration) time.Duration {
	if t.Interval <= 0 {
		return 1<<63 - 1
	}
	since := time.Since(t.start) + t.Interval/20
	next := t.start.Add((since/t.Interval + 1) * t.Interval)
	if limit > 0 && next.After(finish.Add(-t.Interval/20)) {
		return 1<<63 - 1
	}
	return time.Until(next)
}

// endOmit forgets what was counted so far.
func (t *test) endOmit(now time.Time) {
	if now.Sub(t.reported) > t.Interval/10 {
		t.report(now)
	}
	t.claimed.Store(0)
	t.arrived.Store(0)
	t.omitting.Store(false)
	t.start, t.reported = now, now
	for _, s := range t.streams {
		s.restart()
		s.base = s.read()
		s.last = s.base
		s.tcp.restart(s)
	}
}

// finish ends sending and takes the final figures. Receivers go on until close, as what they get from now on does not count.
func (t *test) finish() {
	if t.ended.IsZero() {
		t.ended = time.Now()
	}
	t.halt()
	past := time.Unix(1, 0)
	for _, s := range t.streams {
		if !s.sender {
			s.final = s.read()
		} else if s.conn != nil {
			s.conn.SetWriteDeadline(past)
		}
	}
	t.senders.Wait()
	for _, s := range t.streams {
		if s.sender {
			s.final = s.read()
		}
	}
	t.report(t.ended)
}

// endStreams tells receivers of TCP that nothing more comes: iperf3's client waits for whole blocks, even when the test is over.
func (t *test) endStreams() {
	for _, s := range t.group(true) {
		if c, ok := s.conn.(interface{ CloseWrite() error }); ok {
			c.CloseWrite()
		}
	}
}

// halt makes senders end, before their next block.
func (t *test) halt() { t.stopOnce.Do(func() { close(t.stop) }) }

// close ends the streams, without waiting for what is under way, and their goroutines.
func (t *test) close() {
	t.halt()
	for _, s := range t.streams {
		if s.conn != nil {
			abort(s.conn)
		}
	}
	t.all.Wait()
}

// abort closes a connection by a reset if it can: data that is queued would disturb what is measured next.
func abort(c net.Conn) {
	switch c := c.(type) {
	case interface{ Abort() error }:
		c.Abort()
		return
	case *net.TCPConn:
		c.SetLinger(0)
	}
	c.Close()
}

// group returns the streams of one direction.
func (t *test) group(sender bool) []*stream {
	return slices.DeleteFunc(slices.Clone(t.streams), func(s *stream) bool { return s.sender != sender })
}
