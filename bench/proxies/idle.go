//go:build linux

package main

import (
	"flag"
	"fmt"
	"os"
	"strings"
	"time"

	"culvert.dev/culvert/internal/lab"
)

func idleName(n int) string { return fmt.Sprintf("%d idle connections", n) }

// idle measures what a freshly started proxy needs for n connections on which nothing moves.
func (w *world) idle(tb lab.TB, c *contender, n int, o options) figures {
	tb.Helper()
	c.start(tb)
	time.Sleep(o.Settle)
	empty := c.memoryMB(tb)
	self, err := os.Executable()
	if err != nil {
		tb.Fatalf("%v", err)
	}
	holder := c.host.Start(tb, nil, self, holdCommand, "-n", fmt.Sprint(n))
	lab.WaitFor(tb, 2*time.Minute, fmt.Sprintf("%s to carry %d connections", c.way, n), func() bool {
		if !holder.Alive() {
			tb.Fatalf("%s: %s", c.way, strings.TrimSpace(holder.Log()))
		}
		return strings.Contains(holder.Log(), held)
	})
	time.Sleep(o.Settle)
	full := c.memoryMB(tb)
	if got := w.far.idle.Load(); got != int64(n) {
		tb.Fatalf("%s: %d of %d connections are left", c.way, got, n)
	}
	holder.Kill()
	lab.WaitFor(tb, time.Minute, string(c.way)+" to end its connections", func() bool { return w.far.idle.Load() == 0 })
	return figures{memoryIdle: empty, memoryMB: full, perIdle: (full - empty) / float64(n) * 1e3}
}

// The holder is an execution of this program inside a client host, as both ends of 10,000 connections are too many files for
// one process.
const (
	holdCommand = "hold"
	held        = "all connections are open"
)

func holdMain(args []string) error {
	fs := flag.NewFlagSet(holdCommand, flag.ExitOnError)
	n := fs.Int("n", 1000, "open `N` connections through the proxy and keep them")
	fs.Parse(args)
	for i := range *n {
		if _, err := open(proxyAddr, idlePort); err != nil {
			return fmt.Errorf("connection %d of %d: %w", i+1, *n, err)
		}
	}
	fmt.Println(held)
	select {} // until it is killed
}
