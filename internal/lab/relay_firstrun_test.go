//go:build linux

package lab_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"culvert.dev/culvert/internal/lab"
)

// TestRelayFirstRun follows docs/relay.md: start a relay without any configuration, allow two nodes, give them the lines that it
// prints, and nothing else.
func TestRelayFirstRun(t *testing.T) {
	t.Parallel()
	productOnly(t, "stock WireGuard has no relay")
	w := newRelayWorld(t)
	relay := w.v1.StartRelay(t, "")
	printed := relay.MustCommand(t, "config")
	for _, line := range strings.Split(strings.TrimSpace(printed), "\n") {
		if line != "" && !strings.HasPrefix(line, "#") && !strings.Contains(relay.Log(), line) {
			t.Errorf("the relay did not print %q when it started", line)
		}
	}
	for _, want := range []string{"URL = https://" + relay1, "Pin = sha256//", "Server = " + relay1 + ":3478", "Endpoint = " + relay1 + ":"} {
		if !strings.Contains(printed, want) {
			t.Errorf("no %q in\n%s", want, printed)
		}
	}

	a, b := w.configs("\n"+printed+"\n[Traversal]\nDirect = no\n", "", "") // who has found a direct path needs no relay
	w.start(t, a, b)
	time.Sleep(time.Second)
	if echoes(w.c, meshB) || pathOf(t, w.nodeA).Kind != "none" {
		t.Error("nodes that nobody allowed meet at the relay")
	}
	relay.MustCommand(t, "allow", w.aKey.Public().String(), "a")
	relay.MustCommand(t, "allow", w.bKey.Public().String(), "b")
	if out := relay.MustCommand(t, "list"); !strings.Contains(out, w.aKey.Public().String()) || !strings.Contains(out, "b") {
		t.Errorf("list:\n%s", out)
	}
	lab.WaitFor(t, 40*time.Second, "an echo by relay once both are allowed", func() bool { return echoes(w.c, meshB) })

	t.Run("the nodes know where they are seen from", func(t *testing.T) {
		type outer struct {
			Source   string `json:"source"`
			Endpoint string `json:"endpoint"`
		}
		for e, want := range map[*lab.Exit]string{w.nodeA: "198.18.1.2:40001", w.nodeB: "198.18.2.2:40002"} {
			var s struct {
				Outer []outer `json:"outer"`
			}
			lab.WaitFor(t, 40*time.Second, "both sources to say "+want, func() bool {
				n := 0
				if e.Status(&s) != nil {
					return false
				}
				for _, o := range s.Outer {
					if o.Endpoint == want {
						n++
					}
				}
				return n == 2
			})
		}
	})
	t.Run("denied again", func(t *testing.T) {
		relay.MustCommand(t, "deny", w.bKey.Public().String())
		lab.WaitFor(t, 20*time.Second, "no echo", func() bool { return !echoes(w.c, meshB) })
	})
	t.Run("secrets", func(t *testing.T) {
		filepath.WalkDir(filepath.Dir(relay.State), func(path string, d os.DirEntry, err error) error {
			if err == nil && d.Type().IsRegular() && strings.Contains(path, "key") && !strings.Contains(path, "allowed") {
				if info, err := d.Info(); err != nil || info.Mode().Perm() != 0o600 {
					t.Errorf("%s has mode %v", path, info.Mode())
				}
				if b, _ := os.ReadFile(path); len(b) > 40 && strings.Contains(relay.Log(), strings.TrimSpace(string(b))) {
					t.Errorf("%s was printed", path)
				}
			}
			return nil
		})
	})
	if err := relay.Stop(10 * time.Second); err != nil {
		t.Errorf("after SIGTERM: %v", err)
	}
}
