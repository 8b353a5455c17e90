//go:build linux

package main

import (
	"bytes"
	"os"
	"path/filepath"
	"regexp"
	"runtime/pprof"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestNumberOfSamples(t *testing.T) {
	const top = "File: culvert\nType: samples\nDuration: 3.01s, Total samples = %s \nShowing nodes accounting for 50, 86.21%% of 58 total\n"
	for _, c := range []struct {
		name, text string
		want       int
		err        string // a part of it; "" for none
	}{
		{"some", strings.Replace(top, "%s", "58", 1), 58, ""},
		{"many", strings.Replace(top, "%s", "1933330", 1), 1933330, ""},
		{"none", strings.Replace(top, "%s", "0", 1), 0, "no sample"},
		{"another form", "58 samples", 0, "names no number"},
		{"nothing", "", 0, "names no number"},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := readSamples(c.text)
			if got != c.want || (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) {
				t.Errorf("got %d, %v, want %d, %q", got, err, c.want, c.err)
			}
		})
	}
}

//go:noinline
func burnLong(t *testing.T) { burn(t, 400*time.Millisecond) }

//go:noinline
func burnShort(t *testing.T) { burn(t, 160*time.Millisecond) }

// burn uses processor time: the profiler counts no other.
func burn(t *testing.T, length time.Duration) {
	used := func() time.Duration {
		var u unix.Rusage
		if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
			t.Fatal(err)
		}
		return time.Duration(u.Utime.Nano() + u.Stime.Nano())
	}
	for end := used() + length; used() < end; {
	}
}

// profileOf writes the profile of f.
func profileOf(t *testing.T, path string, f func(*testing.T)) {
	t.Helper()
	var b bytes.Buffer
	if err := pprof.StartCPUProfile(&b); err != nil {
		t.Skipf("this process is profiled already: %v", err)
	}
	f(t)
	pprof.StopCPUProfile()
	if err := os.WriteFile(path, b.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestEachLoadHasTheSameWeight(t *testing.T) {
	dir := t.TempDir()
	in := func(name string) string { return filepath.Join(dir, name) }
	profileOf(t, in("long-0.pprof"), burnLong)
	profileOf(t, in("long-1.pprof"), burnLong)
	profileOf(t, in("short-0.pprof"), burnShort)
	long, short := part{load: "long", file: in("long")}, part{load: "short", file: in("short")}
	if err := long.gather([]string{in("long-0.pprof"), in("long-1.pprof")}); err != nil {
		t.Fatal(err)
	}
	if err := short.gather([]string{in("short-0.pprof")}); err != nil {
		t.Fatal(err)
	}
	if long.samples < 2*short.samples {
		t.Fatalf("%d and %d samples: one has five times the processor time of the other, and that is not seen", long.samples, short.samples)
	}
	if err := mergeParts([]part{long, short}, in("merged")); err != nil {
		t.Fatal(err)
	}
	top, err := pprofTool("-top", "-cum", "-sample_index=samples", in("merged"))
	if err != nil {
		t.Fatal(err)
	}
	const both = 2 * partWeight
	if total, err := readSamples(top); err != nil || total > both || total < both*999/1000 {
		t.Errorf("got %d samples in all, %v, want %d", total, err, both)
	}
	for _, f := range []string{"burnLong", "burnShort"} {
		m := regexp.MustCompile(`(?m) (\d+) +[\d.]+% +\S+/bench/compare\.` + f + `$`).FindStringSubmatch(top)
		if m == nil {
			t.Fatalf("%s is not there:\n%s", f, top)
		}
		// A sample of the test or of the runtime counts for the load beside which it was taken, and not for the function.
		if n, err := strconv.Atoi(m[1]); err != nil || n < partWeight/2 || n > partWeight {
			t.Errorf("%s has %d samples, %v, want %d", f, n, err, partWeight)
		}
	}
}

func TestWhatIsNoProfileIsNotMerged(t *testing.T) {
	dir := t.TempDir()
	bad := filepath.Join(dir, "bad.pprof")
	if err := os.WriteFile(bad, []byte("no profile"), 0o600); err != nil {
		t.Fatal(err)
	}
	p := part{load: "tcp-1-up", file: filepath.Join(dir, "merged")}
	if err := p.gather([]string{bad}); err == nil || !strings.Contains(err.Error(), "tcp-1-up: ") || !strings.Contains(err.Error(), bad) {
		t.Errorf("got %v, want an error that names the load and the file", err)
	}
}
