package node

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"net/url"
	"os"
	"strings"
	"testing"
	"time"

	"culvert.dev/culvert/internal/proxy"
)

// list returns the lines of conntrack -L that a query chooses.
func (w *exitWorld) list(t *testing.T, query url.Values) (lines []string) {
	t.Helper()
	all, err := source{w.n}.ListFlows(query)
	if err != nil {
		t.Fatal(err)
	}
	for e := range all {
		lines = append(lines, strings.TrimSpace(string(e.(*FlowEntry).AppendText(nil, FlowStyle{}))))
	}
	return lines
}

// What peers have opened by SOCKS5 is listed, counted and flushed with what they have opened by packets, and marked.
func TestExitSOCKSIsInConntrack(t *testing.T) {
	w := newExitWorld(t)
	echo := w.listen(t)
	c, err := w.dial(echo.String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := io.WriteString(c, "hello"); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(c, make([]byte, 5)); err != nil {
		t.Fatal(err)
	}
	server, err := net.ListenPacket("udp", netip.AddrPortFrom(w.reach, 0).String())
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	pc, at := w.associate(t), server.LocalAddr().(*net.UDPAddr).AddrPort()
	if err := pc.WriteTo([]byte("ping"), proxy.Target{Addr: at.Addr(), Port: at.Port()}); err != nil {
		t.Fatal(err)
	}
	local := c.LocalAddr().(*net.TCPAddr).AddrPort()
	tcp := fmt.Sprintf("ESTABLISHED src=100.70.4.1 dst=%s sport=40000 dport=%d packets=0 bytes=5 src=%s dst=%s sport=%d dport=%d packets=0 bytes=5 [ASSURED] peer=alice by=socks5",
		w.reach, echo.Port, w.reach, local.Addr(), echo.Port, local.Port())
	udp := fmt.Sprintf("src=100.70.4.1 dst=%s sport=40000 dport=%d packets=1 bytes=4 [UNREPLIED] src=%s dst=100.70.4.1 sport=%d dport=40000 packets=0 bytes=0 peer=alice by=socks5",
		w.reach, at.Port(), w.reach, at.Port())

	eventually(t, "all bytes are counted", func() bool { return strings.Contains(strings.Join(w.list(t, nil), "\n"), "bytes=5 src") })
	lines := w.list(t, nil)
	if len(lines) != 2 || !strings.HasSuffix(lines[0], tcp) || !strings.HasPrefix(lines[0], "tcp      6 74") || !strings.HasSuffix(lines[1], udp) || !strings.HasPrefix(lines[1], "udp      17 ") {
		t.Errorf("got:\n%s\nwant:\n%s\n%s", strings.Join(lines, "\n"), tcp, udp)
	}
	for query, want := range map[string]int{"proto=tcp": 1, "proto=udp": 1, "peer=alice": 2, "peer=carol": 0, "dport=" + fmt.Sprint(at.Port()): 1, "state=ESTABLISHED": 1, "family=ipv6": 0} {
		q, _ := url.ParseQuery(query)
		if n, err := (source{w.n}).CountFlows(q); err != nil || n != want || len(w.list(t, q)) != want {
			t.Errorf("%s: %d flows, want %d; %v", query, n, want, err)
		}
	}

	if n, err := (source{w.n}).FlushFlows(url.Values{"proto": {"tcp"}}); err != nil || n != 1 {
		t.Errorf("flushed %d, %v", n, err)
	}
	ends(t, "it was flushed", c)
	if n, err := (source{w.n}).FlushFlows(url.Values{}); err != nil || n != 1 {
		t.Errorf("flushed %d, %v", n, err)
	}
	if lines := w.list(t, nil); len(lines) != 0 {
		t.Errorf("left is %v", lines)
	}
	if err := pc.WriteTo([]byte("again"), proxy.Target{Addr: at.Addr(), Port: at.Port()}); err != nil || len(w.list(t, nil)) != 1 {
		t.Errorf("a datagram after the flush: %v", err)
	}
	pc.Close()
	if lines := w.list(t, nil); len(lines) != 0 {
		t.Errorf("left is %v", lines)
	}
	w.n.Close()
	log, err := os.ReadFile(w.flowLog)
	if err != nil || !strings.Contains(string(log), `"ended":"flushed","peer":"alice","proto":"tcp"`) {
		t.Errorf("the flow log does not tell of the flush: %v\n%s", err, log)
	}
}

// Rules with the word log are heeded for SOCKS5 too: a line for each new destination, not for each datagram.
func TestExitSOCKSIsInTheRuleLog(t *testing.T) {
	w := newExitWorld(t, "[Filter]\nRule = reject log from * to * tcp/9\nRule = accept log from alice to *\n")
	echo := w.listen(t)
	c, err := w.dial(echo.String())
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
	if _, err := w.dial(netip.AddrPortFrom(w.reach, 9).String()); proxy.KindOf(err) != proxy.NotAllowed {
		t.Errorf("got %v", err)
	}
	pc := w.associate(t)
	for range 3 {
		if err := pc.WriteTo([]byte("x"), proxy.Target{Addr: w.reach, Port: 7}); err != nil {
			t.Fatal(err)
		}
	}
	var got []string
	for line := range strings.Lines(w.log.String()) {
		if _, text, ok := strings.Cut(line, "msg=rule "); ok {
			text, _, _ = strings.Cut(text, " rule=")
			got = append(got, text)
			if !strings.HasSuffix(strings.TrimSpace(line), "skipped=0 by=socks5") {
				t.Errorf("got %s", line)
			}
		}
	}
	want := []string{
		fmt.Sprintf("action=accept peer=alice proto=tcp src=100.70.4.1:40000 dst=%s:%d", w.reach, echo.Port),
		fmt.Sprintf("action=reject peer=alice proto=tcp src=100.70.4.1:40000 dst=%s:9", w.reach),
		fmt.Sprintf("action=accept peer=alice proto=udp src=100.70.4.1:40000 dst=%s:7", w.reach),
	}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("got:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// Connections by the upstream are listed as such while they move bytes.
func TestUpstreamConnectionsKnowWhatTheyCarry(t *testing.T) {
	near, far := net.Pipe()
	defer far.Close()
	e := &upstreamExit{Conn: near, lease: &exitLease{started: time.Now().Add(-time.Hour)}}
	defer near.Close()
	go far.Write([]byte("123"))
	if _, err := e.Read(make([]byte, 3)); err != nil {
		t.Fatal(err)
	}
	if sent, received, idle := e.carried(); sent != 0 || received != 3 || idle > time.Minute {
		t.Errorf("got %d, %d, %v", sent, received, idle)
	}
}
