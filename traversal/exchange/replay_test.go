package exchange

import (
	"testing"
	"time"

	"culvert.dev/culvert/internal/wgkey"
)

func TestRepeatedAndOvertakenPackets(t *testing.T) {
	a, b := acquainted(t)
	one := seal(t, a, b, hello(), start)
	two := seal(t, a, b, hello(), start.Add(time.Second))
	opens(t, b, two, a.key, start.Add(time.Second))
	for _, packet := range [][]byte{two, one} {
		if r := refuses(t, b, packet, a.key, start.Add(2*time.Second), FaultReplay); r == nil || r.Hello || r.From != a.key {
			t.Errorf("got %+v", r)
		}
	}
	opens(t, b, seal(t, a, b, hello(), start.Add(time.Second)), a.key, start.Add(2*time.Second))
}

func TestSendTimesGrowWhenTheClockDoesNot(t *testing.T) {
	a, b := acquainted(t)
	for i, at := range []time.Time{start, start, start.Add(-time.Second), start.Add(-MaxSkew), start} {
		m := opens(t, b, seal(t, a, b, hello(), at), a.key, start)
		if want := start.Add(time.Duration(i)); !m.Sent.Equal(want) {
			t.Errorf("message %d is of %v, want %v", i, m.Sent, want)
		}
	}
}

func TestSendTimesAreOfOnePeer(t *testing.T) {
	a, b := strangers(t)
	c := newNode(t, 201, a.key)
	if err := a.SetPeers([]wgkey.Public{b.key, c.key}); err != nil {
		t.Fatal(err)
	}
	seal(t, a, b, hello(), start)
	if m := opens(t, c, seal(t, a, c, hello(), start), a.key, start); !m.Sent.Equal(start) {
		t.Errorf("sent at %v", m.Sent)
	}
}

func TestClocksThatDiffer(t *testing.T) {
	for _, c := range []struct {
		skew time.Duration
		want Fault
	}{
		{0, 0}, {MaxSkew, 0}, {-MaxSkew, 0},
		{MaxSkew + 1, FaultAhead}, {4 * time.Minute, FaultAhead}, {280 * 365 * 24 * time.Hour, FaultAhead},
		{-MaxSkew - 1, FaultStale}, {-4 * time.Minute, FaultStale}, {-50 * 365 * 24 * time.Hour, FaultStale},
	} {
		a, b := strangers(t)
		// The year 2262 is as late as a send time of this library gets: those above are written by hand.
		at := start.Add(c.skew)
		if c.skew > 200*365*24*time.Hour {
			h := head{time: 1<<64 - 1, version: layoutVersion, kind: KindCandidates, sender: 1, session: 1}
			r := refuses(t, b, sealRaw(t, a, b, appendHead(nil, &h)), a.key, start, c.want)
			if r == nil || r.Skew < 200*365*24*time.Hour {
				t.Errorf("got %+v", r)
			}
			continue
		}
		packet := seal(t, a, b, hello(), at)
		if c.want == 0 {
			opens(t, b, packet, a.key, start)
			continue
		}
		if r := refuses(t, b, packet, a.key, start, c.want); r == nil || r.Skew != c.skew || r.Kind != KindCandidates {
			t.Errorf("%v: got %+v", c.skew, r)
		}
	}
}

func TestRejectionsTellWhatToDo(t *testing.T) {
	peer := private(t, 1).Public()
	for want, r := range map[string]*Rejection{
		"from the future: its clock is 4m0s ahead of ours: set both by NTP": {Fault: FaultAhead, Skew: 4*time.Minute + 1},
		"stale: its clock is 4m0s behind ours, or the packet was kept back": {Fault: FaultStale, Skew: -4 * time.Minute},
		"unknown version 9: update the older of both nodes":                 {Fault: FaultVersion, Version: 9},
		"replay": {Fault: FaultReplay},
	} {
		r.From = peer
		if got := r.Error(); got != "exchange packet from "+peer.Short()+": "+want {
			t.Errorf("got %q", got)
		}
	}
}

// TestStalePacketIsNoSecondWitness: who repeats an old recording does not look like a peer whose clock differs.
func TestStalePacketIsNoSecondWitness(t *testing.T) {
	a, b := strangers(t)
	packet := seal(t, a, b, hello(), start)
	late := start.Add(4 * time.Minute)
	refuses(t, b, packet, a.key, late, FaultStale)
	if r := refuses(t, b, packet, a.key, late, FaultReplay); r == nil || r.Hello {
		t.Errorf("got %+v", r)
	}
}

// TestFutureDoesNotComeTrue: a message refused for its time is not accepted when that time has come.
func TestFutureDoesNotComeTrue(t *testing.T) {
	a, b := acquainted(t)
	later := start.Add(4 * time.Minute)
	older, newer := seal(t, a, b, hello(), later), seal(t, a, b, hello(), later.Add(1))
	refuses(t, b, newer, a.key, start, FaultAhead)
	refuses(t, b, older, a.key, start, FaultAhead) // overtaken: forgets nothing
	// The clock of a is set right, so that it begins a new life: it is heard at once, and its former life is not.
	opens(t, b, seal(t, a, b, hello(), start.Add(time.Second)), a.key, start.Add(time.Second))
	for _, at := range []time.Duration{1 - MaxSkew, 0, MaxSkew} {
		refuses(t, b, newer, a.key, later.Add(at), FaultReplay)
		refuses(t, b, older, a.key, later.Add(at), FaultReplay)
	}
	opens(t, b, seal(t, a, b, hello(), later), a.key, later)
}

// TestRestartedReceiver: what can be repeated to a node that has forgotten all.
func TestRestartedReceiver(t *testing.T) {
	a, b := strangers(t)
	first := seal(t, a, b, hello(), start)
	opens(t, b, first, a.key, start)
	opens(t, a, seal(t, b, a, hello(), start), b.key, start)
	var later [][]byte
	for _, m := range messages() {
		later = append(later, seal(t, a, b, m, start.Add(time.Second)))
	}
	opens(t, b, later[0], a.key, start.Add(time.Second))

	b = newNode(t, 101, a.key)
	if m := opens(t, b, first, a.key, start.Add(MaxSkew)); m.Fresh {
		t.Error("a recording is fresh")
	}
	for _, packet := range later {
		if r := refuses(t, b, packet, a.key, start.Add(MaxSkew), FaultEarlier); r == nil || !r.Hello {
			t.Errorf("got %+v", r)
		}
	}
	// What Rejection.Hello asks for mends it.
	at := start.Add(MaxSkew)
	opens(t, a, seal(t, b, a, hello(), at), b.key, at)
	if m := opens(t, b, seal(t, a, b, messages()[4], at), a.key, at); !m.Fresh {
		t.Error("not fresh")
	}

	b = newNode(t, 101, a.key)
	refuses(t, b, first, a.key, start.Add(MaxSkew+1), FaultStale)
}

func TestOnlyAddressesAreTakenFromWhoHasNotHeardUs(t *testing.T) {
	for _, m := range messages() {
		a, b := strangers(t)
		packet := seal(t, a, b, m, start)
		if m.Kind == KindCandidates || m.Kind == KindTrickle {
			if got := opens(t, b, packet, a.key, start); got.Fresh || got.RTT != 0 {
				t.Errorf("%v: fresh %v, RTT %v", m.Kind, got.Fresh, got.RTT)
			}
			continue
		}
		if r := refuses(t, b, packet, a.key, start, FaultUnconfirmed); r == nil || !r.Hello {
			t.Errorf("%v: got %+v", m.Kind, r)
		}
	}
}

// TestSenderRestartsWithItsClockBehind: it is not heard, until a message to it makes it go on above its former send times.
func TestSenderRestartsWithItsClockBehind(t *testing.T) {
	a, b := acquainted(t)
	opens(t, b, seal(t, a, b, hello(), start), a.key, start)
	a = newNode(t, 1, b.key)
	behind := start.Add(-40 * time.Second)
	r := refuses(t, b, seal(t, a, b, hello(), behind), a.key, start, FaultReplay)
	if r == nil || !r.Hello {
		t.Fatalf("got %+v", r)
	}
	// The answer names a life that is over, and is understood all the same.
	refuses(t, a, seal(t, b, a, hello(), start), b.key, behind, FaultEarlier)
	opens(t, b, seal(t, a, b, hello(), behind), a.key, start)
	if m := opens(t, a, seal(t, b, a, hello(), start), b.key, behind); !m.Fresh {
		t.Error("not fresh")
	}
}

func TestPeerThatLiesAboutWhatItHasHeard(t *testing.T) {
	a, b := acquainted(t)
	for _, heard := range []uint64{1<<64 - 1, 1<<63 - 1, uint64(start.Add(time.Hour).UnixNano())} {
		h := head{time: uint64(start.UnixNano()), version: layoutVersion, kind: KindGoodbye, sender: b.peers[a.key].life, heard: heard}
		_, _ = a.Open(sealRaw(t, b, a, appendHead(nil, &h)), b.key, start) // refused, in the end; what counts is what it leaves
	}
	if m := opens(t, b, seal(t, a, b, hello(), start), a.key, start); !m.Sent.Equal(start) {
		t.Errorf("sent at %v", m.Sent)
	}
}

func TestClockSetBackIsANewLife(t *testing.T) {
	a, b := acquainted(t)
	wrong := start.Add(time.Hour)
	packet := seal(t, a, b, hello(), wrong)
	opens(t, b, packet, a.key, wrong)
	opens(t, a, seal(t, b, a, hello(), wrong), b.key, wrong)
	toOldLife := seal(t, a, b, hello(), wrong)
	// Both are set right, b first: nobody is deaf or dumb for an hour.
	refuses(t, b, toOldLife, a.key, start, FaultAhead)
	refuses(t, a, seal(t, b, a, hello(), start), b.key, wrong, FaultReplay)
	opens(t, a, seal(t, b, a, hello(), start.Add(1)), b.key, start)
	if m := opens(t, b, seal(t, a, b, hello(), start), a.key, start); !m.Fresh {
		t.Error("not fresh")
	}
	refuses(t, b, toOldLife, a.key, wrong, FaultReplay)
}

func TestPeersThatStayAreRemembered(t *testing.T) {
	a, b := acquainted(t)
	c := private(t, 201).Public()
	packet := seal(t, a, b, hello(), start)
	opens(t, b, packet, a.key, start)
	if err := b.SetPeers([]wgkey.Public{c, a.key, a.key, c}); err != nil {
		t.Fatal(err)
	}
	refuses(t, b, packet, a.key, start, FaultReplay)
	if m := opens(t, b, seal(t, a, b, hello(), start), a.key, start); !m.Fresh {
		t.Error("not fresh")
	}
	// One that went and came back has been forgotten, and gets a new life.
	packet = seal(t, a, b, messages()[10], start)
	_ = b.SetPeers(nil)
	refuses(t, b, packet, a.key, start, FaultUnknown)
	_ = b.SetPeers([]wgkey.Public{a.key})
	refuses(t, b, packet, a.key, start, FaultEarlier)
}

func TestRoundTripByRelay(t *testing.T) {
	a, b := acquainted(t)
	const ahead, way, kept = 20 * time.Second, 30 * time.Millisecond, 5 * time.Second // the clock of b is ahead
	at := start
	opens(t, b, seal(t, a, b, hello(), at), a.key, at.Add(ahead+way))
	at = at.Add(way + kept)
	packet := seal(t, b, a, hello(), at.Add(ahead))
	at = at.Add(way)
	if m := opens(t, a, packet, b.key, at); m.RTT != 2*way || !m.Sent.Equal(at.Add(ahead-way)) {
		t.Errorf("RTT %v, sent at %v", m.RTT, m.Sent)
	}
	// Above the longest hold that can be said (71 minutes) there is none, and none that is negative.
	at = at.Add(2 * time.Hour)
	if m := opens(t, a, seal(t, b, a, hello(), at.Add(ahead)), b.key, at); m.RTT != 0 {
		t.Errorf("RTT %v", m.RTT)
	}
	if d := roundTrip(&head{heard: uint64(at.UnixNano()), hold: 1}, at); d != 0 {
		t.Errorf("RTT %v", d)
	}
}
