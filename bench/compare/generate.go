//go:build linux

package main

import (
	"encoding/json"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	loadgen "culvert.dev/culvert/bench/load"
	"culvert.dev/culvert/internal/lab"
)

// loadCommand makes this program one of the generators of bench/load, for the hosts of a world.
const loadCommand = "load"

const (
	serverPort = 5400
	workers    = 32
)

func self(tb lab.TB) string {
	tb.Helper()
	path, err := os.Executable()
	if err != nil {
		tb.Fatalf("%v", err)
	}
	return path
}

// needServer runs the far side of the generators in the world.
func (c *contender) needServer() {
	if !c.served {
		ready(c.tb, c.S.Start(c.tb, nil, self(c.tb), loadCommand, "serve", "-listen", lab.Port(c.server(), serverPort)))
		c.served = true
	}
}

// ready waits until a command of bench/load says that it is.
func ready(tb lab.TB, p *lab.Process) {
	tb.Helper()
	lab.WaitFor(tb, time.Minute, "a generator to be ready", func() bool {
		if !p.Alive() {
			tb.Fatalf("a generator ended at once: %s", p.Log())
		}
		return strings.Contains(p.Log(), `"ready":true`)
	})
}

// generate runs a command of bench/load in the client to its end and reads its result, the last line that it prints.
func (c *contender) generate(tb lab.TB, result any, command string, args ...string) {
	tb.Helper()
	c.needServer()
	args = append([]string{loadCommand, command, "-to", lab.Port(c.server(), serverPort)}, args...)
	out, err := c.C.Exec("", self(tb), args...)
	if err == nil {
		err = lastLine(out, result)
	}
	if err != nil {
		tb.Fatalf("%s: %s: %v\n%s", c.name, strings.Join(args, " "), err, out)
	}
}

func lastLine(out string, result any) error {
	lines := strings.Split(strings.TrimSpace(out), "\n")
	if err := json.Unmarshal([]byte(lines[len(lines)-1]), result); err != nil {
		return fmt.Errorf("read its result: %w", err)
	}
	return nil
}

// flood sends datagrams for a time, at a rate; 0 for as many as will go.
func (c *contender) flood(tb lab.TB, d direction, size int, rate float64, length time.Duration) (r loadgen.FloodResult, cpu time.Duration) {
	tb.Helper()
	before := c.meter(tb)
	c.generate(tb, &r, "flood", "-direction", string(d), "-size", strconv.Itoa(size), "-rate", strconv.FormatFloat(rate, 'f', 0, 64),
		"-warmup", (length / 10).String(), "-length", length.String())
	if r.Size != size || r.Direction != loadgen.Direction(d) || r.Corrupt > 0 {
		tb.Fatalf("%s: the flood was another than was asked for, or arrived otherwise than it was sent: %+v", c.name, r)
	}
	cpu = c.carried(tb, before, d, float64(r.Received)*float64(size))
	if r.SocketDrops > 0 {
		c.remark("The receiver was too slow for some messages of the flood of %d B, %s, by %s: the exit may carry more.", size, d, c.name)
	}
	return r, cpu
}

func (c *contender) flooded(tb lab.TB, d direction, size int) values {
	tb.Helper()
	r, cpu := c.flood(tb, d, size, 0, c.opts.Length)
	return values{delivered: r.PerSecond, cpuEach: cpu.Seconds() * 1e6 / float64(r.Received)}
}

// overload looks for the rate at which most arrives, in short steps, takes that rate's goodput, and then offers five times as much.
func (c *contender) overload(tb lab.TB, d direction, size int) values {
	tb.Helper()
	const (
		saturated = 0.6 // less of the offer arrives, or even leaves
		times     = 5
	)
	first, enough, step := 20e3, 2, max(c.opts.Length/10, 100*time.Millisecond) // first in packets/s
	if c.opts.Quick {
		first, enough = 500e3, 1
	}
	best, most, worse := 0.0, 0.0, 0
	for rate := first; worse < enough && rate < 1e8; rate *= 1.6 {
		r, _ := c.flood(tb, d, size, rate, step)
		if r.PerSecond > most {
			best, most = rate, r.PerSecond
		}
		if r.PerSecond < saturated*rate {
			worse++
		} else {
			worse = 0
		}
	}
	at, _ := c.flood(tb, d, size, best, c.opts.Length)
	over, _ := c.flood(tb, d, size, times*at.PerSecond, c.opts.Length)
	return values{peak: at.PerSecond, overloaded: over.PerSecond, remains: over.PerSecond / at.PerSecond, offered: over.SentPerSecond / at.PerSecond}
}

// connections makes connections as fast as it can.
func (c *contender) connections(tb lab.TB) values {
	tb.Helper()
	var r loadgen.ConnRateResult
	before := c.meter(tb)
	c.generate(tb, &r, "connrate", "-workers", strconv.Itoa(workers), "-length", c.opts.Length.String())
	if r.Failed > 0 {
		c.remark("Of the connections by %s some failed, the first with: %s.", c.name, r.FirstFailure)
	}
	const least = 4 * 40 // bytes each way: SYN, an acknowledgement, data, FIN
	cpu := c.carried(tb, before, up, least*float64(r.Connections))
	return values{perSecond: r.PerSecond, cpuEach: cpu.Seconds() * 1e6 / float64(r.Connections),
		failed: 100 * float64(r.Failed) / float64(r.Failed+r.Connections)}
}

// roundTrips probes, beside a TCP stream if there is a direction for it.
func (c *contender) roundTrips(tb lab.TB, beside direction) values {
	tb.Helper()
	var r loadgen.RTTResult
	probe := func() {
		c.generate(tb, &r, "rtt", "-every", (5 * time.Millisecond).String(), "-length", c.opts.Length.String())
	}
	if beside == "" {
		probe()
	} else {
		c.beside(tb, beside, probe)
	}
	return values{p50: r.P50, p99: r.P99, lost: 100 * float64(r.Lost) / float64(r.Sent)}
}

// beside calls f while a TCP stream is at full speed, and fails unless it was so all the time.
func (c *contender) beside(tb lab.TB, d direction, f func()) {
	tb.Helper()
	const forLong = "3600"
	args := append([]string{"-c", c.server(), "-p", strconv.Itoa(iperfPort), "-t", forLong}, d.reverse()...)
	before := c.meter(tb)
	stream := c.C.Start(tb, nil, "iperf3", args...)
	defer stream.Kill()
	moved := func(m meter) int64 {
		now := c.meter(tb)
		if d == up {
			return now.toServer - m.toServer
		}
		return now.fromServer - m.fromServer
	}
	const busy = 8 << 20 // beyond the first window
	lab.WaitFor(tb, 20*time.Second, "the stream to be at full speed", func() bool {
		if !stream.Alive() {
			tb.Fatalf("%s: iperf3 ended at once: %s", c.name, stream.Log())
		}
		return moved(before) > busy
	})
	before = c.meter(tb)
	f()
	if !stream.Alive() || moved(before) < busy {
		tb.Fatalf("%s: the stream stopped while round trips were measured: %s", c.name, stream.Log())
	}
}
