//go:build linux

package lab_test

import (
	"encoding/json"
	"fmt"
	"testing"
	"time"

	"culvert.dev/culvert/internal/lab"
)

// iperfServer runs an iperf3 server in the node until the test ends. One server serves one client at a time.
func iperfServer(t *testing.T, node *lab.Node, port int) {
	t.Helper()
	lab.Need(t, "iperf3")
	node.Start(t, nil, "iperf3", "-s", "-p", fmt.Sprint(port))
	lab.WaitFor(t, 10*time.Second, "iperf3 to listen", func() bool { return node.Bound("tcp", port) })
}

// iperf measures the goodput of one TCP stream in Mbit/s, once it is past its start. More arguments may say -R.
func iperf(t *testing.T, node *lab.Node, to string, port, seconds int, args ...string) float64 {
	t.Helper()
	args = append([]string{"-c", to, "-p", fmt.Sprint(port), "-t", fmt.Sprint(seconds), "-O", "1", "-J"}, args...)
	var out string
	var err error
	var doc struct {
		Error string
		End   struct {
			SumReceived struct {
				Bps float64 `json:"bits_per_second"`
			} `json:"sum_received"`
		}
	}
	lab.Poll(10*time.Second, func() bool { // the server may still be reading the end of the run before
		out, err = node.Exec("", "iperf3", args...)
		doc.Error = ""
		if jsonErr := json.Unmarshal([]byte(out), &doc); jsonErr != nil {
			t.Fatalf("iperf3: %v\n%s", jsonErr, out)
		}
		return err == nil && doc.Error == ""
	})
	if err != nil || doc.Error != "" {
		t.Fatalf("iperf3 %v: %v %s", args, err, doc.Error)
	}
	return doc.End.SumReceived.Bps / 1e6
}

var iperfDirections = []struct {
	name string
	args []string
}{{"from the peer", nil}, {"towards the peer", []string{"-R"}}}

// TestRate limits one peer and leaves the other alone. The machine is shared, and what is measured is time: the cases run one
// after the other, and a bound that depends on nobody else using the processor is tried a few times.
func TestRate(t *testing.T) {
	productOnly(t, "a plain router has no rates")
	w := newWorld(t, "AllowRouting = yes\nRate = 10Mbit", "AllowRouting = yes")
	w.StockClient(t, w.P, w.keys.P, w.exit.Key)
	w.connect(t, w.P)
	iperfServer(t, w.S, 5201)
	iperfServer(t, w.S, 5202)
	within := func(t *testing.T, low, high float64, measure func() float64) {
		t.Helper()
		var got []float64
		for range 6 {
			v := measure()
			if got = append(got, v); v >= low && v <= high {
				t.Logf("%.2f Mbit/s", v)
				return
			}
		}
		t.Errorf("got %.2f Mbit/s, want %g to %g", got, low, high)
	}
	bothFamilies(t, func(t *testing.T, f family) {
		for _, d := range iperfDirections {
			t.Run("10Mbit "+d.name, func(t *testing.T) {
				within(t, 8, 10.5, func() float64 { return iperf(t, w.C, lab.Server[f.i], 5201, 4, d.args...) })
			})
		}
	})
	for _, d := range iperfDirections {
		t.Run("the other peer is not slowed "+d.name, func(t *testing.T) {
			share(t, "throughput "+d.name, func() (alone, beside float64) {
				alone = iperf(t, w.P, lab.Server[0], 5202, 2, d.args...)
				done := make(chan float64)
				go func() {
					done <- iperf(t, w.C, lab.Server[0], 5201, 5, d.args...)
				}()
				time.Sleep(time.Second)
				beside = iperf(t, w.P, lab.Server[0], 5202, 2, d.args...)
				limited := <-done
				t.Logf("alone %.0f Mbit/s, beside a peer at %.1f Mbit/s %.0f Mbit/s", alone, limited, beside)
				if limited > 10.5 {
					t.Errorf("the limited peer got %.1f Mbit/s", limited)
				}
				return alone, beside
			})
		})
	}
	t.Run("a reload changes rates and keeps flows", func(t *testing.T) {
		w.echoServers(t)
		c := dialTCP(t, w.C, families[0], lab.Port(lab.Server[0], 7))
		c.SetDeadline(time.Now().Add(5 * time.Minute))
		for _, row := range []struct {
			options   string
			low, high float64
		}{{"Rate = 50Mbit", 40, 52.5}, {"", 60, 1e6}, {"Rate = 1Mbit", 0.7, 1.1}} {
			changed := w.config
			changed.Peers = append([]lab.ExitPeer(nil), w.config.Peers...)
			changed.Peers[0].Options = "AllowRouting = yes\n" + row.options
			w.exit.WriteConf(t, changed)
			if out, err := w.exit.Client("reload"); err != nil {
				t.Fatalf("reload: %v: %s", err, out)
			}
			for _, d := range iperfDirections {
				within(t, row.low, row.high, func() float64 { return iperf(t, w.C, lab.Server[0], 5201, 4, d.args...) })
			}
			if err := turn(c); err != nil {
				t.Errorf("with %q the connection from before is gone: %v", row.options, err)
			}
		}
	})
}
