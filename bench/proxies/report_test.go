//go:build linux

package main

import (
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestTableComparesMedians(t *testing.T) {
	r := newResults(options{Rounds: 3, Length: time.Second})
	b := bulk{upload: true, streams: 1}
	for round, v := range [][3]float64{{800, 200, 1000}, {100, 210, 9000}, {900, 10, 900}} {
		for i, way := range ways {
			r.add(round+1, way, b.String(), figures{mbps: v[i]})
		}
	}
	r.add(1, stock, idleName(10), figures{memoryMB: 50})
	var out strings.Builder
	if err := r.document.WriteText(&out); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"throughput, Mbit/s 800 200 1000 4.00 (0.48 to 90.00) 0.80 (0.01 to 1.00)", "memory, MB ↓ - 50 - - -", "upload, 1 stream", "10 idle connections", "3 rounds of 1s"} {
		if got := strings.Join(strings.Fields(out.String()), " "); !strings.Contains(got, want) {
			t.Errorf("the table lacks %q:\n%s", want, out.String())
		}
	}
	if strings.Contains(out.String(), cpuPerGB.unit) {
		t.Errorf("the table has a line without a figure:\n%s", out.String())
	}
}

func TestEveryQuantityHasARow(t *testing.T) {
	all := figures{}
	for _, q := range rows {
		all[q] = 1
	}
	r := newResults(options{})
	r.add(1, culvert, "x", all)
	if got := len(r.document.Cases); got != len(rows) || len(all) != len(rows) {
		t.Errorf("%d cases of %d quantities in %d rows", got, len(all), len(rows))
	}
	for _, f := range []figures{between(snapshot{}, snapshot{time: time.Unix(1, 0), bytes: 1}, 1), {p50: 1, p99: 1, added: 1, perSecond: 1, cpuEach: 1, memoryIdle: 1, perIdle: 1}} {
		for q := range f {
			if _, ok := all[q]; !ok {
				t.Errorf("%s has no row", q.name)
			}
		}
	}
}

func TestResultsGoToFiles(t *testing.T) {
	r := newResults(options{Rounds: 1})
	r.add(1, culvert, "x", figures{mbps: 1234})
	files := outputs{json: filepath.Join(t.TempDir(), "r.json"), html: filepath.Join(t.TempDir(), "r.html")}
	for name, err := range map[string]error{files.json: writeFile(files.json, r.document.WriteJSON), files.html: writeFile(files.html, r.document.WriteHTML)} {
		b, readErr := os.ReadFile(name)
		if err != nil || readErr != nil || !strings.Contains(string(b), "1234") {
			t.Errorf("%s: %v, %v: %.100s", name, err, readErr, b)
		}
	}
	if err := writeFile(filepath.Join(t.TempDir(), "no", "such"), r.document.WriteJSON); err == nil {
		t.Error("a file that cannot be made is no error")
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
			t.Errorf("%s: got %v, want %v", name.name, got[name], v)
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
