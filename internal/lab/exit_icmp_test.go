//go:build linux

package lab_test

import (
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"culvert.dev/culvert/internal/lab"
)

// summary is the last part of what ping prints.
var summary = regexp.MustCompile(`(\d+) packets transmitted, (\d+) received(, \+(\d+) duplicates)?(, \+(\d+) errors)?`)

// ping runs ping in the client and returns what it counted, and its whole output.
func ping(w *world, args ...string) (received, duplicates, errors, output string) {
	output, _ = w.C.Exec("", "ping", append([]string{"-n"}, args...)...)
	m := summary.FindStringSubmatch(output)
	if m == nil {
		return "", "", "", output
	}
	return m[2], m[4], m[6], output
}

func TestPing(t *testing.T) {
	t.Parallel()
	lab.Need(t, "ping")
	w := newWorld(t, "AllowRouting = yes", "")
	bothFamilies(t, func(t *testing.T, f family) {
		for _, row := range []struct{ name, to, size string }{
			{"the exit's mesh address", lab.ExitMesh[f.i], "56"},
			{"a host on the internet", lab.Server[f.i], "56"},
			{"without data", lab.Server[f.i], "0"},
			{"of 3000 bytes", lab.Server[f.i], "3000"},
			{"of 20000 bytes", lab.Server[f.i], "20000"},
		} {
			t.Run("every echo request is answered once: "+row.name, func(t *testing.T) {
				if lab.ExitKind(*exitFlag) == lab.ExitReference {
					ping(w, "-c", "1", "-W", "1", "-s", row.size, row.to) // a router may lose the first answer, to report the path's MTU
				}
				received, duplicates, errors, out := ping(w, "-c", "5", "-i", "0.1", "-W", "2", "-s", row.size, row.to)
				if received != "5" || duplicates != "" || errors != "" {
					t.Errorf("want 5 received, no duplicates, no errors:\n%s", out)
				}
			})
		}
		t.Run("50 at once with different identifiers", func(t *testing.T) {
			var wg sync.WaitGroup
			for range 50 {
				wg.Go(func() {
					received, duplicates, errors, out := ping(w, "-c", "3", "-i", "0.3", "-W", "3", lab.Server[f.i])
					if received != "3" || duplicates != "" || errors != "" {
						t.Errorf("want 3 received, no duplicates, no errors:\n%s", out)
					}
				})
			}
			wg.Wait()
		})
		t.Run("a dead host answers nothing", func(t *testing.T) {
			received, _, errors, out := ping(w, "-c", "3", "-i", "0.3", "-W", "1", lab.Silent[f.i])
			if received != "0" || errors != "" {
				t.Errorf("want nothing received, not even errors:\n%s", out)
			}
		})
		t.Run("an unreachable host yields the router's word", func(t *testing.T) {
			received, _, _, out := ping(w, "-c", "2", "-i", "0.3", "-W", "2", lab.Unreachable[f.i])
			line := regexp.MustCompile(`(?m)^From ` + regexp.QuoteMeta(lab.Provider[f.i]) + `.*(Host Unreachable|unreachable)`)
			if received != "0" || !line.MatchString(out) {
				t.Errorf("want \"From %s … unreachable\":\n%s", lab.Provider[f.i], out)
			}
		})
	})
}

// TestPingForbidden leaves the host as it is after a boot: nobody may open ping sockets.
func TestPingForbidden(t *testing.T) {
	t.Parallel()
	productOnly(t, "the kernel forwards echo whatever ping_group_range says")
	w := &world{Internet: lab.NewInternet(t)}
	w.keys = w.Keys()
	w.config = w.ExitConfig(w.keys, "AllowRouting = yes", "")
	w.config.NoEcho = true
	w.exit = w.X.StartExit(t, lab.ExitKind(*exitFlag), w.config)
	w.client = w.StockClient(t, w.C, w.keys.C, w.exit.Key)
	w.connect(t, w.C)
	tap := w.C.Tap(t, w.client.Dev)
	bothFamilies(t, func(t *testing.T, f family) {
		t.Run("echo is administratively prohibited where the host forbids it", func(t *testing.T) {
			p := probe{src: addr(lab.ClientMesh, f), dst: addr(lab.Server, f), proto: "echo", sport: 77, payload: []byte("12345678")}
			if err := tap.Send(p.bytes()); err != nil {
				t.Fatal(err)
			}
			got := tap.Receive(soon, func(b []byte) bool {
				s, ok := dissect(b)
				return ok && (s.prohibited() || s.echoReply())
			})
			if s, ok := dissect(got); !ok || !s.prohibited() {
				t.Errorf("got % x, want an ICMP error: administratively prohibited", got)
			}
		})
	})
}

func TestTraceroute(t *testing.T) {
	t.Parallel()
	lab.Need(t, "traceroute")
	w := newWorld(t, "AllowRouting = yes", "")
	bothFamilies(t, func(t *testing.T, f family) {
		for _, row := range []struct{ name, how string }{
			{"by UDP to rising ports", "-4"}, {"by UDP to one port", "-U"}, {"by ICMP echo", "-I"}, {"by TCP SYN", "-T"},
		} {
			t.Run(row.name+" shows the exit, the router and the target", func(t *testing.T) {
				args := []string{"-n", "-q", "1", "-w", "1", "-m", "6"}
				if row.how != "-4" {
					args = append(args, row.how)
				}
				if f.i == 1 {
					args = append(args, "-6")
				}
				want := []string{lab.ExitMesh[f.i], lab.Provider[f.i], lab.Server[f.i]}
				// One run in a hundred of traceroute -I does not see the replies that its own host has got, whatever the
				// exit is: a second and a third may succeed.
				var out string
				if !lab.Poll(2*time.Second, func() bool {
					out = w.C.Run(t, "traceroute", append(args, lab.Server[f.i])...)
					return slices.Equal(hops(out), want)
				}) {
					t.Errorf("got hops %v, want %v:\n%s", hops(out), want, out)
				}
			})
		}
	})
}

// hops reads the second column of traceroute's output.
func hops(out string) (h []string) {
	for line := range strings.Lines(out) {
		if f := strings.Fields(line); len(f) > 1 && f[0] != "traceroute" {
			h = append(h, f[1])
		}
	}
	return h
}

// TestNoInventedReplies sends what nobody answers, and wants silence rather than an answer that the exit made up.
func TestNoInventedReplies(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "AllowRouting = yes", "")
	tap := w.C.Tap(t, w.client.Dev)
	bothFamilies(t, func(t *testing.T, f family) {
		silent, server := addr(lab.Silent, f), addr(lab.Server, f)
		src := addr(lab.ClientMesh, f)
		echoUDP(t, w.S, lab.Port(lab.Server[f.i], 3099))
		drain(tap)
		for _, proto := range []string{"tcp", "udp", "echo"} {
			tap.Send(probe{src: src, dst: silent, proto: proto, sport: 5001, dport: 80, payload: []byte("?")}.bytes())
		}
		// An answer to the last packet says that the others have been dealt with; the time is what an invented answer may take.
		tap.Send(probe{src: src, dst: server, proto: "udp", sport: 5002, dport: 3099, payload: []byte("!")}.bytes())
		if tap.Receive(soon, from(server)) == nil {
			t.Fatal("no answer from a server that does answer")
		}
		if got := tap.Receive(500*time.Millisecond, from(silent)); got != nil {
			t.Errorf("got % x from a host that never answers", got)
		}
	})
}

// addr picks the address of one family.
func addr(pair [2]string, f family) netip.Addr { return netip.MustParseAddr(pair[f.i]) }

// from matches packets by their source.
func from(a netip.Addr) func([]byte) bool {
	return func(b []byte) bool {
		s, ok := dissect(b)
		return ok && s.src == a
	}
}
