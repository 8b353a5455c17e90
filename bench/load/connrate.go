//go:build linux

package load

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"time"

	"culvert.dev/culvert/bench/report"
)

// ConnRate makes TCP connections in several workers, each worker one after the end of the other. With the echo it is the
// server that ends each, so that the ports of this side are free again at once; without, they stay taken for a minute
// (TIME_WAIT), and thousands per second need net.ipv4.tcp_tw_reuse=1.
type ConnRate struct {
	To      string        // a Server's address and port
	Workers int           // zero: 32
	NoEcho  bool          // end each as soon as it is there, instead of after one echoed byte
	Warmup  time.Duration // goes before, and does not count
	Length  time.Duration // zero: 5 s
	Timeout time.Duration // of one connection, to its end; zero: 5 s
}

// ConnRateResult is what became of the connections that ended within Length, and of those that failed after Warmup. Times
// are in milliseconds.
type ConnRateResult struct {
	Connections  int     `json:"connections"`
	PerSecond    float64 `json:"per_second"`
	Failed       int     `json:"failed"`
	FirstFailure string  `json:"first_failure,omitempty"`
	ConnectP50   float64 `json:"connect_p50_ms"`
	ConnectP99   float64 `json:"connect_p99_ms"`
	EchoP50      float64 `json:"echo_p50_ms,omitempty"` // from the start to the echoed byte
	EchoP99      float64 `json:"echo_p99_ms,omitempty"`
}

// connTimes is one worker's account.
type connTimes struct {
	connect, echo []time.Duration
	failed        int
	first         error
}

func (c ConnRate) withDefaults() (ConnRate, error) {
	if c.Workers == 0 {
		c.Workers = 32
	}
	if c.Length == 0 {
		c.Length = 5 * time.Second
	}
	if c.Timeout == 0 {
		c.Timeout = 5 * time.Second
	}
	if c.Workers < 0 || c.Warmup < 0 || c.Length < 0 || c.Timeout < 0 {
		return c, errors.New("connrate: workers and times are not negative")
	}
	return c, nil
}

// Run makes connections for Warmup and Length. That none succeeded is an error.
func (c ConnRate) Run(ctx context.Context) (r ConnRateResult, err error) {
	if c, err = c.withDefaults(); err != nil {
		return r, err
	}
	to, err := target(c.To)
	if err != nil {
		return r, err
	}
	workers := make([]connTimes, c.Workers)
	begin := time.Now().Add(c.Warmup)
	var wg sync.WaitGroup
	for i := range workers {
		wg.Go(func() { c.work(ctx, to, begin, &workers[i]) })
	}
	wg.Wait()
	if err := ctx.Err(); err != nil {
		return r, err
	}
	r, first := c.summarise(workers)
	if r.Connections == 0 {
		return r, fmt.Errorf("connrate %v: no connection succeeded, %d failed: %w", to, r.Failed, first)
	}
	return r, nil
}

func (c ConnRate) summarise(workers []connTimes) (r ConnRateResult, first error) {
	var connect, echo []time.Duration
	for _, w := range workers {
		connect, echo = append(connect, w.connect...), append(echo, w.echo...)
		r.Failed += w.failed
		if first == nil {
			first = w.first
		}
	}
	if first != nil {
		r.FirstFailure = first.Error()
	}
	r.Connections, r.PerSecond = len(connect), float64(len(connect))/c.Length.Seconds()
	p := report.Percentiles(connect, 50, 99)
	r.ConnectP50, r.ConnectP99 = millis(p[0]), millis(p[1])
	p = report.Percentiles(echo, 50, 99)
	r.EchoP50, r.EchoP99 = millis(p[0]), millis(p[1])
	return r, first
}

// work counts what ends between begin and Length later.
func (c ConnRate) work(ctx context.Context, to netip.AddrPort, begin time.Time, w *connTimes) {
	end := begin.Add(c.Length)
	address := to.String()
	for {
		start := time.Now()
		if start.After(end) || ctx.Err() != nil {
			return
		}
		connected, echoed, err := c.one(ctx, address, start)
		now := time.Now()
		switch {
		case now.Before(begin):
		case err != nil:
			w.failed++
			if w.first == nil {
				w.first = err
			}
		case now.Before(end):
			w.connect = append(w.connect, connected)
			if !c.NoEcho {
				w.echo = append(w.echo, echoed)
			}
		}
		if err != nil {
			sleepUntil(now.Add(time.Millisecond)) // a host that refuses at once is no load to speak of
		}
	}
}

func (c ConnRate) one(ctx context.Context, address string, start time.Time) (connected, echoed time.Duration, err error) {
	d := net.Dialer{Deadline: start.Add(c.Timeout), KeepAlive: -1}
	conn, err := d.DialContext(ctx, "tcp", address)
	if err != nil {
		return 0, 0, err
	}
	defer conn.Close()
	connected = time.Since(start)
	if c.NoEcho {
		return connected, 0, nil
	}
	conn.SetDeadline(start.Add(c.Timeout))
	b := [1]byte{onceService}
	if _, err := conn.Write(b[:]); err != nil {
		return 0, 0, err
	}
	if _, err := io.ReadFull(conn, b[:]); err != nil {
		return 0, 0, fmt.Errorf("await the echo: %w", err)
	}
	echoed = time.Since(start)
	switch _, err := conn.Read(b[:]); {
	case errors.Is(err, io.EOF):
		return connected, echoed, nil
	case err != nil:
		return 0, 0, fmt.Errorf("await the end: %w", err)
	}
	return 0, 0, errors.New("the server sends more than one byte")
}

func millis(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1e6 }
