package probe

import (
	"encoding/json"
	"fmt"
	"math"
	"math/bits"
	"strconv"
	"time"
)

// Latency sums up round trips, or the set-up of connections. Percentiles are by nearest rank, with an error below 1 %. Without an
// answer all times are zero.
type Latency struct {
	Sent     int    `json:"sent"`
	Answered int    `json:"answered"`
	Min      Millis `json:"min_ms"`
	Mean     Millis `json:"mean_ms"`
	P50      Millis `json:"p50_ms"`
	P90      Millis `json:"p90_ms"`
	P99      Millis `json:"p99_ms"`
	Max      Millis `json:"max_ms"`
}

// Loss is the part that was not answered, in percent.
func (l Latency) Loss() float64 {
	if l.Sent == 0 {
		return 0
	}
	return 100 * float64(l.Sent-l.Answered) / float64(l.Sent)
}

// String is one line without its end.
func (l Latency) String() string {
	if l.Answered == 0 {
		return fmt.Sprintf("none of %d answered", l.Sent)
	}
	return fmt.Sprintf("%s, %d sent, %.2g %% lost", l.times(), l.Sent, l.Loss())
}

func (l Latency) times() string {
	return fmt.Sprintf("min/p50/p90/p99/max = %v/%v/%v/%v/%v ms", l.Min, l.P50, l.P90, l.P99, l.Max)
}

// Millis is a duration; in JSON it is a number of milliseconds, down to the nanosecond.
type Millis time.Duration

// MarshalJSON implements json.Marshaler.
func (m Millis) MarshalJSON() ([]byte, error) {
	return json.Marshal(float64(m) / float64(time.Millisecond))
}

// UnmarshalJSON implements json.Unmarshaler.
func (m *Millis) UnmarshalJSON(b []byte) error {
	var ms float64
	if err := json.Unmarshal(b, &ms); err != nil {
		return err
	}
	*m = Millis(math.Round(ms * float64(time.Millisecond)))
	return nil
}

// String has the digits that ping(8) shows.
func (m Millis) String() string {
	ms := float64(m) / float64(time.Millisecond)
	digits := 1
	switch {
	case ms < 9.9995:
		digits = 3
	case ms < 99.995:
		digits = 2
	}
	return strconv.FormatFloat(ms, 'f', digits, 64)
}

// histogram counts durations in buckets that are 1/128 of their value wide at most, so that a run of any length needs no more memory
// than a short one.
type histogram struct {
	counts         [(64-stepBits)<<stepBits + 1<<stepBits]uint32
	n              int
	sum, low, high time.Duration
}

const stepBits = 7

func bucketOf(d time.Duration) int {
	v := uint64(max(d, 0))
	shift := max(bits.Len64(v)-stepBits-1, 0)
	return shift<<stepBits + int(v>>shift)
}

// topOf is the longest duration of a bucket.
func topOf(bucket int) time.Duration {
	if bucket < 2<<stepBits {
		return time.Duration(bucket)
	}
	shift := bucket>>stepBits - 1
	return time.Duration((bucket-shift<<stepBits+1)<<shift - 1)
}

func (h *histogram) add(d time.Duration) {
	if h.n == 0 || d < h.low {
		h.low = d
	}
	h.high = max(h.high, d)
	h.sum += d
	h.n++
	h.counts[bucketOf(d)]++
}

// quantile is the duration that a part of all, above 0 and up to 1, do not exceed.
func (h *histogram) quantile(part float64) time.Duration {
	rank := int(math.Ceil(part * float64(h.n)))
	for bucket, count := range h.counts {
		if rank -= int(count); rank <= 0 {
			return min(max(topOf(bucket), h.low), h.high)
		}
	}
	return h.high
}

func (h *histogram) latency(sent int) Latency {
	l := Latency{Sent: sent, Answered: h.n}
	if h.n > 0 {
		l.Min, l.Max, l.Mean = Millis(h.low), Millis(h.high), Millis(h.sum/time.Duration(h.n))
		l.P50, l.P90, l.P99 = Millis(h.quantile(0.50)), Millis(h.quantile(0.90)), Millis(h.quantile(0.99))
	}
	return l
}
