//go:build linux

package main

import (
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"text/tabwriter"
)

// figures are one measurement, by name.
type figures map[string]float64

// sample is one measurement of one server.
type sample struct {
	Round   int     `json:"round"`
	Server  string  `json:"server"`
	Case    string  `json:"case"`
	Figures figures `json:"figures"`
}

// report is the result, and the JSON document.
type report struct {
	Options options  `json:"options"`
	Samples []sample `json:"samples"`
}

// rows is the order of a table's lines, whichever of them a case has.
var rows = []string{perSecond, perCPU, megabytes, megabytesCPU, cpuPerGB, busy, lost, rttMedian, rttTail, added,
	delivered, pacedMedian, pacedTail, flooded, perClient, memoryMB}

func (r *report) table(w io.Writer) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintf(t, "medians of %d rounds\t%s\t%s\tratio\t\n", r.Options.Rounds, nameCulvert, nameStock)
	for _, c := range r.cases() {
		fmt.Fprintf(t, "%s\t\t\t\t\n", c)
		for _, row := range rows {
			ours, ok := r.median(c, nameCulvert, row)
			theirs, ok2 := r.median(c, nameStock, row)
			if ok || ok2 {
				fmt.Fprintf(t, "%s\t%s\t%s\t%s\t\n", row, number(ours, ok), number(theirs, ok2), ratio(ours, theirs))
			}
		}
	}
	return t.Flush()
}

func (r *report) json(w io.Writer) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "\t")
	return e.Encode(r)
}

// cases returns the names of the cases in the order they were measured.
func (r *report) cases() (names []string) {
	for _, s := range r.Samples {
		if !slices.Contains(names, s.Case) {
			names = append(names, s.Case)
		}
	}
	return names
}

func (r *report) median(name, server, row string) (float64, bool) {
	var values []float64
	for _, s := range r.Samples {
		if v, ok := s.Figures[row]; ok && s.Case == name && s.Server == server {
			values = append(values, v)
		}
	}
	if len(values) == 0 {
		return 0, false
	}
	slices.Sort(values)
	middle := len(values) / 2
	if len(values)%2 == 0 {
		return (values[middle-1] + values[middle]) / 2, true
	}
	return values[middle], true
}

func number(v float64, ok bool) string {
	switch {
	case !ok:
		return "-"
	case v >= 1000:
		return fmt.Sprintf("%.0f", v)
	case v >= 10:
		return fmt.Sprintf("%.1f", v)
	default:
		return fmt.Sprintf("%.3g", v)
	}
}

func ratio(ours, theirs float64) string {
	if theirs == 0 {
		return "-"
	}
	return fmt.Sprintf("%.2f", ours/theirs)
}
