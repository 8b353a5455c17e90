package main

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"culvert.dev/culvert/bench/iperf3"
	"culvert.dev/culvert/bench/probe"
)

func TestAmounts(t *testing.T) {
	for _, c := range []struct {
		text string
		unit float64
		want float64
		ok   bool
	}{
		{"0", 1000, 0, true}, {"100M", 1000, 100e6, true}, {"1.5g", 1000, 1.5e9, true}, {"2T", 1000, 2e12, true}, {"8k", 1024, 8192, true}, {"128K", 1024, 131072, true},
		{"4", 1, 4, true}, {"4K", 1, 0, false}, {"", 1000, 0, false}, {"M", 1000, 0, false}, {"-1", 1000, 0, false}, {"1MM", 1000, 0, false}, {"inf", 1000, 0, false},
		{"nan", 1000, 0, false}, {"1e3", 1000, 1000, true},
	} {
		if got, ok := amount(c.text, c.unit); ok != c.ok || ok && got != c.want {
			t.Errorf("%q by %v: got %v, %v", c.text, c.unit, got, ok)
		}
	}
}

func TestBenchView(t *testing.T) {
	var out, errOut strings.Builder
	text := benchView{out: &out, errOut: &errOut}
	json := benchView{json: true, out: &out, errOut: &errOut}
	for _, v := range []*benchView{&text, &json} {
		for _, e := range []benchEvent{
			{Event: probe.EventListening, Text: "listening\n"}, {Event: probe.EventInterval, Text: "1 Gbit/s\n"},
			{Event: probe.EventResult, Text: "all\n", Document: []byte(`{"end":{}}`)},
		} {
			if err := v.show(e); err != nil {
				t.Fatal(err)
			}
		}
	}
	if got, want := out.String(), "listening\n1 Gbit/s\nall\n{\n\t\"end\": {}\n}\n"; got != want || errOut.String() != "listening\n" {
		t.Errorf("got %q, %q; want %q", got, errOut.String(), want)
	}

	out.Reset()
	errOut.Reset()
	refused := errors.New("refused")
	if err := json.end(refused); err != refused || out.String() != "" { // it has told a document
		t.Errorf("%v: %q", err, out.String())
	}
	json.documents = 0
	if err := json.end(refused); err != refused || out.String() != "{\n  \"error\": \"refused\"\n}\n" {
		t.Errorf("%v: %q", err, out.String())
	}
	if err := text.end(fmt.Errorf("iperf3: %w", iperf3.ErrInterrupted)); err != errReported || !strings.HasPrefix(errOut.String(), "culvert: interrupted") {
		t.Errorf("%v: %q", err, errOut.String())
	}
}
