package report

import (
	"cmp"
	"math"
	"slices"
)

// Stats are what a list of values comes down to. All but N are 0 where N is.
type Stats struct {
	N      int     `json:"n"`
	Median float64 `json:"median"`
	Least  float64 `json:"least"`
	Most   float64 `json:"most"`
}

// Summary computes the Stats of values, which it leaves alone.
func Summary(values []float64) Stats {
	if len(values) == 0 {
		return Stats{}
	}
	v := slices.Sorted(slices.Values(values))
	return Stats{N: len(v), Median: middle(v), Least: v[0], Most: v[len(v)-1]}
}

// Median is the value in the middle, the mean of both where there are two; NaN of nothing.
func Median(values []float64) float64 {
	if len(values) == 0 {
		return math.NaN()
	}
	return middle(slices.Sorted(slices.Values(values)))
}

func middle(sorted []float64) float64 {
	n := len(sorted)
	return sorted[(n-1)/2]/2 + sorted[n/2]/2
}

// Percentile is the least of values that p of 100 of them do not exceed (the nearest rank): always one that occurred. p is
// within 0 and 100. Of nothing it is the zero value.
func Percentile[T cmp.Ordered](values []T, p float64) (v T) {
	if len(values) == 0 {
		return v
	}
	sorted := slices.Sorted(slices.Values(values))
	return sorted[rank(len(sorted), p)]
}

// Percentiles is Percentile for several p at once.
func Percentiles[T cmp.Ordered](values []T, p ...float64) []T {
	result := make([]T, len(p))
	if len(values) == 0 {
		return result
	}
	sorted := slices.Sorted(slices.Values(values))
	for i, p := range p {
		result[i] = sorted[rank(len(sorted), p)]
	}
	return result
}

func rank(n int, p float64) int {
	// 0.99*100 is more than 99 in binary: without the allowance the rank would be one too high.
	r := int(math.Ceil(p/100*float64(n)-1e-9)) - 1
	return max(0, min(n-1, r))
}
