//go:build linux

package main

import (
	"errors"
	"fmt"
	"log"
	"os"
	"path/filepath"
	"strings"
	"time"

	"culvert.dev/culvert/internal/lab"
)

// profileLoads are the loads of a profile unless -only names others: what an exit does most, in both directions. Loads that
// measure memory or round trips leave it idle.
const profileLoads = `^(tcp-[14]-(up|down)|udp-(64|1200)-(up|down)|iperf3-udp-1200-down|connections)$`

// profileVar names the directory that a culvert with the tag profile writes into; see cmd/culvert/profile.go.
const profileVar = "CULVERT_PROFILE"

// profiled is the product as it is profiled. It is compiled without a profile, although the compiler copes with one of an
// optimised binary: so the new file depends on the sources alone, and what an old one had inlined or moved has no say in what
// is hot.
func profiled() lab.Program {
	p := lab.Culvert
	p.Flags = "-tags=profile -pgo=off"
	return p
}

// profileCommand makes the file that -profile names and returns the exit status.
func profileCommand(o options, selected []load) int {
	if err := errors.Join(checkTarget(o.profile), raiseFiles()); err != nil {
		log.Print(err)
		return 1
	}
	return lab.Main(func() int {
		if err := lab.Script("profile", func(tb lab.TB) { makeProfile(tb, o, selected) }); err != nil {
			log.Print(err)
			return 1
		}
		return 0
	}, lab.WireGuardGo, profiled())
}

// checkTarget finds out that a file cannot be written while nothing is lost by it.
func checkTarget(path string) error {
	abs, err := filepath.Abs(path)
	if err != nil {
		return fmt.Errorf("-profile: %w", err)
	}
	if strings.HasPrefix(abs, "/run/") { // which the laboratory covers with its own
		return fmt.Errorf("-profile %s: nothing below /run outlives the laboratory: name a file elsewhere", path)
	}
	if info, err := os.Stat(path); err == nil && !info.Mode().IsRegular() {
		return fmt.Errorf("-profile %s: it is no file", path)
	}
	err = os.WriteFile(path+unfinished, nil, 0o644)
	if err == nil {
		err = os.Remove(path + unfinished)
	}
	if err != nil {
		return fmt.Errorf("-profile: %w", err)
	}
	return nil
}

// unfinished is behind the name of a file while it is written, so that a build never sees half of it.
const unfinished = ".new"

// makeProfile burdens an exit with one load after the other and merges what comes of it. It needs all of them: the compiler would
// take code for cold that a load which is missing has made hot.
func makeProfile(tb lab.TB, o options, selected []load) {
	tb.Helper()
	lab.Need(tb, "iperf3", "curl")
	if _, err := pprofTool("-h"); err != nil { // built on first use
		tb.Fatalf("%v", err)
	}
	dir := tb.TempDir()
	var parts []part
	for i, l := range selected {
		start := time.Now()
		p := part{load: l.name, file: filepath.Join(dir, l.name)}
		var v values
		err := lab.Script(l.name, func(tb lab.TB) { v = profileLoad(tb, o, l, &p) })
		if err != nil {
			tb.Fatalf("%s: not profiled, nothing was written to %s: %v", l.name, o.profile, err)
		}
		log.Printf("%d of %d: %-20s %s: %d samples (%.1f s)", i+1, len(selected), l.name, l.line(v), p.samples, time.Since(start).Seconds())
		parts = append(parts, p)
	}
	merged := filepath.Join(dir, "merged")
	if err := mergeParts(parts, merged); err != nil {
		tb.Fatalf("%v", err)
	}
	content, err := os.ReadFile(merged)
	if err == nil {
		err = os.WriteFile(o.profile+unfinished, content, 0o644)
	}
	if err == nil {
		err = os.Rename(o.profile+unfinished, o.profile)
	}
	if err != nil {
		tb.Fatalf("write the profile: %v", err)
	}
	log.Print(profileUse(o.profile, len(parts), len(content)))
}

// profileLoad burdens a new exit, and fills in the part: a process of its own for each load keeps the profiles apart.
func profileLoad(tb lab.TB, o options, l load, p *part) values {
	tb.Helper()
	dir := lab.UnprivilegedDir(tb)
	os.Setenv(profileVar, dir) // programs that are started from here on inherit it; nobody but culvert reads it
	defer os.Unsetenv(profileVar)
	c := newContender(tb, culvert, o)
	c.remark = log.Printf
	c.startIperf(tb)
	v := l.run(c, tb)
	if err := l.check(v); err != nil {
		tb.Fatalf("%v", err)
	}
	if err := p.gather(awaitLast(tb, c, dir)); err != nil {
		tb.Fatalf("%v", err)
	}
	return v
}

// awaitLast waits for the profile that the exit is at, as it may hold the end of the load, and lists all.
func awaitLast(tb lab.TB, c *contender, dir string) (files []string) {
	tb.Helper()
	list := func() []string {
		files, _ := filepath.Glob(filepath.Join(dir, "*.pprof")) // the pattern is good
		return files
	}
	before := len(list())
	const limit = 10 * time.Second // a profile takes one
	if !lab.Poll(limit, func() bool { files = list(); return len(files) > before }) {
		tb.Fatalf("the exit wrote no profile in %v:\n%s", limit, c.log())
	}
	return files
}

// profileUse says what has been made and what it is good for.
func profileUse(file string, loads, size int) string {
	return fmt.Sprintf("%s has %s, each with the same weight, in %d kB. A build with it is\n\n\tgo build -pgo=%s ./cmd/culvert\n\nand a measurement of it beside one without"+
		"\n\n\tgo run ./bench/compare -exit 'pgo=exec PATH up -c @FILE:bench/compare/testdata/culvert.conf@ --state @DIR@/state'",
		file, plural(loads, "load"), (size+999)/1000, file)
}
