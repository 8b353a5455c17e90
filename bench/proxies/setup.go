//go:build linux

package main

import (
	"slices"
	"sync"
	"time"

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
	for _, t := range times {
		slices.Sort(t)
	}
	direct := quantile(times[kernel], 0.5)
	for way, t := range times {
		f := figures{p50: millis(quantile(t, 0.5)), p99: millis(quantile(t, 0.99))}
		if way != kernel {
			f[added] = millis(quantile(t, 0.5) - direct)
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

func quantile(sorted []time.Duration, q float64) time.Duration {
	return sorted[min(len(sorted)-1, int(q*float64(len(sorted))))]
}

func millis(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1e6 }
