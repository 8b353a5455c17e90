package main

import (
	"strings"
	"testing"
)

func TestOptionsOfBenchMayBeWrittenTogether(t *testing.T) {
	commands := newApp().Commands
	for in, want := range map[string]string{
		"culvert bench client a -P4 -t5 -b100M/8": "culvert bench client a -P 4 -t 5 -b 100M/8",
		"culvert bench client a -uRJ -P 4":        "culvert bench client a -u -R -J -P 4",
		"culvert bench client a -ub50M":           "culvert bench client a -u -b 50M",
		"culvert bench client a -uP 4 -R":         "culvert bench client a -u -P 4 -R",
		"culvert bench server -p5202 -1":          "culvert bench server -p 5202 -1",
		"culvert bench client a -rtt -time=5":     "culvert bench client a -rtt -time=5",
		"culvert bench client a -P=4 --time 5":    "culvert bench client a -P=4 --time 5",
		"culvert bench client a -T -t5 -":         "culvert bench client a -T -t5 -",
		"culvert bench client a -uX5":             "culvert bench client a -uX5",
		"culvert bench client -- -t5":             "culvert bench client -- -t5",
		"culvert bench client a -P":               "culvert bench client a -P",
		"culvert bench":                           "culvert bench",
		"culvert ping a -c5":                      "culvert ping a -c5",
	} {
		got := separate(commands, strings.Fields(in))
		if strings.Join(got, " ") != want {
			t.Errorf("%s: got %s, want %s", in, strings.Join(got, " "), want)
		}
	}
	if got := separate(commands, []string{"culvert", "bench", "client", ""}); len(got) != 4 {
		t.Errorf("an empty argument: %q", got)
	}
}
