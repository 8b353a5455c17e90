//go:build linux

package main

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"culvert.dev/culvert/internal/lab"
)

const (
	httpPort  = 8080
	socksPort = 1080
)

// pair is a second node before the exit, on the machine p, and an HTTP server behind the exit.
type pair struct {
	host  host
	proxy string // URL; empty: the kernel leads into the tunnel
	file  string // what is uploaded

	runs     int         // of curl so far
	received chan upload // after its end
}

// upload is what an HTTP request to a path brought.
type upload struct {
	path  string
	bytes int64
}

// startPair runs the node on p: culvert with a SOCKS5 listener, or stock wireguard-go on a kernel TUN.
func (c *contender) startPair(tb lab.TB) *pair {
	tb.Helper()
	p := &pair{host: newHost(tb, c.P, 0), received: make(chan upload, 16), file: filepath.Join(tb.TempDir(), "zeros")}
	if c.name == culvert {
		p.proxy = "socks5://" + lab.Port("127.0.0.1", socksPort)
		node := c.P.StartExit(tb, lab.ExitCulvert, lab.ExitConfig{
			Key: c.keys.P, Addrs: lab.Addrs(lab.PeerMesh[0]+"/32", lab.PeerMesh[1]+"/128"), MTU: mtu,
			Peers: []lab.ExitPeer{{Name: "gateway", Key: c.config.Key.Public(), AllowedIPs: "0.0.0.0/0, ::/0",
				Options: "Endpoint = " + lab.Port(lab.ExitToP[0], lab.ExitPort)}},
			Extra: fmt.Sprintf("\n[SOCKS5]\nListen = 127.0.0.1:%d\n", socksPort),
		})
		lab.WaitFor(tb, 20*time.Second, "the SOCKS5 listener", func() bool {
			if !node.Alive() {
				tb.Fatalf("the node before the exit ended at once:\n%s", node.Log())
			}
			return c.P.Bound("tcp", socksPort)
		})
	} else {
		c.StockClient(tb, c.P, c.keys.P, c.config.Key.Public())
	}
	const more = 1 << 42 // than anybody uploads: a file of nothing but holes
	f, err := os.Create(p.file)
	if err == nil {
		err = errors.Join(f.Truncate(more), f.Close())
	}
	if err != nil {
		tb.Fatalf("%v", err)
	}
	server := &http.Server{Handler: p}
	l := c.S.Listen(tb, lab.Port(c.server(), httpPort))
	done := make(chan struct{})
	go func() {
		defer close(done)
		server.Serve(l)
	}()
	tb.Cleanup(func() {
		server.Close()
		<-done
	})
	return p
}

// ServeHTTP sends data without end to GET, and counts what PUT brings.
func (p *pair) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	buf := make([]byte, 1<<20)
	if r.Method != http.MethodPut {
		w.Header().Set("Content-Length", strconv.Itoa(1<<42)) // or it would be sent in chunks
		for err := error(nil); err == nil; {
			_, err = w.Write(buf)
		}
		return
	}
	var n int64
	for err := error(nil); err == nil; {
		var k int
		k, err = r.Body.Read(buf)
		n += int64(k)
	}
	p.received <- upload{r.URL.Path, n}
}

// mesh is curl moving data through both nodes for a time. What arrived counts: curl's own figure for a download, the server's
// for an upload.
func (c *contender) mesh(tb lab.TB, d direction) values {
	tb.Helper()
	if c.pair == nil {
		c.pair = c.startPair(c.tb)
	}
	p := c.pair
	args := []string{"-q", "-sS", "-o", "/dev/null", "-w", "%{size_download} %{time_total}\n", "--max-time", fmt.Sprint(c.opts.Length.Seconds())}
	if p.proxy != "" {
		args = append(args, "-x", p.proxy)
	}
	if d == up {
		args = append(args, "-T", p.file, "-H", "Expect:")
	}
	p.runs++
	path := fmt.Sprintf("/%d", p.runs)
	before, first := c.meter(tb), p.usage(tb)
	out, err := c.P.Exec("", "curl", append(args, "http://"+lab.Port(c.server(), httpPort)+path)...)
	const timeIsUp = 28
	if exit := (*exec.ExitError)(nil); !errors.As(err, &exit) || exit.ExitCode() != timeIsUp {
		tb.Fatalf("%s: curl did not run until its time was up: %v\n%s\n%s", c.name, err, out, c.log())
	}
	bytes, seconds, err := readCurl(out)
	if err != nil {
		tb.Fatalf("%s: %v", c.name, err)
	}
	if d == up {
		bytes = float64(p.arrived(tb, path))
	}
	cpu := c.carried(tb, before, d, bytes) + p.usage(tb).cpu - first.cpu
	return values{throughput: bytes * 8 / 1e6 / seconds, cpuBoth: cpu.Seconds() / (bytes / 1e9)}
}

// arrived is what the upload to a path brought, after its end. Others may have been given up before.
func (p *pair) arrived(tb lab.TB, path string) int64 {
	tb.Helper()
	limit := time.After(10 * time.Second)
	for {
		select {
		case u := <-p.received:
			if u.path == path {
				return u.bytes
			}
		case <-limit:
			tb.Fatalf("the upload to %s has no end", path)
		}
	}
}

// usage is that of the node on p, while no curl runs.
func (p *pair) usage(tb lab.TB) usage {
	tb.Helper()
	u, err := p.host.usage()
	if err != nil {
		tb.Fatalf("the node before the exit: %v", err)
	}
	return u
}

// readCurl reads the line that curl writes at the end, which may follow a message.
func readCurl(out string) (bytes, seconds float64, err error) {
	lines := strings.Split(strings.TrimSpace(out), "\n")
	if _, err := fmt.Sscan(lines[len(lines)-1], &bytes, &seconds); err != nil {
		return 0, 0, fmt.Errorf("read curl's figures from %q: %w", out, err)
	}
	if seconds <= 0 {
		return 0, 0, fmt.Errorf("read curl's figures from %q: it took no time", out)
	}
	return bytes, seconds, nil
}
