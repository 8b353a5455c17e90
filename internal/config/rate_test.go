package config

import (
	"strings"
	"testing"
)

func TestParseRate(t *testing.T) {
	for in, want := range map[string]Rate{
		"50Mbit": 50e6, "50mbit": 50e6, "50M": 50e6, "50m": 50e6, "50Mbit/s": 50e6, "50 Mbit": 50e6, "2.5Gbit": 2.5e9, "1g": 1e9,
		"100kbit": 100e3, "100K": 100e3, "64000bit": 64e3, "64000bit/s": 64e3, "100Gbit": 100e9, "8kbit": 8e3, "0.1Mbit": 100e3,
	} {
		got, err := ParseRate(in)
		if err != nil || got != want {
			t.Errorf("%s: got %d, %v; want %d", in, got, err, want)
		}
		if again, err := ParseRate(got.String()); again != got || err != nil {
			t.Errorf("%s is written as %s, which reads %d, %v", in, got, again, err)
		}
	}
	for in, want := range map[string]string{
		"":          `"" is not a rate: it needs a unit, as in 50Mbit`,
		"50":        `"50" is not a rate: it needs a unit, as in 50Mbit`,
		"50Mbps":    `"50Mbps" is not a rate: bps could be bits or bytes; write 50Mbit for 50 million bits per second`,
		"0Mbit":     `"0Mbit" is not a rate that can be kept: want 8kbit to 100Gbit, or no Rate for no limit`,
		"101Gbit":   `"101Gbit" is not a rate that can be kept: want 8kbit to 100Gbit, or no Rate for no limit`,
		"fast":      `"fast" is not a rate such as 500kbit, 50Mbit or 1Gbit`,
		"-5Mbit":    `"-5Mbit" is not a rate such as 500kbit, 50Mbit or 1Gbit`,
		"1.2.3Mbit": `"1.2.3Mbit" is not a rate such as 500kbit, 50Mbit or 1Gbit`,
		"5.Mbit":    `"5.Mbit" is not a rate such as 500kbit, 50Mbit or 1Gbit`,
		"5Mbyte":    `"5Mbyte" is not a rate such as 500kbit, 50Mbit or 1Gbit`,
		"5Mibit":    `"5Mibit" is not a rate such as 500kbit, 50Mbit or 1Gbit`,
	} {
		if _, err := ParseRate(in); err == nil || err.Error() != want {
			t.Errorf("%s: got %v, want %s", in, err, want)
		}
	}
}

func FuzzParseRate(f *testing.F) {
	for _, s := range []string{"50Mbit", "1.5g", "8000bit/s", "1e9kbit", "0x5M", "٣Mbit"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		r, err := ParseRate(s)
		if err != nil {
			return
		}
		if r < minRate || r > maxRate {
			t.Errorf("%q is %d", s, r)
		}
		if again, err := ParseRate(r.String()); again != r || err != nil {
			t.Errorf("%q: %s reads %d, %v", s, r, again, err)
		}
	})
}

// A peer's limits survive being read and written.
func TestPeerLimitsAreKept(t *testing.T) {
	dir := put(t, map[string]string{
		"a.conf": nodeText + "[Peer]\nName = one\nPublicKey = " + peerKey1 + "\nRate = 2.5mbit\nMaxFlows = 2000\n",
	})
	p := loadDir(t, dir).Peers[0]
	if p.Rate != 2_500_000 || p.MaxFlows != 2000 {
		t.Fatalf("got %+v", p)
	}
	if text := peerText(p, ""); !strings.Contains(text, "\nRate = 2500kbit\n") || !strings.Contains(text, "\nMaxFlows = 2000\n") {
		t.Errorf("written as\n%s", text)
	}
}

func TestPeerLimitsAreChecked(t *testing.T) {
	for in, want := range map[string]string{
		"Rate = 50":                  `Rate: "50" is not a rate: it needs a unit, as in 50Mbit`,
		"MaxFlows = 0":               `MaxFlows: "0" is not a number of flows (1 to 1048576)`,
		"MaxFlows = many":            `MaxFlows: "many" is not a number of flows (1 to 1048576)`,
		"Rate = 1Mbit\nRate = 2Mbit": "Rate: Rate is already given on line 7",
	} {
		dir := put(t, map[string]string{"a.conf": nodeText + "[Peer]\nPublicKey = " + peerKey1 + "\n" + in + "\n"})
		if _, err := Load(dir+"/a.conf", testOptions()); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want %s", in, err, want)
		}
	}
}
