//go:build linux

// Compare measures the product as an exit against the reference: stock wireguard-go on a kernel TUN, run as root, with
// ip_forward and nft masquerade. Both stand in the same kind of namespaces and are measured in turn, load by load and round by
// round, since the speed of a machine drifts more than the two differ.
//
//	go run ./bench/compare                              # everything: forty minutes
//	go run ./bench/compare -list                        # what that is
//	go run ./bench/compare -only '^tcp' -rounds 3       # TCP throughput and CPU time alone
//	go run ./bench/compare -quick                       # whether it works at all: a minute
//
// The report has medians, ratios to the reference and what was aimed at: a table on stdout, and in a folder the same as text,
// as a page of HTML with charts, and as JSON with every sample. Figures of a machine that has other work are worth little.
//
// Another exit can be put beside the two, as a command with placeholders for keys, addresses and files: --help names them. A
// second culvert, configured by a file of its own, is
//
//	go run ./bench/compare -exit 'again=exec @CULVERT@ up -c @FILE:bench/compare/testdata/culvert.conf@ --state @DIR@/state'
//
// and a program that needs root of the exit's host is run by -exit-root, as testdata/stock.sh does. Any exit that speaks
// WireGuard and whose traffic goes through a process will do.
//
// The same loads make a profile by which the compiler can optimise the product. The tree has none, since none has paid so far: see
// bench/results/README.md. It is made by
//
//	go run ./bench/compare -profile culvert.pgo
//
// It is no test: a target that is missed is a line of the report. It needs what the laboratory needs (see internal/lab), iperf3
// and curl, but no root.
package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	loadgen "culvert.dev/culvert/bench/load"
	"culvert.dev/culvert/internal/lab"
)

func main() {
	log.SetFlags(0)
	log.SetPrefix("compare: ")
	if len(os.Args) > 1 && os.Args[1] == loadCommand {
		os.Exit(loadgen.Main(os.Args[2:]))
	}
	os.Exit(command())
}

func command() int {
	o, err := parseOptions(os.Args[1:], os.Stdout)
	if errors.Is(err, flag.ErrHelp) {
		return 0
	}
	selected, folder := []load(nil), ""
	if err == nil {
		selected, err = o.selected()
	}
	if err != nil {
		log.Print(err)
		return 2
	}
	if o.list {
		for _, l := range selected {
			fmt.Printf("%-22s %s\n", l.name, l.title)
		}
		return 0
	}
	if o.profile != "" {
		return profileCommand(o, selected)
	}
	if folder, err = o.folder(); err == nil {
		err = errors.Join(os.Setenv(outEnv, folder), raiseFiles())
	}
	if err != nil {
		log.Print(err)
		return 1
	}
	return lab.Main(func() int {
		if err := run(o, selected, folder); err != nil {
			log.Print(err)
			return 1
		}
		return 0
	}, lab.WireGuardGo, lab.Culvert)
}

// run measures and writes the report, also of what there is after a failure.
func run(o options, selected []load, folder string) error {
	r := newComparison(o, selected)
	err := lab.Script("compare", func(tb lab.TB) {
		lab.Need(tb, "iperf3", "curl")
		r.measure(tb)
	})
	if len(r.failed) > 0 {
		missing := "not measured: " + strings.Join(r.failed, ", ")
		r.doc.Notes = append(r.doc.Notes, missing)
		err = errors.Join(err, errors.New(missing))
	}
	return errors.Join(r.doc.WriteText(os.Stdout), r.write(folder), err)
}

// write makes the files of the report.
func (r *comparison) write(folder string) error {
	for name, write := range map[string]func(io.Writer) error{
		"report.txt": r.doc.WriteText, "report.json": r.doc.WriteJSON, "report.html": r.doc.WriteHTML,
	} {
		f, err := os.Create(filepath.Join(folder, name))
		if err != nil {
			return err
		}
		if err := errors.Join(write(f), f.Close()); err != nil {
			return fmt.Errorf("write %s: %w", f.Name(), err)
		}
	}
	log.Printf("the report is in %s", folder)
	return nil
}

// raiseFiles lets this process and its children have as many files as the host permits: an exit needs one for each flow.
func raiseFiles() error {
	var lim unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &lim); err != nil {
		return fmt.Errorf("read RLIMIT_NOFILE: %w", err)
	}
	lim.Cur = lim.Max
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &lim); err != nil {
		return fmt.Errorf("raise RLIMIT_NOFILE: %w", err)
	}
	return nil
}
