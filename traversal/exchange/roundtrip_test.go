package exchange

import (
	"bytes"
	"errors"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"

	"culvert.dev/culvert/nat"
	"culvert.dev/culvert/traversal/stun"
)

func TestEveryKindArrivesAsSent(t *testing.T) {
	a, b := acquainted(t)
	for i, m := range messages() {
		at := start.Add(time.Duration(i) * time.Second)
		packet := seal(t, a, b, m, at)
		copied := bytes.Clone(packet)
		got := opens(t, b, packet, a.key, at.Add(40*time.Millisecond))
		if !bytes.Equal(packet, copied) {
			t.Errorf("%v: Open has changed the packet", m.Kind)
		}
		if !got.Sent.Equal(at) || !got.Fresh {
			t.Errorf("%v: sent at %v, fresh %v", m.Kind, got.Sent, got.Fresh)
		}
		got.Sent, got.Fresh, got.RTT = time.Time{}, false, 0
		if !reflect.DeepEqual(got, m) {
			t.Errorf("got  %+v\nwant %+v", got, m)
		}
	}
}

func TestSealAppends(t *testing.T) {
	a, b := strangers(t)
	packet, err := a.Seal([]byte("before"), b.key, hello(), start)
	if err != nil || !bytes.HasPrefix(packet, []byte("before")) {
		t.Fatalf("%q %v", packet, err)
	}
	opens(t, b, packet[len("before"):], a.key, start)
}

func TestTwoPacketsOfOneMessageDiffer(t *testing.T) {
	a, b := strangers(t)
	one, two := seal(t, a, b, hello(), start), seal(t, a, b, hello(), start)
	if bytes.Equal(one[38:62], two[38:62]) || bytes.Equal(one[62:], two[62:]) {
		t.Error("the nonce repeats")
	}
}

func TestEndpointsAreNormalised(t *testing.T) {
	a, b := acquainted(t)
	m := Message{Kind: KindCandidates, Session: 1, Candidates: []Candidate{
		{Kind: Host, WG: ap("[::ffff:192.0.2.1]:1"), Check: ap("192.0.2.1:2"), Base: ap("10.0.0.1:1")},
		{Kind: Host, WG: ap("[fe80::1%eth0]:1"), Check: ap("[fe80::1]:2")},
	}}
	got := opens(t, b, seal(t, a, b, m, start), a.key, start)
	want := []Candidate{
		{Kind: Host, WG: ap("192.0.2.1:1"), Check: ap("192.0.2.1:2")},
		{Kind: Host, WG: ap("[fe80::1]:1"), Check: ap("[fe80::1]:2")},
	}
	if !reflect.DeepEqual(got.Candidates, want) {
		t.Errorf("got %v, want %v", got.Candidates, want)
	}
	if n := candidateLen(m.Candidates[1]); n != fieldHead+candidateFixed+16+2+2 {
		t.Errorf("%d bytes, although both endpoints have one address", n)
	}
	p := Message{Kind: KindProposal, Session: 1, Proposer: ap("[::ffff:192.0.2.1]:1"), Acceptor: ap("[::ffff:192.0.2.2]:1")}
	got = opens(t, b, seal(t, a, b, p, start), a.key, start)
	if got.Proposer != ap("192.0.2.1:1") || got.Acceptor != ap("192.0.2.2:1") {
		t.Errorf("got %v and %v", got.Proposer, got.Acceptor)
	}

	// A sender that does not normalise: the decoder does.
	mapped := netip.MustParseAddr("::ffff:192.0.2.1").As16()
	value := append([]byte{byte(Host), flagWG6, 0, 0}, mapped[:]...)
	c, ok := parseCandidate(append(value, 0, 9))
	if !ok || c.WG != ap("192.0.2.1:9") {
		t.Errorf("got %v %v", c, ok)
	}
}

func TestSealRefuses(t *testing.T) {
	a, b := strangers(t)
	good := Candidate{Kind: Host, WG: ap("192.0.2.1:1")}
	for name, m := range map[string]Message{
		"unknown kind 0":  {Session: 1},
		"unknown kind 7":  {Kind: 7, Session: 1},
		"no session":      {Kind: KindStart},
		"no candidates":   {Kind: KindTrickle, Session: 1},
		"missing":         {Kind: KindProposal, Session: 1, Proposer: ap("192.0.2.1:1")},
		"start in -1ns":   {Kind: KindStart, Session: 1, StartIn: -1},
		"9 ranges":        {Kind: KindStart, Session: 1, Technique: 2, Expect: ranges(9)},
		"no technique":    {Kind: KindStart, Session: 1, Expect: ranges(1)},
		"no address, or":  {Kind: KindStart, Session: 1, Technique: 2, Expect: []Ports{{From: 1, To: 2}}},
		"or no range":     {Kind: KindStart, Session: 1, Technique: 2, Expect: []Ports{{Addr: good.WG.Addr(), From: 0, To: 2}}},
		"ports 192.0.2.1": {Kind: KindStart, Session: 1, Technique: 2, Expect: []Ports{{Addr: good.WG.Addr(), From: 3, To: 2}}},
		"start in 10":     {Kind: KindCandidates, Session: 1, StartIn: MaxStartIn + 1},
		"no endpoint":     {Kind: KindTrickle, Session: 1, Candidates: []Candidate{good, {Kind: Host}}},
		"or no endpoint":  {Kind: KindTrickle, Session: 1, Candidates: []Candidate{{WG: good.WG}}},
		"contradict":      {Kind: KindCandidates, Session: 1, Hints4: Hints{Known: true, Min: 2, Max: 1}},
		"33 candidates":   {Kind: KindTrickle, Session: 1, Candidates: make([]Candidate, 33)},
		"themselves":      {Kind: KindCandidates, Session: 1, Hints6: Hints{Known: true, Mapping: stun.Range{Most: 3}}},
		"hints {Known:tr": {Kind: KindCandidates, Session: 1, Hints6: Hints{Known: true, Preserved: 1}},
	} {
		dst := []byte("x")
		got, err := a.Seal(dst, b.key, m, start)
		if err == nil || !strings.Contains(err.Error(), name) || string(got) != "x" {
			t.Errorf("%s: %v, %d bytes", name, err, len(got))
		}
	}
	if _, err := a.Seal(nil, a.key, hello(), start); !errors.Is(err, ErrNoPeer) {
		t.Errorf("to itself: %v", err)
	}
	if got := a.Stats().Sealed; got != 0 {
		t.Errorf("%d counted as sealed", got)
	}
}

func TestHintsOfReport(t *testing.T) {
	r := stun.Report{
		NAT: true, Mapping: stun.Range{Least: nat.AddressAndPortDependent, Most: nat.AddressAndPortDependent},
		Filtering: stun.Range{Most: nat.AddressAndPortDependent},
		Ports:     stun.Ports{Sockets: 300, Preserved: 2, Parity: 256, Min: 600, Max: 1023, Step: 1 << 20},
	}
	got := HintsOf(r)
	want := Hints{Known: true, NAT: true, Mapping: r.Mapping, Filtering: r.Filtering, Sockets: 255, Preserved: 2, Parity: 255, Min: 600, Max: 1023}
	if got != want || !got.valid() || got.Kept() {
		t.Errorf("got %+v, want %+v", got, want)
	}
	r.Ports = stun.Ports{Sockets: 8, Preserved: 8, Min: 600, Max: 1023, Step: -1}
	if got := HintsOf(r); !got.Kept() || got.Step != -1 {
		t.Errorf("got %+v", got)
	}
	if (Hints{Known: true}).Kept() {
		t.Error("kept by no socket at all")
	}
}
