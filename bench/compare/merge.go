//go:build linux

package main

import (
	"bytes"
	"fmt"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
)

// part is what a profile has of one load.
type part struct {
	load    string
	file    string
	samples int
}

// gather merges profiles of the load into the part's file, as they are.
func (p *part) gather(profiles []string) error {
	if err := mergeFiles(p.file, profiles); err != nil {
		return fmt.Errorf("%s: %w", p.load, err)
	}
	// The heading of the list has the sum; of the list one line is enough.
	out, err := pprofTool("-top", "-nodecount=1", "-sample_index=samples", p.file)
	if err != nil {
		return fmt.Errorf("%s: %w", p.load, err)
	}
	if p.samples, err = readSamples(out); err != nil {
		return fmt.Errorf("%s: %w", p.load, err)
	}
	return nil
}

var totalSamples = regexp.MustCompile(`(?m)^Duration: .*, Total samples = (\d+)\b`)

// readSamples reads the number of samples from what pprof -top says. None is an error: the exit has done nothing.
func readSamples(top string) (int, error) {
	m := totalSamples.FindStringSubmatch(top)
	if m == nil {
		return 0, fmt.Errorf("pprof -top names no number of samples:\n%s", top)
	}
	n, err := strconv.Atoi(m[1])
	if err == nil && n == 0 {
		err = fmt.Errorf("the profiles have no sample: was the load longer than the 10 ms from one to the next?")
	}
	return n, err
}

// partWeight is the sum of a part's samples in the merged profile. It is far more than any load has, since pprof rounds what it
// has scaled down to whole samples, and most places in the code have a single one.
const partWeight = 1_000_000

// mergeParts merges the parts into the file to, so that each weighs the same. It changes them.
func mergeParts(parts []part, to string) error {
	var files []string
	for _, p := range parts {
		scaled := p.file + ".scaled"
		divide := strconv.FormatFloat(float64(p.samples)/partWeight, 'g', -1, 64)
		if err := mergeFiles(scaled, []string{p.file}, "-divide_by="+divide); err != nil {
			return fmt.Errorf("%s: %w", p.load, err)
		}
		files = append(files, scaled)
	}
	return mergeFiles(to, files)
}

// mergeFiles adds up profiles. The runtime has put the names of functions in, so that no binary is needed.
func mergeFiles(to string, profiles []string, options ...string) error {
	args := append([]string{"-proto", "-symbolize=none", "-output=" + to}, options...)
	_, err := pprofTool(append(args, profiles...)...)
	return err
}

// pprofTool runs go tool pprof and returns what it prints.
func pprofTool(args ...string) (string, error) {
	cmd := exec.Command("go", append([]string{"tool", "pprof"}, args...)...)
	var out, problems bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &problems
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("go tool pprof %s: %w\n%s", strings.Join(args, " "), err, problems.Bytes())
	}
	return out.String(), nil
}
