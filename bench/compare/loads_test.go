//go:build linux

package main

import (
	"errors"
	"flag"
	"math"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"culvert.dev/culvert/bench/report"
	"culvert.dev/culvert/internal/lab"
)

// What the product is judged by.
var wantTargets = map[string]string{
	"tcp-1-up throughput": ">= 1.05", "tcp-1-down throughput": ">= 1", "tcp-4-up throughput": ">= 1.1", "tcp-4-down throughput": ">= 1",
	"tcp-1-up CPU of the exit": "<= 0.9", "tcp-1-down CPU of the exit": "<= 1", "tcp-4-up CPU of the exit": "<= 0.9", "tcp-4-down CPU of the exit": "<= 1",
	"udp-64-up delivered": ">= 1.1", "udp-64-down delivered": ">= 1.1", "udp-1200-up delivered": ">= 1.1", "udp-1200-down delivered": ">= 1.1",
	"overload-64-up what remains": ">= 0.8 absolute", "overload-64-down what remains": ">= 0.8 absolute",
	"overload-1200-up what remains": ">= 0.8 absolute", "overload-1200-down what remains": ">= 0.8 absolute",
	"iperf3-udp-64-down delivered": ">= 2", "iperf3-udp-1200-down delivered": ">= 2",
	"connections connections": ">= 1", "rtt-idle p50": "<= 1.1", "rtt-idle p99": "<= 1.5", "rtt-tcp-up p99": "<= 2", "rtt-tcp-down p99": "<= 2",
	"distance-up throughput": ">= 1", "distance-down throughput": ">= 1",
	"memory-idle memory": "< 30 absolute", "memory-streams peak memory": "< 150 absolute",
	"memory-tcp more memory than idle": "<= 20 absolute", "memory-udp more memory than idle": "<= 15 absolute",
	"mesh-up throughput": ">= 1", "mesh-down throughput": ">= 1",
}

func TestTargets(t *testing.T) {
	got := map[string]string{}
	for _, l := range loads() {
		for _, f := range l.figures {
			if f.target == nil {
				continue
			}
			text := f.target.String()
			if f.target.Absolute {
				text += " absolute"
			}
			got[l.name+" "+f.name] = text
			if f.lower != (f.target.Bound != report.AtLeastBound) {
				t.Errorf("%s: %s: the target is on the wrong side", l.name, f.name)
			}
		}
	}
	for name, want := range wantTargets {
		if got[name] != want {
			t.Errorf("%s: got %q, want %q", name, got[name], want)
		}
	}
	if len(got) != len(wantTargets) {
		t.Errorf("%d targets, want %d", len(got), len(wantTargets))
	}
}

func TestLoadsAreDifferent(t *testing.T) {
	var names, titles []string
	for _, l := range loads() {
		if slices.Contains(names, l.name) || slices.Contains(titles, l.title) || l.run == nil || len(l.figures) == 0 {
			t.Errorf("%s (%s) is there twice, or is nothing", l.name, l.title)
		}
		names, titles = append(names, l.name), append(titles, l.title)
	}
}

func TestNoFigureIsZeroInSilence(t *testing.T) {
	l := load{name: "x", figures: []figure{{name: throughput, unit: "Mbit/s"}, {name: lost, unit: "%", zero: true}}}
	for _, c := range []struct {
		name string
		v    values
		want string // a part of the error; "" for none
	}{
		{"all are there", values{throughput: 1, lost: 0}, ""},
		{"one is missing", values{throughput: 1}, "lost"},
		{"one is zero", values{throughput: 0, lost: 0}, "throughput"},
		{"one is negative", values{throughput: -1, lost: 0}, "throughput"},
		{"one is negative where that can be", values{throughput: 1, lost: -1}, ""},
		{"one is no number", values{throughput: math.NaN(), lost: 0}, "throughput"},
		{"one is without bound", values{throughput: math.Inf(1), lost: 0}, "throughput"},
		{"one is unknown", values{throughput: 1, lost: 0, peak: 1}, peak},
		{"nothing was measured", nil, "throughput"},
	} {
		t.Run(c.name, func(t *testing.T) {
			err := l.check(c.v)
			if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %q", err, c.want)
			}
		})
	}
}

func TestIperfResult(t *testing.T) {
	const there = `"sum_sent":{"bytes":9,"seconds":1},"sum_received":{"bytes":1000,"seconds":0.5}`
	r, err := readIperf(`{"end":{`+there+`}}`, false)
	if want := (iperfResult{bytes: 1000, seconds: 0.5}); r != want || err != nil {
		t.Errorf("got %+v, %v, want %+v", r, err, want)
	}
	r, err = readIperf(`{"end":{`+there+`,"sum_received_bidir_reverse":{"bytes":7,"seconds":1}}}`, true)
	if r.back != 7 || err != nil {
		t.Errorf("both ways: got %+v, %v", r, err)
	}
	for _, bad := range []string{"", "{}", `{"error":"unable to connect"}`, `{"end":{}}`, `{"end":{"sum_received":{"bytes":1}}}`} {
		if _, err := readIperf(bad, false); err == nil {
			t.Errorf("%q: no error", bad)
		}
	}
	if _, err := readIperf(`{"end":{`+there+`}}`, true); err == nil {
		t.Error("nothing came back: no error")
	}
}

func TestCurlsFigures(t *testing.T) {
	bytes, seconds, err := readCurl("curl: (28) Operation timed out after 500 milliseconds with 1000 bytes received\n1000 0.500123\n")
	if bytes != 1000 || seconds != 0.500123 || err != nil {
		t.Errorf("got %v, %v, %v", bytes, seconds, err)
	}
	for _, bad := range []string{"", "x y", "1000", "1000 0"} {
		if _, _, err := readCurl(bad); err == nil {
			t.Errorf("%q: no error", bad)
		}
	}
}

func TestUploadsAreToldApart(t *testing.T) {
	p := &pair{received: make(chan upload, 2)}
	server := httptest.NewServer(p)
	defer server.Close()
	for path, body := range map[string]string{"/1": "given up before", "/2": "seven b"} {
		r, err := http.NewRequest(http.MethodPut, server.URL+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		answer, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		answer.Body.Close()
	}
	err := lab.Script("upload", func(tb lab.TB) {
		if got := p.arrived(tb, "/2"); got != 7 {
			t.Errorf("%d bytes were counted, want 7", got)
		}
	})
	if err != nil {
		t.Error(err)
	}
	http.DefaultClient.CloseIdleConnections()
}

func TestEachExitBeginsInSomeRound(t *testing.T) {
	list := []string{"a", "b", "c"}
	for round, want := range map[int]string{1: "bca", 2: "cab", 3: "abc"} {
		if got := strings.Join(rotated(list, round), ""); got != want {
			t.Errorf("round %d: got %s, want %s", round, got, want)
		}
	}
}

func TestOptions(t *testing.T) {
	o, err := parseOptions([]string{"-only", "^tcp-1", "-rounds", "3", "-length", "2s"}, nil)
	if err != nil || o.Rounds != 3 || o.Length != 2*time.Second {
		t.Fatalf("got %+v, %v", o, err)
	}
	selected, err := o.selected()
	if len(selected) != 2 || err != nil {
		t.Errorf("got %d loads, %v; want tcp-1-up and tcp-1-down", len(selected), err)
	}
	if got := o.duration(); !slices.Equal(got, []string{"-t", "2"}) {
		t.Errorf("iperf3 gets %v", got)
	}
	for _, bad := range []string{"-only=(", "-rounds=0", "-length=0s", "-ip=5", "-warmup=-1s", "tcp-1-up", "-nothing"} {
		if _, err := parseOptions([]string{bad}, nil); err == nil {
			t.Errorf("%s: no error", bad)
		}
	}
	if o, err = parseOptions([]string{"-only", "nothing like that"}, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := o.selected(); err == nil {
		t.Error("no load is selected: no error")
	}
	var help strings.Builder
	if _, err := parseOptions([]string{"--help"}, &help); !errors.Is(err, flag.ErrHelp) {
		t.Errorf("help: %v", err)
	}
	for _, want := range []string{"-exit-root", "-quick", "@PRIVATE_KEY@"} {
		if !strings.Contains(help.String(), want) {
			t.Errorf("the help lacks %s", want)
		}
	}
}
