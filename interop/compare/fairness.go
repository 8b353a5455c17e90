//go:build linux

package main

import (
	"context"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"culvert.dev/culvert/internal/wgkey"
)

// flood is what one client does beside the paced ones.
type flood int

const (
	noFlood     flood = iota
	floodAside        // as much as the connection takes, to a client of its own
	floodAmong        // the same, to the destinations of the paced ones in turn
	floodNobody       // the same, to a key that is not connected
)

func (f flood) String() string {
	return [...]string{"no flood", "flood aside", "flood to the same destinations", "flood to nobody"}[f]
}

const (
	delivered   = "paced packets delivered %"
	pacedMedian = "paced delay p50 ms"
	pacedTail   = "paced delay p99 ms"
	flooded     = "flood frames/s delivered"

	pacedPairs = 20
	pacedSize  = 1200
	pacedBurst = 5
	pacedEvery = 10 * time.Millisecond // a burst: 500 packets a second and pair
	floodSize  = 1400
)

// paced is a pair of clients that exchange a steady stream, and what became of it.
type paced struct {
	from, to  *client
	sent, got atomic.Uint64
	mu        sync.Mutex // guards the following
	delays    []time.Duration
	counting  bool
}

// fairness measures what one flooding client does to twenty paced ones.
func fairness(ctx context.Context, s *server, kind flood, o options) (figures, error) {
	clients, err := connectAll(ctx, s, 2*pacedPairs+2)
	if err != nil {
		return nil, err
	}
	var wg sync.WaitGroup
	stop := make(chan struct{})
	defer wg.Wait()
	defer closeAll(clients)
	start := time.Now()
	pairs := make([]*paced, pacedPairs)
	for i := range pairs {
		p := &paced{from: clients[2*i], to: clients[2*i+1]}
		pairs[i] = p
		wg.Go(func() { p.receive(start) })
		wg.Go(func() { p.send(start, stop) })
	}
	flooder, sink := clients[2*pacedPairs], clients[2*pacedPairs+1]
	var sunk atomic.Uint64
	wg.Go(func() { sink.receive(func(wgkey.Public, []byte) { sunk.Add(1) }) })
	if kind != noFlood {
		wg.Go(func() { flooder.flood(floodTargets(kind, sink, pairs)) })
	}
	time.Sleep(o.Warmup)
	for _, p := range pairs {
		p.count(true)
	}
	before := sunk.Load()
	time.Sleep(o.Length)
	rate := float64(sunk.Load()-before) / o.Length.Seconds()
	for _, p := range pairs {
		p.count(false)
	}
	time.Sleep(o.Warmup) // what is under way may still arrive
	close(stop)
	return pacedFigures(pairs, rate), nil
}

func floodTargets(kind flood, sink *client, pairs []*paced) (to []wgkey.Public) {
	switch kind {
	case floodAmong:
		for _, p := range pairs {
			to = append(to, p.to.key)
		}
	case floodNobody:
		to = append(to, wgkey.Public{31: 1})
	default:
		to = append(to, sink.key)
	}
	return to
}

// flood sends until the connection ends.
func (c *client) flood(to []wgkey.Public) {
	c.hold()
	frames := make([][]byte, len(to))
	for i, key := range to {
		frames[i] = frame(key, floodSize)
	}
	for i := 0; ; i++ {
		if c.put(frames[i%len(frames)]) != nil {
			return
		}
	}
}

// send stamps each packet with the time, and with whether it counts (the lowest bit).
func (p *paced) send(start time.Time, stop <-chan struct{}) {
	p.from.hold()
	tick := time.NewTicker(pacedEvery)
	defer tick.Stop()
	b := frame(p.to.key, pacedSize)
	for {
		select {
		case <-stop:
			return
		case <-tick.C:
		}
		p.mu.Lock()
		counting := p.counting
		p.mu.Unlock()
		mark := uint64(time.Since(start)) &^ 1
		if counting {
			mark |= 1
			p.sent.Add(pacedBurst)
		}
		stamp(b, mark)
		for range pacedBurst {
			if p.from.put(b) != nil {
				return
			}
		}
		if p.from.flush() != nil {
			return
		}
	}
}

func (p *paced) receive(start time.Time) {
	p.to.receive(func(from wgkey.Public, packet []byte) {
		mark := stampOf(packet)
		if from != p.from.key || mark&1 == 0 {
			return
		}
		p.got.Add(1)
		p.mu.Lock()
		p.delays = append(p.delays, time.Since(start)-time.Duration(mark))
		p.mu.Unlock()
	})
}

func (p *paced) count(yes bool) {
	p.mu.Lock()
	p.counting = yes
	p.mu.Unlock()
}

func pacedFigures(pairs []*paced, floodRate float64) figures {
	var sent, got uint64
	var delays []time.Duration
	for _, p := range pairs {
		sent += p.sent.Load()
		got += p.got.Load()
		p.mu.Lock()
		delays = append(delays, p.delays...)
		p.mu.Unlock()
	}
	f := figures{delivered: 100 * float64(got) / float64(max(1, sent)), flooded: floodRate}
	if len(delays) > 0 {
		slices.Sort(delays)
		f[pacedMedian] = micros(quantile(delays, 0.5)) / 1e3
		f[pacedTail] = micros(quantile(delays, 0.99)) / 1e3
	}
	return f
}
