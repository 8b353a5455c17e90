//go:build linux

package main

import (
	"encoding/json"
	"fmt"
	"log"
	"slices"
	"strconv"
	"strings"
	"time"

	"culvert.dev/culvert/internal/lab"
)

// direction is seen from the client.
type direction string

const (
	up   direction = "up"
	down direction = "down"
)

var directions = []direction{up, down}

// sample is one run of iperf3.
type sample struct {
	Exit      lab.ExitKind `json:"exit"`
	Direction direction    `json:"direction"`
	Round     int          `json:"round"`
	Mbps      float64      `json:"mbps"`         // received payload
	CPUPerGB  float64      `json:"cpu_s_per_gb"` // of the exit process, user and system
	MemoryMB  float64      `json:"rss_mb"`       // of the exit process after the run
}

const iperfPort = 5201

// contender is one exit with a world of its own; while the other is measured it is idle.
type contender struct {
	*lab.Internet
	exit   *lab.Exit
	target string
}

func newContender(tb lab.TB, kind lab.ExitKind, ipVersion int) *contender {
	c := &contender{Internet: lab.NewInternet(tb)}
	keys := c.Keys()
	c.exit = c.X.StartExit(tb, kind, c.ExitConfig(keys, "AllowRouting = yes", ""))
	c.StockClient(tb, c.C, keys.C, c.exit.Key)
	c.target = lab.Server[0]
	if ipVersion == 6 {
		c.target = lab.Server[1]
	}
	c.S.Start(tb, nil, "iperf3", "-s", "-p", strconv.Itoa(iperfPort))
	lab.WaitFor(tb, 10*time.Second, "iperf3 to listen", func() bool { return c.S.Bound("tcp", iperfPort) })
	return c
}

// measure fills r.Samples. Each round measures both exits in both directions; every other round starts with the other
// exit. One short run of each comes first and does not count.
func (r *report) measure(tb lab.TB) {
	contenders := []*contender{newContender(tb, lab.ExitCulvert, r.Options.Family), newContender(tb, lab.ExitReference, r.Options.Family)}
	for _, c := range contenders {
		for _, d := range directions {
			c.iperf(tb, d, 1, r.Options.Streams)
		}
	}
	for round := range r.Options.Rounds {
		for _, d := range directions {
			for _, c := range contenders {
				s := c.iperf(tb, d, r.Options.Seconds, r.Options.Streams)
				s.Round = round + 1
				log.Printf("round %d: %-9s %-4s %6.0f Mbit/s  %.2f CPU-s/GB", s.Round, s.Exit, s.Direction, s.Mbps, s.CPUPerGB)
				r.Samples = append(r.Samples, s)
			}
		}
		slices.Reverse(contenders)
	}
}

func (c *contender) iperf(tb lab.TB, d direction, seconds, streams int) sample {
	args := []string{"-c", c.target, "-p", strconv.Itoa(iperfPort), "-t", strconv.Itoa(seconds), "-P", strconv.Itoa(streams), "-J"}
	if d == down {
		args = append(args, "-R")
	}
	var before time.Duration
	var out string
	var err error
	// The server may still be reading the end of the run before.
	lab.Poll(5*time.Second, func() bool {
		if before, err = c.exit.CPU(); err == nil {
			out, err = c.C.Exec("", "iperf3", args...)
		}
		return err == nil || !strings.Contains(out, "busy")
	})
	if err != nil {
		tb.Fatalf("%s: iperf3: %v\n%s", c.exit.Kind, err, out)
	}
	after, err := c.exit.CPU()
	if err != nil {
		tb.Fatalf("%s: the exit ended: %v\n%s", c.exit.Kind, err, c.exit.Log())
	}
	bytes, bps, err := received(out)
	if err != nil {
		tb.Fatalf("%s: %v\n%s", c.exit.Kind, err, out)
	}
	s := sample{Exit: c.exit.Kind, Direction: d, Mbps: bps / 1e6, CPUPerGB: (after - before).Seconds() / (bytes / 1e9)}
	if p, err := c.exit.Proc(); err == nil {
		s.MemoryMB = float64(p.RSS) / 1024
	}
	return s
}

// received reads what arrived from iperf3's JSON.
func received(out string) (bytes, bps float64, err error) {
	var doc struct {
		Error string
		End   struct {
			SumReceived struct {
				Bytes float64 `json:"bytes"`
				Bps   float64 `json:"bits_per_second"`
			} `json:"sum_received"`
		}
	}
	if err := json.Unmarshal([]byte(out), &doc); err != nil {
		return 0, 0, fmt.Errorf("read iperf3's output: %w", err)
	}
	if doc.Error != "" {
		return 0, 0, fmt.Errorf("iperf3: %s", doc.Error)
	}
	if doc.End.SumReceived.Bytes == 0 {
		return 0, 0, fmt.Errorf("iperf3: nothing arrived")
	}
	return doc.End.SumReceived.Bytes, doc.End.SumReceived.Bps, nil
}
