//go:build linux

package main

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// report is the result, and the JSON document.
type report struct {
	Options     options  `json:"options"`
	Environment env      `json:"environment"`
	Samples     []sample `json:"samples"`
}

// env is where and of what the figures were taken.
type env struct {
	Host    string    `json:"host"`
	Kernel  string    `json:"kernel"`
	CPU     string    `json:"cpu"`
	Cores   int       `json:"cores"`
	Go      string    `json:"go"`
	TCP     string    `json:"tcp_congestion_control"`
	Load    string    `json:"load_average"` // before the measurement
	Date    time.Time `json:"date"`
	Commit  string    `json:"commit"`
	Command []string  `json:"command"`
}

// rows is the order of a table's lines, whichever of them a case has.
var rows = []string{mbps, cpuPerGB, cpuClient, cpuFar, p50, p99, added, perSecond, cpuEach, memoryIdle, memoryMB, perIdle}

func (r *report) table(w io.Writer) {
	e, o := r.Environment, r.Options
	fmt.Fprintf(w, "%s, Linux %s, %d x %s, %s, %s, load %s\n", e.Host, e.Kernel, e.Cores, e.CPU, e.Go, e.Date.Format(time.DateOnly), e.Load)
	fmt.Fprintf(w, "commit %s; medians of %d rounds of %v; kernel TCP %s\n\n", e.Commit, o.Rounds, o.Length, e.TCP)
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintf(t, "\t%s\t%s\t%s\t%[1]s/%[2]s\t%[1]s/%[3]s\t\n", culvert, stock, kernel)
	for _, c := range r.cases() {
		fmt.Fprintf(t, "%s\t\t\t\t\t\t\n", c)
		for _, row := range rows {
			values := [3]float64{r.median(c, culvert, row), r.median(c, stock, row), r.median(c, kernel, row)}
			if values == [3]float64{} {
				continue
			}
			fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\t\n", row, number(values[0]), number(values[1]), number(values[2]),
				ratio(values[0], values[1]), ratio(values[0], values[2]))
		}
	}
	t.Flush()
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

// median over the rounds; 0 if there is no such figure.
func (r *report) median(name string, of way, row string) float64 {
	var v []float64
	for _, s := range r.Samples {
		if x, ok := s.Figures[row]; ok && s.Case == name && s.Way == of {
			v = append(v, x)
		}
	}
	if len(v) == 0 {
		return 0
	}
	slices.Sort(v)
	return (v[(len(v)-1)/2] + v[len(v)/2]) / 2
}

func number(v float64) string {
	switch {
	case v == 0:
		return "-"
	case v >= 100:
		return fmt.Sprintf("%.0f", v)
	default:
		return fmt.Sprintf("%.3g", v)
	}
}

func ratio(ours, theirs float64) string {
	if ours == 0 || theirs == 0 {
		return "-"
	}
	return fmt.Sprintf("%.2f", ours/theirs)
}

func environment() env {
	e := env{
		Kernel: file("/proc/sys/kernel/osrelease"), TCP: file("/proc/sys/net/ipv4/tcp_congestion_control"), Load: file("/proc/loadavg"),
		Cores: runtime.NumCPU(), Go: runtime.Version(), Date: time.Now().UTC().Truncate(time.Second), Command: os.Args[1:],
	}
	e.Host, _ = os.Hostname()
	for line := range strings.Lines(file("/proc/cpuinfo")) {
		if key, value, _ := strings.Cut(line, ":"); strings.TrimSpace(key) == "model name" {
			e.CPU = strings.TrimSpace(value)
			break
		}
	}
	// A binary without commit is still worth measuring.
	commit, _ := exec.Command("git", "describe", "--always", "--dirty", "--abbrev=12").Output()
	e.Commit = strings.TrimSpace(string(commit))
	return e
}

func file(path string) string {
	b, _ := os.ReadFile(path)
	return strings.TrimSpace(string(b))
}
