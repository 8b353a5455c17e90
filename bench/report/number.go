package report

import (
	"fmt"
	"math"
	"strconv"
)

// Number renders a value with three significant digits, those before the point all.
func Number(v float64) string {
	if math.Abs(v) >= 100 {
		return strconv.FormatFloat(v, 'f', 0, 64)
	}
	return trim(significant(v, 3))
}

// significant rounds to a number of digits.
func significant(v float64, digits int) float64 {
	rounded, err := strconv.ParseFloat(strconv.FormatFloat(v, 'g', digits, 64), 64)
	if err != nil {
		return v
	}
	return rounded
}

// trim renders a number in full.
func trim(v float64) string { return strconv.FormatFloat(v, 'f', -1, 64) }

// ratioText renders a ratio with two digits behind the point, or as many as it takes to be seen on the right side of its
// target. t is nil if there is none.
func ratioText(v float64, t *Target) string {
	const enough = 6
	for digits := 2; ; digits++ {
		text := strconv.FormatFloat(v, 'f', digits, 64)
		if rounded, _ := strconv.ParseFloat(text, 64); t == nil || digits == enough || t.met(rounded) == t.met(v) {
			return text
		}
	}
}

// valueText does so for a value.
func valueText(v float64, t *Target) string {
	text := Number(v)
	if rounded, _ := strconv.ParseFloat(text, 64); t != nil && t.met(rounded) != t.met(v) {
		return trim(significant(v, 6))
	}
	return text
}

// spread renders the least and the most.
func spread(least, most string) string { return fmt.Sprintf("%s to %s", least, most) }
