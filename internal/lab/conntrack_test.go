//go:build linux

package lab_test

import (
	"bytes"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"culvert.dev/culvert/internal/control/openmetrics"
	"culvert.dev/culvert/internal/lab"
)

// conntrack runs the command against the exit and returns its lines.
func conntrack(t *testing.T, w *world, args ...string) []string {
	t.Helper()
	out, err := w.exit.Client("conntrack", args...)
	if err != nil {
		t.Fatalf("conntrack %v: %v\n%s", args, err, out)
	}
	return strings.Split(strings.TrimSuffix(out, "\n"), "\n")
}

// field reads name=N of a line, the one of the original direction or of the reply.
func field(t *testing.T, line, name string, reply int) int {
	t.Helper()
	m := regexp.MustCompile(" "+name+`=(\d+)`).FindAllStringSubmatch(line, -1)
	if len(m) != 2 {
		t.Fatalf("%d fields %s in %s", len(m), name, line)
	}
	n, _ := strconv.Atoi(m[reply][1])
	return n
}

// serveHTTP serves a page of a known size, and one without end.
func serveHTTP(t *testing.T, w *world, addr string, size int) {
	mux := http.NewServeMux()
	mux.HandleFunc("/page", func(rw http.ResponseWriter, _ *http.Request) { rw.Write(make([]byte, size)) })
	mux.HandleFunc("/endless", func(rw http.ResponseWriter, _ *http.Request) {
		for {
			if _, err := rw.Write(make([]byte, 1000)); err != nil {
				return
			}
			rw.(http.Flusher).Flush()
			time.Sleep(time.Millisecond)
		}
	})
	s := &http.Server{Handler: mux}
	go s.Serve(w.S.Listen(t, addr))
	t.Cleanup(func() { s.Close() })
}

// TestConntrack watches real programs through the exit's flow table.
func TestConntrack(t *testing.T) {
	t.Parallel()
	productOnly(t, "the kernel's conntrack has no peers")
	lab.Need(t, "curl", "dig", "ping")
	w := newWorld(t, "AllowRouting = yes", "")
	const size = 5 << 20
	for _, f := range families {
		serveHTTP(t, w, lab.Port(lab.Server[f.i], 8080), size)
	}
	names := newNameserver(t, w.S, lab.Server[:]...)
	names.set("www.example.", lab.Server[0])
	curl := func(f family, path string, more ...string) (string, error) {
		return w.C.Exec("", "curl", append([]string{"-sS", "-g", "-o", "/dev/null", "--max-time", "60", "http://" + lab.Port(lab.Server[f.i], 8080) + path}, more...)...)
	}

	events := w.follow(t, "-o", "timestamp")
	bothFamilies(t, func(t *testing.T, f family) {
		if out, err := curl(f, "/page"); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		if out, err := w.C.Exec("", "dig", "@"+lab.Server[f.i], "+tries=1", "www.example."); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		w.C.Run(t, "ping", "-n", "-c", "3", "-i", "0.2", lab.Server[f.i])

		to := []string{"-d", lab.Server[f.i], "--peer", "c"}
		t.Run("TCP", func(t *testing.T) {
			lines := conntrack(t, w, append(to, "-L", "-p", "tcp", "--dport", "8080")...)
			if len(lines) != 1 || !strings.HasPrefix(lines[0], "tcp      6 ") || !strings.HasSuffix(lines[0], " [ASSURED] peer=c") ||
				!strings.Contains(lines[0], " src="+lab.ClientMesh[f.i]+" dst="+lab.Server[f.i]+" ") {
				t.Fatalf("got %q", lines)
			}
			got := field(t, lines[0], "bytes", 1)
			if packets := field(t, lines[0], "packets", 1); got < size || got > size+size/10 || packets < size/1400 || packets > size/1000 {
				t.Errorf("%d bytes in %d packets to the peer, for a page of %d", got, packets, size)
			}
			if sent := field(t, lines[0], "bytes", 0); sent < 100 || sent > size/5 {
				t.Errorf("%d bytes from the peer", sent)
			}
		})
		t.Run("UDP", func(t *testing.T) {
			lines := conntrack(t, w, append(to, "-L", "-p", "udp")...)
			if len(lines) != 1 || !strings.Contains(lines[0], " dport=53 packets=1 ") || field(t, lines[0], "packets", 1) != 1 ||
				field(t, lines[0], "bytes", 1) < 60 || strings.Contains(lines[0], "UNREPLIED") {
				t.Errorf("got %q", lines)
			}
		})
		t.Run("ICMP", func(t *testing.T) {
			lines := conntrack(t, w, append(to, "-L", "-p", "icmp")...)
			lines = slices.DeleteFunc(lines, func(line string) bool { return field(t, line, "packets", 0) == 1 }) // of follow
			each := 84 + 20*f.i                                                                                   // an echo of 56 bytes
			if len(lines) != 1 || field(t, lines[0], "packets", 0) != 3 || field(t, lines[0], "packets", 1) != 3 ||
				field(t, lines[0], "bytes", 0) != 3*each || field(t, lines[0], "bytes", 1) != 3*each || field(t, lines[0], "code", 1) != 0 {
				t.Errorf("got %q", lines)
			}
		})
		t.Run("events", func(t *testing.T) {
			ends := ` src=` + regexp.QuoteMeta(lab.ClientMesh[f.i]) + ` dst=` + regexp.QuoteMeta(lab.Server[f.i]) + ` sport=\d+ dport=8080 `
			events.wait(t, `(?m)^\[\d+\.\d{6}\]\t    \[NEW\] tcp      6 \d+ SYN_SENT`+ends+`\[UNREPLIED\]`)
			events.wait(t, `(?m)^\[\d+\.\d{6}\]\t \[UPDATE\] tcp      6 \d+ ESTABLISHED`+ends+`src=.* \[ASSURED\] peer=c$`)
		})
	})
	t.Run("other peers' filters find nothing", func(t *testing.T) {
		if lines := conntrack(t, w, "-L", "--peer", "p"); len(lines) != 1 || lines[0] != "" {
			t.Errorf("got %q", lines)
		}
	})
	t.Run("JSON", func(t *testing.T) {
		for _, line := range conntrack(t, w, "-L", "--json", "-p", "tcp") {
			var flow struct {
				Peer     string
				Original struct{ Src, Dst string }
				Reply    struct{ Dst string }
			}
			if err := json.Unmarshal([]byte(line), &flow); err != nil || flow.Peer != "c" || flow.Reply.Dst == flow.Original.Src {
				t.Errorf("%v: %s: want answers to go to the exit's own address", err, line)
			}
		}
	})
	t.Run("a flush cuts a download", func(t *testing.T) {
		type result struct {
			out string
			err error
		}
		done := make(chan result, 1)
		go func() {
			out, err := curl(families[0], "/endless")
			done <- result{out, err}
		}()
		filter := []string{"-p", "tcp", "--dport", "8080", "--state", "ESTABLISHED", "--peer", "c"}
		lab.WaitFor(t, 10*time.Second, "the download", func() bool {
			lines := conntrack(t, w, append(filter, "-L")...)
			return lines[0] != "" && field(t, lines[0], "bytes", 1) > 20000
		})
		if lines := conntrack(t, w, append(filter, "-F")...); lines[0] != "flows ended: 1" {
			t.Errorf("got %q", lines)
		}
		select {
		case r := <-done:
			if r.err == nil || !strings.Contains(strings.ToLower(r.out), "reset") {
				t.Errorf("curl: %v, %s; want a reset", r.err, r.out)
			}
		case <-time.After(10 * time.Second):
			t.Error("the download goes on")
		}
		events.wait(t, `(?m)\[DESTROY\] tcp .* ESTABLISHED .* dport=8080 packets=\d+ bytes=\d{3,} .* peer=c$`)
	})
}

// following is conntrack -E at work.
type following struct{ *lab.Process }

// follow starts conntrack -E and waits until it sees flows.
func (w *world) follow(t *testing.T, args ...string) following {
	t.Helper()
	p := w.X.StartUnprivileged(t, nil, lab.Culvert.Path(), append([]string{"conntrack", "-E", "--socket", w.socket(t)}, args...)...)
	lab.WaitFor(t, 10*time.Second, "the first event", func() bool {
		w.C.Exec("", "ping", "-n", "-c", "1", "-W", "1", lab.Server[0])
		return strings.Contains(p.Log(), "[NEW] icmp")
	})
	return following{p}
}

func (f following) wait(t *testing.T, pattern string) {
	t.Helper()
	re := regexp.MustCompile(pattern)
	if !lab.Poll(10*time.Second, func() bool { return re.MatchString(f.Log()) }) {
		t.Errorf("no event matches %s in\n%s", pattern, f.Log())
	}
}

// socket is where the exit's control socket is.
func (w *world) socket(t *testing.T) (path string) {
	t.Helper()
	filepath.WalkDir(filepath.Dir(w.exit.Conf), func(p string, d os.DirEntry, err error) error {
		if err == nil && d.Type()&os.ModeSocket != 0 {
			path = p
		}
		return err
	})
	if path == "" {
		t.Fatal("the exit has no control socket")
	}
	return path
}

// TestMonitoring has the exit write its flow log and be scraped.
func TestMonitoring(t *testing.T) {
	t.Parallel()
	productOnly(t, "stock WireGuard has neither")
	lab.Need(t, "curl")
	w := newWorld(t, "AllowRouting = yes", "")
	w.echoServers(t)
	w.config.Extra = "\n[Filter]\nRule = reject from c to * tcp/25\n[Control]\nHTTP = 127.0.0.1:9090\nFlowLog = flows.jsonl\n"
	w.exit.WriteConf(t, w.config)
	if out, err := w.exit.Client("reload"); err != nil {
		t.Fatalf("reload: %v: %s", err, out)
	}
	c := dialTCP(t, w.C, families[0], lab.Port(lab.Server[0], 7))
	if err := turn(c); err != nil {
		t.Fatal(err)
	}
	exchange(t, w.C.ListenUDP(t, lab.Port(lab.ClientMesh[0], 0)), lab.Port(lab.Server[0], 7), []byte("x"))
	if _, err := w.C.Dial("tcp4", lab.Port(lab.Server[0], 25), soon); err == nil {
		t.Error("port 25 is open")
	}

	t.Run("metrics", func(t *testing.T) {
		text := w.X.Run(t, "curl", "-sSf", "http://127.0.0.1:9090/metrics")
		got, err := openmetrics.Parse([]byte(text))
		if err != nil {
			t.Fatalf("%v\n%s", err, text)
		}
		for key, least := range map[string]float64{
			`culvert_ready`: 1, `culvert_flows{proto="tcp"}`: 1, `culvert_flows{proto="udp"}`: 1, `culvert_drops_total{reason="rule"}`: 1,
			`culvert_rejects_total{answer="reset"}`: 1, `culvert_peer_receive_bytes_total{peer="c"}`: 300, `culvert_peer_path{peer="c",kind="direct"}`: 1,
			`culvert_peer_path{peer="p",kind="none"}`: 1, `culvert_peer_flows{peer="c"}`: 2, `culvert_open_descriptors`: 5,
		} {
			if v, ok := got[key]; !ok || v < least {
				t.Errorf("%s is %v, want at least %v", key, v, least)
			}
		}
		if out := w.X.Run(t, "curl", "-sS", "http://127.0.0.1:9090/readyz"); out != "ready\n" {
			t.Errorf("readyz: %q", out)
		}
		if c, err := w.C.Dial("tcp4", lab.Port(lab.ExitToC[0], 9090), soon); err == nil {
			c.Close()
			t.Error("a client reaches the listener on loopback")
		}
	})
	t.Run("flow log", func(t *testing.T) {
		c.CloseWrite()
		io.Copy(io.Discard, c)
		c.Close()
		if err := w.exit.Stop(10 * time.Second); err != nil {
			t.Fatal(err)
		}
		file := filepath.Join(filepath.Dir(w.exit.Conf), "flows.jsonl")
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("mode %v, %v", info.Mode(), err)
		}
		seen := make(map[string]bool)
		for line := range bytes.Lines(b) {
			var l struct {
				Verdict, Ended, Peer, Proto, Src, Rule string
				DPort                                  int
				ReplyBytes                             int `json:"reply_bytes"`
			}
			if err := json.Unmarshal(line, &l); err != nil {
				t.Fatalf("%v: %s", err, line)
			}
			if l.Peer != "c" || net.ParseIP(l.Src) == nil || l.Verdict == "accept" && l.DPort == 7 && l.ReplyBytes < 29 {
				t.Errorf("got %s", line)
			}
			seen[l.Verdict+" "+l.Proto+" "+strconv.Itoa(l.DPort)+" "+l.Ended] = true
			if l.Verdict == "reject" && !strings.Contains(l.Rule, "culvert.conf:") {
				t.Errorf("a rejected flow without its rule: %s", line)
			}
		}
		for _, want := range []string{"accept tcp 7 finished", "accept udp 7 shutdown", "reject tcp 25 "} {
			if !seen[want] {
				t.Errorf("no line for %q in\n%s", want, b)
			}
		}
	})
}
