//go:build linux

package main

import (
	"strings"
	"testing"
	"time"
)

func TestTableShowsMediansAndRatio(t *testing.T) {
	r := &report{Options: options{Rounds: 3}}
	add := func(server string, values ...float64) {
		for i, v := range values {
			r.Samples = append(r.Samples, sample{Round: i, Server: server, Case: "a case", Figures: figures{perSecond: v}})
		}
	}
	add(nameCulvert, 900, 10, 300) // median 300
	add(nameStock, 100, 200)       // median 150
	r.Samples = append(r.Samples, sample{Server: nameCulvert, Case: "another", Figures: figures{memoryMB: 12}})
	var b strings.Builder
	if err := r.table(&b); err != nil {
		t.Fatal(err)
	}
	var lines []string
	for line := range strings.Lines(b.String()) {
		lines = append(lines, strings.Join(strings.Fields(line), " "))
	}
	want := []string{
		"medians of 3 rounds culvert derper ratio",
		"a case",
		"frames/s 300.0 150.0 2.00",
		"another",
		"memory MB 12.0 - -",
	}
	if strings.Join(lines, "\n") != strings.Join(want, "\n") {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(lines, "\n"), strings.Join(want, "\n"))
	}
}

func TestFiguresOfAnInterval(t *testing.T) {
	now := time.Now()
	a := snapshot{traffic: traffic{sent: 100, arrived: 100}, cpu: time.Second, time: now}
	b := snapshot{traffic: traffic{sent: 2100, arrived: 1100}, cpu: 1500 * time.Millisecond, time: now.Add(2 * time.Second)}
	f := between(a, b, 1000, 5e6)
	for name, want := range map[string]float64{
		perSecond: 500, perCPU: 2000, megabytes: 0.5, megabytesCPU: 2, cpuPerGB: 500, busy: 25, lost: 50, memoryMB: 5,
	} {
		if got := f[name]; got < want*0.999 || got > want*1.001 {
			t.Errorf("%s: got %v, want %v", name, got, want)
		}
	}
}

func TestStampComesBack(t *testing.T) {
	b := frame([32]byte{1}, 64)
	stamp(b, 0xfedcba9876543210)
	if got := stampOf(b[headerLen:]); got != 0xfedcba9876543210 {
		t.Errorf("got %x", got)
	}
}
