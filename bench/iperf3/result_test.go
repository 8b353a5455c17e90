package iperf3

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

func readResult(t *testing.T, name string) (*Result, map[string]any) {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return parseResult(t, b)
}

func parseResult(t *testing.T, b []byte) (*Result, map[string]any) {
	t.Helper()
	r, plain := new(Result), map[string]any{}
	if err := json.Unmarshal(b, r); err != nil {
		t.Fatalf("%v in %s", err, b)
	}
	if err := json.Unmarshal(b, &plain); err != nil {
		t.Fatal(err)
	}
	return r, plain
}

// TestDocumentOfStockClientRoundTrips has iperf3's own documents: each key that they have must be one of Result, and come back.
func TestDocumentOfStockClientRoundTrips(t *testing.T) {
	names, _ := filepath.Glob("testdata/*.json")
	if len(names) < 6 {
		t.Fatalf("testdata has %v", names)
	}
	for _, name := range names {
		r, want := readResult(t, filepath.Base(name))
		b, err := json.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		var got map[string]any
		json.Unmarshal(b, &got)
		if !reflect.DeepEqual(got, want) {
			t.Errorf("%s:\ngot  %v\nwant %v", name, got, want)
		}
	}
}

// The lines are those that iperf3 would have printed for its document.
func TestTextOfTCP(t *testing.T) {
	r, _ := readResult(t, "tcp.json")
	var b bytes.Buffer
	if err := r.Text(&b); err != nil {
		t.Fatal(err)
	}
	compareText(t, b.String(), `
Connecting to host 127.0.0.1, port 13012
[  5] local 127.0.0.1 port 44328 connected to 127.0.0.1 port 13012
[ ID] Interval           Transfer     Bitrate         Retr  Cwnd
[  5]   0.00-1.00   sec  1.38 GBytes  11.9 Gbits/sec   28   1023 KBytes
[  5]   1.00-2.00   sec  1.57 GBytes  13.5 Gbits/sec   22    895 KBytes
- - - - - - - - - - - - - - - - - - - - - - - - -
[ ID] Interval           Transfer     Bitrate         Retr
[  5]   0.00-2.00   sec  2.95 GBytes  12.7 Gbits/sec   50             sender
[  5]   0.00-2.00   sec  2.95 GBytes  12.7 Gbits/sec                  receiver

iperf Done.
`)
}

func TestTextOfUDPInBothDirections(t *testing.T) {
	r, _ := readResult(t, "udp-bidir.json")
	r.Start.TestStart.Bidir = 1 // version 3.12 does not say
	var b bytes.Buffer
	if err := r.Text(&b); err != nil {
		t.Fatal(err)
	}
	compareText(t, b.String(), `
Connecting to host 127.0.0.1, port 13012
[  5] local 127.0.0.1 port 36152 connected to 127.0.0.1 port 13012
[  7] local 127.0.0.1 port 38256 connected to 127.0.0.1 port 13012
[ ID][Role] Interval           Transfer     Bitrate         Jitter    Lost/Total Datagrams
[  5][TX-C]   0.00-1.00   sec  1.22 MBytes  10.2 Mbits/sec            39
[  7][RX-C]   0.00-1.00   sec  1.22 MBytes  10.2 Mbits/sec  0.010 ms  0/39 (0%)
[  5][TX-C]   1.00-2.00   sec  1.19 MBytes  9.96 Mbits/sec            38
[  7][RX-C]   1.00-2.00   sec  1.19 MBytes  9.96 Mbits/sec  0.083 ms  0/38 (0%)
- - - - - - - - - - - - - - - - - - - - - - - - -
[ ID][Role] Interval           Transfer     Bitrate         Jitter    Lost/Total Datagrams
[  5][TX-C]   0.00-2.00   sec  2.41 MBytes  10.1 Mbits/sec  0.000 ms  0/77 (0%)  sender
[  5][TX-C]   0.00-2.00   sec  2.41 MBytes  10.1 Mbits/sec  0.094 ms  0/77 (0%)  receiver
[  7][RX-C]   0.00-2.00   sec  2.41 MBytes  10.1 Mbits/sec  0.000 ms  0/77 (0%)  sender
[  7][RX-C]   0.00-2.00   sec  2.41 MBytes  10.1 Mbits/sec  0.083 ms  0/77 (0%)  receiver

iperf Done.
`)
}

// TestTextOfSumsOfUDPInBothDirections: the sums of iperf3 do not say which way they are.
func TestTextOfSumsOfUDPInBothDirections(t *testing.T) {
	s := serve(t, Server{})
	r, err := s.client(Params{Protocol: "udp", Bidir: true, Streams: 2, Time: short, Rate: 5e6, Length: 1000}).Run(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := s.outcome(t); err != nil {
		t.Fatal(err)
	}
	count := func(r *Result) (in, out int) {
		var b bytes.Buffer
		r.Summary(&b)
		return strings.Count(b.String(), "[SUM][RX-"), strings.Count(b.String(), "[SUM][TX-")
	}
	if in, out := count(r); in != 2 || out != 2 {
		t.Errorf("%d and %d sums of the client", in, out)
	}
	if in, out := count(s.last); in != 1 || out != 1 {
		t.Errorf("%d and %d sums of the server", in, out)
	}
}

func TestTextOfSums(t *testing.T) {
	r, _ := readResult(t, "tcp-bidir-p2.json")
	var b bytes.Buffer
	r.Intervals[0].Text(&b)
	compareText(t, b.String(), `
[  5][TX-C]   0.00-1.00   sec   348 MBytes  2.91 Gbits/sec    3   1.87 MBytes
[  7][TX-C]   0.00-1.00   sec   339 MBytes  2.84 Gbits/sec    1   1.75 MBytes
[SUM][TX-C]   0.00-1.00   sec   686 MBytes  5.76 Gbits/sec    4
[  9][RX-C]   0.00-1.00   sec   198 MBytes  1.66 Gbits/sec
[ 12][RX-C]   0.00-1.00   sec   193 MBytes  1.62 Gbits/sec
[SUM][RX-C]   0.00-1.00   sec   391 MBytes  3.28 Gbits/sec
`)
	b.Reset()
	r.Summary(&b)
	for _, want := range []string{
		"[SUM][TX-C]   0.00-2.00   sec  1.75 GBytes  7.50 Gbits/sec    5             sender",
		"[SUM][TX-C]   0.00-2.00   sec  1.75 GBytes  7.49 Gbits/sec                  receiver",
		"[SUM][RX-C]   0.00-2.00   sec   765 MBytes  3.20 Gbits/sec    7             sender",
		"[SUM][RX-C]   0.00-2.00   sec   727 MBytes  3.04 Gbits/sec                  receiver",
	} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("%q is missing in\n%s", want, b.String())
		}
	}
}

// compareText ignores space at the ends of lines.
func compareText(t *testing.T, got, want string) {
	t.Helper()
	trim := func(s string) (lines []string) {
		for line := range strings.Lines(strings.TrimLeft(s, "\n")) {
			lines = append(lines, strings.TrimRight(line, " \n"))
		}
		return lines
	}
	g, w := trim(got), trim(want)
	for i := range max(len(g), len(w)) {
		a, b := "", ""
		if i < len(g) {
			a = g[i]
		}
		if i < len(w) {
			b = w[i]
		}
		if a != b {
			t.Errorf("line %d:\ngot  %s\nwant %s", i+1, a, b)
		}
	}
}

func TestUnits(t *testing.T) {
	for n, want := range map[float64]string{0: "0.00 Byte", 1023: "1023 Byte", 1024: "1.00 KByte", 10235: "10.0 KByte", 102350: " 100 KByte", 1e15: " 909 TByte", 1e18: "909495 TByte"} {
		if got := byteUnits(n); got != want {
			t.Errorf("%v: got %q, want %q", n, got, want)
		}
	}
	if got := bitUnits(999.6e6); got != "1000 Mbit" {
		t.Errorf("got %q", got)
	}
}
