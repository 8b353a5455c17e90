//go:build linux

package main

import (
	"fmt"
	"slices"
	"strings"

	"culvert.dev/culvert/bench/report"
	"culvert.dev/culvert/internal/lab"
)

// load is one way to burden an exit, and the figures that come out of it.
type load struct {
	name    string // as -only and -list have it
	title   string
	figures []figure

	// fresh loads get a world of their own each time: memory is of a program that has just started.
	fresh bool
	// pairs loads need a second node before the exit, which nobody knows how to make of a command.
	pairs bool

	// run brings a value for each figure.
	run func(c *contender, tb lab.TB) values
}

// figure is a quantity. Its values are positive unless zero is allowed.
type figure struct {
	name, unit string
	lower      bool // is better
	zero       bool // a value may be zero, or negative
	target     *report.Target
}

// values are what a run has brought, by the name of the figure.
type values map[string]float64

// The names of figures.
const (
	throughput = "throughput"
	cpuPerGB   = "CPU of the exit"
	delivered  = "delivered"
	cpuEach    = "CPU of the exit, each"
	peak       = "peak goodput"
	overloaded = "goodput at five times the peak"
	remains    = "what remains"
	offered    = "what was offered"
	perSecond  = "connections"
	p50, p99   = "p50", "p99"
	lost       = "lost"
	failed     = "failed"
	memory     = "memory"
	memoryPeak = "peak memory"
	growth     = "more memory than idle"
	cpuBoth    = "CPU of both nodes"
)

// loads is the table of all loads, in the order in which they run.
func loads() (list []load) {
	list = append(list, tcpLoads()...)
	list = append(list, floodLoads()...)
	list = append(list, overloadLoads()...)
	list = append(list, datagramLoads()...)
	list = append(list, connections())
	list = append(list, latencyLoads()...)
	list = append(list, distanceLoads()...)
	list = append(list, memoryLoads()...)
	return append(list, meshLoads()...)
}

func tcpLoads() (list []load) {
	targets := map[int]map[direction]float64{1: {up: 1.05, down: 1.0}, 4: {up: 1.10, down: 1.0}}
	cpu := map[direction]float64{up: 0.9, down: 1.0}
	for _, streams := range []int{1, 4} {
		for _, d := range directions {
			list = append(list, load{
				name: fmt.Sprintf("tcp-%d-%s", streams, d), title: fmt.Sprintf("TCP, %s, %s", plural(streams, "stream"), d),
				figures: []figure{
					{name: throughput, unit: "Mbit/s", target: report.RatioAtLeast(targets[streams][d])},
					{name: cpuPerGB, unit: "s/GB", lower: true, target: report.RatioAtMost(cpu[d])},
				},
				run: func(c *contender, tb lab.TB) values { return c.tcp(tb, d, streams) },
			})
		}
	}
	return list
}

func floodLoads() (list []load) {
	for _, size := range []int{64, 1200} {
		for _, d := range directions {
			list = append(list, load{
				name: fmt.Sprintf("udp-%d-%s", size, d), title: fmt.Sprintf("UDP flood of %d B, %s", size, d),
				figures: []figure{
					{name: delivered, unit: "packets/s", target: report.RatioAtLeast(1.1)},
					{name: cpuEach, unit: "µs/packet", lower: true},
				},
				run: func(c *contender, tb lab.TB) values { return c.flooded(tb, d, size) },
			})
		}
	}
	return list
}

func overloadLoads() (list []load) {
	for _, size := range []int{64, 1200} {
		for _, d := range directions {
			list = append(list, load{
				name: fmt.Sprintf("overload-%d-%s", size, d), title: fmt.Sprintf("UDP overload of %d B, %s", size, d),
				figures: []figure{
					{name: peak, unit: "packets/s"},
					{name: overloaded, unit: "packets/s"},
					{name: remains, unit: "of the peak", target: report.AtLeast(0.8)},
					{name: offered, unit: "times the peak"},
				},
				run: func(c *contender, tb lab.TB) values { return c.overload(tb, d, size) },
			})
		}
	}
	return list
}

func datagramLoads() (list []load) {
	for _, size := range []int{64, 1200} {
		for _, d := range directions {
			f := figure{name: delivered, unit: "packets/s"}
			if d == down {
				f.target = report.RatioAtLeast(2.0)
			}
			list = append(list, load{
				name: fmt.Sprintf("iperf3-udp-%d-%s", size, d), title: fmt.Sprintf("UDP of %d B, one per system call (iperf3 -u -b 0), %s", size, d),
				figures: []figure{f, {name: cpuEach, unit: "µs/packet", lower: true}},
				run:     func(c *contender, tb lab.TB) values { return c.datagrams(tb, d, size) },
			})
		}
	}
	return list
}

func connections() load {
	return load{
		name: "connections", title: fmt.Sprintf("New TCP connections, %d at once, one byte there and back each", workers),
		figures: []figure{
			{name: perSecond, unit: "/s", target: report.RatioAtLeast(1.0)},
			{name: cpuEach, unit: "µs", lower: true},
			{name: failed, unit: "%", lower: true, zero: true},
		},
		run: (*contender).connections,
	}
}

func latencyLoads() []load {
	p50Idle, p99Idle := report.RatioAtMost(1.1), report.RatioAtMost(1.5)
	list := []load{{
		name: "rtt-idle", title: "Round trip of a UDP datagram, idle",
		figures: []figure{{name: p50, unit: "ms", lower: true, target: p50Idle}, {name: p99, unit: "ms", lower: true, target: p99Idle}, {name: lost, unit: "%", lower: true, zero: true}},
		run:     func(c *contender, tb lab.TB) values { return c.roundTrips(tb, "") },
	}}
	for _, d := range directions {
		list = append(list, load{
			name: "rtt-tcp-" + string(d), title: fmt.Sprintf("Round trip of a UDP datagram beside a TCP stream, %s", d),
			figures: []figure{{name: p50, unit: "ms", lower: true}, {name: p99, unit: "ms", lower: true, target: report.RatioAtMost(2)}, {name: lost, unit: "%", lower: true, zero: true}},
			run:     func(c *contender, tb lab.TB) values { return c.roundTrips(tb, d) },
		})
	}
	return list
}

func distanceLoads() (list []load) {
	for _, d := range directions {
		list = append(list, load{
			name: "distance-" + string(d), title: fmt.Sprintf("TCP, 1 stream at a round trip of %v between client and exit, %s", 2*distance, d),
			figures: []figure{
				{name: throughput, unit: "Mbit/s", target: report.RatioAtLeast(1.0)},
				{name: lost, unit: "datagrams on the line", lower: true, zero: true},
			},
			run: func(c *contender, tb lab.TB) values { return c.distant(tb, d) },
		})
	}
	return list
}

func memoryLoads() []load {
	const unit = "MB"
	return []load{
		{
			name: "memory-idle", title: "Memory of the exit, idle", fresh: true,
			figures: []figure{{name: memory, unit: unit, lower: true, target: report.Below(30)}},
			run:     (*contender).idle,
		}, {
			name: "memory-streams", title: fmt.Sprintf("Memory of the exit, %d TCP streams up and %[1]d down at full speed", bothWays), fresh: true,
			figures: []figure{{name: memoryPeak, unit: unit, lower: true, target: report.Below(150)}},
			run:     (*contender).streams,
		}, {
			name: "memory-tcp", title: fmt.Sprintf("Memory of the exit, %d idle TCP flows", tcpFlows), fresh: true,
			figures: []figure{{name: growth, unit: unit, lower: true, zero: true, target: report.AtMost(20)}},
			run:     func(c *contender, tb lab.TB) values { return c.hold(tb, "tcp", tcpFlows) },
		}, {
			name: "memory-udp", title: fmt.Sprintf("Memory of the exit, %d UDP mappings", udpMappings), fresh: true,
			figures: []figure{{name: growth, unit: unit, lower: true, zero: true, target: report.AtMost(15)}},
			run:     func(c *contender, tb lab.TB) values { return c.hold(tb, "udp", udpMappings) },
		},
	}
}

func meshLoads() (list []load) {
	for _, d := range directions {
		list = append(list, load{
			name: "mesh-" + string(d), title: fmt.Sprintf("Two nodes end to end, curl, 1 stream, %s", d), pairs: true,
			figures: []figure{
				{name: throughput, unit: "Mbit/s", target: report.RatioAtLeast(1.0)},
				{name: cpuBoth, unit: "s/GB", lower: true},
			},
			run: func(c *contender, tb lab.TB) values { return c.mesh(tb, d) },
		})
	}
	return list
}

// check finds a value that is missing, of no figure, or none that the figure can have: no figure may be zero in silence.
func (l load) check(v values) error {
	for _, f := range l.figures {
		value, found := v[f.name]
		switch {
		case !found:
			return fmt.Errorf("%s: nothing was measured as %q", l.name, f.name)
		case value != value || value > 1e15 || value < -1e15:
			return fmt.Errorf("%s: %s: %v is no figure", l.name, f.name, value)
		case value <= 0 && !f.zero:
			return fmt.Errorf("%s: %s: %v %s: it was not measured", l.name, f.name, value, f.unit)
		}
	}
	for name := range v {
		if !slices.ContainsFunc(l.figures, func(f figure) bool { return f.name == name }) {
			return fmt.Errorf("%s: %q is not in the table", l.name, name)
		}
	}
	return nil
}

// line shows values in one line.
func (l load) line(v values) string {
	var list []string
	for _, f := range l.figures {
		list = append(list, fmt.Sprintf("%s %s", report.Number(v[f.name]), f.unit))
	}
	return strings.Join(list, ", ")
}

func plural(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}
