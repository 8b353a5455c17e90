// Package show writes figures and foreign text the way every command of culvert shows them to people: short, of one width, and
// without anything that could steer a terminal. JSON and metrics do not use it. Its functions are pure.
//
//	fmt.Fprintf(w, "%s\t%s\n", show.Bytes(1536), show.Span(90*time.Second)) // 1.50 KiB  1m30s
package show

import (
	"fmt"
	"strconv"
	"strings"
	"time"
	"unicode"
)

// Span writes a duration in its two largest units. Clocks may disagree a little: what is negative counts as zero.
func Span(d time.Duration) string {
	s := int64(max(d, 0) / time.Second)
	switch {
	case s < 60:
		return fmt.Sprintf("%ds", s)
	case s < 3600:
		return fmt.Sprintf("%dm%02ds", s/60, s%60)
	case s < 86400:
		return fmt.Sprintf("%dh%02dm", s/3600, s/60%60)
	default:
		return fmt.Sprintf("%dd%02dh", s/86400, s/3600%24)
	}
}

// Bytes writes a size in binary units with three significant digits.
func Bytes(n uint64) string {
	if n < 1024 {
		return fmt.Sprintf("%d B", n)
	}
	v, unit := float64(n)/1024, 0
	const units = "KMGTPE"
	for v >= 1023.5 && unit < len(units)-1 {
		v, unit = v/1024, unit+1
	}
	digits := 0
	switch {
	case v < 9.995:
		digits = 2
	case v < 99.95:
		digits = 1
	}
	return fmt.Sprintf("%s %ciB", strconv.FormatFloat(v, 'f', digits, 64), units[unit])
}

// OrDash returns s, or a dash for an empty cell of a table.
func OrDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// Printable keeps control characters, which could steer the terminal or break a table, out of s.
func Printable(s string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, s)
}
