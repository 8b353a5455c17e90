//go:build linux

package lab_test

import (
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"culvert.dev/culvert/internal/lab"
)

// floodRate is the packets per second of a flood: about five times what the flooder's limits let through, and little enough that
// the generator leaves the machine to the exit.
const floodRate = 5000

// flood sends packets through a tap, spread evenly over time, until stop is called. packet is given a number that counts up.
func flood(tap *lab.Tap, packet func(i int) probe) (stop func()) {
	quit := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		tick := time.NewTicker(time.Millisecond)
		defer tick.Stop()
		start := time.Now()
		for i := 0; ; {
			for due := int(time.Since(start).Seconds() * floodRate); i < due; i++ {
				tap.Send(packet(i).bytes())
			}
			select {
			case <-quit:
				return
			case <-tick.C:
			}
		}
	})
	return func() {
		close(quit)
		wg.Wait()
	}
}

// connections counts how many connections a second a node opens to an echo server, makes a round trip on, and closes.
func connections(t *testing.T, node *lab.Node, to string, d time.Duration) float64 {
	t.Helper()
	var n, failed atomic.Int64
	var wg sync.WaitGroup
	start := time.Now()
	for range 4 {
		wg.Go(func() {
			for time.Since(start) < d {
				c, err := node.Dial("tcp4", to, 2*time.Second)
				if err != nil {
					failed.Add(1)
					continue
				}
				c.SetDeadline(time.Now().Add(2 * time.Second))
				if turn(c.(*net.TCPConn)) == nil {
					n.Add(1)
				} else {
					failed.Add(1)
				}
				c.(*net.TCPConn).SetLinger(0) // a reset leaves no port waiting on the client
				c.Close()
			}
		})
	}
	wg.Wait()
	if failed.Load() > 0 {
		t.Errorf("%d connections failed", failed.Load())
	}
	return float64(n.Load()) / time.Since(start).Seconds()
}

// strict asks for the figures that the product is meant to reach, rather than for what no accident explains: for a machine that
// does nothing else.
var strict = os.Getenv("CULVERT_LAB_STRICT") != ""

// share measures in pairs what is left of something beside a disturbance. One measurement says little on a shared machine: pairs are
// taken until one is left nine tenths, and the test fails if the best of them is left less than half. With strict the median of seven
// pairs must reach nine tenths.
func share(t *testing.T, what string, pair func() (without, with float64)) {
	t.Helper()
	const aim, least = 0.9, 0.5
	var ratios []float64
	for len(ratios) < 7 {
		without, with := pair()
		t.Logf("%s: %.0f without, %.0f with: %.2f", what, without, with, with/without)
		ratios = append(ratios, with/without)
		if !strict && (slices.Max(ratios) >= aim || len(ratios) == 5) {
			break
		}
	}
	slices.Sort(ratios)
	if median := ratios[len(ratios)/2]; strict && median < aim {
		t.Errorf("%s: a median of %.2f is left", what, median)
	} else if best := slices.Max(ratios); best < least {
		t.Errorf("%s: %.2f of it is left", what, best)
	} else if strict {
		t.Logf("%s: median %.2f", what, median)
	}
}

// TestFloods has one peer flood the exit while the other works, which must not lose more than a tenth. What the generator and the
// tunnel cost is no matter of the exit's: the measure is the same flood with source addresses that WireGuard refuses after it has
// decrypted them. The processor is shared with the generator, the clients and the servers: see share.
func TestFloods(t *testing.T) {
	productOnly(t, "a plain router has no rates")
	w := newWorld(t, "AllowRouting = yes\nRate = 10Mbit", "AllowRouting = yes")
	w.StockClient(t, w.P, w.keys.P, w.exit.Key)
	w.connect(t, w.P)
	iperfServer(t, w.S, 5202)
	const open, closed, sink = 2080, 2081, 2082
	target := lab.Port(lab.Server[0], open)
	serveTCP(t, w.S, target, func(c *net.TCPConn) { io.Copy(struct{ io.Writer }{c}, struct{ io.Reader }{c}) })
	u := w.S.ListenUDP(t, lab.Port(lab.Server[0], sink))
	go func() {
		for b := make([]byte, 2048); ; {
			if _, err := u.Read(b); err != nil {
				return
			}
		}
	}()
	tap := w.C.Tap(t, w.client.Dev)
	src, server := netip.MustParseAddr(lab.ClientMesh[0]), netip.MustParseAddr(lab.Server[0])
	port := func(i int) uint16 { return uint16(1024 + i%60000) }

	for _, row := range []struct {
		name   string
		packet func(i int) probe
	}{
		{"SYNs to a closed port", func(i int) probe {
			return probe{src: src, dst: server, proto: "tcp", sport: port(i), dport: closed}
		}},
		{"SYNs to an open port", func(i int) probe {
			return probe{src: src, dst: server, proto: "tcp", sport: port(i), dport: open}
		}},
		{"SYNs to silence", func(i int) probe {
			return probe{src: src, dst: netip.MustParseAddr(lab.Silent[0]), proto: "tcp", sport: port(i), dport: 80}
		}},
		{"UDP sources", func(i int) probe {
			return probe{src: src, dst: server, proto: "udp", sport: port(i), dport: sink, payload: []byte("x")}
		}},
		{"echo identifiers", func(i int) probe { return probe{src: src, dst: server, proto: "echo", sport: port(i)} }},
		{"pings of the node", func(i int) probe {
			return probe{src: src, dst: netip.MustParseAddr(lab.ExitMesh[0]), proto: "echo", sport: 7, payload: make([]byte, 1000)}
		}},
		{"bandwidth", func(i int) probe {
			return probe{src: src, dst: server, proto: "udp", sport: 7, dport: sink, payload: make([]byte, 1200)}
		}},
	} {
		t.Run(row.name, func(t *testing.T) {
			refused := func(i int) probe {
				p := row.packet(i)
				p.src = netip.MustParseAddr("100.64.99.99")
				return p
			}
			for _, m := range []struct {
				name    string
				measure func() float64
			}{
				{"throughput", func() float64 { return iperf(t, w.P, lab.Server[0], 5202, 1, "-R") }},
				{"connections", func() float64 { return connections(t, w.P, target, 1500*time.Millisecond) }},
			} {
				share(t, m.name, func() (without, with float64) {
					stop := flood(tap, refused)
					without = m.measure()
					stop()
					stop = flood(tap, row.packet)
					with = m.measure()
					stop()
					return without, with
				})
			}
		})
	}
}
