//go:build linux

package main

import (
	"math"
	"strings"
	"testing"
	"time"
)

func TestTableComparesMedians(t *testing.T) {
	r := &report{Options: options{Rounds: 3, Length: time.Second}}
	b := bulk{upload: true, streams: 1}
	for round, v := range [][3]float64{{800, 200, 1000}, {100, 210, 9000}, {900, 10, 900}} {
		for i, way := range ways {
			r.Samples = append(r.Samples, sample{Round: round + 1, Way: way, Case: b.String(), Figures: figures{mbps: v[i]}})
		}
	}
	r.Samples = append(r.Samples, sample{Round: 1, Way: stock, Case: idleName(10), Figures: figures{memoryMB: 50}})
	var out strings.Builder
	r.table(&out)
	for _, want := range []string{"Mbit/s 800 200 1000 4.00 0.80", "memory MB - 50 - - -", "upload, 1 stream", "10 idle connections"} {
		if got := strings.Join(strings.Fields(out.String()), " "); !strings.Contains(got, want) {
			t.Errorf("the table lacks %q:\n%s", want, out.String())
		}
	}
	if strings.Contains(out.String(), cpuPerGB) {
		t.Errorf("the table has a line without a figure:\n%s", out.String())
	}
}

func TestMedianOfAnEvenNumber(t *testing.T) {
	r := &report{}
	for _, v := range []float64{4, 1, 3, 2} {
		r.Samples = append(r.Samples, sample{Way: culvert, Case: "x", Figures: figures{mbps: v}})
	}
	if got := r.median("x", culvert, mbps); got != 2.5 {
		t.Errorf("got %v, want 2.5", got)
	}
	if got := r.median("x", kernel, mbps); got != 0 {
		t.Errorf("got %v where nothing was measured, want 0", got)
	}
}

func TestFiguresAreThoseBetweenSnapshots(t *testing.T) {
	start := time.Unix(1000, 0)
	a := snapshot{time: start, bytes: 1e9, prog: 10 * time.Second, curl: time.Second, far: 2 * time.Second}
	b := snapshot{time: start.Add(4 * time.Second), bytes: 3e9, prog: 14 * time.Second, curl: 2 * time.Second, far: 5 * time.Second}
	want := figures{mbps: 4000, cpuPerGB: 2, cpuClient: 2.5, cpuFar: 1.5, memoryMB: 77}
	got := between(a, b, 77)
	for name, v := range want {
		if math.Abs(got[name]-v) > 1e-9 {
			t.Errorf("%s: got %v, want %v", name, got[name], v)
		}
	}
}

func TestCountsAreAList(t *testing.T) {
	for text, want := range map[string]string{"": "", "1": "1", "1000,10000": "1000,10000"} {
		var c counts
		if err := c.Set(text); err != nil || c.String() != want {
			t.Errorf("%q: got %v, %v", text, c.String(), err)
		}
	}
	for _, bad := range []string{"0", "-1", "1,x", "1 2"} {
		if err := new(counts).Set(bad); err == nil {
			t.Errorf("%q is taken", bad)
		}
	}
}

func TestQuantiles(t *testing.T) {
	sorted := make([]time.Duration, 500)
	for i := range sorted {
		sorted[i] = time.Duration(i) * time.Millisecond
	}
	for q, want := range map[float64]float64{0: 0, 0.5: 250, 0.99: 495, 1: 499} {
		if got := millis(quantile(sorted, q)); got != want {
			t.Errorf("%v: got %v ms, want %v", q, got, want)
		}
	}
}
