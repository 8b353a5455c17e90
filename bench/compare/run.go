//go:build linux

package main

import (
	"fmt"
	"log"
	"slices"
	"strconv"
	"strings"
	"time"

	"culvert.dev/culvert/bench/report"
	"culvert.dev/culvert/internal/lab"
)

// comparison is a run of the command.
type comparison struct {
	opts   options
	loads  []load
	doc    *report.Document
	worlds []*contender
	failed []string // measurements, for the end
}

func newComparison(o options, selected []load) *comparison {
	r := &comparison{opts: o, loads: selected, doc: &report.Document{
		Title: "Culvert as an exit, and stock wireguard-go on a kernel TUN as root", Environment: report.Environment(), Options: o,
		Contenders: o.names(), Subject: culvert,
	}}
	for _, name := range o.names() {
		if name != reference {
			r.doc.Pairs = append(r.doc.Pairs, report.Pair{Of: name, To: reference})
		}
	}
	for _, l := range selected {
		for _, f := range l.figures {
			c := r.doc.Case(l.title, f.name, f.unit)
			c.LowerIsBetter, c.Target = f.lower, f.target
		}
	}
	r.doc.Notes = o.notes()
	if busy, err := strconv.ParseFloat(strings.SplitN(r.doc.Environment.Load, " ", 2)[0], 64); err == nil && busy > float64(r.doc.Environment.Cores) {
		r.remark("The machine had other work: the figures are worth little.")
	}
	return r
}

// measure runs every load in every round. In each round the exits take turns load by load, and another one begins. A round
// before the first brings everything to temperature and does not count.
func (r *comparison) measure(tb lab.TB) {
	if slices.ContainsFunc(r.loads, func(l load) bool { return !l.fresh }) {
		for _, name := range r.opts.names() {
			c := r.world(tb, name)
			r.worlds = append(r.worlds, c)
			r.remark("The exit %s is the process %s.", name, strings.Join(c.usage(tb).names, ", "))
		}
	}
	if r.opts.Warmup > 0 {
		r.round(0)
	}
	for round := 1; round <= r.opts.Rounds; round++ {
		r.round(round)
	}
}

// world is that of one exit, with the servers.
func (r *comparison) world(tb lab.TB, name string) *contender {
	c := newContender(tb, name, r.opts)
	c.remark = r.remark
	c.startIperf(tb)
	return c
}

// round measures every load of every exit once.
func (r *comparison) round(round int) {
	names := rotated(r.opts.names(), round)
	for _, l := range r.loads {
		if round == 0 && l.fresh {
			continue
		}
		for _, name := range names {
			if !l.pairs || name == culvert || name == reference {
				r.one(l, name, round)
			}
		}
	}
}

// rotated is the list beginning with another element each round.
func rotated(list []string, round int) []string {
	n := round % len(list)
	return append(slices.Clone(list[n:]), list[:n]...)
}

// one takes one measurement. If it fails the rest goes on: there may be an hour of figures before it.
func (r *comparison) one(l load, name string, round int) {
	var v values
	start := time.Now()
	err := lab.Script(l.name, func(tb lab.TB) {
		c := (*contender)(nil)
		if l.fresh {
			c = r.world(tb, name)
		} else {
			c = r.worlds[slices.Index(r.opts.names(), name)]
		}
		c.opts = r.opts
		if round == 0 {
			c.opts.Length = r.opts.Warmup
		}
		v = l.run(c, tb)
	})
	if err == nil {
		err = l.check(v)
	}
	if err != nil {
		log.Printf("round %d: %s: %s: not measured: %v (%.1f s)", round, l.name, name, err, time.Since(start).Seconds())
		r.failed = append(r.failed, fmt.Sprintf("%s of %s in round %d", l.name, name, round))
		return
	}
	if round > 0 {
		for _, f := range l.figures {
			r.doc.Case(l.title, f.name, f.unit).Add(name, round, v[f.name])
		}
	}
	log.Printf("round %d: %-20s %-10s %s (%.1f s)", round, l.name, name, l.line(v), time.Since(start).Seconds())
}

// remark adds a sentence to the report, once.
func (r *comparison) remark(format string, args ...any) {
	if text := fmt.Sprintf(format, args...); !slices.Contains(r.doc.Notes, text) {
		log.Print(text)
		r.doc.Notes = append(r.doc.Notes, text)
	}
}
