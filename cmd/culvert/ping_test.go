package main

import (
	"net/netip"
	"testing"
	"time"

	"culvert.dev/culvert/node"
)

func TestPingSums(t *testing.T) {
	const ms = time.Millisecond
	var s pingSums
	if got, want := s.text(), "0 sent, 0 answered, 0 % lost\n"; got != want {
		t.Errorf("nothing: %q", got)
	}
	for i := range 20 {
		s.add(time.Duration(20-i) * ms)
	}
	s.lost = 10
	if got, want := s.text(), "30 sent, 20 answered, 33.3 % lost\nrtt min/avg/max/p95 = 1.000/10.50/20.00/19.00 ms\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	d := s.document(&node.PingEvent{Peer: "bob", Address: netip.MustParseAddr("10.0.0.2"), Path: node.PathDirect, Endpoint: "192.0.2.1:5"})
	if d.Event != "summary" || d.Sent != 30 || d.Answered != 20 || d.Loss != 33.33 || time.Duration(d.P95) != 19*ms || d.Endpoint != "192.0.2.1:5" {
		t.Errorf("%+v", d)
	}

	one := pingSums{rtt: []time.Duration{123456 * time.Microsecond}}
	if got, want := one.text(), "1 sent, 1 answered, 0 % lost\nrtt min/avg/max/p95 = 123.5/123.5/123.5/123.5 ms\n"; got != want {
		t.Errorf("one: %q", got)
	}
	none := pingSums{lost: 3}
	if got, want := none.text(), "3 sent, 0 answered, 100 % lost\n"; got != want {
		t.Errorf("none: %q", got)
	}
}

func TestPingLines(t *testing.T) {
	e := node.PingEvent{
		Event: "reply", Peer: "exit-fra", Address: netip.MustParseAddr("100.64.0.1"), Seq: 1, Bytes: 64,
		RTT: node.Millis(12300 * time.Microsecond), Path: node.PathDirect, Endpoint: "203.0.113.5:51820",
	}
	check := func(want string) {
		t.Helper()
		if got := pingLine(&e); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
	check("64 bytes from exit-fra (100.64.0.1): seq=1 time=12.30 ms by direct 203.0.113.5:51820\n")
	e.Event, e.Was = "path", &node.PingPath{Path: node.PathRelay, Endpoint: "https://relay.example"}
	check("path: relay https://relay.example -> direct 203.0.113.5:51820\n")
	e.Peer, e.Event, e.Path, e.Endpoint = "", "start", node.PathNone, ""
	check("PING 100.64.0.1: 56 data bytes, by no path\n")
	e.Event = "of a newer node"
	check("")
}
