//go:build linux

package main

import (
	"context"
	"time"
)

// load is one case of the throughput measurement.
type load struct {
	label  string
	pairs  int
	size   int // bytes of a packet
	window int // packets under way per pair
}

// throughput measures how much the relay carries between pairs of clients, and at what cost.
func throughput(ctx context.Context, s *server, l load, o options) (figures, error) {
	clients, err := connectAll(ctx, s, 2*l.pairs)
	if err != nil {
		return nil, err
	}
	flows := make([]*flow, l.pairs)
	for i := range flows {
		flows[i] = startFlow(clients[2*i], clients[2*i+1], l.size, l.window)
	}
	defer func() {
		for _, f := range flows {
			f.end()
		}
	}()
	time.Sleep(o.Warmup)
	profiled := make(chan error, 1)
	if o.profiles == "" {
		profiled <- nil
	} else {
		go func() { profiled <- s.profile(o.profiles, l.label, o.Length) }()
	}
	before, err := take(s, flows)
	if err != nil {
		return nil, err
	}
	time.Sleep(o.Length)
	after, err := take(s, flows)
	if err != nil {
		return nil, err
	}
	memory, err := resident(s.pid)
	if err != nil {
		return nil, err
	}
	return between(before, after, l.size, memory), <-profiled
}

// snapshot is where the server and the flows stand at one time.
type snapshot struct {
	traffic
	cpu  time.Duration
	time time.Time
}

func take(s *server, flows []*flow) (snapshot, error) {
	cpu, err := cpuTime(s.pid)
	return snapshot{traffic: total(flows), cpu: cpu, time: time.Now()}, err
}

// The names of the figures, as the table and the JSON document have them.
const (
	perSecond    = "frames/s"
	perCPU       = "frames per CPU s"
	megabytes    = "MB/s"
	megabytesCPU = "MB per CPU s"
	cpuPerGB     = "CPU s per GB"
	busy         = "core busy %"
	lost         = "lost %"
	memoryMB     = "memory MB"
)

func between(a, b snapshot, size int, memory float64) figures {
	arrived, sent := float64(b.arrived-a.arrived), float64(b.sent-a.sent)
	wall, cpu := b.time.Sub(a.time).Seconds(), (b.cpu - a.cpu).Seconds()
	bytes := arrived * float64(size)
	return figures{
		perSecond:    arrived / wall,
		perCPU:       arrived / cpu,
		megabytes:    bytes / wall / 1e6,
		megabytesCPU: bytes / cpu / 1e6,
		cpuPerGB:     cpu / bytes * 1e9,
		busy:         100 * cpu / wall,
		lost:         100 * max(0, 1-arrived/max(1, sent)),
		memoryMB:     memory / 1e6,
	}
}
