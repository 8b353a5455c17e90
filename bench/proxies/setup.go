//go:build linux

package main

import (
	"sync"
	"time"

	"culvert.dev/culvert/bench/report"
	"culvert.dev/culvert/internal/lab"
)

const setupName = "connecting, one after the other"

// setup times connections up to their first byte. The ways take turns, connection by connection: what disturbs one disturbs
// all.
func (w *world) setup(tb lab.TB, o options) map[way]figures {
	tb.Helper()
	times := map[way][]time.Duration{}
	for range o.Connections {
		for _, c := range w.contenders {
			err := c.host.Do(func() error {
				start := time.Now()
				b, err := open(c.via(), touchPort)
				if err != nil {
					return err
				}
				times[c.way] = append(times[c.way], time.Since(start))
				return b.end()
			})
			if err != nil {
				tb.Fatalf("%s: %v", c.way, err)
			}
		}
	}
	result := map[way]figures{}
	direct := report.Percentile(times[kernel], 50)
	for way, t := range times {
		p := report.Percentiles(t, 50, 99)
		f := figures{p50: millis(p[0]), p99: millis(p[1])}
		if way != kernel {
			f[added] = millis(p[0] - direct)
		}
		result[way] = f
	}
	return result
}

const rateName = "connecting, as fast as possible"

// rate counts connections that are made and ended by several threads at once.
func (w *world) rate(tb lab.TB, c *contender, o options) figures {
	tb.Helper()
	counts, errs := make([]int, o.Workers), make([]error, o.Workers)
	before, start := cpu(tb, c.prog), time.Now()
	var wg sync.WaitGroup
	for i := range o.Workers {
		wg.Go(func() {
			errs[i] = c.host.Do(func() error {
				for time.Since(start) < o.Length {
					if err := c.touch(); err != nil {
						return err
					}
					counts[i]++
				}
				return nil
			})
		})
	}
	wg.Wait()
	took, used := time.Since(start), cpu(tb, c.prog)-before
	total := 0
	for i, n := range counts {
		total += n
		if errs[i] != nil {
			tb.Fatalf("%s: %v", c.way, errs[i])
		}
	}
	return figures{perSecond: float64(total) / took.Seconds(), cpuEach: used.Seconds() * 1e6 / float64(total), memoryMB: c.memoryMB(tb)}
}

func millis(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1e6 }
