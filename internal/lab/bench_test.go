//go:build linux

package lab_test

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"culvert.dev/culvert/bench/iperf3"
	benchprobe "culvert.dev/culvert/bench/probe"
	"culvert.dev/culvert/internal/lab"
)

// benchDocument is what both programs print with -J.
type benchDocument struct {
	iperf3.Result
	Culvert benchprobe.Added `json:"culvert"`
}

func parseBench(t *testing.T, out string) (d benchDocument) {
	t.Helper()
	if err := json.NewDecoder(bytes.NewReader([]byte(out[max(strings.IndexByte(out, '{'), 0):]))).Decode(&d); err != nil || d.Error != "" {
		t.Fatalf("%v %s\n%s", err, d.Error, out)
	}
	return d
}

// TestBench measures between a stock WireGuard client and a node, inside the tunnel: stock iperf3 against the node's server, and the
// node's client against stock iperf3.
func TestBench(t *testing.T) {
	t.Parallel()
	productOnly(t, "stock WireGuard measures nothing")
	lab.Need(t, "iperf3")
	w := newWorld(t, "AllowInbound = yes", "")
	server := w.X.Start(t, nil, lab.Culvert.Path(), "bench", "server", "--socket", w.exit.Socket())
	lab.WaitFor(t, 10*time.Second, "the server to listen", func() bool { return strings.Contains(server.Log(), "Server listening") })
	if want := "through the mesh by node "; !strings.HasPrefix(server.Log(), want) {
		t.Errorf("the first line is not %q…:\n%s", want, server.Log())
	}

	bothFamilies(t, func(t *testing.T, f family) {
		for _, row := range [][]string{{"-n", "32M"}, {"-R", "-n", "32M"}, {"-u", "-b", "20M", "-t", "1"}} {
			if f.i == 1 && row[0] == "-R" {
				continue // the same code as the first
			}
			t.Run("stock client "+row[0], func(t *testing.T) {
				out, err := w.C.Exec("", "iperf3", append([]string{"-J", "-c", lab.ExitMesh[f.i]}, row...)...)
				if d := parseBench(t, out); err != nil || d.End.SumReceived.Bytes < 1<<20 && d.End.Sum == nil ||
					d.End.Sum != nil && (d.End.Sum.Bytes < 1<<20 || d.End.Sum.LostPercent > 20) {
					t.Errorf("%v\n%s", err, out)
				}
			})
		}
	})

	iperfServer(t, w.C, 5301)
	client := func(args ...string) benchDocument {
		t.Helper()
		out, err := w.X.Exec("", lab.Culvert.Path(), append([]string{"bench", "client", "--socket", w.exit.Socket(), "--mesh", "-p", "5301", "-J"}, args...)...)
		d := parseBench(t, out)
		if c := d.Culvert; err != nil || c.Way != "mesh" || c.Peer != "c" || c.Path != "direct" {
			t.Errorf("%v: %+v\n%s", err, c, out)
		}
		return d
	}
	t.Run("stock server", func(t *testing.T) {
		if d := client("c", "-n", "32M"); d.End.SumReceived.Bytes < 1<<20 {
			t.Errorf("received %d bytes", d.End.SumReceived.Bytes)
		}
	})
	t.Run("stock server, RTT by echo", func(t *testing.T) {
		d := client(lab.ClientMesh[1], "-u", "-R", "-b", "20M", "-t", "1", "--rtt")
		r := d.Culvert.RTT
		if d.End.SumReceived.Bytes < 1<<20 || r == nil || r.Method != "icmp echo" || r.Idle.Answered < 50 || r.Loaded.Answered < 5 {
			t.Errorf("received %d bytes, RTT %+v", d.End.SumReceived.Bytes, r)
		}
	})
	t.Run("stock server, connections", func(t *testing.T) {
		d := client(lab.ClientMesh[0], "--connections", "-P", "2", "-t", "1")
		if c := d.Culvert.Connections; c == nil || c.Total.Connections < 10 || c.Total.Failed > c.Total.Connections/10 {
			t.Errorf("%+v", c)
		}
	})

	// Whoever may not open connections to the node may not measure either.
	w.config.Peers[0].Options = ""
	w.exit.WriteConf(t, w.config)
	if out, err := w.exit.Client("reload"); err != nil {
		t.Fatalf("reload: %v\n%s", err, out)
	}
	if out, _ := w.C.Exec("", "iperf3", "-J", "-t", "1", "-c", lab.ExitMesh[0]); !strings.Contains(out, "unable to connect to server: Connection refused") {
		t.Errorf("a client without AllowInbound gets another answer:\n%s", out)
	}
}
