package node

import (
	"context"
	"encoding/json"
	"net/netip"
	"net/url"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"culvert.dev/culvert/internal/control"
	"culvert.dev/culvert/internal/packet"
	"culvert.dev/culvert/nat"
	"culvert.dev/culvert/netstack"
)

func TestFlowLinesLookAsThoseOfConntrack(t *testing.T) {
	v4 := func(last byte) netip.Addr { return netip.AddrFrom4([4]byte{10, 9, 9, last}) }
	for _, c := range []struct {
		name  string
		f     FlowEntry
		style FlowStyle
		want  string
	}{
		{"tcp", FlowEntry{
			Family: "ipv4", Proto: "tcp", State: "ESTABLISHED", TimeoutS: 7439, Answered: true, Assured: true, Peer: "laptop",
			Original: FlowTuple{Src: v4(1), Dst: v4(2), SrcPort: 42880, DstPort: 8000, Packets: 2, Bytes: 112},
			Reply:    FlowTuple{Src: v4(2), Dst: v4(3), SrcPort: 8000, DstPort: 1025, Packets: 1, Bytes: 60},
		}, FlowStyle{}, "tcp      6 7439 ESTABLISHED src=10.9.9.1 dst=10.9.9.2 sport=42880 dport=8000 packets=2 bytes=112 " +
			"src=10.9.9.2 dst=10.9.9.3 sport=8000 dport=1025 packets=1 bytes=60 [ASSURED] peer=laptop"},
		{"udp without answer, extended", FlowEntry{
			Family: "ipv4", Proto: "udp", TimeoutS: 29, Peer: "laptop", ReplyPeer: "phone",
			Original: FlowTuple{Src: v4(1), Dst: v4(2), SrcPort: 54549, DstPort: 9999, Packets: 1, Bytes: 31},
			Reply:    FlowTuple{Src: v4(2), Dst: v4(1), SrcPort: 9999, DstPort: 54549},
		}, FlowStyle{Extended: true}, "ipv4     2 udp      17 29 src=10.9.9.1 dst=10.9.9.2 sport=54549 dport=9999 packets=1 bytes=31 [UNREPLIED] " +
			"src=10.9.9.2 dst=10.9.9.1 sport=9999 dport=54549 packets=0 bytes=0 peer=laptop reply-peer=phone"},
		{"icmpv6", FlowEntry{
			Family: "ipv6", Proto: "icmpv6", TimeoutS: 29, Answered: true, Peer: "\x1b[2J",
			Original: FlowTuple{Src: netip.MustParseAddr("fd00::1"), Dst: netip.MustParseAddr("fd00::2"), ICMP: &ICMPTuple{Type: 128, ID: 11508}, Packets: 1, Bytes: 104},
			Reply:    FlowTuple{Src: netip.MustParseAddr("fd00::2"), Dst: netip.MustParseAddr("fd00::1"), ICMP: &ICMPTuple{Type: 129, ID: 11508}, Packets: 1, Bytes: 104},
		}, FlowStyle{Extended: true}, "ipv6     10 icmpv6   58 29 src=fd00::1 dst=fd00::2 type=128 code=0 id=11508 packets=1 bytes=104 " +
			"src=fd00::2 dst=fd00::1 type=129 code=0 id=11508 packets=1 bytes=104 peer=?[2J"},
		{"another protocol", FlowEntry{
			Family: "ipv4", Proto: "47", TimeoutS: 299, Answered: true,
			Original: FlowTuple{Src: v4(1), Dst: v4(2), Packets: 1, Bytes: 1}, Reply: FlowTuple{Src: v4(2), Dst: v4(1)},
		}, FlowStyle{}, "unknown  47 299 src=10.9.9.1 dst=10.9.9.2 packets=1 bytes=1 src=10.9.9.2 dst=10.9.9.1 packets=0 bytes=0 peer=-"},
	} {
		if got := string(c.f.AppendText(nil, c.style)); got != c.want+"\n" {
			t.Errorf("%s:\ngot  %swant %s", c.name, got, c.want)
		}
	}
}

func TestEventLinesLookAsThoseOfConntrack(t *testing.T) {
	f := &FlowEntry{
		Family: "ipv4", Proto: "tcp", State: "SYN_SENT", TimeoutS: 240, Peer: "laptop",
		Original: FlowTuple{Src: netip.MustParseAddr("10.0.0.1"), Dst: netip.MustParseAddr("10.0.0.2"), SrcPort: 1, DstPort: 2, Packets: 1, Bytes: 60},
		Reply:    FlowTuple{Src: netip.MustParseAddr("10.0.0.2"), Dst: netip.MustParseAddr("10.0.0.1"), SrcPort: 2, DstPort: 1},
	}
	at := Moment{time.Unix(1795309253, 36_734_000)}
	for want, e := range map[string]FlowNotice{
		"[1795309253.036734]\t    [NEW] tcp      6 240 SYN_SENT src=10.0.0.1 dst=10.0.0.2 sport=1 dport=2 [UNREPLIED] src=10.0.0.2 dst=10.0.0.1 sport=2 dport=1 peer=laptop\n": {
			Event: "NEW", Time: at, FlowEntry: f},
		"[1795309253.036734]\t [UPDATE] tcp      6 240 SYN_SENT src=10.0.0.1 dst=10.0.0.2 sport=1 dport=2 [UNREPLIED] src=10.0.0.2 dst=10.0.0.1 sport=2 dport=1 peer=laptop\n": {
			Event: "UPDATE", Time: at, FlowEntry: f},
		"[1795309253.036734]\t[DESTROY] tcp      6 240 SYN_SENT src=10.0.0.1 dst=10.0.0.2 sport=1 dport=2 packets=1 bytes=60 [UNREPLIED] src=10.0.0.2 dst=10.0.0.1 sport=2 dport=1 packets=0 bytes=0 peer=laptop\n": {
			Event: "DESTROY", Time: at, FlowEntry: f},
		"": {Event: "LOST", Lost: 3},
	} {
		if got := string(e.AppendText(nil, FlowStyle{Timestamp: true})); got != want {
			t.Errorf("got  %swant %s", got, want)
		}
	}
}

func TestFlowQueries(t *testing.T) {
	for text, want := range map[string]string{
		"proto=icmp&family=ipv6": "", "proto=TCP": "", "proto=47": "", "src=10.0.0.0/8&dst=fd00::1": "", "sport=1&dport=65535": "",
		"state=established": "", "event-mask=NEW,destroy": "", "event-mask=all": "", "peer=laptop": "", "": "", "proto=": "",
		"proto=tpc":            `proto: "tpc" is none of tcp, udp, icmp, icmpv6, nor a protocol number`,
		"proto=256":            `proto: "256" is none`,
		"src=10.0.0":           `src: "10.0.0" is not an address or prefix`,
		"dst=fe80::1%25lo":     `is not an address`,
		"sport=0":              `sport: "0" is not a port`,
		"dport=http":           `dport: "http" is not a port`,
		"state=OPEN":           `state: "OPEN" is none of SYN_SENT, SYN_RECV,`,
		"family=ipx":           `family: "ipx" is neither ipv4 nor ipv6`,
		"event-mask=NEW,BIRTH": `event-mask: "BIRTH" is none of`,
		"colour=red":           `"colour" is no filter of flows`,
		"proto=tcp&proto=6":    `proto: given more than once`,
	} {
		values, err := url.ParseQuery(text)
		if err != nil {
			t.Fatal(err)
		}
		_, err = ParseFlowQuery(values)
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%s: %v, want %q", text, err, want)
		}
	}
}

func FuzzParseFlowQuery(f *testing.F) {
	f.Add("proto=tcp&src=10.0.0.0/8&state=CLOSE&event-mask=NEW")
	f.Fuzz(func(t *testing.T, text string) {
		values, err := url.ParseQuery(text)
		if err != nil {
			return
		}
		if q, err := ParseFlowQuery(values); err == nil {
			q.filter.Match(&netstack.FlowInfo{})
		}
	})
}

func TestHowFlowsEnd(t *testing.T) {
	for _, c := range []struct {
		why  nat.End
		tcp  nat.TCPState
		want string
	}{
		{nat.Expired, nat.TCPTimeWait, "finished"}, {nat.Removed, nat.TCPTimeWait, "finished"}, {nat.Expired, nat.TCPClose, "reset"},
		{nat.Removed, nat.TCPSynSent, "failed"}, {nat.Removed, nat.TCPSynRecv, "failed"}, {nat.Expired, nat.TCPSynSent, "timeout"},
		{nat.Expired, nat.TCPEstablished, "timeout"}, {nat.Expired, nat.TCPNone, "timeout"}, {nat.Removed, nat.TCPNone, "flushed"},
		{nat.Removed, nat.TCPEstablished, "flushed"}, {nat.Withdrawn, nat.TCPEstablished, "withdrawn"}, {nat.Evicted, nat.TCPNone, "evicted"},
		{nat.Closed, nat.TCPEstablished, "shutdown"},
	} {
		e := netstack.FlowEvent{Why: c.why, Flow: netstack.FlowInfo{TCP: c.tcp}}
		if got := ended(&e); got != c.want {
			t.Errorf("%v in %v: got %s, want %s", c.why, c.tcp, got, c.want)
		}
	}
}

// fromPeer gives a node packets as if its tunnel had decrypted them.
func fromPeer(n *Node, pkts ...[]byte) {
	for _, p := range pkts {
		n.net.Device().Write([][]byte{append(make([]byte, 16), p...)}, 16)
	}
}

// query is a DNS datagram of nonsense, which the resolver ignores: it opens a flow and sends nothing anywhere.
func query(from, to netip.AddrPort) []byte {
	h := packet.MakeUDPHeader(from, to)
	b := append(make([]byte, h.Len()), "x"...)
	h.Put(b, 1, 64, 1)
	return b
}

func TestConntrackThroughTheControlSocket(t *testing.T) {
	a, b := newSide(t, "100.70.8.1"), newSide(t, "100.70.8.2")
	socket := filepath.Join(t.TempDir(), "a.sock")
	n := start(t, a.write(t, b.asPeer("bob", "AllowRouting = yes")), socket)
	c := control.NewClient(socket)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	events := make(chan FlowNotice, 10000)
	watched := make(chan error, 1)
	go func() {
		watched <- c.FlowEvents(ctx, url.Values{"peer": {"bob"}, "event-mask": {"NEW,DESTROY"}}, func(d json.RawMessage) error {
			var e FlowNotice
			err := json.Unmarshal(d, &e)
			events <- e
			return err
		})
	}()
	from, to := netip.MustParseAddrPort("100.70.8.2:4000"), netip.MustParseAddrPort("100.70.8.1:53")
	next := func() FlowNotice {
		t.Helper()
		for {
			select {
			case e := <-events:
				if e.Original.SrcPort == from.Port() {
					return e
				}
			case <-time.After(5 * time.Second):
				t.Fatal("no event")
				return FlowNotice{}
			}
		}
	}
	for port := uint16(10000); len(events) == 0; port++ { // when the watch begins cannot be seen from here
		fromPeer(n, query(netip.AddrPortFrom(from.Addr(), port), to))
		time.Sleep(5 * time.Millisecond)
	}
	fromPeer(n, query(from, to))
	first := next()
	if first.Event != "NEW" || first.Peer != "bob" || first.Proto != "udp" || first.Original.SrcPort != 4000 || first.Original.Dst != to.Addr() {
		t.Errorf("got %+v, %+v", first, first.FlowEntry)
	}
	list := func(q url.Values) (all []FlowEntry) {
		t.Helper()
		err := c.Flows(t.Context(), q, func(d json.RawMessage) error {
			var f FlowEntry
			err := json.Unmarshal(d, &f)
			all = append(all, f)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		return all
	}
	if all := list(url.Values{"peer": {"bob"}, "sport": {"4000"}, "dport": {"53"}}); len(all) != 1 || all[0].Original.Packets != 1 || all[0].Original.Bytes != 29 || all[0].Reply.Dst != from.Addr() {
		t.Errorf("got %+v", all)
	}
	if all := list(url.Values{"proto": {"tcp"}}); len(all) != 0 {
		t.Errorf("got %+v, want none", all)
	}
	if err := c.Flows(t.Context(), url.Values{"peer": {"bib"}}, nil); err == nil || err.Error() != `peer: there is no peer named "bib"; did you mean bob?` {
		t.Errorf("got %v", err)
	}
	if count, err := c.FlushFlows(t.Context(), url.Values{"src": {"100.70.8.2"}, "sport": {"4000"}}); err != nil || count != 1 {
		t.Errorf("flushed %d, %v", count, err)
	}
	if e := next(); e.Event != "DESTROY" || e.Ended != "flushed" || e.Original.Packets != 1 {
		t.Errorf("got %+v, %+v", e, e.FlowEntry)
	}
	start := time.Now()
	n.Close()
	if err := <-watched; err != nil {
		t.Errorf("the watcher of a node that stops: %v", err)
	}
	if d := time.Since(start); d > 900*time.Millisecond {
		t.Errorf("a watcher held the node up: %v", d)
	}
}

func TestRemovedPeersKeepTheirNames(t *testing.T) {
	a, b := newSide(t, "100.70.9.1"), newSide(t, "100.70.9.2")
	n := start(t, a.write(t, b.asPeer("bob", "AllowRouting = yes")), "")
	w := n.net.WatchFlows(&netstack.FlowFilter{}, 10)
	defer w.Close()
	fromPeer(n, query(netip.MustParseAddrPort("100.70.9.2:4000"), netip.MustParseAddrPort("100.70.9.1:53")))
	a.write(t)
	if err := n.Reload(); err != nil {
		t.Fatal(err)
	}
	for {
		e, missed, err := w.Next(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if notice := n.noticeOf(&e, missed); e.Kind == nat.EventDestroy {
			if notice.Peer != "bob" || notice.Ended != "withdrawn" {
				t.Errorf("got %+v", notice)
			}
			return
		}
	}
}
