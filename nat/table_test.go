package nat

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"culvert.dev/culvert/internal/packet"
)

func key(peer uint16, proto uint8, sport, dport uint16) packet.Key {
	return packet.Key{
		Src: netip.MustParseAddr("100.64.9.2").As16(), Dst: netip.MustParseAddr("198.51.100.7").As16(),
		SrcPort: sport, DstPort: dport, Peer: peer, Proto: proto, V: 4,
	}
}

func sec(n float64) int64 { return int64(n * float64(time.Second)) }

func TestFlowExpiresByItsStatesTimeout(t *testing.T) {
	for _, c := range []struct {
		name  string
		key   packet.Key
		state State
		want  float64 // seconds
	}{
		{"UDP one way", key(1, packet.ProtoUDP, 1, 2), StateNew, 30},
		{"UDP both ways", key(1, packet.ProtoUDP, 1, 2), StateAssured, 300},
		{"DNS after the answer", key(1, packet.ProtoUDP, 1, 53), StateAssured, 10},
		{"TCP SYN", key(1, packet.ProtoTCP, 1, 2), StateNew, 240},
		{"TCP established", key(1, packet.ProtoTCP, 1, 2), StateAssured, 7440},
		{"TCP closed", key(1, packet.ProtoTCP, 1, 2), StateClosing, 30},
		{"ICMP", key(1, packet.ProtoICMPv4, 1, 0), StateNew, 60},
	} {
		var ended []End
		tab := New(Config{OnEnd: func(_ *Flow, e End) { ended = append(ended, e) }})
		f := &Flow{Key: c.key}
		if !tab.Insert(f, 0) {
			t.Fatalf("%s: refused", c.name)
		}
		tab.SetState(f, c.state)
		for s := 1.0; s < c.want; s++ {
			tab.Expire(sec(s))
		}
		if f.Dead() {
			t.Errorf("%s: ended early", c.name)
		}
		tab.Expire(sec(c.want + 1))
		if !f.Dead() || len(ended) != 1 || ended[0] != Expired || tab.Len() != 0 {
			t.Errorf("%s: dead=%v ended=%v len=%d", c.name, f.Dead(), ended, tab.Len())
		}
	}
}

func TestTrafficKeepsAFlow(t *testing.T) {
	tab := New(Config{})
	f := &Flow{Key: key(1, packet.ProtoUDP, 1, 2)}
	tab.Insert(f, 0)
	for s := 1.0; s < 1000; s++ {
		if int(s)%29 == 0 {
			f.Touch(sec(s))
		}
		tab.Expire(sec(s))
	}
	if g, _ := tab.Lookup(&f.Key); f.Dead() || g != f {
		t.Error("a flow with traffic every 29 s expired")
	}
	tab.Expire(sec(1e6)) // a clock that jumps past the whole wheel
	if !f.Dead() {
		t.Error("not expired after a long jump of the clock")
	}
}

func TestPeerAtItsLimitLosesItsOldestUnassuredFlow(t *testing.T) {
	var evicted []*Flow
	tab := New(Config{MaxPerPeer: 3, OnEnd: func(f *Flow, e End) {
		if e == Evicted {
			evicted = append(evicted, f)
		}
	}})
	fs := make([]*Flow, 6)
	for i := range fs {
		fs[i] = &Flow{Key: key(7, packet.ProtoUDP, uint16(i+1), 9)}
	}
	other := &Flow{Key: key(8, packet.ProtoUDP, 1, 9)}
	tab.Insert(other, 0)
	for i := range 3 {
		tab.Insert(fs[i], int64(i))
	}
	tab.SetState(fs[0], StateAssured)
	if !tab.Insert(fs[3], 3) || len(evicted) != 1 || evicted[0] != fs[1] {
		t.Fatalf("evicted %v, want the oldest unassured one", evicted)
	}
	tab.SetState(fs[2], StateAssured)
	tab.SetState(fs[3], StateAssured)
	if tab.Insert(fs[4], 4) {
		t.Error("a flow was accepted above the limit with nothing to evict")
	}
	if other.Dead() {
		t.Error("another peer paid for it")
	}
	tab.SetState(fs[2], StateClosing)
	if !tab.Insert(fs[5], 5) || !fs[2].Dead() {
		t.Error("a closing flow does not make room")
	}
}

func TestAFlowIsFoundByBothTuples(t *testing.T) {
	ends := 0
	tab := New(Config{OnEnd: func(*Flow, End) { ends++ }})
	k := key(1, packet.ProtoTCP, 5, 6)
	r := k.Reverse()
	r.Peer, r.DstPort = 2, 40000 // translated
	f := &Flow{Key: k, Reply: r}
	if !tab.Insert(f, 0) || tab.Len() != 1 {
		t.Fatal("not entered")
	}
	if g, d := tab.Lookup(&k); g != f || d != Original {
		t.Errorf("by its key: %v %v", g, d)
	}
	if g, d := tab.Lookup(&r); g != f || d != Reply {
		t.Errorf("by its reply tuple: %v %v", g, d)
	}
	if on := f.Onward(Original); on != r.Reverse() {
		t.Errorf("goes on as %v, want %v", on, r.Reverse())
	}
	if on := f.Onward(Reply); on != k.Reverse() {
		t.Errorf("answers go on as %v, want %v", on, k.Reverse())
	}
	if tab.Insert(&Flow{Key: key(1, packet.ProtoTCP, 7, 7), Reply: r}, 0) {
		t.Error("entered although the reply tuple is taken")
	}
	half := key(1, packet.ProtoTCP, 7, 7)
	if g, _ := tab.Lookup(&half); g != nil || tab.Len() != 1 {
		t.Errorf("half of a refused flow is there; %d flows", tab.Len())
	}
	tab.End(f, Withdrawn)
	if g, _ := tab.Lookup(&r); g != nil || !f.Dead() || tab.Len() != 0 || ends != 1 {
		t.Errorf("dead=%v len=%d ends=%d", f.Dead(), tab.Len(), ends)
	}
}

func TestObserversSeeEveryChange(t *testing.T) {
	var got []string
	tab := New(Config{MaxPerPeer: 1})
	stop := tab.Observe(func(e Event) {
		s := e.Kind.String() + " " + e.Flow.TCP().String()
		if e.Kind == EventDestroy {
			s += " " + e.Why.String()
		}
		got = append(got, s)
	})
	f := &Flow{Key: key(1, packet.ProtoTCP, 1, 2)}
	tab.Insert(f, 0)
	tab.SetTCP(f, TCPSynSent)
	tab.SetTCP(f, TCPSynSent)
	tab.Insert(&Flow{Key: key(1, packet.ProtoTCP, 2, 2)}, 1)
	g := &Flow{Key: key(2, packet.ProtoTCP, 2, 2)}
	tab.Insert(g, 1)
	tab.Remove(g)
	stop()
	tab.Close()
	want := "NEW NONE,UPDATE SYN_SENT,DESTROY SYN_SENT evicted,NEW NONE,NEW NONE,DESTROY NONE removed"
	if s := strings.Join(got, ","); s != want {
		t.Errorf("got  %s\nwant %s", s, want)
	}
}

func TestTCPStateDecidesTheTimeout(t *testing.T) {
	for _, c := range []struct {
		states []TCPState
		want   time.Duration
	}{
		{[]TCPState{TCPSynSent}, 240 * time.Second},
		{[]TCPState{TCPSynSent, TCPSynRecv}, 240 * time.Second},
		{[]TCPState{TCPSynSent, TCPEstablished}, 7440 * time.Second},
		{[]TCPState{TCPEstablished, TCPFinWait}, 240 * time.Second},
		{[]TCPState{TCPEstablished, TCPLastAck}, 240 * time.Second},
		{[]TCPState{TCPEstablished, TCPTimeWait}, 30 * time.Second},
		{[]TCPState{TCPSynSent, TCPClose}, 30 * time.Second},
		{[]TCPState{TCPSynSent2}, 240 * time.Second},
	} {
		tab := New(Config{})
		f := &Flow{Key: key(1, packet.ProtoTCP, 1, 2)}
		tab.Insert(f, 0)
		for _, s := range c.states {
			tab.SetTCP(f, s)
		}
		if got := tab.Left(f, 0); got != c.want {
			t.Errorf("%v: %v, want %v", c.states, got, c.want)
		}
	}
}

func TestAPeersOwnQuota(t *testing.T) {
	tab := New(Config{MaxPerPeer: 10})
	tab.SetQuota(1, 2)
	for i := range 4 {
		f := &Flow{Key: key(1, packet.ProtoUDP, uint16(i+1), 9)}
		tab.Insert(f, 0)
		tab.SetState(f, StateAssured)
	}
	if n := tab.Len(); n != 2 {
		t.Errorf("%d flows with a quota of 2", n)
	}
	tab.SetQuota(1, 0)
	if !tab.Insert(&Flow{Key: key(1, packet.ProtoUDP, 99, 9)}, 0) {
		t.Error("refused although the quota is the default again")
	}
}

func TestLookupDoesNotAllocate(t *testing.T) {
	tab := New(Config{})
	f := &Flow{Key: key(3, packet.ProtoUDP, 1, 2)}
	tab.Insert(f, 0)
	k := f.Key
	if n := testing.AllocsPerRun(1000, func() {
		if g, _ := tab.Lookup(&k); g != f {
			t.Fatal("lost")
		}
		f.Touch(5)
	}); n != 0 {
		t.Errorf("%v allocations per lookup", n)
	}
}
