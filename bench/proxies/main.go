//go:build linux

// Proxies measures the ways of a program on one host to a server in the mesh, in turn, round by round:
//
//	culvert  the product's SOCKS5 listener, without root, capabilities or TUN
//	stock    the plain way to do the same: stock wireguard-go on its own netstack package and io.Copy (bench/stockproxy)
//	kernel   no proxy: a kernel TUN of stock wireguard-go, run as root
//
// The far end is the same for all: stock wireguard-go on a kernel TUN, and a server of this program that costs little. Bulk
// data is curl's; times of connecting are taken by blocking system calls of this program.
//
//	go run ./bench/proxies                              # everything, 5 rounds of 5 s, a table
//	go run ./bench/proxies -only upload -json up.json   # the cases whose names contain "upload"; also all samples
//	go run ./bench/proxies -html proxies.html           # also a page with charts
//	go run ./bench/proxies -quick                       # whether it works at all
//
// Where the machine has other work, CPU seconds per GB are still comparable; Mbit/s and times are not. All hosts share this
// machine: where it has few cores, the far end's work takes time from the faster ways too, and ratios of Mbit/s come out smaller
// than those of CPU time. With -pin the client hosts have one core and the far end another.
//
// It needs what the laboratory needs (see internal/lab) and curl, but no root. To hold 10,000 connections each of the processes
// needs as many open files: the hard limit (ulimit -Hn) must permit them.
package main

import (
	"flag"
	"fmt"
	"log"
	"os"
	"runtime"
	"strconv"
	"strings"
	"time"

	"culvert.dev/culvert/internal/lab"
)

// options are the command line.
type options struct {
	Rounds      int           `json:"rounds"`
	Length      time.Duration `json:"length_ns"`
	Warmup      time.Duration `json:"warmup_ns"`
	Settle      time.Duration `json:"settle_ns"` // before memory is read
	Streams     counts        `json:"streams"`
	Connections int           `json:"connections"` // one after the other
	Workers     int           `json:"workers"`     // that connect at once
	Idle        counts        `json:"idle"`
	Pin         bool          `json:"pin"`
	Only        string        `json:"only,omitempty"`
}

func main() {
	log.SetFlags(0)
	log.SetPrefix("proxies: ")
	if len(os.Args) > 1 && os.Args[1] == holdCommand {
		if err := holdMain(os.Args[2:]); err != nil {
			log.Fatal(err)
		}
		return
	}
	o, files := parseOptions()
	if err := raiseFiles(); err != nil {
		log.Fatal(err)
	}
	remove, err := buildStock()
	if err != nil {
		log.Fatal(err)
	}
	status := lab.Main(func() int {
		if err := run(o, files); err != nil {
			log.Print(err)
			return 1
		}
		return 0
	}, lab.WireGuardGo, lab.Culvert)
	remove()
	os.Exit(status)
}

func parseOptions() (o options, files outputs) {
	o = options{Settle: 10 * time.Second, Streams: counts{1, 4}, Idle: counts{1000, 10000}}
	flag.IntVar(&o.Rounds, "rounds", 5, "measure each case `N` times")
	flag.DurationVar(&o.Length, "length", 5*time.Second, "measure for this `time` each")
	flag.DurationVar(&o.Warmup, "warmup", time.Second, "let streams run for this `time` before")
	flag.Var(&o.Streams, "streams", "move data on so many streams at once; a `LIST`")
	flag.IntVar(&o.Connections, "connections", 500, "time `N` connections, one after the other")
	flag.IntVar(&o.Workers, "workers", 16, "connect `N` at once where connections per second are counted")
	flag.Var(&o.Idle, "idle", "hold so many idle connections; a `LIST`, empty for none")
	flag.BoolVar(&o.Pin, "pin", false, "give the clients one core and the far end another: neither takes the other's time")
	flag.StringVar(&o.Only, "only", "", "measure only the cases whose names contain `TEXT`")
	flag.StringVar(&files.html, "html", "", "also write charts and all figures as a page to `FILE`; - means stdout, instead of the table")
	flag.StringVar(&files.json, "json", "", "also write all samples as JSON to `FILE`; - means stdout, instead of the table")
	quick := flag.Bool("quick", false, "see whether it works: one short round of few cases")
	flag.Parse()
	if *quick {
		o = options{Rounds: 1, Length: 500 * time.Millisecond, Warmup: 100 * time.Millisecond, Settle: 100 * time.Millisecond,
			Streams: counts{1}, Connections: 20, Workers: 4, Idle: counts{100}, Pin: o.Pin, Only: o.Only}
	}
	if o.Rounds < 1 || o.Length <= 0 || o.Warmup < 0 || o.Connections < 1 || o.Workers < 1 || o.Pin && runtime.NumCPU() < 2 || flag.NArg() > 0 {
		flag.Usage()
		os.Exit(2)
	}
	return o, files
}

// counts is a flag with a list of numbers.
type counts []int

func (c *counts) String() string {
	var list []string
	for _, n := range *c {
		list = append(list, strconv.Itoa(n))
	}
	return strings.Join(list, ",")
}

func (c *counts) Set(text string) error {
	*c = nil
	for s := range strings.FieldsFuncSeq(text, func(r rune) bool { return r == ',' }) {
		n, err := strconv.Atoi(s)
		if err != nil || n < 1 {
			return fmt.Errorf("%q is no count", s)
		}
		*c = append(*c, n)
	}
	return nil
}

func run(o options, files outputs) error {
	r := newResults(o)
	err := lab.Script("proxies", func(tb lab.TB) {
		lab.Need(tb, "curl")
		r.measure(tb)
	})
	if err != nil {
		return err
	}
	return r.write(files)
}
