package probe

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"syscall"
	"time"

	"culvert.dev/culvert/bench/iperf3"
)

// Rate is how fast connections can be made. A connection counts once the server's program has accepted and answered it.
type Rate struct {
	Workers     int     `json:"workers"` // as many connections are under way at once
	Start       float64 `json:"start"`   // seconds from the beginning of the test
	End         float64 `json:"end"`
	Connections int     `json:"connections"`
	Failed      int     `json:"failed"`
	PerSecond   float64 `json:"per_second"`
	Setup       Latency `json:"setup"` // from asking for a connection to having it
}

// String is one line without its end.
func (r Rate) String() string {
	return fmt.Sprintf("[CON] %6.2f-%-6.2f sec  %8d connections  %9.1f/s  set-up p50 %v ms, p99 %v ms  %d failed",
		r.Start, r.End, r.Connections, r.PerSecond, r.Setup.P50, r.Setup.P99, r.Failed)
}

// rateHeader stands above the lines of a test.
const rateHeader = "[ ID] Interval           Connections           Rate      Set-up"

// dialer counts connections that are made one after the other by several workers.
type dialer struct {
	dial     func(ctx context.Context) (net.Conn, error)
	answer   func(ctx context.Context, c net.Conn) error // waits for it and closes the connection
	workers  int
	interval time.Duration // between calls of onInterval; 0: none
	began    time.Time

	mu         sync.Mutex // guards the following
	all, since tally
	firstError error
}

// tally is what there was in a time.
type tally struct {
	setup  histogram
	made   int
	failed int
}

const (
	maxWorkers = 128
	denialTime = 5 * time.Second       // for the server to say that it is busy
	dialTime   = 5 * time.Second       // a connection that takes longer has failed
	pauseTime  = 10 * time.Millisecond // after a failure, so that a server that is gone is not hammered
)

// run makes connections until ctx ends, or for length. Without a single connection the error is that of the first attempt.
func (d *dialer) run(ctx context.Context, length time.Duration, onInterval func(Rate)) (Rate, error) {
	// The end is no deadline, which sockets would know of a moment before ctx does.
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer time.AfterFunc(length, cancel).Stop()
	d.began = time.Now()
	var working sync.WaitGroup
	for range d.workers {
		working.Go(func() {
			for ctx.Err() == nil {
				d.one(ctx)
			}
		})
	}
	if d.interval > 0 {
		d.report(ctx, onInterval, working.Wait)
	}
	working.Wait()
	d.mu.Lock()
	defer d.mu.Unlock()
	result := d.all.rate(d.workers, 0, time.Since(d.began))
	if result.Connections == 0 && d.firstError != nil {
		return result, d.firstError
	}
	return result, nil
}

// report tells of each interval until ctx ends and rest has waited, and then of the last one, if there is much of it.
func (d *dialer) report(ctx context.Context, onInterval func(Rate), rest func()) {
	tick := time.NewTicker(d.interval)
	defer tick.Stop()
	var last time.Duration
	for going := true; going; {
		select {
		case <-ctx.Done():
			rest()
			if going = false; time.Since(d.began)-last < d.interval/10 {
				return
			}
		case <-tick.C:
		}
		d.mu.Lock()
		now := time.Since(d.began)
		r := d.since.rate(d.workers, last, now)
		d.since = tally{}
		d.mu.Unlock()
		last = now
		onInterval(r)
	}
}

// one makes a connection and waits until the server's program has taken it.
func (d *dialer) one(ctx context.Context) {
	within, cancel := context.WithTimeout(ctx, dialTime)
	defer cancel()
	began := time.Now()
	c, err := d.dial(within)
	took := time.Since(began)
	if err == nil {
		err = d.answer(ctx, c)
	}
	switch {
	case ctx.Err() != nil: // cut short by the end of the test
		return
	case err != nil:
		d.failed(ctx, err)
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, t := range []*tally{&d.all, &d.since} {
		t.setup.add(took)
		t.made++
	}
}

func (d *dialer) failed(ctx context.Context, err error) {
	d.mu.Lock()
	d.all.failed++
	d.since.failed++
	if d.firstError == nil {
		d.firstError = err
	}
	d.mu.Unlock()
	pause := time.NewTimer(pauseTime)
	defer pause.Stop()
	select {
	case <-pause.C:
	case <-ctx.Done():
	}
}

// errNotDenied is told by a server that takes a connection for more than it is.
var errNotDenied = errors.New("what listens there answers otherwise than a server of iperf3 does")

// beDenied says that the connection is of no test in progress, waits for the server's denial, and closes it. Stock iperf3 does not look
// at the cookie, and may end by a reset since it has not read it.
func beDenied(ctx context.Context, c net.Conn) error {
	err := talk(ctx, c, iperf3.ProbeCookie)
	if errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) {
		return nil
	}
	return err
}

// beAnswered waits for the byte of the port beside our own server.
func beAnswered(ctx context.Context, c net.Conn) error { return talk(ctx, c, "") }

// talk waits for the one byte that says that a program has accepted the connection, and closes it.
func talk(ctx context.Context, c net.Conn, greeting string) error {
	defer c.Close()
	c.SetDeadline(time.Now().Add(denialTime))
	stop := context.AfterFunc(ctx, func() { c.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	_, err := io.WriteString(c, greeting)
	var answer [1]byte
	if err == nil {
		_, err = io.ReadFull(c, answer[:])
	}
	var timeout net.Error
	if err == nil && answer[0] != denial || errors.As(err, &timeout) && timeout.Timeout() {
		return errNotDenied
	}
	return err
}

// denial is iperf3's ACCESS_DENIED.
const denial = 0xff

func (t *tally) rate(workers int, from, to time.Duration) Rate {
	r := Rate{
		Workers: workers, Start: from.Seconds(), End: to.Seconds(), Connections: t.made, Failed: t.failed, Setup: t.setup.latency(t.made + t.failed),
	}
	if to > from {
		r.PerSecond = float64(t.made) / (to - from).Seconds()
	}
	return r
}
