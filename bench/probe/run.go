package probe

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"syscall"
	"time"

	"culvert.dev/culvert/bench/iperf3"
)

// startTime is how long a server may take until a test has all its connections.
const startTime = 15 * time.Second

var errNoStart = fmt.Errorf("the server did not get the test started within %v", startTime)

// Run measures what an order says and emits what there is to tell, the last of it an EventResult. When ctx ends the results so far are
// told; the error is iperf3.ErrInterrupted then. An error of emit ends the run. Other errors name the target and what to do.
func Run(ctx context.Context, o Order, w Way, emit func(Event) error) error {
	r := &run{order: o, way: w, emit: emit}
	ctx, r.cancel = context.WithCancelCause(ctx)
	defer r.cancel(nil)
	var err error
	if o.Connections {
		err = r.connections(ctx)
	} else {
		err = r.throughput(ctx)
	}
	if r.emitError != nil {
		return r.emitError
	}
	return explain(o.Target, err)
}

// run is one call of Run.
type run struct {
	order  Order
	way    Way
	emit   func(Event) error
	cancel context.CancelCauseFunc

	emitError error
	held      time.Time // until when a server was held; zero for never
}

// tell emits an event, and ends the run when nobody listens any more.
func (r *run) tell(kind, text string, d *Document) {
	if r.emitError != nil {
		return
	}
	if err := r.emit(Event{Event: kind, Text: text, Document: d}); err != nil {
		r.emitError = err
		r.cancel(err)
	}
}

// throughput runs one test of iperf3, and watches round trips beside it.
func (r *run) throughput(ctx context.Context) error {
	document := &Document{}
	var asks *asker
	if r.order.RTT {
		var err error
		if asks, err = r.asker(ctx); err != nil {
			return err
		}
		defer asks.close()
		document.Culvert.RTT = &RoundTrips{Method: asks.name}
		if document.Culvert.RTT.Idle, err = r.idle(ctx, asks); err != nil {
			return err
		}
		r.tell(EventSummary, fmt.Sprintf("RTT idle by %s: %v\n", asks.name, document.Culvert.RTT.Idle), nil)
	}
	load := r.load(ctx, asks)
	client := iperf3.Client{Params: r.order.Params, Network: r.way.Network}
	client.OnStart = func(s iperf3.Start) {
		r.tell(EventStart, text(s.Text), nil)
		load.begin()
	}
	client.OnInterval = func(i iperf3.Interval) {
		r.tell(EventInterval, text(i.Text)+load.interval(i.Sum.Start, i.Sum.End), nil)
	}
	result, err := r.test(ctx, &client)
	loaded := load.end()
	if result == nil {
		return err
	}
	document.Result = result
	summary := text(result.Summary)
	if asks != nil {
		document.Culvert.RTT.Loaded = loaded
		summary += fmt.Sprintf("\nRTT idle by %s:   %v\nRTT loaded by %s: %v\n", asks.name, document.Culvert.RTT.Idle, asks.name, loaded)
	}
	r.tell(EventResult, summary, document)
	return err
}

// test is Client.Run with a limit for getting started. A server that was held a moment ago may still be at its end: stock iperf3 then
// is busy, or does not listen.
func (r *run) test(ctx context.Context, c *iperf3.Client) (*iperf3.Result, error) {
	for {
		result, err := r.attempt(ctx, c)
		passing := errors.Is(err, iperf3.ErrBusy) || errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, syscall.ECONNRESET)
		if result != nil || !passing || time.Since(r.held) > settleTime {
			return result, err
		}
		select {
		case <-time.After(settlePause):
		case <-ctx.Done():
			return nil, iperf3.ErrInterrupted
		}
	}
}

const (
	settleTime  = 3 * time.Second
	settlePause = 50 * time.Millisecond
)

func (r *run) attempt(ctx context.Context, c *iperf3.Client) (*iperf3.Result, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	late := time.AfterFunc(startTime, func() { cancel(errNoStart) })
	defer late.Stop()
	limited := *c
	limited.OnStart = func(s iperf3.Start) {
		late.Stop()
		if c.OnStart != nil {
			c.OnStart(s)
		}
	}
	result, err := limited.Run(ctx)
	if err != nil && context.Cause(ctx) == errNoStart {
		return nil, errNoStart
	}
	return result, err
}

// load watches round trips during a test, but not while it gets up to speed in the time that is omitted.
type load struct {
	ctx    context.Context
	asks   *asker // nil: nothing to watch
	params iperf3.Params

	stop    chan struct{}
	stopped sync.Once
	wg      sync.WaitGroup
	result  Latency
}

func (r *run) load(ctx context.Context, a *asker) *load {
	return &load{ctx: ctx, asks: a, params: r.order.Params, stop: make(chan struct{})}
}

// begin is called when the test starts. The watch ends with the time of the test, before the ends talk about their results.
func (l *load) begin() {
	if l.asks == nil {
		return
	}
	l.wg.Go(func() {
		warm := time.NewTimer(l.params.Omit)
		defer warm.Stop()
		select {
		case <-warm.C:
		case <-l.stop:
			return
		}
		if limit := l.limit(); limit > 0 {
			defer time.AfterFunc(limit, l.halt).Stop()
		}
		l.result = l.asks.watch(l.ctx, l.stop)
	})
}

// limit is the time of the test, 0 where something else ends it.
func (l *load) limit() time.Duration {
	if l.params.Bytes > 0 || l.params.Blocks > 0 {
		return l.params.Time
	}
	return cmp.Or(l.params.Time, iperf3.DefaultTime)
}

func (l *load) halt() { l.stopped.Do(func() { close(l.stop) }) }

// end waits for the last answers.
func (l *load) end() Latency {
	l.halt()
	l.wg.Wait()
	return l.result
}

// interval is the line of an interval, "" where nothing was asked in it.
func (l *load) interval(from, to float64) string {
	if l.asks == nil {
		return ""
	}
	s := l.asks.recent()
	if s.Sent == 0 {
		return ""
	}
	return fmt.Sprintf("[RTT] %6.2f-%-6.2f sec  p50 %v ms  p99 %v ms  %.2g %% of %d lost\n", from, to, s.P50, s.P99, s.Loss(), s.Sent)
}

// connections runs a test of connections a second: to the port beside our own server, else to that of a server which is held by a test.
func (r *run) connections(ctx context.Context) error {
	if r.order.Streams > maxWorkers {
		return fmt.Errorf("%d connections at a time: want at most %d", r.order.Streams, maxWorkers)
	}
	d := &dialer{workers: max(r.order.Streams, 1), interval: cmp.Or(max(r.order.Interval, 0), time.Second)}
	if r.order.Interval < 0 {
		d.interval = 0
	}
	echo, err := r.echoTarget(ctx)
	if err != nil {
		return err
	}
	c := &Connections{Target: cmp.Or(echo, r.order.Target), Intervals: []Rate{}}
	d.dial = func(ctx context.Context) (net.Conn, error) { return r.way.Network.DialContext(ctx, "tcp", c.Target) }
	length := cmp.Or(r.order.Time, iperf3.DefaultTime)
	var rateError error
	count := func(ctx context.Context) {
		r.tell(EventStart, fmt.Sprintf("Connecting to %s, %d at a time\n%s\n", c.Target, d.workers, rateHeader), nil)
		c.Total, rateError = d.run(ctx, length, func(i Rate) {
			c.Intervals = append(c.Intervals, i)
			r.tell(EventInterval, i.String()+"\n", nil)
		})
	}
	if echo != "" {
		d.answer = beAnswered
		count(ctx)
	} else {
		d.answer = beDenied
		err = r.hold(ctx, length, count)
	}
	if c.Total.Connections > 0 {
		summary := fmt.Sprintf("- - - - - - - - - - - - - - - - - - - - - - - - -\n%v\nset-up %s\n", c.Total, c.Total.Setup.times())
		r.tell(EventResult, summary, &Document{Culvert: Added{Connections: c}})
	}
	if err = cmp.Or(err, rateError); err == nil && ctx.Err() != nil {
		err = iperf3.ErrInterrupted
	}
	return err
}

// hold keeps a server busy with a test that carries next to nothing while do runs, so that it denies other connections at once.
func (r *run) hold(ctx context.Context, length time.Duration, do func(ctx context.Context)) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	carrier := iperf3.Client{Network: r.way.Network, Params: iperf3.Params{
		Target: r.order.Target, Time: length + holdMargin, Length: 128, Rate: 8 << 10, Interval: -1,
	}}
	var doing sync.WaitGroup
	var did bool
	carrier.OnStart = func(iperf3.Start) {
		doing.Go(func() {
			do(ctx)
			did = true
			cancel() // the carrier has done its work
		})
	}
	_, err := r.test(ctx, &carrier)
	cancel()
	doing.Wait()
	r.held = time.Now()
	if did && errors.Is(err, iperf3.ErrInterrupted) {
		return nil
	}
	return err
}

// holdMargin is for what comes before and after, and for times in whole seconds.
const holdMargin = 5 * time.Second
