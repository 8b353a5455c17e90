//go:build linux

package main

import (
	"strconv"
	"syscall"
	"time"

	"culvert.dev/culvert/internal/lab"
)

const (
	bothWays    = 8 // streams up, and as many down
	tcpFlows    = 1000
	udpMappings = 5000
	megabyte    = 1e6
)

// idle is what an exit needs to which one peer is connected.
func (c *contender) idle(tb lab.TB) values {
	tb.Helper()
	time.Sleep(c.opts.Settle)
	return values{memory: float64(c.usage(tb).rss) / megabyte}
}

// streams is the most that an exit has needed since its start, after streams in both directions.
func (c *contender) streams(tb lab.TB) values {
	tb.Helper()
	before := c.meter(tb)
	r := c.iperf(tb, append(c.opts.duration(), "--bidir", "-P", strconv.Itoa(bothWays))...)
	c.carried(tb, before, up, r.bytes)
	c.carried(tb, before, down, r.back)
	return values{memoryPeak: float64(c.usage(tb).peak) / megabyte}
}

// hold is what an exit needs for flows on which nothing moves, beyond what it needs without.
func (c *contender) hold(tb lab.TB, network string, flows int) values {
	tb.Helper()
	c.needServer()
	time.Sleep(c.opts.Settle)
	empty := c.usage(tb).rss
	holder := c.C.Start(tb, nil, self(tb), loadCommand, "hold", "-to", lab.Port(c.server(), serverPort), "-network", network, "-flows", strconv.Itoa(flows))
	ready(tb, holder)
	time.Sleep(c.opts.Settle)
	full := c.usage(tb).rss
	if err := holder.Signal(syscall.SIGTERM); err != nil {
		tb.Fatalf("%s: %v: %s", c.name, err, holder.Log())
	}
	lab.WaitFor(tb, time.Minute, "the holder to end", func() bool { return !holder.Alive() })
	var r struct{ Held, Alive int }
	if err := lastLine(holder.Log(), &r); err != nil {
		tb.Fatalf("%s: hold: %v\n%s", c.name, err, holder.Log())
	}
	if r.Held != flows || r.Alive < flows*99/100 {
		tb.Fatalf("%s: of %d %s flows %d were open and %d alive at the end", c.name, flows, network, r.Held, r.Alive)
	}
	if r.Alive < flows {
		c.remark("Of %d %s flows by %s only %d had an answer at the end.", flows, network, c.name, r.Alive)
	}
	return values{growth: float64(full-empty) / megabyte}
}
