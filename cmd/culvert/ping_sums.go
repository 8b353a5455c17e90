package main

import (
	"fmt"
	"math"
	"net/netip"
	"slices"
	"strconv"
	"time"

	"culvert.dev/culvert/node"
)

// pingSums collects the results of a run. All round trip times are kept, for the percentile: 8 bytes each.
type pingSums struct {
	rtt  []time.Duration
	lost int
}

func (s *pingSums) add(rtt time.Duration) { s.rtt = append(s.rtt, rtt) }
func (s *pingSums) answered() int         { return len(s.rtt) }
func (s *pingSums) sent() int             { return len(s.rtt) + s.lost }

// loss is in percent of the requests whose fate is known.
func (s *pingSums) loss() float64 {
	if s.sent() == 0 {
		return 0
	}
	return 100 * float64(s.lost) / float64(s.sent())
}

// figures are the least, mean and largest time, and the one that 95 % do not exceed (nearest rank). There must be one.
func (s *pingSums) figures() (least, mean, most, p95 time.Duration) {
	sorted := slices.Sorted(slices.Values(s.rtt))
	var sum time.Duration
	for _, d := range sorted {
		sum += d
	}
	n := len(sorted)
	rank := int(math.Ceil(0.95 * float64(n)))
	return sorted[0], sum / time.Duration(n), sorted[n-1], sorted[rank-1]
}

func (s *pingSums) text() string {
	text := fmt.Sprintf("%d sent, %d answered, %.3g %% lost\n", s.sent(), s.answered(), s.loss())
	if s.answered() > 0 {
		least, mean, most, p95 := s.figures()
		text += fmt.Sprintf("rtt min/avg/max/p95 = %s/%s/%s/%s ms\n", pingMillis(least), pingMillis(mean), pingMillis(most), pingMillis(p95))
	}
	return text
}

// pingSummary is the last line of "culvert ping --json".
type pingSummary struct {
	Event    string      `json:"event"` // "summary"
	Peer     string      `json:"peer"`
	Address  netip.Addr  `json:"address"`
	Sent     int         `json:"sent"` // and either answered or given up
	Answered int         `json:"answered"`
	Loss     float64     `json:"loss_percent"`
	Min      node.Millis `json:"rtt_min_ms"` // the four are null when nothing was answered
	Avg      node.Millis `json:"rtt_avg_ms"`
	Max      node.Millis `json:"rtt_max_ms"`
	P95      node.Millis `json:"rtt_p95_ms"`
	Path     string      `json:"path"` // at the end
	Endpoint string      `json:"endpoint"`
}

func (s *pingSums) document(last *node.PingEvent) pingSummary {
	d := pingSummary{
		Event: "summary", Peer: last.Peer, Address: last.Address, Sent: s.sent(), Answered: s.answered(), Loss: math.Round(s.loss()*100) / 100,
		Path: last.Path, Endpoint: last.Endpoint,
	}
	if s.answered() > 0 {
		least, mean, most, p95 := s.figures()
		d.Min, d.Avg, d.Max, d.P95 = node.Millis(least), node.Millis(mean), node.Millis(most), node.Millis(p95)
	}
	return d
}

// pingMillis has as many digits as ping(8) shows: three that count.
func pingMillis(d time.Duration) string {
	ms := float64(d) / float64(time.Millisecond)
	switch {
	case ms < 10:
		return strconv.FormatFloat(ms, 'f', 3, 64)
	case ms < 100:
		return strconv.FormatFloat(ms, 'f', 2, 64)
	}
	return strconv.FormatFloat(ms, 'f', 1, 64)
}
