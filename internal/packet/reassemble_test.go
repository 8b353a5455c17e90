package packet

import (
	"bytes"
	"math/rand/v2"
	"sync"
	"testing"
	"time"
)

var start = time.Unix(1_000_000, 0)

// fragOf decodes b as sent by peer.
func fragOf(t testing.TB, b []byte, peer uint16) *Packet {
	p := must(t, b)
	p.Peer = peer
	return p
}

// udpFrags4 returns a datagram and its fragments of at most size bytes of data.
func udpFrags4(t *testing.T, n, size int, id uint32) (whole []byte, frags [][]byte) {
	whole = ip4(a4, b4, 17, nil, uint16(id), 0, udp(a4, b4, pattern(n)))
	return whole, cutUp(t, whole, 20+size, id)
}

func TestFragmentThenReassembleRandomly(t *testing.T) {
	r := rand.New(rand.NewPCG(11, 12))
	re := NewReassembler(ReassemblerConfig{})
	for round := range 300 {
		n := 1 + r.IntN(9000)
		if round%20 == 0 {
			n = 65507
		}
		id := r.Uint32() & 0xffff
		var b []byte
		mtu := 68 + r.IntN(1500)
		switch r.IntN(4) {
		case 0:
			b = ip4(a4, b4, 17, nil, uint16(id), 0, udp(a4, b4, pattern(n)))
		case 1:
			n = min(n, 65000)
			b = ip4(a4, b4, 6, []byte{148, 4, 0, 0, 1, 1, 1, 0}, uint16(id), 0, tcp(a4, b4, TCPAck, nil, pattern(n)))
			mtu = max(mtu, 100)
		case 2:
			b = ip6(a6, b6, 17, nil, udp(a6, b6, pattern(n)))
			mtu += 40
		case 3:
			n = min(n, 65000)
			b = ip6(a6, b6, 58, []ext{opt6(0, 0), routing6(4, 0), opt6(60, 0)}, icmp(a6, b6, 128, 0, id, pattern(n)))
			mtu += 200
		}
		frags := cutUp(t, b, mtu, id)
		if len(frags) == 1 {
			continue
		}
		r.Shuffle(len(frags), func(i, j int) { frags[i], frags[j] = frags[j], frags[i] })
		left := len(frags)
		for i := 0; i < len(frags); i++ {
			if left > 1 && i > 0 && r.IntN(5) == 0 { // an exact duplicate of an earlier one
				if whole, f := re.Add(fragOf(t, frags[r.IntN(i)], 1), start); whole != nil || f != FaultNone {
					t.Fatalf("duplicate: %d bytes, %v", len(whole), f)
				}
			}
			scratch := bytes.Clone(frags[i])
			whole, f := re.Add(fragOf(t, scratch, 1), start)
			clear(scratch) // what Add keeps must be its own
			left--
			if f != FaultNone || (whole != nil) != (left == 0) {
				t.Fatalf("%d fragments left: %d bytes, %v", left, len(whole), f)
			}
			if left > 0 {
				continue
			}
			if !bytes.Equal(whole, b) {
				t.Fatalf("mtu %d: %d bytes came back as %d", mtu, len(b), len(whole))
			}
			verify(t, whole)
		}
		if n, held := re.Held(); n != 0 || held != 0 || len(re.perPeer) != 0 || re.byAge.Len() != 0 {
			t.Fatalf("%d datagrams, %d bytes, %d peers are left over", n, held, len(re.perPeer))
		}
	}
}

func TestReassemblerPassesWholePackets(t *testing.T) {
	re := NewReassembler(ReassemblerConfig{})
	b := ip4(a4, b4, 17, nil, 1, 0, udp(a4, b4, nil))
	if whole, f := re.Add(must(t, b), start); f != FaultNone || &whole[0] != &b[0] {
		t.Errorf("%v, % x", f, whole)
	}
	// RFC 6946: an atomic fragment does not meet others of its identification.
	l4 := udp(a6, b6, pattern(2000))
	re.Add(must(t, ip6(a6, b6, 17, []ext{frag6(8, true, 5)}, l4[8:808])), start)
	whole, f := re.Add(must(t, ip6(a6, b6, 17, []ext{opt6(0, 0), frag6(0, false, 5)}, l4)), start)
	if want := ip6(a6, b6, 17, []ext{opt6(0, 0)}, l4); f != FaultNone || !bytes.Equal(whole, want) {
		t.Errorf("atomic: %v, % x", f, whole)
	}
	if n, _ := re.Held(); n != 1 {
		t.Errorf("%d datagrams held, want the other one", n)
	}
}

func TestReassemblerRefusesOverlap(t *testing.T) {
	data := udp(a4, b4, pattern(3000))
	frag := func(from, to int, more bool) []byte {
		field := uint16(from / 8)
		if more {
			field |= flagMF4
		}
		return ip4(a4, b4, 17, nil, 9, field, data[from:to])
	}
	other := func(b []byte) []byte { b = bytes.Clone(b); b[len(b)-1] ^= 1; return b }
	for _, r := range []struct {
		name string
		in   [][]byte
		want Fault // at the last one
	}{
		{"tail overlaps", [][]byte{frag(0, 1024, true), frag(1016, 2048, true)}, FaultFragmentOverlap},
		{"head overlaps", [][]byte{frag(1024, 2048, true), frag(0, 1032, true)}, FaultFragmentOverlap},
		{"inside another", [][]byte{frag(0, 2048, true), frag(512, 1024, true)}, FaultFragmentOverlap},
		{"around another", [][]byte{frag(512, 1024, true), frag(0, 2048, true)}, FaultFragmentOverlap},
		{"same offset, longer", [][]byte{frag(0, 1024, true), frag(0, 1032, true)}, FaultFragmentOverlap},
		{"same place, other bytes", [][]byte{frag(0, 1024, true), other(frag(0, 1024, true))}, FaultFragmentOverlap},
		{"same bytes, last and not last", [][]byte{frag(1024, 2048, false), frag(1024, 2048, true)}, FaultBadFragment},
		{"behind the end", [][]byte{frag(1024, 2048, false), frag(2048, 3008, true)}, FaultBadFragment},
		{"two ends", [][]byte{frag(1024, 2048, false), frag(2048, 3008, false)}, FaultBadFragment},
		{"an end before what is there", [][]byte{frag(2048, 3008, true), frag(1024, 2048, false)}, FaultBadFragment},
	} {
		re := NewReassembler(ReassemblerConfig{})
		for i, b := range r.in {
			want := FaultNone
			if i == len(r.in)-1 {
				want = r.want
			}
			if whole, f := re.Add(fragOf(t, b, 1), start); whole != nil || f != want {
				t.Errorf("%s: fragment %d: %v, want %v", r.name, i, f, want)
			}
		}
		// Nothing that still arrives completes the datagram, not even a full clean set.
		for _, b := range [][]byte{frag(0, 1024, true), frag(1024, 2048, true), frag(2048, 3008, false)} {
			if whole, f := re.Add(fragOf(t, b, 1), start); whole != nil || f != r.want {
				t.Errorf("%s: afterwards: %d bytes, %v", r.name, len(whole), f)
			}
		}
		if n, held := re.Held(); n != 1 || held != datagramCost {
			t.Errorf("%s: %d datagrams, %d bytes held", r.name, n, held)
		}
		// After the timeout the identification may be used again.
		later := start.Add(31 * time.Second)
		re.Add(fragOf(t, frag(0, 1024, true), 1), later)
		re.Add(fragOf(t, frag(1024, 2048, true), 1), later)
		if whole, f := re.Add(fragOf(t, frag(2048, 3008, false), 1), later); f != FaultNone || len(whole) != 20+3008 {
			t.Errorf("%s: next use: %d bytes, %v", r.name, len(whole), f)
		}
	}
}

func TestReassemblerTellsDatagramsApart(t *testing.T) {
	data := pattern(64)
	base := func() *Packet {
		return fragOf(t, ip4(a4, b4, 17, nil, 9, flagMF4, cat(be16(1), be16(2), be16(3000), be16(0), data)), 1)
	}
	for name, change := range map[string]func(*Packet){
		"peer":           func(p *Packet) { p.Peer = 2 },
		"source":         func(p *Packet) { p.Src[15]++ },
		"destination":    func(p *Packet) { p.Dst[15]++ },
		"protocol":       func(p *Packet) { p.Proto = 6 },
		"identification": func(p *Packet) { p.FragID++ },
	} {
		re := NewReassembler(ReassemblerConfig{})
		re.Add(base(), start)
		end := fragOf(t, ip4(a4, b4, 17, nil, 9, 9, data), 1)
		change(end)
		if whole, f := re.Add(end, start); whole != nil || f != FaultNone {
			t.Errorf("%s: completed by a stranger: %v", name, f)
		}
		if n, _ := re.Held(); n != 2 {
			t.Errorf("%s: %d datagrams, want 2", name, n)
		}
	}
	// IPv6 keeps fragments together whose headers name different protocols (RFC 8200 section 4.5).
	l4 := udp(a6, b6, pattern(120))
	re := NewReassembler(ReassemblerConfig{})
	re.Add(must(t, ip6(a6, b6, 60, []ext{frag6(64, false, 9)}, l4[64:])), start)
	if whole, f := re.Add(must(t, ip6(a6, b6, 17, []ext{frag6(0, true, 9)}, l4[:64])), start); f != FaultNone || !bytes.Equal(whole, ip6(a6, b6, 17, nil, l4)) {
		t.Errorf("IPv6: %v, % x", f, whole)
	}
}

func TestReassemblerLongestDatagram(t *testing.T) {
	// 20 bytes of options leave no room for what the offsets still allow.
	first := ip4(a4, b4, 17, append(make([]byte, 19), 0), 9, flagMF4, cat(be16(1), be16(2), be16(65535), be16(0), make([]byte, 32752)))
	last4 := func(n int) []byte { return ip4(a4, b4, 17, nil, 9, 4095, make([]byte, n)) }
	options := opt6(60, 0)
	first6 := ip6(a6, b6, 17, []ext{options, frag6(0, true, 9)}, cat(be16(1), be16(2), be16(65527), be16(0), make([]byte, 32752)))
	last6 := func(n int) []byte { return ip6(a6, b6, 17, []ext{options, frag6(32760, false, 9)}, make([]byte, n)) }
	for _, r := range []struct {
		name        string
		first, last []byte
		size        int // of the datagram, or 0
	}{
		{"IPv4 total of 65535", first, last4(65535 - 40 - 32760), 65535},
		{"IPv4 total of 65536", first, last4(65536 - 40 - 32760), 0},
		{"IPv6 payload of 65535", first6, last6(65535 - 8 - 32760), 65575},
		{"IPv6 payload of 65536", first6, last6(65536 - 8 - 32760), 0},
	} {
		re := NewReassembler(ReassemblerConfig{})
		re.Add(must(t, r.first), start)
		want := FaultNone
		if r.size == 0 {
			want = FaultBadFragment
		}
		if whole, f := re.Add(must(t, r.last), start); len(whole) != r.size || f != want {
			t.Errorf("%s: %d bytes, %v", r.name, len(whole), f)
		}
		if n, held := re.Held(); n != 0 || held != 0 {
			t.Errorf("%s: %d datagrams, %d bytes are left over", r.name, n, held)
		}
	}
}

func TestReassemblerExpires(t *testing.T) {
	re := NewReassembler(ReassemblerConfig{Timeout: 10 * time.Second})
	_, frags := udpFrags4(t, 2000, 1024, 1)
	_, later := udpFrags4(t, 2000, 1024, 2)
	re.Add(fragOf(t, frags[0], 1), start)
	re.Add(fragOf(t, later[0], 1), start.Add(5*time.Second))
	re.Expire(start.Add(10*time.Second - 1))
	if n, _ := re.Held(); n != 2 {
		t.Errorf("%d datagrams before the time, want 2", n)
	}
	if whole, _ := re.Add(fragOf(t, frags[1], 1), start.Add(10*time.Second)); whole != nil {
		t.Error("completed after the timeout")
	}
	re.Expire(start.Add(15 * time.Second))
	if n, _ := re.Held(); n != 1 {
		t.Errorf("%d datagrams, want the one that came again", n)
	}
	re.Expire(start.Add(time.Hour))
	if n, held := re.Held(); n != 0 || held != 0 {
		t.Errorf("%d datagrams, %d bytes never expire", n, held)
	}
}

func TestReassemblerLimits(t *testing.T) {
	cfg := ReassemblerConfig{MaxBytes: 20_000, MaxDatagrams: 10, MaxPerPeer: 4}
	re := NewReassembler(cfg)
	_, kept := udpFrags4(t, 2000, 1024, 1000)
	re.Add(fragOf(t, kept[0], 2), start)

	_, oldest := udpFrags4(t, 2000, 1024, 1)
	re.Add(fragOf(t, oldest[0], 1), start)
	for id := uint32(2); id < 200; id++ {
		_, frags := udpFrags4(t, 2000, 1024, id)
		re.Add(fragOf(t, frags[0], 1), start)
		if n, held := re.Held(); n > 5 || held > cfg.MaxBytes {
			t.Fatalf("%d datagrams, %d bytes", n, held)
		}
	}
	if whole, _ := re.Add(fragOf(t, oldest[1], 1), start); whole != nil {
		t.Error("the oldest is still there")
	}
	if whole, f := re.Add(fragOf(t, kept[1], 2), start); whole == nil {
		t.Errorf("a flood by one peer evicts another's datagram: %v", f)
	}

	// Many peers: the table's own limit holds.
	for peer := uint16(10); peer < 200; peer++ {
		_, frags := udpFrags4(t, 500, 256, uint32(peer))
		re.Add(fragOf(t, frags[0], peer), start)
	}
	if n, held := re.Held(); n != cfg.MaxDatagrams || held > cfg.MaxBytes {
		t.Errorf("%d datagrams, %d bytes, want %d", n, held, cfg.MaxDatagrams)
	}
}

func TestReassemblerByteLimit(t *testing.T) {
	re := NewReassembler(ReassemblerConfig{MaxBytes: 20_000})
	whole, frags := udpFrags4(t, 30_000, 1024, 1)
	limited := 0
	for _, b := range frags {
		w, f := re.Add(fragOf(t, b, 1), start)
		if w != nil {
			t.Fatalf("%d bytes came through a limit of 20,000", len(whole))
		}
		if f == FaultFragmentLimit {
			limited++
		}
		if _, held := re.Held(); held > 20_000 {
			t.Fatalf("%d bytes held", held)
		}
	}
	if limited == 0 {
		t.Error("nobody was told")
	}
	// A new datagram pushes out the peer's older ones, and another peer's when there are none.
	re = NewReassembler(ReassemblerConfig{MaxBytes: 10_000})
	for id := range uint32(20) {
		_, frags := udpFrags4(t, 5000, 1024, id)
		for _, b := range frags[:3] {
			if _, f := re.Add(fragOf(t, b, 1), start); f != FaultNone {
				t.Fatalf("datagram %d: %v", id, f)
			}
		}
	}
	if n, held := re.Held(); n != 2 || held != 2*datagramCost+6*(1024+fragmentCost)+2*20 {
		t.Errorf("%d datagrams, %d bytes held", n, held)
	}
	whole, frags = udpFrags4(t, 7000, 1024, 100)
	for i, b := range frags {
		w, f := re.Add(fragOf(t, b, 2), start)
		if f != FaultNone || i == len(frags)-1 && !bytes.Equal(w, whole) {
			t.Fatalf("another peer's fragment %d: %d bytes, %v", i, len(w), f)
		}
	}
	// Fragments without much data count for what they really take.
	re = NewReassembler(ReassemblerConfig{})
	for i := range 8000 {
		b := ip4(a4, b4, 17, nil, 1, uint16(i+1)|flagMF4, make([]byte, 8))
		re.Add(fragOf(t, b, 1), start)
	}
	if _, held := re.Held(); held != datagramCost {
		t.Errorf("8,000 tiny fragments of one datagram hold %d bytes", held)
	}
}

func TestReassemblerConcurrently(t *testing.T) {
	re := NewReassembler(ReassemblerConfig{MaxDatagrams: 50})
	var wg sync.WaitGroup
	for peer := range uint16(4) {
		var sets [][][]byte
		for id := range uint32(40) {
			_, frags := udpFrags4(t, 1500, 512, id)
			sets = append(sets, frags)
		}
		wg.Go(func() {
			for _, frags := range sets {
				var whole []byte
				for _, b := range frags {
					var p Packet
					Decode(&p, b)
					p.Peer = peer + 1
					whole, _ = re.Add(&p, start)
				}
				if whole == nil {
					t.Error("a datagram is lost")
				}
			}
		})
	}
	wg.Wait()
}
