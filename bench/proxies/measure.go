//go:build linux

package main

import (
	"log"
	"strings"

	"culvert.dev/culvert/bench/report"
	"culvert.dev/culvert/internal/lab"
)

// quantity is something that is measured.
type quantity struct {
	name, unit string
	less       bool // is better
}

// figures are one measurement.
type figures map[quantity]float64

// The quantities.
var (
	mbps       = quantity{name: "throughput", unit: "Mbit/s"}
	cpuPerGB   = quantity{"CPU", "s/GB", true}
	cpuClient  = quantity{"CPU with curl", "s/GB", true}
	cpuFar     = quantity{"CPU of the far end", "s/GB", true}
	memoryMB   = quantity{"memory", "MB", true}
	memoryIdle = quantity{"memory, fresh", "MB", true}
	perIdle    = quantity{"memory per connection", "kB", true}
	p50        = quantity{"first byte p50", "ms", true}
	p99        = quantity{"first byte p99", "ms", true}
	added      = quantity{"p50 more than kernel", "ms", true}
	perSecond  = quantity{name: "connections", unit: "1/s"}
	cpuEach    = quantity{"CPU each", "µs", true}
)

// rows is the order of a table's lines, whichever of them a case has.
var rows = []quantity{mbps, cpuPerGB, cpuClient, cpuFar, p50, p99, added, perSecond, cpuEach, memoryIdle, memoryMB, perIdle}

// results are what has been measured so far.
type results struct {
	options  options
	document *report.Document
}

// measure fills the document. Each round measures every case of every way, and begins with another way than the one before; idle
// connections come once, after the rounds, as memory hardly varies.
func (r *results) measure(tb lab.TB) {
	o := r.options
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

func (r *results) add(round int, way way, name string, f figures) {
	log.Printf("round %d: %s: %s: %v", round, name, way, f)
	for _, q := range rows {
		v, ok := f[q]
		if !ok {
			continue
		}
		c := r.document.Case(name, q.name, q.unit)
		c.LowerIsBetter = q.less
		c.Add(string(way), round, v)
	}
}

func (f figures) String() string {
	var list []string
	for _, q := range rows {
		if v, ok := f[q]; ok {
			list = append(list, q.name+" "+report.Number(v)+" "+q.unit)
		}
	}
	return strings.Join(list, ", ")
}
