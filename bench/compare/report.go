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

	"culvert.dev/culvert/internal/lab"
)

// report is the result, and the JSON document.
type report struct {
	Options     options   `json:"options"`
	Environment env       `json:"environment"`
	Summary     []summary `json:"summary"`
	Samples     []sample  `json:"samples"`
}

// env is where and of what the figures were taken.
type env struct {
	Host    string    `json:"host"`
	Kernel  string    `json:"kernel"`
	CPU     string    `json:"cpu"`
	Cores   int       `json:"cores"`
	Go      string    `json:"go"`
	TCP     string    `json:"tcp_congestion_control"`
	Date    time.Time `json:"date"`
	Commit  string    `json:"commit"`
	Command []string  `json:"command"`
}

// summary compares the exits in one direction, by medians over the rounds.
type summary struct {
	Direction direction `json:"direction"`
	Culvert   figures   `json:"culvert"`
	Reference figures   `json:"reference"`
	Ratio     float64   `json:"ratio"` // of the medians
}

type figures struct {
	Mbps     float64 `json:"mbps"`
	Least    float64 `json:"mbps_least"`
	Most     float64 `json:"mbps_most"`
	CPUPerGB float64 `json:"cpu_s_per_gb"`
	MemoryMB float64 `json:"rss_mb_most"`
}

func (r *report) summarise() {
	for _, d := range directions {
		s := summary{Direction: d, Culvert: r.figures(lab.ExitCulvert, d), Reference: r.figures(lab.ExitReference, d)}
		s.Ratio = s.Culvert.Mbps / s.Reference.Mbps
		r.Summary = append(r.Summary, s)
	}
}

func (r *report) figures(kind lab.ExitKind, d direction) (f figures) {
	var mbps, cpu []float64
	for _, s := range r.Samples {
		if s.Exit == kind && s.Direction == d {
			mbps, cpu = append(mbps, s.Mbps), append(cpu, s.CPUPerGB)
			f.MemoryMB = max(f.MemoryMB, s.MemoryMB)
		}
	}
	f.Mbps, f.CPUPerGB = median(mbps), median(cpu)
	f.Least, f.Most = slices.Min(mbps), slices.Max(mbps)
	return f
}

// median of a non-empty list; the mean of the two in the middle where it has an even length.
func median(v []float64) float64 {
	v = slices.Sorted(slices.Values(v))
	return (v[(len(v)-1)/2] + v[len(v)/2]) / 2
}

func (r *report) print(w io.Writer) {
	e := r.Environment
	fmt.Fprintf(w, "%s, Linux %s, %d x %s, %s, %s\n", e.Host, e.Kernel, e.Cores, e.CPU, e.Go, e.Date.Format(time.DateOnly))
	fmt.Fprintf(w, "commit %s; %d rounds of %d s, %d stream(s), IPv%d, %s; medians (least to most)\n\n",
		e.Commit, r.Options.Rounds, r.Options.Seconds, r.Options.Streams, r.Options.Family, e.TCP)
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "\tculvert Mbit/s\treference Mbit/s\tratio\tCPU-s/GB culvert\treference\tMB culvert\treference")
	for _, s := range r.Summary {
		fmt.Fprintf(t, "%s\t%.0f (%.0f to %.0f)\t%.0f (%.0f to %.0f)\t%.2f\t%.2f\t%.2f\t%.0f\t%.0f\n", s.Direction,
			s.Culvert.Mbps, s.Culvert.Least, s.Culvert.Most, s.Reference.Mbps, s.Reference.Least, s.Reference.Most, s.Ratio,
			s.Culvert.CPUPerGB, s.Reference.CPUPerGB, s.Culvert.MemoryMB, s.Reference.MemoryMB)
	}
	t.Flush()
}

func environment() env {
	e := env{
		Kernel: file("/proc/sys/kernel/osrelease"), TCP: file("/proc/sys/net/ipv4/tcp_congestion_control"),
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
