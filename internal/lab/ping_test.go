//go:build linux

package lab_test

import (
	"encoding/json"
	"errors"
	"os/exec"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"culvert.dev/culvert/internal/lab"
	"culvert.dev/culvert/internal/testnet"
)

// culvertPing runs the command against a node, on its own host, and returns what it printed and its exit status.
func culvertPing(t *testing.T, x *lab.Node, e *lab.Exit, args ...string) (string, int) {
	t.Helper()
	out, err := x.Exec("", lab.Culvert.Path(), append([]string{"ping", "--socket", e.Socket()}, args...)...)
	var status *exec.ExitError
	switch {
	case err == nil:
		return out, 0
	case errors.As(err, &status):
		return out, status.ExitCode()
	}
	t.Fatal(err)
	return "", 0
}

// TestPingStockPeer has a node ask a stock WireGuard peer, whose kernel answers.
func TestPingStockPeer(t *testing.T) {
	t.Parallel()
	productOnly(t, "stock WireGuard has no ping of its own")
	w := newWorld(t, "", "")

	bothFamilies(t, func(t *testing.T, f family) {
		out, status := culvertPing(t, w.X, w.exit, "-c", "3", "-i", "0.1", lab.ClientMesh[f.i])
		answered := regexp.MustCompile(`(?m)^64 bytes from c \(` + regexp.QuoteMeta(lab.ClientMesh[f.i]) + `\): seq=[123] time=[0-9.]+ ms by direct \S+:\d+$`)
		if status != 0 || len(answered.FindAllString(out, -1)) != 3 || !strings.Contains(out, "\n3 sent, 3 answered, 0 % lost\nrtt min/avg/max/p95 = ") {
			t.Errorf("status %d:\n%s", status, out)
		}
	})
	t.Run("by name, as JSON", func(t *testing.T) {
		out, status := culvertPing(t, w.X, w.exit, "-c", "2", "-i", "0.1", "--json", "c")
		var events []string
		for line := range strings.Lines(out) {
			var e struct {
				Event, Peer, Address, Path string
				RTT                        float64 `json:"rtt_ms"`
			}
			if err := json.Unmarshal([]byte(line), &e); err != nil || e.Peer != "c" || e.Address != lab.ClientMesh[0] || e.Path != "direct" || (e.RTT > 0) != (e.Event == "reply") {
				t.Errorf("line %s: %v", line, err)
			}
			events = append(events, e.Event)
		}
		if got := strings.Join(events, " "); status != 0 || got != "start reply reply summary" {
			t.Errorf("status %d, events %s", status, got)
		}
	})
	t.Run("a direct path is there already", func(t *testing.T) {
		if out, status := culvertPing(t, w.X, w.exit, "--until-direct", "-W", "5", "c"); status != 0 {
			t.Errorf("status %d:\n%s", status, out)
		}
	})
	t.Run("nobody answers", func(t *testing.T) {
		w.C.Nft(`table inet mute {
			chain in {
				type filter hook input priority -10;
				icmp type echo-request drop
			}
		}`)
		defer w.C.Run(t, "nft", "delete", "table", "inet", "mute")
		out, status := culvertPing(t, w.X, w.exit, "-c", "2", "-i", "0.1", "-W", "0.3", "c")
		if status != 1 || strings.Count(out, ": no answer within 300ms\n") != 2 || !strings.Contains(out, "2 sent, 0 answered, 100 % lost") {
			t.Errorf("status %d:\n%s", status, out)
		}
	})
	t.Run("the peer says why not", func(t *testing.T) {
		w.C.Nft(`table ip refuse {
			chain in {
				type filter hook input priority -10;
				icmp type echo-request reject with icmp type host-prohibited
			}
		}`)
		defer w.C.Run(t, "nft", "delete", "table", "ip", "refuse")
		out, status := culvertPing(t, w.X, w.exit, "-c", "1", "c")
		if status != 1 || !strings.Contains(out, "seq=1: "+lab.ClientMesh[0]+" says: prohibited by its policy\n") {
			t.Errorf("status %d:\n%s", status, out)
		}
	})
	t.Run("a peer that is not there", func(t *testing.T) {
		out, status := culvertPing(t, w.X, w.exit, "-c", "1", "-W", "0.5", "p")
		if status != 1 || !strings.Contains(out, "by no path") {
			t.Errorf("status %d:\n%s", status, out)
		}
	})
	t.Run("interrupted", func(t *testing.T) {
		p := w.X.Start(t, nil, lab.Culvert.Path(), "ping", "--socket", w.exit.Socket(), "-i", "0.05", "c")
		lab.WaitFor(t, 10*time.Second, "some answers", func() bool { return strings.Contains(p.Log(), "seq=5 ") })
		if err := p.Signal(syscall.SIGINT); err != nil {
			t.Fatal(err)
		}
		lab.WaitFor(t, 5*time.Second, "the end", func() bool { return !p.Alive() })
		if log := p.Log(); !strings.Contains(log, "answered, 0 % lost\n") {
			t.Errorf("no summary:\n%s", log)
		}
	})
}

// TestPingByRelay has both ends be nodes whose routers let no UDP out.
func TestPingByRelay(t *testing.T) {
	t.Parallel()
	productOnly(t, "stock WireGuard has no relay")
	w := newRelayWorld(t)
	w.blockUDP()
	relay := w.v1.StartRelay(t, w.relayConf(relay1, ""))
	a, b := w.configs(clientLines(t, relay, "Relay"), "", "")
	w.start(t, a, b)
	w.connected(t)
	out, status := culvertPing(t, w.a, w.nodeA, "-c", "3", "-i", "0.1", "b")
	if status != 0 || strings.Count(out, " ms by relay https://"+relay1+"\n") != 3 {
		t.Errorf("status %d:\n%s", status, out)
	}
	// The way back is asked for by the other node, through its own tunnel.
	if out, status := culvertPing(t, w.b, w.nodeB, "-c", "1", meshA); status != 0 {
		t.Errorf("status %d:\n%s", status, out)
	}
	out, status = culvertPing(t, w.a, w.nodeA, "--until-direct", "-W", "1.5", "-i", "0.2", "b")
	if status != 1 || !strings.Contains(out, "culvert: not direct after 1.5s; culvert status tells why") {
		t.Errorf("status %d:\n%s", status, out)
	}
}

// TestPingUntilDirect watches two nodes behind NATs move from the relay to a direct path.
func TestPingUntilDirect(t *testing.T) {
	t.Parallel()
	productOnly(t, "stock WireGuard does not look for direct paths")
	w := lab.NewNATWorld(t)
	w.StartRelay(t)
	a := w.MeshNode(w.Site("a", lab.SiteConfig{Type: testnet.PRC, Delay: 10 * time.Millisecond}).Hosts[0])
	b := w.MeshNode(w.Site("b", lab.SiteConfig{Type: testnet.PRC}).Hosts[0])
	a.Meet(b)
	a.Start(t)
	b.Start(t)
	lab.WaitFor(t, 10*time.Second, "the control socket", func() bool { return a.Status(new(any)) == nil })
	out, status := culvertPing(t, a.Host, a.Exit, "--until-direct", "-W", "30", "-i", "0.05", b.Name)
	change := regexp.MustCompile(`(?m)^path: .* -> direct 203\.0\.113\.\d+:\d+$`)
	if status != 0 || !change.MatchString(out) && !strings.Contains(out, "by direct ") {
		t.Errorf("status %d:\n%s", status, out)
	}
	t.Logf("\n%s", out)
}
