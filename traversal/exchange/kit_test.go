package exchange

import (
	"encoding/base64"
	"errors"
	"net/netip"
	"testing"
	"time"

	"culvert.dev/culvert/internal/wgkey"
	"culvert.dev/culvert/nat"
	"culvert.dev/culvert/traversal/stun"
)

var start = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

func ap(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }

// private returns the key whose bytes are n, n+1, and so on.
func private(t testing.TB, n byte) wgkey.Private {
	t.Helper()
	var b [wgkey.Size]byte
	for i := range b {
		b[i] = n + byte(i)
	}
	k, err := wgkey.ParsePrivate(base64.StdEncoding.EncodeToString(b[:]))
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// node is a Sealer with its key.
type node struct {
	*Sealer
	key wgkey.Public
}

func newNode(t testing.TB, n byte, peers ...wgkey.Public) node {
	t.Helper()
	s, err := NewSealer(private(t, n))
	if err != nil {
		t.Fatal(err)
	}
	if err := s.SetPeers(peers); err != nil {
		t.Fatal(err)
	}
	return node{s, private(t, n).Public()}
}

// strangers are two nodes that are peers and have not heard from each other.
func strangers(t testing.TB) (a, b node) {
	a, b = newNode(t, 1, private(t, 101).Public()), newNode(t, 101, private(t, 1).Public())
	return a, b
}

// acquainted are two nodes that have heard from each other, up to one second before start.
func acquainted(t testing.TB) (a, b node) {
	a, b = strangers(t)
	at := start.Add(-time.Second)
	for _, pair := range [][2]node{{a, b}, {b, a}} {
		if _, err := pair[1].Open(seal(t, pair[0], pair[1], hello(), at), pair[0].key, at); err != nil {
			t.Fatal(err)
		}
	}
	return a, b
}

func seal(t testing.TB, from, to node, m Message, now time.Time) []byte {
	t.Helper()
	packet, err := from.Seal(nil, to.key, m, now)
	if err != nil {
		t.Fatal(err)
	}
	return packet
}

// opens and refuses expect what a packet does.
func opens(t *testing.T, at node, packet []byte, from wgkey.Public, now time.Time) Message {
	t.Helper()
	m, err := at.Open(packet, from, now)
	if err != nil {
		t.Error(err)
	}
	return m
}

func refuses(t *testing.T, at node, packet []byte, from wgkey.Public, now time.Time, want Fault) *Rejection {
	t.Helper()
	before := at.Stats()
	_, err := at.Open(packet, from, now)
	if !errors.Is(err, want) {
		t.Errorf("got %v, want %v", err, want)
	}
	if after := at.Stats(); after.Rejected[want] != before.Rejected[want]+1 || after.Opened != before.Opened {
		t.Errorf("%v is not counted as such", want)
	}
	var r *Rejection
	errors.As(err, &r)
	return r
}

func hello() Message {
	return Message{Kind: KindCandidates, Session: 7, Candidates: []Candidate{{Kind: Host, WG: ap("192.168.1.7:51820")}}}
}

// ranges are some of both families, with and without steps.
func ranges(n int) (list []Ports) {
	for i := range n {
		p := Ports{Addr: ap("203.0.113.9:1").Addr(), From: 600 + uint16(i), To: 65535, Step: int16(i%3-1) * 32767}
		if i%2 == 1 {
			p.Addr = ap("[2001:db8::9]:1").Addr()
		}
		list = append(list, p)
	}
	return list
}

// messages are one or more of each kind, with all that they may have.
func messages() []Message {
	v4, v6 := ap("203.0.113.9:51820"), ap("[2001:db8::9]:51820")
	var list []Candidate
	for k := Host; k.known(); k++ {
		list = append(list,
			Candidate{Kind: k, Preference: 65535 - uint16(k), WG: v4},
			Candidate{Kind: k, WG: v6},
			Candidate{Kind: k, Preference: 1, WG: v4, Check: ap("203.0.113.9:51821")},
			Candidate{Kind: k, Preference: 256, WG: v6, Check: ap("[2001:db8::9]:1")},
		)
	}
	list = append(list,
		Candidate{Kind: Reflexive, WG: v4, Check: ap("198.51.100.1:65535")},
		Candidate{Kind: Reflexive, WG: v4, Check: ap("[2001:db8::1]:2")},
		Candidate{Kind: Reflexive, WG: v6, Check: ap("198.51.100.1:3")},
		Candidate{Kind: Reflexive, WG: v6, Check: ap("[2001:db8::1]:4")},
	)
	hard := stun.Range{Least: nat.AddressDependent, Most: nat.AddressAndPortDependent}
	return []Message{
		{Kind: KindCandidates, Session: 1},
		{Kind: KindCandidates, Session: 1<<64 - 1, Candidates: list, StartIn: 150 * time.Millisecond,
			Hints4: Hints{Known: true, NAT: true, Mapping: hard, Sockets: 12, Preserved: 3, Parity: 12, Step: -2, Min: 1024, Max: 65535},
			Hints6: Hints{Known: true, Filtering: hard}},
		{Kind: KindTrickle, Session: 2, Candidates: list[:1]},
		{Kind: KindTrickle, Session: 2, Candidates: list},
		{Kind: KindStart, Session: 3},
		{Kind: KindStart, Session: 3, StartIn: MaxStartIn},
		{Kind: KindStart, Session: 3, Technique: 1},
		{Kind: KindStart, Session: 3, Technique: 255, StartIn: time.Millisecond, Expect: []Ports{{Addr: v4.Addr(), From: 1, To: 1}}},
		{Kind: KindStart, Session: 3, Technique: 2, Expect: ranges(MaxExpect)},
		{Kind: KindProposal, Session: 4, Attempt: 1<<32 - 1, Proposer: v4, Acceptor: ap("198.51.100.1:1")},
		{Kind: KindProposal, Session: 4, Attempt: 1, Proposer: v6, Acceptor: ap("[2001:db8::1]:1")},
		{Kind: KindAnswer, Session: 5, Attempt: 2},
		{Kind: KindAnswer, Session: 5, Attempt: 3, Reason: Crossed},
		{Kind: KindGoodbye, Session: 6, Reason: Shutdown},
		{Kind: KindGoodbye, Reason: 200},
	}
}
