//go:build linux

package main

import (
	"strings"
	"testing"

	"culvert.dev/culvert/internal/lab"
)

func TestSummaryComparesMedians(t *testing.T) {
	r := &report{Options: options{Rounds: 3, Seconds: 5, Streams: 1, Family: 4}}
	for round, mbps := range [][2]float64{{900, 1000}, {100, 5000}, {800, 1100}} {
		for _, d := range directions {
			r.Samples = append(r.Samples,
				sample{Exit: lab.ExitCulvert, Direction: d, Round: round, Mbps: mbps[0], CPUPerGB: 2},
				sample{Exit: lab.ExitReference, Direction: d, Round: round, Mbps: mbps[1], CPUPerGB: 1})
		}
	}
	r.summarise()
	for _, s := range r.Summary {
		if s.Culvert.Mbps != 800 || s.Reference.Mbps != 1100 || s.Culvert.Least != 100 || s.Reference.Most != 5000 {
			t.Errorf("%s: got %+v", s.Direction, s)
		}
		if got, want := s.Ratio, 800.0/1100; got != want {
			t.Errorf("%s: ratio %v, want %v", s.Direction, got, want)
		}
	}
	var b strings.Builder
	r.print(&b)
	if want := "800 (100 to 900)"; !strings.Contains(b.String(), want) {
		t.Errorf("the table lacks %q:\n%s", want, b.String())
	}
}

func TestMedianOfAnEvenNumber(t *testing.T) {
	if got := median([]float64{4, 1, 3, 2}); got != 2.5 {
		t.Errorf("got %v, want 2.5", got)
	}
}

func TestReceivedReadsWhatArrived(t *testing.T) {
	bytes, bps, err := received(`{"end":{"sum_sent":{"bytes":9},"sum_received":{"bytes":1000,"bits_per_second":8000.5}}}`)
	if bytes != 1000 || bps != 8000.5 || err != nil {
		t.Errorf("got %v, %v, %v", bytes, bps, err)
	}
	for _, bad := range []string{"", `{"error":"unable to connect"}`, `{"end":{}}`} {
		if _, _, err := received(bad); err == nil {
			t.Errorf("%q: no error", bad)
		}
	}
}
