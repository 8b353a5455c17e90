//go:build linux

package lab_test

import (
	"strings"
	"testing"

	"culvert.dev/culvert/internal/lab"
)

// TestDNS asks the resolver that the exit serves at its mesh address, which forwards to the host's own.
func TestDNS(t *testing.T) {
	t.Parallel()
	lab.Need(t, "dig")
	productOnly(t, "a plain router serves no names")
	w := &world{Internet: lab.NewInternet(t)}
	s := newNameserver(t, w.S, lab.NameServer[0])
	s.set("www.example.", lab.Server[0], lab.Server[1])
	s.texts["long.example."] = strings.Repeat("0123456789", 300)
	w.X.Resolver(lab.NameServer[0])
	w.keys = w.Keys()
	w.config = w.ExitConfig(w.keys, "AllowRouting = yes", "")
	w.exit = w.X.StartExit(t, lab.ExitCulvert, w.config)
	w.client = w.StockClient(t, w.C, w.keys.C, w.exit.Key)
	w.StockClient(t, w.P, w.keys.P, w.exit.Key)
	w.connect(t, w.C)
	w.connect(t, w.P)

	dig := func(node *lab.Node, server string, args ...string) string {
		out, _ := node.Exec("", "dig", append([]string{"@" + server, "+tries=1", "+time=3"}, args...)...)
		return out
	}
	bothFamilies(t, func(t *testing.T, f family) {
		server := lab.ExitMesh[f.i]
		for _, transport := range []string{"+notcp", "+tcp"} {
			t.Run("names of the host's resolver "+transport, func(t *testing.T) {
				for i, kind := range []string{"A", "AAAA"} {
					if got := dig(w.C, server, "+short", transport, "www.example", kind); strings.TrimSpace(got) != lab.Server[i] {
						t.Errorf("%s: got %q, want %s", kind, got, lab.Server[i])
					}
				}
			})
			t.Run("a name that does not exist "+transport, func(t *testing.T) {
				if out := dig(w.C, server, transport, "nothing.example"); !strings.Contains(out, "status: NXDOMAIN") {
					t.Errorf("want NXDOMAIN:\n%s", out)
				}
			})
			t.Run("not for a peer that may not route "+transport, func(t *testing.T) {
				before := s.asked("secret.example.")
				out := dig(w.P, server, transport, "secret.example")
				if strings.Contains(out, "status: NXDOMAIN") || strings.Contains(out, "status: NOERROR") {
					t.Errorf("want no answer, or a refusal:\n%s", out)
				}
				if s.asked("secret.example.") != before {
					t.Error("the question was forwarded")
				}
			})
		}
		t.Run("a long answer is truncated over UDP and whole over TCP", func(t *testing.T) {
			out := dig(w.C, server, "+ignore", "+notcp", "+noedns", "long.example", "TXT")
			if flags := headerFlags(out); !strings.Contains(flags, " tc") {
				t.Errorf("over UDP: want the flag tc:\n%s", out)
			}
			out = dig(w.C, server, "+short", "long.example", "TXT")
			if got := strings.Count(out, "0123456789"); got < 280 { // parts of 200 may cut a run
				t.Errorf("over TCP: got %d of 300 tens of bytes:\n%s", got, out)
			}
		})
	})
	t.Run("curl by name through the exit", func(t *testing.T) {
		lab.Need(t, "curl")
		httpServer(t, w.S, lab.Port(lab.Server[0], 80), "by name\n")
		w.C.Resolver(lab.ExitMesh[0])
		if got := w.C.Run(t, "curl", "-4sS", "--max-time", "10", "http://www.example/"); got != "by name\n" {
			t.Errorf("got %q", got)
		}
	})
}

func headerFlags(out string) string {
	for line := range strings.Lines(out) {
		if flags, ok := strings.CutPrefix(line, ";; flags:"); ok {
			flags, _, _ = strings.Cut(flags, ";")
			return flags
		}
	}
	return ""
}
