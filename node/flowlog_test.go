package node

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"culvert.dev/culvert/filter"
	"culvert.dev/culvert/internal/config"
	"culvert.dev/culvert/internal/control/openmetrics"
	"culvert.dev/culvert/internal/packet"
	"culvert.dev/culvert/nat"
	"culvert.dev/culvert/netstack"
)

// logged decodes the lines of a flow log.
func logged(t *testing.T, file string) (lines []map[string]any) {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for line := range bytes.Lines(b) {
		var m map[string]any
		if err := json.Unmarshal(line, &m); err != nil {
			t.Fatalf("%v: %s", err, line)
		}
		lines = append(lines, m)
	}
	return lines
}

func TestFlowLog(t *testing.T) {
	a, b := newSide(t, "100.70.10.1"), newSide(t, "100.70.10.2")
	config := func(more string) string {
		return a.write(t, b.asPeer("bob", "AllowRouting = yes"), "[Filter]\nRule = reject from bob to 203.0.113.0/24\n[Control]\n"+more)
	}
	file := filepath.Join(a.dir, "flows.jsonl")
	conf := config("FlowLog = flows.jsonl")
	n := start(t, conf, "")
	from, dns := netip.MustParseAddrPort("100.70.10.2:4000"), netip.MustParseAddrPort("100.70.10.1:53")
	lines := func(want int) []map[string]any {
		t.Helper()
		eventually(t, fmt.Sprintf("%d lines", want), func() bool { return len(logged(t, file)) >= want })
		return logged(t, file)
	}

	fromPeer(n, query(from, netip.MustParseAddrPort("203.0.113.9:9")))
	denied := lines(1)[0]
	for key, want := range map[string]any{
		"verdict": "reject", "reason": "rule", "rule": conf + ":14", "peer": "bob", "proto": "udp", "src": "100.70.10.2", "sport": 4000.0,
		"dst": "203.0.113.9", "dport": 9.0,
	} {
		if denied[key] != want {
			t.Errorf("a denied packet: %s is %v, want %v", key, denied[key], want)
		}
	}
	fromPeer(n, query(from, dns), query(from, dns))
	n.net.FlushFlows(&netstack.FlowFilter{})
	end := lines(2)[1]
	for key, want := range map[string]any{
		"verdict": "accept", "ended": "flushed", "peer": "bob", "proto": "udp", "src": "100.70.10.2", "sport": 4000.0, "dst": "100.70.10.1",
		"dport": 53.0, "orig_packets": 2.0, "orig_bytes": 58.0, "reply_packets": 0.0, "reply_bytes": 0.0,
	} {
		if end[key] != want {
			t.Errorf("a flow: %s is %v, want %v", key, end[key], want)
		}
	}
	if s, err := time.Parse(time.RFC3339, fmt.Sprint(end["start"])); err != nil || time.Since(s) > time.Minute {
		t.Errorf("start %v, %v", end["start"], err)
	}
	if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}

	// As logrotate does: move the file away, then reload.
	if err := os.Rename(file, file+".1"); err != nil {
		t.Fatal(err)
	}
	fromPeer(n, query(from, dns))
	n.net.FlushFlows(&netstack.FlowFilter{})
	if err := n.Reload(); err != nil {
		t.Fatal(err)
	}
	if got := len(logged(t, file+".1")); got != 3 {
		t.Errorf("%d lines in the old file, want 3: what came before the reload belongs there", got)
	}
	config("FlowLog = none/flows.jsonl")
	if err := n.Reload(); err == nil || !strings.Contains(err.Error(), "FlowLog: open") {
		t.Errorf("reload with a file that cannot be: %v", err)
	}
	config("FlowLog = flows.jsonl")
	fromPeer(n, query(from, dns)) // open at the end
	n.Close()
	last := logged(t, file)
	if len(last) != 1 || last[0]["ended"] != "shutdown" {
		t.Errorf("got %v, want the one flow that was open", last)
	}
	if _, err := Start(t.Context(), Config{File: config("FlowLog = none/flows.jsonl")}); err == nil || !strings.Contains(err.Error(), conf) {
		t.Errorf("start with a file that cannot be: %v", err)
	}
}

// A pipe that nobody empties must not keep the node from reloading or stopping.
func TestFlowLogIntoAStuckPipe(t *testing.T) {
	a, b := newSide(t, "100.70.13.1"), newSide(t, "100.70.13.2")
	pipe := filepath.Join(a.dir, "pipe")
	if err := syscall.Mkfifo(pipe, 0o600); err != nil {
		t.Skipf("no named pipes here: %v", err)
	}
	conf := a.write(t, b.asPeer("bob", "AllowRouting = yes"), "[Control]\nFlowLog = pipe")
	if _, err := Start(t.Context(), Config{File: conf}); err == nil || !strings.Contains(err.Error(), "FlowLog") {
		t.Errorf("a pipe without a reader: %v", err)
	}
	reader, err := os.OpenFile(pipe, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	n := start(t, conf, "")
	for port := range uint16(2000) { // more than a pipe holds
		fromPeer(n, query(netip.AddrPortFrom(netip.MustParseAddr("100.70.13.2"), 1000+port), netip.MustParseAddrPort("100.70.13.1:53")))
	}
	n.net.FlushFlows(&netstack.FlowFilter{})
	begin := time.Now()
	if err := n.Reload(); err != nil {
		t.Fatal(err)
	}
	n.Close()
	if d := time.Since(begin); d > 6*farewell {
		t.Errorf("reload and stop took %v", d)
	}
	if n.flowLogLoss.Load() == 0 {
		t.Error("no line was lost: the pipe was not full")
	}
}

func TestFlowLogOnStandardErrorLeavesItOpen(t *testing.T) {
	w, err := openFlowLog(config.Control{FlowLog: config.FlowLogStderr}, "")
	if err != nil {
		t.Fatal(err)
	}
	w.Close()
	if _, err := os.Stderr.Stat(); err != nil {
		t.Errorf("standard error: %v", err)
	}
}

// A reload may turn the log on and off.
func TestFlowLogFollowsTheConfiguration(t *testing.T) {
	a, b := newSide(t, "100.70.11.1"), newSide(t, "100.70.11.2")
	peer := b.asPeer("bob", "AllowRouting = yes")
	n := start(t, a.write(t, peer), "")
	file := filepath.Join(a.dir, "f")
	for _, c := range []struct {
		text  string
		lines int
	}{{"[Control]\nFlowLog = f", 1}, {"", 1}, {"[Control]\nFlowLog = f", 2}} {
		a.write(t, peer, c.text)
		if err := n.Reload(); err != nil {
			t.Fatal(err)
		}
		fromPeer(n, query(netip.MustParseAddrPort("100.70.11.2:4000"), netip.MustParseAddrPort("100.70.11.1:53")))
		n.net.FlushFlows(&netstack.FlowFilter{})
		eventually(t, "the lines", func() bool { return len(logged(t, file)) == c.lines })
	}
}

// brittle is a file that can be made to fail, in the middle of a line.
type brittle struct {
	mu   sync.Mutex
	buf  bytes.Buffer
	room int // bytes until it fails; negative: any number
}

func (b *brittle) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.room >= 0 && len(p) > b.room {
		b.buf.Write(p[:b.room])
		n := b.room
		b.room = 0
		return n, errors.New("no space left on device")
	}
	return b.buf.Write(p)
}

func (b *brittle) Close() error { return nil }

func (b *brittle) set(room int) { b.mu.Lock(); defer b.mu.Unlock(); b.room = room }

func (b *brittle) lines() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return strings.Split(strings.TrimSuffix(b.buf.String(), "\n"), "\n")
}

func TestFlowLogSurvivesAFullDisk(t *testing.T) {
	var report bytes.Buffer
	n := &Node{log: slog.New(slog.NewTextHandler(&report, nil))}
	w := &brittle{room: 10}
	out := &flowLogFile{w: w, flowLog: &flowLog{log: n.log, names: &n.names, lostAll: &n.flowLogLoss}}
	line := flowLine{denial: &denial{at: time.Now(), key: packet.Key{V: 4, Proto: packet.ProtoUDP}, reason: filter.ReasonNoRouting, action: filter.Reject}}
	for range 3 {
		out.write([]flowLine{line}, 0)
	}
	w.set(-1)
	out.write([]flowLine{line}, 5)
	if got := strings.Count(report.String(), "no space left"); got != 1 {
		t.Errorf("the error was reported %d times:\n%s", got, report.String())
	}
	if !strings.Contains(report.String(), "written again") {
		t.Errorf("the recovery was not reported:\n%s", report.String())
	}
	lines := w.lines()
	if len(lines) != 3 || !json.Valid([]byte(lines[1])) || !strings.Contains(lines[2], `"lost":5`) {
		t.Errorf("got %q: want the torn line, a good one, and what was lost", lines)
	}
	if n.flowLogLoss.Load() != 3+5 {
		t.Errorf("%d lines counted as lost, want 8", n.flowLogLoss.Load())
	}
}

// Whoever adds lines never waits, whatever the writer does.
func TestFlowLogIsBounded(t *testing.T) {
	l := &flowLog{wake: make(chan struct{}, 1)}
	for range maxPendingLines + 10 {
		l.add(flowLine{end: netstack.FlowEvent{Kind: nat.EventDestroy}})
	}
	if batch, lost := l.take(); len(batch) != maxPendingLines || lost != 10 {
		t.Errorf("%d lines pending, %d lost", len(batch), lost)
	}
	if batch, lost := l.take(); len(batch) != 0 || lost != 0 {
		t.Errorf("then %d and %d", len(batch), lost)
	}
}

func TestDenialsAreLimited(t *testing.T) {
	var l denialLimit
	const second = int64(time.Second)
	passed := func(now int64, n int) (count int, skipped uint64) {
		for range n {
			if s, ok := l.take(now); ok {
				count++
				skipped += s
			}
		}
		return count, skipped
	}
	if got, _ := passed(second, 1000); got != denialBurst {
		t.Errorf("%d at once, want %d", got, denialBurst)
	}
	if got, skipped := passed(2*second, 1000); got != denialRate || skipped != 1000-denialBurst {
		t.Errorf("%d in the next second, %d skipped; want %d, %d", got, skipped, denialRate, 1000-denialBurst)
	}
	if got, _ := passed(3600*second, 1000); got != denialBurst {
		t.Errorf("%d after an hour, want %d", got, denialBurst)
	}
	if got, _ := passed(3599*second, 1); got != 0 {
		t.Error("a clock that steps back gives a token")
	}
}

func freeTCP(t *testing.T) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), uint16(freePort(t)))
}

func fetch(addr netip.AddrPort, path string) (int, []byte, error) {
	c := http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := c.Get("http://" + addr.String() + path)
	if err != nil {
		return 0, nil, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return resp.StatusCode, b, err
}

func TestMetricsOverHTTP(t *testing.T) {
	a, b := newSide(t, "100.70.12.1"), newSide(t, "100.70.12.2")
	peer := b.asPeer("bob", "AllowRouting = yes")
	addr, other := freeTCP(t), freeTCP(t)
	listen := func(addr string) string { return a.write(t, peer, "[Control]\nHTTP = "+addr) }
	n := start(t, listen(addr.String()), "")
	if code, body, err := fetch(addr, "/readyz"); err != nil || code != 503 || !bytes.Contains(body, []byte("none of 1 peers")) {
		t.Errorf("before a handshake: %d %s %v", code, body, err)
	}
	start(t, b.write(t, a.asPeer("alice", "")), "")
	eventually(t, "ready", func() bool { code, _, _ := fetch(addr, "/readyz"); return code == 200 })
	fromPeer(n, query(netip.MustParseAddrPort("100.70.12.2:4000"), netip.MustParseAddrPort("100.70.12.1:53")),
		query(netip.MustParseAddrPort("100.70.12.2:4000"), netip.MustParseAddrPort("100.70.12.1:54")))
	code, body, err := fetch(addr, "/metrics")
	if err != nil || code != 200 {
		t.Fatalf("metrics: %d, %v", code, err)
	}
	got, err := openmetrics.Parse(body)
	if err != nil {
		t.Fatalf("%v\n%s", err, body)
	}
	for key, least := range map[string]float64{
		`culvert_build_info{version="test"}`: 1, `culvert_ready`: 1, `culvert_uptime_seconds`: 0.001, `culvert_flows{proto="udp"}`: 1,
		`culvert_flows_limit`: 1, `culvert_drops_total{reason="self-port"}`: 1, `culvert_rejects_total{answer="icmp"}`: 1,
		`culvert_peer_receive_bytes_total{peer="bob"}`: 92, `culvert_peer_transmit_bytes_total{peer="bob"}`: 92,
		`culvert_peer_handshake_age_seconds{peer="bob"}`: 0, `culvert_peer_path{peer="bob",kind="direct"}`: 1, `culvert_peer_flows{peer="bob"}`: 1,
		`culvert_goroutines`: 1, `culvert_heap_bytes`: 1000, `culvert_flow_log_lost_lines_total`: 0, `culvert_rejects_total{answer="reset"}`: 0,
	} {
		if v, ok := got[key]; !ok || v < least {
			t.Errorf("%s is %v, want at least %v", key, v, least)
		}
	}
	if t.Failed() {
		t.Logf("%s", body)
	}

	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	listen(taken.Addr().String())
	if err := n.Reload(); err == nil || !strings.Contains(err.Error(), "another program uses") {
		t.Errorf("reload with an address in use: %v", err)
	}
	if code, _, err := fetch(addr, "/healthz"); code != 200 {
		t.Errorf("after the refused reload: %d, %v", code, err)
	}
	for _, next := range []string{other.String(), netip.AddrPortFrom(netip.MustParseAddr("0.0.0.0"), other.Port()).String(), other.String()} {
		listen(next)
		if err := n.Reload(); err != nil {
			t.Fatalf("%s: %v", next, err)
		}
		if code, _, err := fetch(other, "/healthz"); code != 200 {
			t.Errorf("%s: %d, %v", next, code, err)
		}
	}
	if _, _, err := fetch(addr, "/healthz"); err == nil {
		t.Error("the old address still answers")
	}
	a.write(t, peer)
	if err := n.Reload(); err != nil {
		t.Fatal(err)
	}
	if _, _, err := fetch(other, "/healthz"); err == nil {
		t.Error("HTTP goes on without a line in the configuration")
	}
	conf := listen(taken.Addr().String())
	n.Close()
	if _, err := Start(t.Context(), Config{File: conf}); err == nil || !strings.Contains(err.Error(), "[Control] HTTP: listen for HTTP on "+taken.Addr().String()) {
		t.Errorf("start with an address in use: %v", err)
	}
}
