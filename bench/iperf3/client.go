package iperf3

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"time"
)

const (
	exchangeTimeout = 30 * time.Second // for one step of the control connection: the far end may be behind seconds of queues
	connectTimeout  = 10 * time.Second
	connectPause    = time.Second // before a datagram that opens a stream is repeated
	maxCounts       = 200_000     // lines in a result, of intervals: those of a day with one stream
)

// Client runs tests against a server.
type Client struct {
	Params
	Network Network // nil means Host{}
	Logger  *slog.Logger

	OnStart    func(Start)    // the streams are connected
	OnInterval func(Interval) // after each
}

// Run does one test. When ctx ends during it, or the server ends it, the result has what was counted so far, and the error is
// ErrInterrupted, ErrServerTerminated or the cause. The result is nil if the test never started.
func (c *Client) Run(ctx context.Context) (*Result, error) {
	p, err := c.Params.complete()
	if err != nil {
		return nil, fmt.Errorf("iperf3: %w", err)
	}
	r := &clientRun{Client: c, params: p, cookie: newCookie()}
	if r.network = c.Network; r.network == nil {
		r.network = Host{}
	}
	r.logger = cmp.Or(c.Logger, slog.New(slog.DiscardHandler))
	result, err := r.run(ctx)
	if err != nil {
		err = fmt.Errorf("iperf3 %s: %w", p.Target, err)
	}
	return result, err
}

// clientRun is one test.
type clientRun struct {
	*Client
	params  Params
	cookie  cookie
	network Network
	logger  *slog.Logger
	control *control
	test    *test
	start   Start
}

func (r *clientRun) run(ctx context.Context) (*Result, error) {
	conn, err := r.dial(ctx, "tcp", false)
	switch {
	case ctx.Err() != nil:
		if err == nil {
			conn.Close()
		}
		return nil, ErrInterrupted
	case err != nil:
		return nil, err
	}
	defer conn.Close()
	r.control = &control{conn, exchangeTimeout}
	r.chooseLength()
	r.test = newTest(r.params, false)
	r.test.onInterval, r.test.keep = r.OnInterval, maxCounts/(r.params.connections()+1)
	defer r.test.close()

	// Until the test runs, an interruption cuts the connection, which ends each step at once.
	release := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)); conn.Close() })
	err = r.prepare(ctx)
	if !release() || err != nil {
		if ctx.Err() != nil {
			err = ErrInterrupted
		}
		return nil, err
	}
	return r.measure(ctx)
}

// chooseLength is for UDP, whose datagrams should fit into packets.
func (r *clientRun) chooseLength() {
	if r.params.Length > 0 {
		return
	}
	r.params.Length = otherUDPLength
	if mss := mssOf(r.control.Conn); mss >= minUDPLength {
		r.params.Length = min(mss, maxUDPLength)
	} else if _, ok := r.control.Conn.(*net.TCPConn); ok {
		r.params.Length = hostUDPLength
	}
}

// prepare comes to the point where the streams are connected and the server says TEST_RUNNING.
func (r *clientRun) prepare(ctx context.Context) error {
	if err := r.control.write(r.cookie[:]); err != nil {
		return fmt.Errorf("send the cookie: %w", err)
	}
	if err := r.control.expect(paramExchange); err != nil {
		return err
	}
	if err := r.control.writeJSON(r.params.wire()); err != nil {
		return fmt.Errorf("send the parameters: %w", err)
	}
	if err := r.control.expect(createStreams); err != nil {
		return err
	}
	for i := range r.params.connections() {
		s, err := r.connect(ctx, i)
		if err != nil {
			return r.why(fmt.Errorf("connect stream %d: %w", i+1, err))
		}
		r.test.streams = append(r.test.streams, s)
	}
	if err := r.control.expect(testStart); err != nil {
		return err
	}
	return r.control.expect(testRunning)
}

// why waits for a moment for what the server has to say about an error.
func (r *clientRun) why(err error) error {
	r.control.timeout = failureGrace
	defer func() { r.control.timeout = exchangeTimeout }()
	if said := r.control.expect(testStart); said != nil && !errors.Is(said, os.ErrDeadlineExceeded) {
		var refused *ServerError
		if errors.As(said, &refused) || errors.Is(said, ErrServerTerminated) {
			return said
		}
	}
	return err
}

// dial connects to the server.
func (r *clientRun) dial(ctx context.Context, network string, tuned bool) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	if n, ok := r.network.(tunedNetwork); ok && tuned {
		return n.dialTuned(ctx, network, r.params.Target, func(fd uintptr) { r.params.tune(int(fd)) })
	}
	return r.network.DialContext(ctx, network, r.params.Target)
}

// connect makes the i-th stream. Those on which the client sends come first.
func (r *clientRun) connect(ctx context.Context, i int) (*stream, error) {
	sender := r.params.clientSends() && i < r.params.Streams
	c, err := r.dial(ctx, r.params.Protocol, true)
	if err != nil {
		return nil, err
	}
	s := newStream(i, sender, c)
	if r.params.udp() {
		s.send = c.Write
		growReadBuffer(c, r.params.Window)
		err = openDatagrams(ctx, c)
	} else {
		err = r.openTCP(c)
	}
	if err != nil {
		c.Close()
		return nil, err
	}
	r.logger.Debug("iperf3: stream connected", "stream", s.id, "sends", sender, "local", addrText(c.LocalAddr()), "remote", addrText(c.RemoteAddr()))
	r.start.Connected = append(r.start.Connected, s.ends)
	return s, nil
}

func (r *clientRun) openTCP(c net.Conn) error {
	if n, ok := c.(interface{ SetNoDelay(bool) error }); ok {
		n.SetNoDelay(r.params.NoDelay)
	}
	r.test.congestion = congestionOf(c)
	c.SetWriteDeadline(time.Now().Add(exchangeTimeout))
	defer c.SetWriteDeadline(time.Time{})
	_, err := c.Write(r.cookie[:])
	return err
}

// openDatagrams makes the server take note of a stream. Datagrams get lost, so it repeats itself.
func openDatagrams(ctx context.Context, c net.Conn) error {
	defer c.SetDeadline(time.Time{})
	stop := context.AfterFunc(ctx, func() { c.Close() })
	defer stop()
	began := time.Now()
	b := make([]byte, maxDatagram)
	for message := connectMessage(); time.Since(began) < connectTimeout; message = connectAgain(time.Since(began)) {
		c.SetDeadline(time.Now().Add(connectPause))
		if _, err := c.Write(message); err != nil {
			return err
		}
		for {
			n, err := c.Read(b)
			if errors.Is(err, os.ErrDeadlineExceeded) {
				break
			}
			if err != nil {
				return err
			}
			if isConnectAnswer(b[:n]) { // others are of the test already: it may run when the last stream is open
				return nil
			}
		}
	}
	return fmt.Errorf("no answer over UDP within %v", connectTimeout)
}

// measure runs the test and collects the results.
func (r *clientRun) measure(ctx context.Context) (*Result, error) {
	t := r.test
	r.describe()
	if r.OnStart != nil {
		r.OnStart(r.start)
	}
	t.begin()
	limit := time.Duration(0)
	if t.Time > 0 {
		limit = t.Omit + t.Time
	}
	said := r.control.listen(func() {})
	state, err := t.run(ctx, said, limit)
	t.finish()
	now := readCPU()
	if !errors.Is(err, errTimeUp) {
		return r.early(state, err, now)
	}
	far, err := r.exchange(ctx, said, now)
	if err != nil {
		if ctx.Err() != nil {
			err = ErrInterrupted
		}
		return r.result(nil, now, err), err
	}
	return r.result(far, now, nil), nil
}

// early ends a test that did not come to its end.
func (r *clientRun) early(s state, err error, now cpuTimes) (*Result, error) {
	if errors.Is(err, ErrInterrupted) || errors.Is(err, ErrIdle) {
		r.control.timeout = failureGrace
		r.control.writeState(clientTerminate)
	}
	switch {
	case errors.Is(err, io.EOF):
		err = errors.New("the server has unexpectedly closed the connection")
	case err == nil:
		err = cmp.Or(r.control.check(s, exchangeResults), fmt.Errorf("got %v while the test runs", s))
	}
	return r.result(nil, now, err), err
}

// exchange ends a test with the server.
func (r *clientRun) exchange(ctx context.Context, said <-chan heard, now cpuTimes) (*wireResults, error) {
	release := context.AfterFunc(ctx, func() { r.control.Close() })
	defer release()
	if err := r.control.writeState(testEnd); err != nil {
		return nil, err
	}
	r.control.SetReadDeadline(time.Now().Add(exchangeTimeout))
	h := <-said
	if h.err != nil {
		return nil, fmt.Errorf("wait for %v: %w", exchangeResults, h.err)
	}
	if err := r.control.check(h.state, exchangeResults); err != nil {
		return nil, err
	}
	if err := r.control.writeJSON(r.test.results(now)); err != nil {
		return nil, fmt.Errorf("send the results: %w", err)
	}
	limit := maxResultsSize
	if r.params.ServerOutput {
		limit = maxOutputSize
	}
	var far wireResults
	if err := r.control.readJSON(&far, limit); err != nil {
		return nil, fmt.Errorf("read the server's results: %w", err)
	}
	if err := far.check(r.test.streams); err != nil {
		return nil, err
	}
	if err := r.control.expect(displayResults); err != nil {
		return nil, err
	}
	if err := r.control.writeState(done); err != nil {
		return nil, err
	}
	r.control.timeout = failureGrace
	r.control.readState(false) // until the server has closed, it takes no other test
	return &far, nil
}

// describe fills in the start.
func (r *clientRun) describe() {
	s := &r.start
	endpoint := endpointOf(r.params.Target)
	s.ConnectingTo = &endpoint
	s.Cookie = r.cookie.String()
	s.describe(&r.params, r.test)
	if !r.params.udp() {
		s.DefaultMSS = mssOf(r.control.Conn)
	}
}

func (r *clientRun) result(far *wireResults, now cpuTimes, err error) *Result {
	result := &Result{
		Start: r.start, Intervals: r.test.intervals, End: r.test.end(far, now), Title: r.params.Title, ExtraData: r.params.ExtraData,
	}
	if err != nil {
		result.Error = err.Error()
	}
	if far != nil && r.params.ServerOutput {
		result.ServerOutputText = string(far.ServerOutputText)
		if len(far.ServerOutputJSON) > 0 {
			result.ServerOutputJSON = far.ServerOutputJSON
		}
	}
	return result
}

// newStream returns the i-th stream, on a connection.
func newStream(i int, sender bool, c net.Conn) *stream {
	s := &stream{id: streamID(i), sender: sender, conn: c}
	s.ends = connected(s.id, c.LocalAddr(), c.RemoteAddr())
	c.SetDeadline(time.Time{})
	return s
}

// growReadBuffer is for receivers of datagrams: the buffer must hold what comes in while the receiver is not running, or the test
// would measure the scheduler. The system may grant less.
func growReadBuffer(c any, window int) {
	if b, ok := c.(interface{ SetReadBuffer(int) error }); ok {
		b.SetReadBuffer(cmp.Or(window, 1<<20))
	}
}
