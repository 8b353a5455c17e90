//go:build linux

// Compare measures Culvert's relay against the stock derper, both over TLS on loopback: throughput and its cost in CPU
// time, round trips, memory of idle and of active clients, and what a flooding client does to others. Each server is a
// process of its own with one core (and GOMAXPROCS=1), the load has another core; the load generator is the same for both. The
// two are measured in turn, round by round, since the speed of a machine drifts more than the two differ.
//
//	cd interop && go run ./compare                         # everything, 3 rounds, about 4 minutes
//	go run ./compare -only pairs -rounds 5 -length 4s      # the cases whose names contain "pairs"
//	go run ./compare -idle 10000 -only idle
//	go run ./compare -only '1400 B' -profiles /tmp         # with CPU profiles of both servers
//
// Where the machine has other work, the figures per CPU second of the server are still comparable; those per second are
// not. "core busy" says how much of its core the server used: well below 100, the load generator or other work was the limit.
package main

import (
	"context"
	"flag"
	"fmt"
	"log"
	"os"
	"runtime"
	"strings"
	"time"

	"culvert.dev/culvert/interop/stock"
)

// The stock relay queues 32 packets per client and drops what does not fit, so that with 32 under way both carry all of
// what they are given. A TCP connection of some speed inside a tunnel has more: overload shows what then becomes of it.
const (
	defaultWindow = 32
	overload      = 256
)

// options are the command line.
type options struct {
	Rounds   int           `json:"rounds"`
	Length   time.Duration `json:"length_ns"`
	Warmup   time.Duration `json:"warmup_ns"`
	Settle   time.Duration `json:"settle_ns"`
	Idle     int           `json:"idle_clients"`
	Active   int           `json:"active_clients"`
	Window   int           `json:"window"`
	Pings    int           `json:"pings"`
	Procs    int           `json:"gomaxprocs"`
	only     string
	derper   string
	profiles string
	json     string
}

func main() {
	log.SetFlags(0)
	log.SetPrefix("compare: ")
	if len(os.Args) > 1 && os.Args[1] == "serve" {
		if err := serve(); err != nil {
			log.Fatal(err)
		}
		return
	}
	o := parseOptions()
	if err := pinSelf(loadCore); err != nil {
		log.Fatal(err)
	}
	if err := run(o); err != nil {
		log.Fatal(err)
	}
}

func parseOptions() options {
	o := options{Warmup: 500 * time.Millisecond, Settle: 2 * time.Second}
	flag.IntVar(&o.Rounds, "rounds", 3, "measure each case `N` times")
	flag.DurationVar(&o.Length, "length", 2*time.Second, "measure for this `time` each")
	flag.IntVar(&o.Idle, "idle", 2000, "connect `N` idle clients")
	flag.IntVar(&o.Active, "active", 1000, "connect `N` active clients")
	flag.IntVar(&o.Window, "window", defaultWindow, "keep `N` packets under way per pair")
	flag.IntVar(&o.Pings, "pings", 500, "take `N` round trips")
	flag.IntVar(&o.Procs, "procs", 1, "give each server GOMAXPROCS=`N`, on its one core")
	flag.StringVar(&o.only, "only", "", "measure only the cases whose names contain `TEXT`")
	flag.StringVar(&o.derper, "derper", "", "use this derper `BINARY` instead of building one")
	flag.StringVar(&o.profiles, "profiles", "", "take CPU profiles of the throughput cases into `DIR`")
	flag.StringVar(&o.json, "json", "", "also write all samples as JSON to `FILE`")
	flag.Parse()
	if o.Rounds < 1 || o.Length <= 0 || o.Idle < 1 || o.Active < 2 || o.Window < 1 || o.Pings < 1 || o.Procs < 1 || flag.NArg() > 0 {
		flag.Usage()
		os.Exit(2)
	}
	return o
}

// measurement is one case: how to measure a server that has just started.
type measurement struct {
	name string
	of   func(context.Context, *server) (figures, error)
}

func (o options) measurements() (all []measurement) {
	for _, l := range []load{
		{"1 pair, 1400 B", 1, 1400, o.Window},
		{"1 pair, 64 B", 1, 64, o.Window},
		{"50 pairs, 1400 B", 50, 1400, o.Window},
		{"50 pairs, 64 B", 50, 64, o.Window},
		{fmt.Sprintf("1 pair, 1400 B, %d under way", overload), 1, 1400, overload},
		{fmt.Sprintf("50 pairs, 1400 B, %d under way", overload), 50, 1400, overload},
		{fmt.Sprintf("%d active clients, 1400 B, 8 under way each pair", o.Active), o.Active / 2, 1400, 8},
	} {
		all = append(all, measurement{l.label, func(ctx context.Context, s *server) (figures, error) {
			return throughput(ctx, s, l, o)
		}})
	}
	all = append(all, measurement{"round trip, idle", func(ctx context.Context, s *server) (figures, error) {
		return latency(ctx, s, o)
	}}, measurement{fmt.Sprintf("%d idle clients", o.Idle), func(ctx context.Context, s *server) (figures, error) {
		return idle(ctx, s, o.Idle, o)
	}})
	for kind := noFlood; kind <= floodNobody; kind++ {
		name := fmt.Sprintf("%d paced pairs, %s", pacedPairs, kind)
		all = append(all, measurement{name, func(ctx context.Context, s *server) (figures, error) {
			return fairness(ctx, s, kind, o)
		}})
	}
	return all
}

func run(o options) error {
	if runtime.NumCPU() < 2 && os.Getenv(pinnedVar) == "" {
		return fmt.Errorf("this machine has one core: the server and the load need one each")
	}
	files, err := raiseFiles()
	if err != nil {
		return err
	}
	if need := uint64(max(o.Idle, o.Active) + 100); files < need {
		return fmt.Errorf("%d open files are permitted, %d are needed: raise the hard limit (ulimit -Hn)", files, need)
	}
	dir, err := os.MkdirTemp("", "culvert-compare")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	if o.derper == "" {
		if o.derper, err = stock.Build(dir); err != nil {
			return err
		}
	}
	r := &report{Options: o}
	for round := range o.Rounds {
		if err := r.round(o, round, dir); err != nil {
			return err
		}
	}
	if o.json != "" {
		if err := r.write(o.json); err != nil {
			return err
		}
	}
	return r.table(os.Stdout)
}

// round measures every case once for each server, in turn; which of the two is first alternates.
func (r *report) round(o options, round int, dir string) error {
	order := []string{nameCulvert, nameStock}
	if round%2 == 1 {
		order[0], order[1] = order[1], order[0]
	}
	for _, m := range o.measurements() {
		if !strings.Contains(m.name, o.only) {
			continue
		}
		for _, name := range order {
			f, err := one(m, name, o, dir)
			if err != nil {
				return fmt.Errorf("%s, %s: %w", m.name, name, err)
			}
			r.Samples = append(r.Samples, sample{Round: round, Server: name, Case: m.name, Figures: f})
		}
		log.Printf("round %d of %d: %s", round+1, o.Rounds, m.name)
	}
	return nil
}

func one(m measurement, name string, o options, dir string) (figures, error) {
	s, err := startServer(name, o, dir)
	if err != nil {
		return nil, err
	}
	defer s.stop()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	return m.of(ctx, s)
}

func (r *report) write(file string) error {
	f, err := os.Create(file)
	if err != nil {
		return err
	}
	if err := r.json(f); err != nil {
		f.Close()
		return err
	}
	return f.Close()
}
