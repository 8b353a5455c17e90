package main

import (
	"context"
	"encoding/json"
	"errors"
	"iter"
	"net/netip"
	"net/url"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"culvert.dev/culvert/internal/control"
	"culvert.dev/culvert/node"
)

// fakeFlows is a node with flows, which notes what it is asked.
type fakeFlows struct {
	fakeNode
	flows  []*node.FlowEntry
	events []*node.FlowNotice
	asked  string
	cut    bool // the stream of events breaks off as when the node stops
}

func (n *fakeFlows) ListFlows(q url.Values) (iter.Seq[any], error) {
	n.asked = "list " + q.Encode()
	if q.Get("peer") == "nobody" {
		return nil, errors.New(`peer: there is no peer named "nobody"`)
	}
	return func(yield func(any) bool) {
		for _, f := range n.flows {
			if !yield(f) {
				return
			}
		}
	}, nil
}

func (n *fakeFlows) CountFlows(q url.Values) (int, error) {
	n.asked = "count " + q.Encode()
	return len(n.flows), nil
}

func (n *fakeFlows) FlushFlows(q url.Values) (int, error) {
	n.asked = "flush " + q.Encode()
	return len(n.flows), nil
}

func (n *fakeFlows) WatchFlows(ctx context.Context, q url.Values, emit func(any, bool) error) error {
	n.asked = "watch " + q.Encode()
	for _, e := range n.events {
		if err := emit(e, false); err != nil {
			return err
		}
	}
	if !n.cut {
		<-ctx.Done()
	}
	return ctx.Err()
}

func serveFlows(t *testing.T, n *fakeFlows) (socket string) {
	t.Helper()
	socket = filepath.Join(t.TempDir(), "control.sock")
	l, err := control.Listen(socket)
	if err != nil {
		t.Fatal(err)
	}
	s := control.Serve(l, n, nil)
	t.Cleanup(func() { s.Shutdown(context.Background()) })
	return socket
}

func flowEntry(dport uint16) *node.FlowEntry {
	a, b := netip.MustParseAddr("100.64.0.2"), netip.MustParseAddr("192.0.2.1")
	return &node.FlowEntry{
		Family: "ipv4", Proto: "tcp", State: "ESTABLISHED", TimeoutS: 7439, Answered: true, Assured: true, Peer: "laptop",
		Original: node.FlowTuple{Src: a, Dst: b, SrcPort: 40000, DstPort: dport, Packets: 5, Bytes: 900},
		Reply:    node.FlowTuple{Src: b, Dst: a, SrcPort: dport, DstPort: 40000, Packets: 4, Bytes: 800},
	}
}

const flowLine = "tcp      6 7439 ESTABLISHED src=100.64.0.2 dst=192.0.2.1 sport=40000 dport=443 packets=5 bytes=900 " +
	"src=192.0.2.1 dst=100.64.0.2 sport=443 dport=40000 packets=4 bytes=800 [ASSURED] peer=laptop\n"

func TestConntrackCommand(t *testing.T) {
	n := &fakeFlows{flows: []*node.FlowEntry{flowEntry(443)}}
	socket := serveFlows(t, n)
	for _, c := range []struct {
		line, asked, out string
	}{
		{"", "list ", flowLine},
		{"-L -p tcp --peer laptop", "list peer=laptop&proto=tcp", flowLine},
		{"--peer laptop -L --proto tcp", "list peer=laptop&proto=tcp", flowLine},
		{"-L -f ipv4 -s 100.64.0.0/24 -d 192.0.2.1 --sport 1 --dport 2", "list dport=2&dst=192.0.2.1&family=ipv4&sport=1&src=100.64.0.0%2F24", flowLine},
		{"-L --state ESTABLISHED --state " + t.TempDir(), "list state=ESTABLISHED", flowLine},
		{"-L -o extended", "list ", "ipv4     2 " + flowLine},
		{"-C", "count ", "1\n"},
		{"-F --peer laptop --dport 443", "flush dport=443&peer=laptop", "flows ended: 1\n"},
		{"-F --json", "flush ", "{\n  \"flows\": 1\n}\n"},
	} {
		args := append(append([]string{"conntrack"}, strings.Fields(c.line)...), "--socket", socket)
		code, out, errOut := runLine(args...)
		if code != 0 || errOut != "" || out != c.out || n.asked != c.asked {
			t.Errorf("%s: %d, asked %q\n%s%s", c.line, code, n.asked, out, errOut)
		}
	}
	if code, out, errOut := runLine("conntrack", "-L", "--peer", "nobody", "--socket", socket); code != 1 || out != "" || errOut != "culvert: peer: there is no peer named \"nobody\"\n" {
		t.Errorf("%d, %q, %q", code, out, errOut)
	}
}

func TestConntrackJSONIsOneDocumentALine(t *testing.T) {
	n := &fakeFlows{flows: []*node.FlowEntry{flowEntry(443), flowEntry(80)}}
	code, out, _ := runLine("conntrack", "-L", "--json", "--socket", serveFlows(t, n))
	lines := strings.Split(strings.TrimSuffix(out, "\n"), "\n")
	var f node.FlowEntry
	if code != 0 || len(lines) != 2 || json.Unmarshal([]byte(lines[1]), &f) != nil || f.Original.DstPort != 80 || f.Peer != "laptop" {
		t.Errorf("%d\n%s", code, out)
	}
}

func TestConntrackEvents(t *testing.T) {
	at := node.Moment{Time: time.Unix(1795309253, 36_000_000)}
	n := &fakeFlows{cut: true, events: []*node.FlowNotice{
		{Event: "NEW", Time: at, FlowEntry: flowEntry(443)}, {Event: "LOST", Time: at, Lost: 12}, {Event: "DESTROY", Time: at, Ended: "finished", FlowEntry: flowEntry(443)},
	}}
	socket := serveFlows(t, n)
	code, out, errOut := runLine("conntrack", "-E", "-o", "timestamp", "-e", "NEW,DESTROY", "--socket", socket)
	if code != 1 || errOut != "culvert: too slow for the node: 12 events are not shown here\nculvert: the node has stopped\n" || n.asked != "watch event-mask=NEW%2CDESTROY" {
		t.Errorf("%d, asked %q, %s", code, n.asked, errOut)
	}
	first, last, _ := strings.Cut(out, "\n")
	if !strings.HasPrefix(first, "[1795309253.036000]\t    [NEW] tcp      6 7439 ESTABLISHED src=100.64.0.2 ") || strings.Contains(first, "packets=") ||
		last != "[1795309253.036000]\t[DESTROY] "+flowLine {
		t.Errorf("got\n%s", out)
	}
	_, out, _ = runLine("conntrack", "-E", "--json", "--socket", socket)
	lines := strings.Split(out, "\n")
	var e node.FlowNotice
	if len(lines) != 4 || json.Unmarshal([]byte(lines[1]), &e) != nil || e.Event != "LOST" || e.Lost != 12 || e.FlowEntry != nil ||
		json.Unmarshal([]byte(lines[2]), &e) != nil || e.Ended != "finished" || e.Original.Bytes != 900 {
		t.Errorf("got\n%s", out)
	}
}

// A full table is listed in a moment.
func TestConntrackListsManyFlows(t *testing.T) {
	n := &fakeFlows{}
	for i := range 8192 {
		n.flows = append(n.flows, flowEntry(uint16(i)))
	}
	start := time.Now()
	code, out, _ := runLine("conntrack", "-L", "--socket", serveFlows(t, n))
	if got := strings.Count(out, "\n"); code != 0 || got != 8192 {
		t.Errorf("%d: %d lines", code, got)
	}
	t.Logf("8192 flows in %v", time.Since(start))
}
