//go:build linux

// Compare measures the product's throughput as an exit against the reference: stock wireguard-go on a kernel TUN, run as
// root, with ip_forward and nft masquerade. Both stand in the same kind of namespaces and are measured in turn, round by
// round, since the speed of a machine drifts more than the two differ.
//
//	go run ./bench/compare                      # one stream, 5 rounds of 5 s, a table
//	go run ./bench/compare -streams 4 -json -   # four streams, a JSON document
//
// It needs what the laboratory needs (see internal/lab) and iperf3, but no root.
package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"log"
	"os"

	"culvert.dev/culvert/internal/lab"
)

// options are the command line.
type options struct {
	Rounds  int `json:"rounds"`
	Seconds int `json:"seconds"`
	Streams int `json:"streams"`
	Family  int `json:"ip_version"`
}

func main() {
	log.SetFlags(0)
	log.SetPrefix("compare: ")
	var o options
	flag.IntVar(&o.Rounds, "rounds", 5, "measure each case `N` times")
	flag.IntVar(&o.Seconds, "seconds", 5, "measure for `N` seconds each time")
	flag.IntVar(&o.Streams, "streams", 1, "use `N` parallel TCP streams")
	flag.IntVar(&o.Family, "ip", 4, "use IP version 4 or 6 inside the tunnel")
	jsonFile := flag.String("json", "", "also write the result as JSON to `FILE`; - means stdout, instead of the table")
	flag.Parse()
	if o.Rounds < 1 || o.Seconds < 1 || o.Streams < 1 || o.Family != 4 && o.Family != 6 || flag.NArg() > 0 {
		flag.Usage()
		os.Exit(2)
	}
	os.Exit(lab.Main(func() int {
		if err := run(o, *jsonFile); err != nil {
			log.Print(err)
			return 1
		}
		return 0
	}, lab.WireGuardGo, lab.Culvert))
}

func run(o options, jsonFile string) error {
	r := &report{Options: o, Environment: environment()}
	err := lab.Script("compare", func(tb lab.TB) {
		lab.Need(tb, "iperf3")
		r.measure(tb)
	})
	if err != nil {
		return err
	}
	r.summarise()
	if jsonFile != "-" {
		r.print(os.Stdout)
	}
	if jsonFile == "" {
		return nil
	}
	var out io.Writer = os.Stdout
	if jsonFile != "-" {
		f, err := os.Create(jsonFile)
		if err != nil {
			return err
		}
		defer f.Close()
		out = f
	}
	enc := json.NewEncoder(out)
	enc.SetIndent("", "  ")
	if err := enc.Encode(r); err != nil {
		return fmt.Errorf("write result: %w", err)
	}
	return nil
}
