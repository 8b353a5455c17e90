package report

import (
	"math"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"
)

func TestMedian(t *testing.T) {
	for want, v := range map[float64][]float64{2.5: {4, 1, 3, 2}, 3: {9, 1, 3}, 7: {7}, math.MaxFloat64: {math.MaxFloat64, math.MaxFloat64}} {
		before := v[0]
		if got := Median(v); got != want {
			t.Errorf("of %v: got %v, want %v", v, got, want)
		}
		if v[0] != before {
			t.Errorf("the list is changed to %v", v)
		}
	}
	if got := Median(nil); !math.IsNaN(got) {
		t.Errorf("of nothing: got %v", got)
	}
	if got := Summary([]float64{5, 1, 3}); got != (Stats{3, 3, 1, 5}) {
		t.Errorf("got %+v", got)
	}
	if got := Summary(nil); got != (Stats{}) {
		t.Errorf("of nothing: got %+v", got)
	}
}

func TestPercentileIsTheNearestRank(t *testing.T) {
	var v []time.Duration
	for i := 1000; i > 0; i-- {
		v = append(v, time.Duration(i))
	}
	for p, want := range map[float64]time.Duration{0: 1, 0.1: 1, 50: 500, 50.05: 501, 99: 990, 99.9: 999, 100: 1000} {
		if got := Percentile(v, p); got != want {
			t.Errorf("%v %%: got %d, want %d", p, got, want)
		}
		if got := Percentiles(v, 50, p); got[0] != 500 || got[1] != want {
			t.Errorf("%v %%: got %d, want 500 and %d", p, got, want)
		}
	}
	if v[0] != 1000 {
		t.Error("the list is changed")
	}
	if got := Percentile([]int(nil), 50); got != 0 {
		t.Errorf("of nothing: got %d", got)
	}
	if got := Percentiles([]int{}, 50, 99); len(got) != 2 || got[1] != 0 {
		t.Errorf("of nothing: got %d", got)
	}
}

func TestNumbers(t *testing.T) {
	for v, want := range map[float64]string{0: "0", 2731.4: "2731", 99.96: "100", 12.345: "12.3", 0.04567: "0.0457", -3.14159: "-3.14", 123456789: "123456789", 0.0000012: "0.0000012"} {
		if got := Number(v); got != want {
			t.Errorf("%v: got %s, want %s", v, got, want)
		}
	}
}

func TestTextNeverContradictsTheVerdict(t *testing.T) {
	for _, c := range []struct {
		v    float64
		t    *Target
		want string
	}{
		{1.0496, RatioAtLeast(1.05), "1.0496"},
		{1.0504, RatioAtLeast(1.05), "1.05"},
		{1.046, RatioAtLeast(1.05), "1.046"},
		{1.046, nil, "1.05"},
		{0.9001, RatioAtMost(0.9), "0.9001"},
	} {
		if got := ratioText(c.v, c.t); got != c.want {
			t.Errorf("%v: got %s, want %s", c.v, got, c.want)
		}
	}
	if got := valueText(29.97, Below(30)); got != "29.97" {
		t.Errorf("got %s, want 29.97", got)
	}
	if got := valueText(29.97, nil); got != "30" {
		t.Errorf("got %s, want 30", got)
	}
}

func TestEnvironmentIsThisMachine(t *testing.T) {
	e := Environment()
	if host, _ := os.Hostname(); e.Host != host || e.Cores != runtime.NumCPU() || e.Go != runtime.Version() {
		t.Errorf("got %+v", e)
	}
	if time.Since(e.Date) > time.Minute || len(e.Command) == 0 || e.Command[0] != filepath.Base(os.Args[0]) {
		t.Errorf("got %+v", e)
	}
	if runtime.GOOS == "linux" && (e.Kernel == "" || e.TCP == "" || e.Load == "") {
		t.Errorf("got %+v", e)
	}
}
