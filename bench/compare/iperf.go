//go:build linux

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"culvert.dev/culvert/internal/lab"
)

const iperfPort = 5201

// iperfResult is what arrived, by iperf3's account of the receiver.
type iperfResult struct {
	bytes, seconds float64
	back           float64 // bytes of the other direction of --bidir
}

// startIperf runs iperf3's server in the world.
func (c *contender) startIperf(tb lab.TB) {
	tb.Helper()
	// It must not answer UDP from another of the server's addresses.
	c.S.Start(tb, nil, "iperf3", "-s", "-B", c.server(), "-p", strconv.Itoa(iperfPort))
	lab.WaitFor(tb, 10*time.Second, "iperf3 to listen", func() bool { return c.S.Bound("tcp", iperfPort) })
}

// iperf runs iperf3 in the client to its end.
func (c *contender) iperf(tb lab.TB, args ...string) iperfResult {
	tb.Helper()
	args = append([]string{"-c", c.server(), "-p", strconv.Itoa(iperfPort), "-J"}, args...)
	var r iperfResult
	var out string
	var err error
	// The server may still be at the end of the run before, and a flood may have lost its answer.
	lab.Poll(10*time.Second, func() bool {
		out, err = c.C.Exec("", "iperf3", args...)
		if err == nil || out != "" {
			r, err = readIperf(out, slices.Contains(args, "--bidir"))
		}
		return err == nil || !strings.Contains(out, "busy")
	})
	if err != nil {
		if len(out) > 300 { // its JSON says no more than err
			out = ""
		}
		tb.Fatalf("%s: iperf3 %s: %v\n%s", c.name, strings.Join(args, " "), err, out)
	}
	return r
}

// readIperf reads the JSON that iperf3 prints.
func readIperf(out string, bidir bool) (r iperfResult, err error) {
	type sum struct {
		Bytes   float64
		Seconds float64
	}
	var doc struct {
		Error string
		End   struct {
			There sum `json:"sum_received"`
			Back  sum `json:"sum_received_bidir_reverse"`
		}
	}
	if err := json.Unmarshal([]byte(out), &doc); err != nil {
		return r, fmt.Errorf("read iperf3's output: %w", err)
	}
	if doc.Error != "" {
		return r, errors.New(doc.Error)
	}
	r = iperfResult{bytes: doc.End.There.Bytes, seconds: doc.End.There.Seconds, back: doc.End.Back.Bytes}
	if r.bytes <= 0 || r.seconds <= 0 || bidir && r.back <= 0 {
		return r, errors.New("nothing arrived")
	}
	return r, nil
}

// duration is iperf3's option for the time of a run, which it knows in whole seconds only; a shorter one moves some data instead.
func (o options) duration() []string {
	if o.Length >= time.Second {
		return []string{"-t", strconv.Itoa(int(o.Length.Seconds()))}
	}
	return []string{"-n", "16M"}
}

// reverse is iperf3's option for the direction.
func (d direction) reverse() []string {
	if d == down {
		return []string{"-R"}
	}
	return nil
}

// tcp moves data by iperf3 over some streams.
func (c *contender) tcp(tb lab.TB, d direction, streams int) values {
	tb.Helper()
	args := append(c.opts.duration(), "-P", strconv.Itoa(streams))
	before := c.meter(tb)
	r := c.iperf(tb, append(args, d.reverse()...)...)
	cpu := c.carried(tb, before, d, r.bytes)
	return values{throughput: r.bytes * 8 / 1e6 / r.seconds, cpuPerGB: cpu.Seconds() / (r.bytes / 1e9)}
}

// datagrams sends as many as iperf3 can, each by a system call of its own.
func (c *contender) datagrams(tb lab.TB, d direction, size int) values {
	tb.Helper()
	seconds := strconv.Itoa(max(1, int(c.opts.Length.Seconds())))
	args := []string{"-u", "-b", "0", "-l", strconv.Itoa(size), "-t", seconds}
	before := c.meter(tb)
	r := c.iperf(tb, append(args, d.reverse()...)...)
	cpu := c.carried(tb, before, d, r.bytes)
	packets := r.bytes / float64(size)
	return values{delivered: packets / r.seconds, cpuEach: cpu.Seconds() * 1e6 / packets}
}
