package exchange

import (
	"crypto/rand"
	"math"
	"net/netip"
	"reflect"
	"testing"
	"time"
)

// sealRaw seals any plaintext as a node would.
func sealRaw(t testing.TB, from, to node, plaintext []byte) []byte {
	t.Helper()
	var nonce [nonceLen]byte
	rand.Read(nonce[:])
	return from.peers[to.key].to.seal(nil, &nonce, plaintext)
}

// plaintextOf is a head that b takes from a at a time, and the given fields.
func plaintextOf(b node, a node, kind Kind, at time.Time, fields ...byte) []byte {
	h := head{time: uint64(at.UnixNano()), version: layoutVersion, kind: kind, session: 9,
		sender: a.peers[b.key].life, echo: b.peers[a.key].life}
	return append(appendHead(nil, &h), fields...)
}

func TestAdditionsAreSkipped(t *testing.T) {
	a, b := acquainted(t)
	for i, c := range []struct {
		kind   Kind
		fields []byte
		want   Message
	}{
		{KindStart, []byte{200, 3, 1, 2, 3, fieldStart, 5, 0, 0, 0, 100, 99, 11, 0, 255, 0}, Message{StartIn: 100 * time.Microsecond}},
		{KindStart, []byte{fieldReason, 1, 5, fieldStart, 4, 0, 0, 0, 0}, Message{}},
		{KindStart, startWith(fieldTechnique, 3, 2, 9, 9, fieldExpect, 13, 4, 192, 0, 2, 1, 2, 88, 3, 255, 255, 254, 7, 7),
			Message{Technique: 2, Expect: []Ports{{Addr: ap("192.0.2.1:1").Addr(), From: 600, To: 1023, Step: -2}}}},
		{KindCandidates, []byte{fieldTechnique, 0, fieldExpect, 1, 9}, Message{}},
		{KindAnswer, []byte{fieldReason, 2, 3, 1, fieldAttempt, 5, 0, 0, 0, 2, 1}, Message{Attempt: 2, Reason: Banned}},
		{KindTrickle, []byte{fieldCandidate, 1, 99, fieldCandidate, 13, byte(Host), 0xf8, 0, 1, 192, 0, 2, 1, 0, 7, 1, 2, 3},
			Message{Candidates: []Candidate{{Kind: Host, Preference: 1, WG: ap("192.0.2.1:7")}}}},
		{KindTrickle, []byte{fieldCandidate, 1, 99}, Message{}},
		{KindCandidates, append(append([]byte{fieldHints6, hintsLen + 2}, make([]byte, hintsLen)...), 7, 7), Message{Hints6: Hints{Known: true}}},
		{KindProposal, []byte{fieldAttempt, 4, 0, 0, 0, 1, fieldProposer, 8, 4, 192, 0, 2, 1, 0, 1, 0, fieldAcceptor, 7, 4, 192, 0, 2, 2, 0, 1},
			Message{Attempt: 1, Proposer: ap("192.0.2.1:1"), Acceptor: ap("192.0.2.2:1")}},
	} {
		at := start.Add(time.Duration(i))
		got := opens(t, b, sealRaw(t, a, b, plaintextOf(b, a, c.kind, at, c.fields...)), a.key, start)
		c.want.Kind, c.want.Session, c.want.Fresh, c.want.Sent = c.kind, 9, true, time.Unix(0, at.UnixNano())
		if !reflect.DeepEqual(got, c.want) {
			t.Errorf("%x:\ngot  %+v\nwant %+v", c.fields, got, c.want)
		}
	}
}

// startWith is a start at once and some more.
func startWith(more ...byte) []byte { return append([]byte{fieldStart, 4, 0, 0, 0, 0}, more...) }

func TestWhatBreaksTheLayout(t *testing.T) {
	a, b := acquainted(t)
	reason := []byte{fieldReason, 1, 1}
	for i, c := range []struct {
		kind   Kind
		fields []byte
	}{
		{KindGoodbye, nil},                                                            // a field is missing
		{KindAnswer, reason},                                                          //
		{KindGoodbye, []byte{fieldReason, 0}},                                         // too short a value
		{KindGoodbye, append(reason, reason...)},                                      // twice
		{KindGoodbye, append(reason, 77)},                                             // no length
		{KindGoodbye, append(reason, 77, 1)},                                          // no value
		{KindStart, []byte{fieldStart, 3, 0, 0, 0}},                                   //
		{KindStart, []byte{fieldStart, 4, 0, 0x98, 0x96, 0x81}},                       // a microsecond above 10 s
		{KindStart, []byte{fieldTechnique, 1, 2}},                                     // no start
		{KindStart, startWith(fieldTechnique, 0)},                                     //
		{KindStart, startWith(fieldTechnique, 1, 2, fieldTechnique, 1, 2)},            // twice
		{KindStart, startWith(fieldExpect, 11, 4, 192, 0, 2, 1, 2, 88, 3, 255, 0, 0)}, // no technique
		{KindStart, startWith(fieldTechnique, 1, 0, fieldExpect, 11, 4, 192, 0, 2, 1, 2, 88, 3, 255, 0, 0)}, // none
		{KindStart, startWith(fieldTechnique, 1, 2, fieldExpect, 0)},                                        //
		{KindStart, startWith(fieldTechnique, 1, 2, fieldExpect, 10, 4, 192, 0, 2, 1, 2, 88, 3, 255, 0)},    // half a step
		{KindStart, startWith(fieldTechnique, 1, 2, fieldExpect, 11, 5, 192, 0, 2, 1, 2, 88, 3, 255, 0, 0)}, // no family
		{KindStart, startWith(fieldTechnique, 1, 2, fieldExpect, 11, 6, 192, 0, 2, 1, 2, 88, 3, 255, 0, 0)}, // IPv4 where IPv6 is said
		{KindStart, startWith(fieldTechnique, 1, 2, fieldExpect, 11, 4, 192, 0, 2, 1, 0, 0, 3, 255, 0, 0)},  // from port 0
		{KindStart, startWith(fieldTechnique, 1, 2, fieldExpect, 11, 4, 192, 0, 2, 1, 4, 0, 3, 255, 0, 0)},  // 1024 to 1023
		{KindTrickle, nil},                                                                                  //
		{KindTrickle, []byte{fieldCandidate, 0}},                                                            //
		{KindTrickle, []byte{fieldCandidate, 3, byte(Host), 0, 0}},                                          //
		{KindTrickle, []byte{fieldCandidate, 9, byte(Host), 0, 0, 0, 1, 2, 3, 4, 5}},                        // half a port
		{KindTrickle, []byte{fieldCandidate, 10, byte(Host), flagWG6, 0, 0, 1, 2, 3, 4, 5, 6}},              // IPv4 where IPv6 is said
		{KindTrickle, []byte{fieldCandidate, 11, byte(Host), checkSame << 1, 0, 0, 1, 2, 3, 4, 5, 6, 7}},    //
		{KindTrickle, []byte{fieldCandidate, 12, byte(Host), check4 << 1, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8}},    //
		{KindTrickle, []byte{fieldCandidate, 12, byte(Host), check6 << 1, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8}},    //
		{KindCandidates, append([]byte{fieldHints4, hintsLen - 1}, make([]byte, hintsLen-1)...)},            //
		{KindCandidates, append([]byte{fieldHints4, hintsLen, 0, 0x30}, make([]byte, hintsLen-2)...)},       // mapping 3
		{KindCandidates, append([]byte{fieldHints4, hintsLen, 0, 0, 0x12}, make([]byte, hintsLen-3)...)},    // least above most
		{KindCandidates, append([]byte{fieldHints4, hintsLen, 0, 0, 0, 1, 2}, make([]byte, hintsLen-5)...)}, // 2 of 1
		{KindProposal, []byte{fieldAttempt, 4, 0, 0, 0, 1, fieldProposer, 7, 5, 192, 0, 2, 1, 0, 1, fieldAcceptor, 7, 4, 192, 0, 2, 2, 0, 1}},
		{KindProposal, []byte{fieldAttempt, 4, 0, 0, 0, 1, fieldProposer, 7, 6, 192, 0, 2, 1, 0, 1, fieldAcceptor, 7, 4, 192, 0, 2, 2, 0, 1}},
		{KindProposal, []byte{fieldAttempt, 4, 0, 0, 0, 1, fieldProposer, 0, fieldAcceptor, 7, 4, 192, 0, 2, 2, 0, 1}},
	} {
		at := start.Add(time.Duration(i))
		refuses(t, b, sealRaw(t, a, b, plaintextOf(b, a, c.kind, at, c.fields...)), a.key, start, FaultMalformed)
	}

	noSession := plaintextOf(b, a, KindStart, start.Add(time.Second), fieldStart, 4, 0, 0, 0, 0)
	clear(noSession[offSession:headLen])
	refuses(t, b, sealRaw(t, a, b, noSession), a.key, start, FaultMalformed)
	noLife := plaintextOf(b, a, KindGoodbye, start.Add(2*time.Second), reason...)
	clear(noLife[offSender:offEcho])
	refuses(t, b, sealRaw(t, a, b, noLife), a.key, start, FaultMalformed)
}

func TestUnknownKindAndVersion(t *testing.T) {
	a, b := acquainted(t)
	for i, kind := range []Kind{0, 7, 255} {
		r := refuses(t, b, sealRaw(t, a, b, plaintextOf(b, a, kind, start.Add(time.Duration(i)))), a.key, start, FaultKind)
		if r == nil || r.Kind != kind {
			t.Errorf("got %+v", r)
		}
	}
	for _, version := range []byte{0, 2, 255} {
		plaintext := plaintextOf(b, a, KindGoodbye, start.Add(time.Second), fieldReason, 1, 1)
		plaintext[offVersion] = version
		r := refuses(t, b, sealRaw(t, a, b, plaintext), a.key, start, FaultVersion)
		if r == nil || r.Version != version {
			t.Errorf("got %+v", r)
		}
	}
	refuses(t, b, sealRaw(t, a, b, make([]byte, headLen-1)), a.key, start, FaultLength)
}

// TestEveryCutOfFields: a message that ends early is either refused or has fewer fields, and never others.
func TestEveryCutOfFields(t *testing.T) {
	for _, m := range messages() {
		h := head{kind: m.Kind, session: 1}
		b := appendFields(nil, &m)
		for n := range b {
			got, ok := parseFields(&h, b[:n:n])
			if !ok {
				continue
			}
			if k := len(got.Candidates); k > len(m.Candidates) || k > 0 && !reflect.DeepEqual(got.Candidates, m.Candidates[:k]) {
				t.Fatalf("%v cut at %d: %v", m.Kind, n, got.Candidates)
			}
			if k := len(got.Expect); k > len(m.Expect) || k > 0 && !reflect.DeepEqual(got.Expect, m.Expect[:k]) {
				t.Fatalf("%v cut at %d: %v", m.Kind, n, got.Expect)
			}
			if m.Kind != KindCandidates && m.Kind != KindTrickle && m.Kind != KindStart {
				t.Errorf("%v cut at %d of %d is accepted", m.Kind, n, len(b))
			}
		}
	}
}

func TestAtMost32Candidates(t *testing.T) {
	a, b := acquainted(t)
	full := make([]Candidate, MaxCandidates)
	for i := range full {
		full[i] = Candidate{Kind: Host, WG: netip.AddrPortFrom(netip.MustParseAddr("192.0.2.1"), uint16(i+1))}
	}
	m := Message{Kind: KindTrickle, Session: 1, Candidates: full}
	if got := opens(t, b, seal(t, a, b, m, start), a.key, start); len(got.Candidates) != MaxCandidates {
		t.Errorf("%d candidates arrive", len(got.Candidates))
	}
	m.Candidates = append(full, full[0])
	if _, err := a.Seal(nil, b.key, m, start); err == nil {
		t.Error("33 candidates are sealed")
	}
	for _, last := range []CandidateKind{Host, 99} { // one of unknown kind counts too
		fields := appendFields(nil, &m)
		fields[len(fields)-candidateLen(full[0])+fieldHead] = byte(last)
		at := start.Add(time.Duration(last))
		refuses(t, b, sealRaw(t, a, b, plaintextOf(b, a, KindTrickle, at, fields...)), a.key, start, FaultMalformed)
	}
}

func TestAtMost8Ranges(t *testing.T) {
	a, b := acquainted(t)
	m := Message{Kind: KindStart, Session: 1, Technique: 2, Expect: ranges(MaxExpect)}
	fields := appendFields(nil, &m)
	fields = appendExpect(fields, ranges(1))
	refuses(t, b, sealRaw(t, a, b, plaintextOf(b, a, KindStart, start, fields...)), a.key, start, FaultMalformed)
	m.Expect = nil
	got := opens(t, b, seal(t, a, b, m, start.Add(1)), a.key, start)
	if got.Technique != 2 || got.Expect != nil {
		t.Errorf("got %+v", got)
	}
}

// longest is a message as long as it may be with one part of Pack.
func longest(list []Candidate) Message {
	hints := Hints{Known: true, NAT: true, Step: math.MinInt16, Max: math.MaxUint16}
	return Message{Kind: KindCandidates, Session: math.MaxUint64, Candidates: list, Hints4: hints, Hints6: hints, StartIn: MaxStartIn}
}

func TestPackedMessagesFit(t *testing.T) {
	a, b := acquainted(t)
	v6 := func(i int) netip.AddrPort {
		return netip.AddrPortFrom(netip.AddrFrom16([16]byte{0: 0x20, 1: 1, 14: byte(i >> 8), 15: byte(i)}), 65535)
	}
	for _, c := range []struct {
		name  string
		n     int
		make  func(i int) Candidate
		parts int
	}{
		{"none", 0, nil, 0},
		{"IPv6 pairs on one address", 32, func(i int) Candidate {
			return Candidate{Kind: Host, WG: v6(i), Check: netip.AddrPortFrom(v6(i).Addr(), 1)}
		}, 1},
		{"33 short ones", 33, func(i int) Candidate { return Candidate{Kind: Host, WG: ap("192.0.2.1:1")} }, 2},
		{"IPv6 pairs on two addresses", 32, func(i int) Candidate { return Candidate{Kind: Host, WG: v6(i), Check: v6(i + 1000)} }, 2},
		{"many of these", 300, func(i int) Candidate { return Candidate{Kind: Host, WG: v6(i), Check: v6(i + 1000)} }, 13},
	} {
		var list, back []Candidate
		for i := range c.n {
			list = append(list, c.make(i))
		}
		parts := Pack(list)
		if len(parts) != c.parts {
			t.Errorf("%s: %d parts, want %d", c.name, len(parts), c.parts)
		}
		for _, part := range parts {
			packet := seal(t, a, b, longest(part), start)
			if len(packet) > MaxLen {
				t.Errorf("%s: %d bytes", c.name, len(packet))
			}
			back = append(back, opens(t, b, packet, a.key, start).Candidates...)
		}
		if !reflect.DeepEqual(back, list) {
			t.Errorf("%s: the parts make another list", c.name)
		}
		if c.parts == 2 && c.n == 32 {
			if _, err := a.Seal(nil, b.key, longest(list), start); err == nil {
				t.Errorf("%s: sealed as one", c.name)
			}
		}
	}
}
