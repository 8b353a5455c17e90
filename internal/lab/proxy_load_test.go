//go:build linux

package lab_test

import (
	"context"
	"flag"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"culvert.dev/culvert/internal/control"
	"culvert.dev/culvert/internal/lab"
)

// connectionsFlag is how many connections TestProxyManyConnections holds. The test binary needs two descriptors for each.
var connectionsFlag = flag.Int("connections", 2000, "connections through a proxy at once")

// usage is what a node's process uses.
func usage(t testing.TB, e *lab.Exit) control.Runtime {
	t.Helper()
	u, err := control.NewClient(e.Socket()).Runtime(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	return u
}

// TestProxyManyConnections holds many connections through a proxy at the same time, and wants all that they took given back.
func TestProxyManyConnections(t *testing.T) {
	t.Parallel()
	n := *connectionsFlag
	w := newProxied(t, proxiedConfig{client: programProxies + fmt.Sprintf("MaxConnections = %d\n", max(16384, 2*n+100))})
	to := lab.ProxyMesh["db"][0]
	serveTCP(t, w.DB, lab.Port(to, 7), func(c *net.TCPConn) { // io.Copy would take a pipe for each
		b := make([]byte, 1)
		for {
			if _, err := c.Read(b); err != nil {
				return
			}
			c.Write(b)
		}
	})
	w.listening(t, 1080)
	warm, err := w.socksTCP("127.0.0.1:1080", socksUser{}, to, 7)
	if err != nil {
		t.Fatal(err)
	}
	warm.Close()
	lab.WaitFor(t, 10*time.Second, "quiet", func() bool { return w.active(t) == 0 })
	before := usage(t, w.client)

	start := time.Now()
	conns := hold(t, n, func() (net.Conn, error) { return w.socksTCP("127.0.0.1:1080", socksUser{}, to, 7) })
	opened := time.Since(start)
	held := usage(t, w.client)
	if len(conns) != n {
		t.Errorf("%d of %d connections were made", len(conns), n)
	}
	if failed := atOnceAll(conns, func(c net.Conn) error {
		c.SetDeadline(time.Now().Add(30 * time.Second))
		return turn(c.(*net.TCPConn))
	}); failed > 0 {
		t.Errorf("%d of %d connections did not work when all were open", failed, n)
	}
	busy := usage(t, w.client)
	atOnceAll(conns, net.Conn.Close)
	grown := int64(held.RSSBytes) - int64(before.RSSBytes)
	t.Logf("%d connections in %v; the client's process: %d MB resident, %d MB before, %.1f kB for each; heap %d MB; %d goroutines, %d before; %d descriptors, %d before",
		n, opened.Round(time.Millisecond), held.RSSBytes>>20, before.RSSBytes>>20, float64(grown)/1024/float64(n), held.HeapBytes>>20, held.Goroutines, before.Goroutines, held.FDs, before.FDs)
	const limit = 300 << 20 // for 10,000
	if most := max(limit*uint64(n)/10000, 100<<20); held.RSSBytes > most && !lab.Racing() {
		t.Errorf("%d MB resident, want at most %d", held.RSSBytes>>20, most>>20)
	}
	const slack = 20
	var after control.Runtime
	if !lab.Poll(20*time.Second, func() bool {
		after = usage(t, w.client)
		return after.Goroutines <= before.Goroutines+slack && after.FDs <= before.FDs+slack
	}) {
		t.Errorf("afterwards %+v, before %+v", after, before)
	}
	t.Logf("%d MB resident when a byte had passed by each; after they were closed %d MB, %d goroutines, %d descriptors", busy.RSSBytes>>20, after.RSSBytes>>20, after.Goroutines, after.FDs)
}

// atOnceAll calls f for all connections side by side, and counts failures.
func atOnceAll(conns []net.Conn, f func(net.Conn) error) (failed int) {
	results := make(chan error)
	for _, c := range conns {
		go func() { results <- f(c) }()
	}
	for range conns {
		if <-results != nil {
			failed++
		}
	}
	return failed
}

// hold opens n connections, a hundred at a time, and closes them when the test ends.
func hold(t *testing.T, n int, dial func() (net.Conn, error)) (conns []net.Conn) {
	t.Helper()
	var mu sync.Mutex
	var wg sync.WaitGroup
	var first error
	places := make(chan struct{}, 100)
	for range n {
		places <- struct{}{}
		wg.Go(func() {
			defer func() { <-places }()
			c, err := dial()
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				if first == nil {
					first = err
				}
				return
			}
			conns = append(conns, c)
		})
	}
	wg.Wait()
	if first != nil {
		t.Logf("the first failure: %v", first)
	}
	t.Cleanup(func() {
		for _, c := range conns {
			c.Close()
		}
	})
	return conns
}

// TestProxyFewDescriptors floods a proxy whose process may open 64 files.
func TestProxyFewDescriptors(t *testing.T) {
	t.Parallel()
	w := newProxied(t, proxiedConfig{files: 64, client: programProxies + "[Forward]\nListen = 127.0.0.1:5400\nTo = db:8080\n"})
	w.webEverywhere(t)
	w.listening(t, 1080, 5400)
	for _, url := range []string{"http://db:8080/", "http://v4.example/"} {
		if r := w.curl("-x", "socks5h://127.0.0.1:1080", url); r.Marker != marker {
			t.Fatalf("%s before the flood: %v\n%s", url, r.err, r.text)
		}
	}
	open := hold(t, 200, func() (net.Conn, error) { // the kernel's backlog takes those that the process cannot
		return w.C.Dial("tcp4", "127.0.0.1:1080", soon)
	})
	lab.WaitFor(t, 10*time.Second, "descriptors to run out", func() bool {
		p, err := w.client.Proc()
		return err == nil && len(p.Files) >= 60
	})
	if !w.client.Alive() {
		t.Fatalf("the node has ended:\n%s", w.client.Log())
	}
	for _, c := range open {
		c.Close()
	}
	for _, url := range []string{"http://db:8080/", "http://v4.example/"} {
		lab.WaitFor(t, 10*time.Second, url+" after the flood", func() bool {
			return w.curl("--max-time", "3", "-x", "socks5h://127.0.0.1:1080", url).Marker == marker
		})
	}
	if r := w.curl("http://127.0.0.1:5400/"); r.Marker != marker {
		t.Errorf("the forward after the flood: %v\n%s", r.err, r.text)
	}
	if n := strings.Count(w.client.Log(), "too many open files"); n > 10 {
		t.Errorf("the shortage was logged %d times:\n%s", n, w.client.Log())
	}
}

// TestProxyFigures compares the way through the proxy with that through a kernel TUN, to the same stock peer.
func TestProxyFigures(t *testing.T) {
	t.Parallel()
	w := newProxied(t, proxiedConfig{client: programProxies, direct: true})
	to := lab.ProxyMesh["db"][0]
	serveTCP(t, w.DB, lab.Port(to, 7), func(c *net.TCPConn) { io.Copy(c, c) })
	serveTCP(t, w.DB, lab.Port(to, 9), func(c *net.TCPConn) { n, _ := io.Copy(io.Discard, c); fmt.Fprint(c, n) })
	serveTCP(t, w.DB, lab.Port(to, 19), func(c *net.TCPConn) { io.CopyN(c, zeros{}, bulk) })
	w.listening(t, 1080)
	ways := []struct {
		name string
		dial func(port int) (net.Conn, error)
	}{
		{"kernel TUN", func(port int) (net.Conn, error) { return w.VPN.Dial("tcp4", lab.Port(to, port), 10*time.Second) }},
		{"SOCKS5", func(port int) (net.Conn, error) { return w.socksTCP("127.0.0.1:1080", socksUser{}, to, port) }},
	}
	var setup [2][]time.Duration
	for range 200 { // by turns, so that both have the same neighbours
		for i, way := range ways {
			start := time.Now()
			c, err := way.dial(7)
			if err != nil {
				t.Fatalf("%s: %v", way.name, err)
			}
			if err := turn(c.(*net.TCPConn)); err != nil {
				t.Fatalf("%s: %v", way.name, err)
			}
			setup[i] = append(setup[i], time.Since(start))
			c.Close()
		}
	}
	for i, way := range ways {
		slices.Sort(setup[i])
		up, down := throughput(t, way.dial)
		t.Logf("%s: first byte back after %v (median), %v (95th of 100); %d MB sent at %.0f Mbit/s, received at %.0f Mbit/s", way.name,
			setup[i][len(setup[i])/2].Round(time.Microsecond), setup[i][len(setup[i])*95/100].Round(time.Microsecond), bulk>>20, up, down)
	}
	added := setup[1][100] - setup[0][100]
	t.Logf("the proxy adds %v to a connection and its first byte", added.Round(time.Microsecond))
	if most := time.Millisecond; strict && added > most {
		t.Errorf("that is more than %v", most)
	}
}

const bulk = 64 << 20

// throughput sends and receives bulk bytes by one connection each, in Mbit/s.
func throughput(t *testing.T, dial func(port int) (net.Conn, error)) (up, down float64) {
	t.Helper()
	rate := func(start time.Time) float64 { return bulk * 8 / 1e6 / time.Since(start).Seconds() }
	c, err := dial(9)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	start := time.Now()
	io.CopyN(c, zeros{}, bulk)
	c.(halfConn).CloseWrite()
	if err := wantText(c, fmt.Sprint(bulk)); err != nil {
		t.Errorf("sending: %v", err)
	}
	up = rate(start)
	d, err := dial(19)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	start = time.Now()
	if n, err := io.Copy(io.Discard, d); n != bulk || err != nil {
		t.Errorf("received %d bytes, %v", n, err)
	}
	return up, rate(start)
}
