package probe

import (
	"encoding/json"
	"math"
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

// TestHistogramAgainstSorting compares percentiles with those of the sorted values.
func TestHistogramAgainstSorting(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	for _, n := range []int{1, 2, 3, 99, 100, 101, 5000} {
		var h histogram
		var all []time.Duration
		for range n {
			d := time.Duration(math.Exp(random.Float64() * math.Log(1e12))) // of all magnitudes
			h.add(d)
			all = append(all, d)
		}
		slices.Sort(all)
		for _, part := range []float64{0.001, 0.5, 0.9, 0.99, 0.999, 1} {
			want := all[int(math.Ceil(part*float64(n)))-1]
			if got := h.quantile(part); got < want || float64(got) > float64(want)*129/128 {
				t.Errorf("%d values, %v: got %d, want %d", n, part, got, want)
			}
		}
		if h.low != all[0] || h.high != all[n-1] || h.n != n {
			t.Errorf("%d values: from %v to %v, %d", n, h.low, h.high, h.n)
		}
	}
}

func TestBucketsHoldWhatTheySay(t *testing.T) {
	values := []time.Duration{-1, 0, 1, 127, 128, 255, 256, 257, 258, 511, 512, 1 << 40, math.MaxInt64}
	for i := range 62 {
		values = append(values, 1<<i-1, 1<<i, 1<<i+1)
	}
	for _, d := range values {
		b := bucketOf(d)
		if d = max(d, 0); topOf(b) < d || b > 0 && topOf(b-1) >= d {
			t.Errorf("%d is in bucket %d, which ends at %d, the one before at %d", d, b, topOf(b), topOf(b-1))
		}
	}
}

func TestLatencyText(t *testing.T) {
	var h histogram
	for i := range 100 {
		h.add(time.Duration(i+1) * time.Millisecond)
	}
	l := h.latency(125)
	if got, want := l.String(), "min/p50/p90/p99/max = 1.000/50.07/90.18/99.09/100.0 ms, 125 sent, 20 % lost"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if got := (Latency{Sent: 3}).String(); got != "none of 3 answered" || (Latency{Sent: 3}).Loss() != 100 || (Latency{}).Loss() != 0 {
		t.Errorf("none: %s", got)
	}
	b, err := json.Marshal(l)
	var back Latency
	if err != nil || json.Unmarshal(b, &back) != nil || back != l {
		t.Errorf("%s: %v, %+v", b, err, back)
	}
}
