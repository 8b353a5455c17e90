//go:build linux

package netstack_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"runtime/pprof"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"culvert.dev/culvert/internal/thrift"
	"culvert.dev/culvert/internal/wgkey"
	"culvert.dev/culvert/node"
)

var (
	manyConns   = flag.Int("manyconns", 0, "connections through SOCKS5 in TestManyConnections, which is skipped without it; 10000 is what a node must carry")
	manyFlood   = flag.Duration("manyflood", 5*time.Second, "for how long all connections of TestManyConnections send what they can")
	manyProfile = flag.String("manyprofile", "", "a file for the heap profile of the node in TestManyConnections while the connections stand; FILE.after is for when they are gone")
)

// manyMemory is what a node may need for 10,000 connections, be they silent or all have something to say at the same moment.
const manyMemory = 300e6

// manyFloodMemory is the most that it may ever have while all send as much as they can: wireguard-go's buffers, 64 KiB for each packet on its
// way, however short, come on top.
const manyFloodMemory = 450e6

// leftHeap is what may be left of 10,000 connections: maps keep their size.
const leftHeap = 20 << 20

// manyFile names the configuration of the node in the process that TestManyConnections starts.
const manyFile = "CULVERT_TEST_MANYCONNS"

// footprint is what a process uses.
type footprint struct {
	RSS, Peak            int64 // resident bytes, and the most that ever were
	Heap, Stacks         int64
	Goroutines, FDs, TCP int
}

func (f footprint) String() string {
	return fmt.Sprintf("%.1f MB resident (heap %.1f, stacks %.1f; peak %.1f), %d goroutines, %d descriptors, %d flows",
		float64(f.RSS)/1e6, float64(f.Heap)/1e6, float64(f.Stacks)/1e6, float64(f.Peak)/1e6, f.Goroutines, f.FDs, f.TCP)
}

// TestManyConnections opens connections through the SOCKS5 listener of a node, in a process of its own, to a service of another node's,
// over WireGuard. All exchange bytes and then stand still; then all send at the same moment, and again; and then all send as much as they
// can. What the node uses must be little, and afterwards what it was before.
func TestManyConnections(t *testing.T) {
	if *manyConns == 0 {
		t.Skip("it takes a minute and thousands of descriptors: go test -run TestManyConnections -manyconns 10000 ./netstack")
	}
	w := newManyWorld(t)
	w.connect(t, 200) // what is made once
	w.closeAll()
	before := w.settled(t, nil)
	t.Log("before:", before)

	began := time.Now()
	w.connect(t, *manyConns)
	t.Logf("%d connections in %v", *manyConns, time.Since(began).Round(time.Millisecond))
	time.Sleep(2 * time.Second)
	full := w.ask(t, "report")
	t.Log("with all:", full)
	if *manyProfile != "" {
		w.ask(t, "profile "+*manyProfile)
	}
	kept := w.ask(t, "collect")
	t.Log("collected:", kept)
	if full.TCP < *manyConns {
		t.Errorf("%d flows for %d connections", full.TCP, *manyConns)
	}
	little := func(what string, bytes, most int64) {
		t.Helper()
		if bytes > most {
			t.Errorf("%s: %d MB resident with %d connections", what, bytes/1e6, *manyConns)
		}
	}
	little("at rest", kept.RSS, manyMemory)
	for range 3 {
		w.ask(t, "forget")
		w.exchange(t)
		full = w.ask(t, "report")
		t.Log("all at once:", full)
		little("all at once", full.Peak, manyMemory)
	}
	if *manyProfile != "" {
		w.ask(t, "profile "+*manyProfile+".burst")
	}
	kept = w.ask(t, "collect")
	t.Log("collected:", kept)
	little("after that", kept.RSS, manyMemory)
	w.ask(t, "forget")
	rate, silent := w.flood(*manyFlood)
	full = w.ask(t, "report")
	t.Logf("all at once for %v, %.0f Mbit/s there and back, %d got nothing back: %v", *manyFlood, rate, silent, full)
	little("all at once, and more", full.Peak, manyFloodMemory)
	if *manyProfile != "" {
		w.ask(t, "profile "+*manyProfile+".flood")
	}
	w.closeAll()
	after := w.settled(t, &before)
	t.Log("afterwards:", after)
	if *manyProfile != "" {
		w.ask(t, "profile "+*manyProfile+".after")
	}
	if after.Goroutines > before.Goroutines+10 || after.FDs > before.FDs+2 || after.TCP > before.TCP {
		t.Error("something was left behind")
	}
	if after.Heap > before.Heap+leftHeap {
		t.Errorf("the heap has grown by %d KiB", (after.Heap-before.Heap)>>10)
	}
}

// TestManyConnectionsNode is the process of the node, which answers questions about itself.
func TestManyConnectionsNode(t *testing.T) {
	file := os.Getenv(manyFile)
	if file == "" {
		t.Skip("it is a part of TestManyConnections")
	}
	thrift.Begin(t.Context())
	n, err := node.Start(context.Background(), node.Config{File: file, Version: "test"})
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		what, arg, _ := strings.Cut(in.Text(), " ")
		switch what {
		case "collect":
			debug.FreeOSMemory()
		case "forget": // the peak
			if err := os.WriteFile("/proc/self/clear_refs", []byte("5"), 0); err != nil {
				t.Fatal(err)
			}
		case "profile":
			writeHeap(t, arg)
		}
		out, err := json.Marshal(measured(n))
		if err != nil {
			t.Fatal(err)
		}
		fmt.Printf("\n@%s\n", out)
	}
}

func writeHeap(t *testing.T, file string) {
	runtime.GC()
	f, err := os.Create(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := pprof.WriteHeapProfile(f); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file+".stacks", allStacks(), 0o644); err != nil {
		t.Fatal(err)
	}
}

// allStacks is every kind of stack with how many goroutines have it.
func allStacks() []byte {
	var b strings.Builder
	pprof.Lookup("goroutine").WriteTo(&b, 1)
	return []byte(b.String())
}

func measured(n *node.Node) (f footprint) {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	f.Heap, f.Stacks, f.Goroutines = int64(m.HeapAlloc), int64(m.StackInuse), runtime.NumGoroutine()
	if d, err := os.ReadDir("/proc/self/fd"); err == nil {
		f.FDs = len(d)
	}
	f.TCP = n.Status().Flows.TCP
	b, _ := os.ReadFile("/proc/self/status")
	for line := range strings.Lines(string(b)) {
		switch name, v, _ := strings.Cut(line, ":"); name {
		case "VmRSS":
			f.RSS = kibibytes(v)
		case "VmHWM":
			f.Peak = kibibytes(v)
		}
	}
	return f
}

func kibibytes(s string) int64 {
	n, _ := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(s), " kB"), 10, 64)
	return n << 10
}

// manyWorld is the node under test and the rest of the world, which is this process.
type manyWorld struct {
	proxy  string
	in     io.Writer
	out    *bufio.Scanner
	target *net.TCPAddr

	mu    sync.Mutex // guards the following
	conns []net.Conn
}

func newManyWorld(t *testing.T) *manyWorld {
	aliceKey, bobKey := newKey(t), newKey(t)
	alicePort, bobPort, proxyPort := freeUDP(t), freeUDP(t), freeTCP(t)
	const text = "[Interface]\nName = node\nPrivateKey = %s\nAddress = %s/24\nListenPort = %d\n%s\n" +
		"[Traversal]\nDirect = no\n[Peer]\nName = other\nPublicKey = %s\nAllowedIPs = %s/32\nEndpoint = 127.0.0.1:%d\nPersistentKeepalive = 1\n%s\n"
	dir := t.TempDir()
	write := func(name, s string) string {
		file := filepath.Join(dir, name)
		if err := os.WriteFile(file, []byte(s), 0o600); err != nil {
			t.Fatal(err)
		}
		return file
	}
	bob, err := node.Start(context.Background(), node.Config{Version: "test", File: write("bob.conf",
		fmt.Sprintf(text, bobKey.Reveal(), "100.70.9.2", bobPort, "", aliceKey.Public(), "100.70.9.1", alicePort, "AllowInbound = yes"))})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { bob.Close() })
	l, err := bob.Listen("tcp", ":7")
	if err != nil {
		t.Fatal(err)
	}
	go echoAll(l)

	w := &manyWorld{proxy: fmt.Sprintf("127.0.0.1:%d", proxyPort), target: &net.TCPAddr{IP: net.IPv4(100, 70, 9, 2).To4(), Port: 7}}
	w.start(t, write("alice.conf", fmt.Sprintf(text, aliceKey.Reveal(), "100.70.9.1", alicePort,
		fmt.Sprintf("[SOCKS5]\nListen = %s\n", w.proxy), bobKey.Public(), "100.70.9.2", bobPort, "")))
	t.Cleanup(w.closeAll)
	return w
}

// start runs the node in a process of its own, and waits for it.
func (w *manyWorld) start(t *testing.T, file string) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self, "-test.run=^TestManyConnectionsNode$", "-test.timeout=0")
	cmd.Env = append(os.Environ(), manyFile+"="+file, "GOGC=")
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	w.in, w.out = in, bufio.NewScanner(out)
	t.Cleanup(func() {
		in.Close()
		if err := cmd.Wait(); err != nil {
			t.Error("the node's process:", err)
		}
	})
	w.ask(t, "report")
}

func (w *manyWorld) ask(t *testing.T, question string) (f footprint) {
	t.Helper()
	if _, err := fmt.Fprintln(w.in, question); err != nil {
		t.Fatal(err)
	}
	for w.out.Scan() {
		if s, ok := strings.CutPrefix(w.out.Text(), "@"); ok {
			if err := json.Unmarshal([]byte(s), &f); err != nil {
				t.Fatal(err)
			}
			return f
		}
	}
	t.Fatal("the node's process has ended:", w.out.Err())
	return f
}

// settled is what the node uses once connections have ended: as soon as it is that of before, or after some time.
func (w *manyWorld) settled(t *testing.T, before *footprint) (f footprint) {
	for range 60 {
		time.Sleep(250 * time.Millisecond)
		f = w.ask(t, "report")
		if f.TCP == 0 && (before == nil || f.Goroutines <= before.Goroutines && f.FDs <= before.FDs) {
			break
		}
	}
	t.Log("not collected:", f)
	for range 60 { // what is in a sync.Pool lives through two collections
		f = w.ask(t, "collect")
		if before == nil || f.Heap <= before.Heap+leftHeap && f.Goroutines <= before.Goroutines+5 { // timers of closed connections pass by
			break
		}
		time.Sleep(250 * time.Millisecond)
	}
	return f
}

// connect opens so many connections, each of which has something echoed.
func (w *manyWorld) connect(t *testing.T, count int) {
	t.Helper()
	next := make(chan int, count)
	for i := range count {
		next <- i
	}
	close(next)
	var wg sync.WaitGroup
	for range 100 {
		wg.Go(func() {
			for i := range next {
				c, err := w.dial(net.IPv4(127, 0, 0, byte(2+i%8)))
				if err == nil {
					err = talk(c)
				}
				if err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	if t.Failed() {
		t.FailNow()
	}
}

// dial connects to the service through the proxy.
func (w *manyWorld) dial(from net.IP) (net.Conn, error) {
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: from}, Timeout: 20 * time.Second, KeepAlive: -1}
	c, err := d.Dial("tcp", w.proxy)
	if err != nil {
		return nil, err
	}
	w.mu.Lock()
	w.conns = append(w.conns, c)
	w.mu.Unlock()
	c.SetDeadline(time.Now().Add(30 * time.Second))
	request := append([]byte{5, 1, 0, 5, 1, 0, 1}, w.target.IP...)
	if _, err := c.Write(append(request, byte(w.target.Port>>8), byte(w.target.Port))); err != nil {
		return nil, err
	}
	var reply [12]byte
	if _, err := io.ReadFull(c, reply[:]); err != nil {
		return nil, err
	}
	if reply[3] != 0 {
		return nil, fmt.Errorf("the proxy answers %d", reply[3])
	}
	return c, nil
}

// exchange has something echoed by all connections at the same moment.
func (w *manyWorld) exchange(t *testing.T) {
	t.Helper()
	var wg sync.WaitGroup
	now := make(chan struct{})
	for _, c := range w.conns {
		wg.Go(func() {
			<-now
			if err := talk(c); err != nil {
				t.Error(err)
			}
		})
	}
	close(now)
	wg.Wait()
}

// flood has all connections send what they can for that long, and returns how much has come back, in Mbit/s, and how many connections got
// nothing of it.
func (w *manyWorld) flood(d time.Duration) (rate float64, silent int) {
	var wg sync.WaitGroup
	got := make([]int64, len(w.conns))
	end := time.Now().Add(d)
	chunk := make([]byte, 16<<10)
	for i, c := range w.conns {
		c.SetDeadline(end)
		wg.Go(func() {
			for err := error(nil); err == nil; {
				_, err = c.Write(chunk)
			}
		})
		wg.Go(func() {
			b := make([]byte, 4<<10)
			for {
				n, err := c.Read(b)
				got[i] += int64(n)
				if err != nil {
					return
				}
			}
		})
	}
	wg.Wait()
	var sum int64
	for _, n := range got {
		sum += n
		if n == 0 {
			silent++
		}
	}
	return float64(sum) * 8 / 1e6 / d.Seconds(), silent
}

func (w *manyWorld) closeAll() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, c := range w.conns {
		c.Close()
	}
	w.conns = nil
}

// talk has a kilobyte echoed.
func talk(c net.Conn) error {
	c.SetDeadline(time.Now().Add(30 * time.Second))
	b := []byte(strings.Repeat("0123456789abcdef", 64))
	want := string(b)
	if _, err := c.Write(b); err != nil {
		return err
	}
	if _, err := io.ReadFull(c, b); err != nil {
		return err
	}
	if string(b) != want {
		return errors.New("something else came back")
	}
	return nil
}

func echoAll(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			io.Copy(c, c)
		}()
	}
}

func newKey(t *testing.T) wgkey.Private {
	k, err := wgkey.NewPrivate()
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func freeTCP(t *testing.T) int {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

func freeUDP(t *testing.T) int {
	c, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	return c.LocalAddr().(*net.UDPAddr).Port
}
