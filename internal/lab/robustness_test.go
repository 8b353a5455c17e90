//go:build linux

package lab_test

import (
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"culvert.dev/culvert/internal/lab"
)

// descriptors counts the exit's open files.
func (w *world) descriptors(t *testing.T) int {
	t.Helper()
	p, err := w.exit.Proc()
	if err != nil {
		t.Fatal(err)
	}
	return len(p.Files)
}

// works wants a client to get through the exit by TCP and UDP.
func (w *world) works(t *testing.T, client *lab.Node, f family) {
	t.Helper()
	c := dialTCP(t, client, f, lab.Port(lab.Server[f.i], 7))
	c.Write([]byte("works"))
	c.CloseWrite()
	if got, err := io.ReadAll(c); string(got) != "works" || err != nil {
		t.Errorf("tcp: got %q, %v", got, err)
	}
	c.Close()
	u := client.ListenUDP(t, f.any+":0")
	if got, _ := exchange(t, u, lab.Port(lab.Server[f.i], 7), []byte("works")); string(got) != "works" {
		t.Errorf("udp: got %q", got)
	}
	u.Close()
	if !w.exit.Alive() || strings.Contains(w.exit.Log(), "panic:") {
		t.Fatalf("the exit crashed:\n%s", w.exit.Log())
	}
}

// echoServers serves TCP and UDP on port 7 and UDP on port 53 of the server, for both families.
func (w *world) echoServers(t *testing.T) {
	for _, f := range families {
		serveTCP(t, w.S, lab.Port(lab.Server[f.i], 7), func(c *net.TCPConn) { io.Copy(c, c) })
		echoUDP(t, w.S, lab.Port(lab.Server[f.i], 7))
		echoUDP(t, w.S, lab.Port(lab.Server[f.i], 53))
	}
}

// TestNothingLeaks opens and closes 10,000 TCP flows and 5,000 UDP flows. The latter go to port 53, since such flows
// end 10 seconds after the answer.
func TestNothingLeaks(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "AllowRouting = yes", "")
	w.echoServers(t)
	for _, f := range families {
		w.works(t, w.C, f)
	}
	before := w.descriptors(t)
	const workers = 50
	each := func(n int, what string, once func() error) {
		start, errs := time.Now(), make(chan error)
		for range workers {
			go func() {
				for range n / workers {
					errs <- once()
				}
			}()
		}
		failed := 0
		for range n / workers * workers {
			if err := <-errs; err != nil {
				failed++
				t.Logf("%s: %v", what, err)
			}
		}
		t.Logf("%d %s flows in %v", n, what, time.Since(start).Round(time.Millisecond))
		if failed > 0 {
			t.Errorf("%d of %d %s flows failed", failed, n, what)
		}
	}
	each(10000, "TCP", func() error {
		c, err := w.C.Dial("tcp4", lab.Port(lab.Server[0], 7), 10*time.Second)
		if err != nil {
			return err
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(10 * time.Second))
		if _, err := c.Write([]byte("x")); err != nil {
			return err
		}
		_, err = c.Read(make([]byte, 1))
		return err
	})
	to := netip.MustParseAddrPort(lab.Port(lab.Server[0], 53))
	each(5000, "UDP", func() error {
		c, err := w.C.Dial("udp4", to.String(), 0)
		if err != nil {
			return err
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(10 * time.Second))
		if _, err := c.Write([]byte("x")); err != nil {
			return err
		}
		_, err = c.Read(make([]byte, 1))
		return err
	})
	peak := w.descriptors(t)
	const slack = 8 // flows of earlier cases that end meanwhile, idle files of the runtime
	if !lab.Poll(45*time.Second, func() bool { return w.descriptors(t) <= before+slack }) {
		t.Errorf("%d open files, %d before", w.descriptors(t), before)
	}
	p, _ := w.exit.Proc()
	t.Logf("open files: %d before, %d at the peak, %d after; resident %d MB", before, peak, len(p.Files), p.RSS>>10)
	w.works(t, w.C, families[0])
}

// TestTablesStayBounded lets one peer open flows without end, and wants the exit alive and the other peer served.
func TestTablesStayBounded(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "AllowRouting = yes", "AllowRouting = yes")
	w.echoServers(t)
	w.StockClient(t, w.P, w.keys.P, w.exit.Key)
	w.connect(t, w.P)
	tap := w.C.Tap(t, w.client.Dev)
	for _, row := range []struct {
		name, proto string
		to          [2]string
	}{{"UDP flows to a silent host", "udp", lab.Silent}, {"SYNs to a silent host", "tcp", lab.Silent}, {"echo requests to a silent host", "echo", lab.Silent}} {
		for _, f := range families {
			t.Run(row.name+" "+f.name, func(t *testing.T) {
				p := probe{src: addr(lab.ClientMesh, f), dst: addr(row.to, f), proto: row.proto, dport: 80, payload: []byte("x")}
				for i := range 20000 {
					p.sport = uint16(1024 + i)
					w.paced(t, tap, i, p.bytes())
				}
				w.works(t, w.P, f)
				s, err := w.exit.Proc()
				if err != nil {
					t.Fatal(err)
				}
				t.Logf("%d open files, resident %d MB", len(s.Files), s.RSS>>10)
				if s.RSS > 512<<10 && !lab.Racing() {
					t.Errorf("the exit holds %d MB", s.RSS>>10)
				}
			})
		}
	}
}

// TestFewDescriptors lets the exit run out of open files: flows fail then, and nothing else does.
func TestFewDescriptors(t *testing.T) {
	t.Parallel()
	productOnly(t, "a kernel needs no files for flows")
	w := &world{Internet: lab.NewInternet(t)}
	w.echoServers(t)
	w.keys = w.Keys()
	w.config = w.ExitConfig(w.keys, "AllowRouting = yes", "")
	w.config.Files = 64
	w.exit = w.X.StartExit(t, lab.ExitCulvert, w.config)
	w.client = w.StockClient(t, w.C, w.keys.C, w.exit.Key)
	w.connect(t, w.C)
	for _, f := range families {
		var conns []net.Conn
		failed := 0
		for range 100 {
			c, err := w.C.Dial(f.tcp, lab.Port(lab.Server[f.i], 7), soon)
			if err != nil {
				failed++
				break // the first failure shows that the limit is reached
			}
			conns = append(conns, c)
		}
		if failed == 0 {
			t.Errorf("%s: 100 connections with 64 files", f.name)
		}
		for _, c := range conns {
			c.Close()
		}
		lab.WaitFor(t, 10*time.Second, "connections to be possible again", func() bool {
			c, err := w.C.Dial(f.tcp, lab.Port(lab.Server[f.i], 7), time.Second)
			if err == nil {
				c.Close()
			}
			return err == nil
		})
		w.works(t, w.C, f)
	}
}

// paced sends a packet by the tap; every hundred packets it waits until all have been carried through the tunnel, whose
// queues would drop them otherwise.
func (w *world) paced(t *testing.T, tap *lab.Tap, i int, packet []byte) {
	t.Helper()
	if err := tap.Send(packet); err != nil {
		t.Fatalf("packet %d: %v", i, err)
	}
	if i%100 != 99 {
		return
	}
	mesh := netip.MustParseAddr(lab.ExitMesh[0])
	echo := probe{src: netip.MustParseAddr(lab.ClientMesh[0]), dst: mesh, proto: "echo", sport: uint16(i)}
	if !lab.Poll(10*time.Second, func() bool {
		tap.Send(echo.bytes())
		return tap.Receive(100*time.Millisecond, func(b []byte) bool {
			s, ok := dissect(b)
			return ok && s.src == mesh && s.echoReply()
		}) != nil
	}) {
		t.Fatalf("the exit stopped answering echo after %d packets:\n%s", i, w.exit.Log())
	}
}

// TestMalformedPackets feeds the exit packets that no kernel sends. The generator's seed is fixed, so a crash can be
// repeated.
func TestMalformedPackets(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "AllowRouting = yes", "")
	w.echoServers(t)
	tap := w.C.Tap(t, w.client.Dev)
	rng := rand.New(rand.NewPCG(1, 2))
	for i := range 20000 {
		packet := malformed(rng, families[i%2])
		w.paced(t, tap, i, packet)
	}
	for _, f := range families {
		w.works(t, w.C, f)
	}
}

// malformed is a valid packet of which some bytes are wrong, sometimes cut short, or garbage behind a valid start. The
// source is always right: the tunnel would drop it otherwise.
func malformed(rng *rand.Rand, f family) []byte {
	to := []string{lab.Server[f.i], lab.Silent[f.i], lab.ExitMesh[f.i], lab.PeerMesh[f.i]}
	p := probe{
		src: addr(lab.ClientMesh, f), dst: netip.MustParseAddr(to[rng.IntN(len(to))]), proto: protocols[rng.IntN(3)],
		sport: uint16(rng.IntN(65536)), dport: 7, payload: make([]byte, rng.IntN(200)), ttl: uint8(1 + rng.IntN(64)),
	}
	b := p.bytes()
	headers := 60 - 20*(1-f.i) // network header and a little of the next one
	source := [2][2]int{{12, 16}, {8, 24}}[f.i]
	for range 1 + rng.IntN(6) {
		at := rng.IntN(min(len(b), headers+20))
		if at == 0 || at >= source[0] && at < source[1] {
			continue
		}
		b[at] = byte(rng.IntN(256))
	}
	switch rng.IntN(4) {
	case 0: // cut short
		b = b[:source[1]+rng.IntN(len(b)-source[1]+1)]
	case 1: // a fragment, or an extension header
		if f.i == 0 {
			b[6], b[7] = byte(rng.IntN(64)), byte(rng.IntN(256))
		} else {
			b[6] = []byte{0, 43, 44, 50, 51, 59, 60, 135}[rng.IntN(8)]
		}
	case 2: // options
		if f.i == 0 {
			b[0] = 4<<4 | byte(rng.IntN(16))
		}
	}
	return b
}
