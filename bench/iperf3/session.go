package iperf3

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

const (
	streamsTimeout = 30 * time.Second // for all streams to connect
	endGrace       = 40 * time.Second // for a client to end its test in; iperf3 gives as much
	keptCounts     = 20_000           // lines for a client that wants the server's output
)

// session is a test of one client, from its cookie on.
type session struct {
	*serverRun
	control *control
	cookie  cookie
	offered chan offer    // connections with the same cookie
	ending  chan struct{} // closed when the test is over but for its last words
	endOnce sync.Once
	over    chan struct{} // closed at the end
	full    atomic.Bool   // it has its streams
	started bool

	params    Params
	test      *test
	datagrams *datagramServer
	start     Start
}

// offer is a connection that may be one of a test's streams.
type offer struct {
	conn   net.Conn
	number int
}

// offer is false for a connection that comes too late. Otherwise it belongs to the test until over is closed.
func (s *session) offer(c net.Conn, number int) bool {
	if s.full.Load() {
		return false
	}
	select {
	case s.offered <- offer{c, number}:
		return true
	default:
		return false
	}
}

// end says that the test is as good as over: clients that come now may wait for it.
func (s *session) end() { s.endOnce.Do(func() { close(s.ending) }) }

// awaitEnd waits for the rest of a test that is ending, so that a client may come back at once. It is false if the test goes on, and for
// a client that has gone meanwhile or speaks before it is asked to.
func (s *session) awaitEnd(c net.Conn) bool {
	if !isClosed(s.ending) {
		return false
	}
	c.SetReadDeadline(time.Now().Add(endPause))
	heard := make(chan struct{})
	var watch sync.WaitGroup
	watch.Go(func() {
		select {
		case <-s.over:
			c.SetReadDeadline(time.Unix(1, 0))
		case <-heard:
		}
	})
	var b [1]byte
	_, err := c.Read(b[:])
	close(heard)
	watch.Wait()
	return errors.Is(err, os.ErrDeadlineExceeded) && isClosed(s.over)
}

// discard closes connections that nobody took.
func (s *session) discard() {
	for {
		select {
		case o := <-s.offered:
			o.conn.Close()
		default:
			return
		}
	}
}

func (s *session) run(ctx context.Context) error {
	// Until the test runs, the end of ctx ends each step at once.
	release := context.AfterFunc(ctx, func() { s.control.SetDeadline(time.Unix(1, 0)); s.control.Close() })
	defer release()
	if err := s.agree(); err != nil {
		return err
	}
	s.test = newTest(s.params, true)
	t := s.test
	t.Interval, t.idle, t.onInterval, t.keep = s.Interval, s.Idle, s.OnInterval, 0
	if t.ServerOutput {
		t.keep = keptCounts / t.connections()
	}
	defer t.close()
	defer s.closeDatagrams()
	said, err := s.gather(ctx)
	if err != nil {
		return err
	}
	if !release() {
		return ErrServerTerminated
	}
	return s.measure(ctx, said)
}

// agree takes the client's parameters, or refuses them.
func (s *session) agree() error {
	if err := s.control.writeState(paramExchange); err != nil {
		return err
	}
	var w wireParams
	err := s.control.readJSON(&w, maxParamsSize)
	if err != nil {
		s.end()
		return fmt.Errorf("read the parameters: %w", err)
	}
	if s.params, err = w.params(); err == nil {
		err = s.limit()
	}
	if err != nil {
		s.end() // before the client hears of it
	}
	var refused *refusal
	if errors.As(err, &refused) {
		s.control.refuse(refused.code, 0)
	} else if err != nil {
		s.control.refuse(codeParams, 0)
	}
	return err
}

// limit checks what this server permits.
func (s *session) limit() error {
	p := &s.params
	asked := p.Rate * int64(p.connections())
	switch {
	case p.Time+p.Omit > s.MaxTime:
		return &refusal{codeDuration, fmt.Sprintf("%v of time: this server permits %v", p.Time+p.Omit, s.MaxTime)}
	case s.MaxRate > 0 && (p.Rate <= 0 || asked > s.MaxRate || asked/p.Rate != int64(p.connections())):
		return &refusal{codeTotalRate, fmt.Sprintf("%d bit/s on each of %d streams: this server permits %d in all", p.Rate, p.connections(), s.MaxRate)}
	}
	return nil
}

// gather connects the streams. From now on the control connection is listened to, as the client may leave at any time.
func (s *session) gather(ctx context.Context) (said <-chan heard, err error) {
	if s.params.udp() {
		if err := s.listenDatagrams(ctx); err != nil {
			var errno syscall.Errno
			errors.As(err, &errno)
			s.end()
			s.control.refuse(codeStreamListen, uint32(errno))
			return nil, err
		}
	}
	if err := s.control.writeState(createStreams); err != nil {
		return nil, err
	}
	said = s.control.listen(s.end) // whatever the client says from now on ends the test
	left := time.NewTimer(streamsTimeout)
	defer left.Stop()
	if s.params.udp() {
		err = s.datagrams.gather(said, left.C)
	} else {
		err = s.gatherTCP(said, left.C)
	}
	if err != nil {
		return nil, fmt.Errorf("wait for %d streams: %w", s.params.connections(), err)
	}
	s.full.Store(true)
	for _, one := range s.test.streams {
		s.start.Connected = append(s.start.Connected, one.ends)
	}
	return said, nil
}

var errNoStreams = fmt.Errorf("not there within %v", streamsTimeout)

// gatherTCP takes the connections with the cookie. They may come out of order here, but not from the listener.
func (s *session) gatherTCP(said <-chan heard, late <-chan time.Time) error {
	var got []offer
	defer func() {
		for _, o := range got {
			o.conn.Close()
		}
	}()
	for len(got) < s.params.connections() {
		select {
		case o := <-s.offered:
			got = append(got, o)
		case h := <-said:
			return s.left(h)
		case <-late:
			return errNoStreams
		}
	}
	slices.SortFunc(got, func(a, b offer) int { return cmp.Compare(a.number, b.number) })
	for i, o := range got {
		if n, ok := o.conn.(interface{ SetNoDelay(bool) error }); ok {
			n.SetNoDelay(s.params.NoDelay)
		}
		withSocket(o.conn, s.params.tune)
		s.test.congestion = congestionOf(o.conn)
		s.test.streams = append(s.test.streams, newStream(i, s.sends(i), o.conn))
	}
	got = nil
	return nil
}

// sends reports whether this end sends on the i-th stream. The client's come first.
func (s *session) sends(i int) bool {
	return s.params.serverSends() && (!s.params.Bidir || i >= s.params.Streams)
}

// left is why a client that said something now does not go on.
func (s *session) left(h heard) error {
	if errors.Is(h.err, io.EOF) {
		return errClosed
	}
	return cmp.Or(h.err, s.control.check(h.state, testEnd), fmt.Errorf("got %v", h.state))
}

var errClosed = errors.New("the client has unexpectedly closed the connection")

// measure runs the test and exchanges results.
func (s *session) measure(ctx context.Context, said <-chan heard) error {
	t := s.test
	accepted := endpointOf(addrText(s.control.RemoteAddr()))
	s.start.Accepted, s.start.Cookie = &accepted, s.cookie.String()
	s.start.describe(&s.params, t)
	if err := s.control.writeState(testStart); err != nil {
		return err
	}
	if s.OnStart != nil {
		s.OnStart(s.start)
	}
	s.started = true
	t.begin()
	err := s.control.writeState(testRunning)
	if err == nil {
		err = s.await(ctx, said)
	}
	s.end()
	s.haltDatagrams()
	t.finish()
	now := readCPU()
	t.endStreams()
	if err != nil {
		return s.result(nil, now, err)
	}
	far, err := s.exchange(ctx, now)
	return s.result(far, now, err)
}

// await returns nil when the client ends the test.
func (s *session) await(ctx context.Context, said <-chan heard) error {
	t := s.test
	limit := s.MaxTime
	if t.Time > 0 {
		limit = min(limit, t.Time+t.Omit)
	}
	state, err := t.run(ctx, said, limit+endGrace)
	switch {
	case errors.Is(err, ErrInterrupted):
		err = ErrServerTerminated
	case errors.Is(err, errTimeUp):
		err = fmt.Errorf("the client does not end the test, %v after the agreed time", endGrace)
	case errors.Is(err, io.EOF):
		return errClosed
	case err == nil:
		if err = s.control.check(state, testEnd); err == nil {
			t.awaitRest(ctx)
		}
		return err
	}
	s.end()
	s.control.timeout = failureGrace
	s.control.writeState(serverTerminate)
	return err
}

// exchange takes the client's results and sends this end's.
func (s *session) exchange(ctx context.Context, now cpuTimes) (*wireResults, error) {
	release := context.AfterFunc(ctx, func() { s.control.Close() })
	defer release()
	s.control.timeout = exchangeTimeout
	if err := s.control.writeState(exchangeResults); err != nil {
		return nil, err
	}
	var far wireResults
	if err := s.control.readJSON(&far, maxResultsSize); err != nil {
		return nil, fmt.Errorf("read the client's results: %w", err)
	}
	if err := far.check(s.test.streams); err != nil {
		return nil, err
	}
	own := s.test.results(now)
	if s.params.ServerOutput {
		var b bytes.Buffer
		(&Result{Start: s.start, Intervals: s.test.intervals, End: s.test.end(&far, now), server: true}).Text(&b)
		own.ServerOutputText = text(b.String())
	}
	if err := s.control.writeJSON(own); err != nil {
		return &far, fmt.Errorf("send the results: %w", err)
	}
	if err := s.control.writeState(displayResults); err != nil {
		return &far, err
	}
	s.control.readState(false) // IPERF_DONE, or the client has gone: it has all it needs
	return &far, nil
}

// result hands the result over and returns err.
func (s *session) result(far *wireResults, now cpuTimes, err error) error {
	if s.OnResult == nil {
		return err
	}
	r := &Result{
		Start: s.start, Intervals: s.test.intervals, End: s.test.end(far, now), Title: s.params.Title, ExtraData: s.params.ExtraData, server: true,
	}
	if err != nil {
		r.Error = err.Error()
	}
	s.OnResult(r, err)
	return err
}
