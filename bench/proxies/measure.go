//go:build linux

package main

import (
	"log"
	"strings"

	"culvert.dev/culvert/internal/lab"
)

// figures are one measurement, by name.
type figures map[string]float64

// The names of the figures, as table and JSON document have them.
const (
	mbps       = "Mbit/s"
	cpuPerGB   = "CPU s/GB"
	cpuClient  = "CPU s/GB with curl"
	cpuFar     = "CPU s/GB of the far end"
	memoryMB   = "memory MB"
	memoryIdle = "memory MB, fresh"
	perIdle    = "kB per connection"
	p50        = "first byte p50 ms"
	p99        = "first byte p99 ms"
	added      = "p50 more than kernel ms"
	perSecond  = "connections/s"
	cpuEach    = "CPU µs each"
)

// sample is one measurement of one way.
type sample struct {
	Round   int     `json:"round"`
	Way     way     `json:"way"`
	Case    string  `json:"case"`
	Figures figures `json:"figures"`
}

// measure fills r.Samples. Each round measures every case of every way, and begins with another way than the one before; idle
// connections come once, after the rounds, as memory hardly varies.
func (r *report) measure(tb lab.TB) {
	o := r.Options
	w, file := newWorld(tb), source(tb)
	if o.Pin {
		w.pin(tb)
	}
	wanted := func(name string) bool { return strings.Contains(name, o.Only) }
	for round := 1; round <= o.Rounds; round++ {
		for _, b := range o.bulks() {
			for _, c := range w.contenders {
				if wanted(b.String()) {
					r.add(round, c.way, b.String(), w.bulk(tb, c, b, file, o))
				}
			}
		}
		if wanted(setupName) {
			for way, f := range w.setup(tb, o) {
				r.add(round, way, setupName, f)
			}
		}
		for _, c := range w.contenders {
			if wanted(rateName) {
				r.add(round, c.way, rateName, w.rate(tb, c, o))
			}
		}
		w.contenders = append(w.contenders[1:], w.contenders[0])
	}
	for _, n := range o.Idle {
		for _, c := range w.contenders {
			if wanted(idleName(n)) && c.proxied() {
				r.add(1, c.way, idleName(n), w.idle(tb, c, n, o))
			}
		}
	}
}

func (o options) bulks() (list []bulk) {
	for _, n := range o.Streams {
		list = append(list, bulk{upload: true, streams: n}, bulk{streams: n})
	}
	return list
}

func (r *report) add(round int, way way, name string, f figures) {
	log.Printf("round %d: %s: %s: %v", round, name, way, f)
	r.Samples = append(r.Samples, sample{Round: round, Way: way, Case: name, Figures: f})
}

func (f figures) String() string {
	var list []string
	for _, row := range rows {
		if v, ok := f[row]; ok {
			list = append(list, number(v)+" "+row)
		}
	}
	return strings.Join(list, ", ")
}
