package nat

import (
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"culvert.dev/culvert/internal/packet"
)

// fill enters n flows of a peer, in a state, one nanosecond after another from now.
func fill(t *testing.T, tab *Table, peer uint16, n int, st State, now int64) (all []*Flow) {
	t.Helper()
	for i := range n {
		f := &Flow{Key: key(peer, packet.ProtoUDP, uint16(now)+uint16(i), 1000)}
		if !tab.Insert(f, now+int64(i)) {
			t.Fatalf("flow %d of peer %d refused", i, peer)
		}
		tab.SetState(f, st)
		all = append(all, f)
	}
	return all
}

// gone are the flows that have left, by their place in all.
func gone(all []*Flow) (list []int) {
	for i, f := range all {
		if f.Dead() {
			list = append(list, i)
		}
	}
	return list
}

func TestAFullTableTakesFromThePeerThatHasMost(t *testing.T) {
	tab := New(Config{Max: 10, MaxPerPeer: 10})
	hog := fill(t, tab, 1, 6, StateNew, 0)
	tab.SetState(hog[0], StateAssured)
	tab.SetState(hog[4], StateClosing)
	small := fill(t, tab, 2, 4, StateNew, 0)
	fill(t, tab, 3, 1, StateNew, 100)
	if got := gone(hog); !slices.Equal(got, []int{4}) {
		t.Errorf("gone %v, want the closing one, 4", got)
	}
	fill(t, tab, 3, 1, StateNew, 101)
	if got := gone(hog); !slices.Equal(got, []int{1, 4}) {
		t.Errorf("gone %v, want the oldest that is not assured too, 1", got)
	}
	fill(t, tab, 2, 1, StateNew, 102) // 4 and 4: the newcomer's peer pays
	if got := gone(small); !slices.Equal(got, []int{0}) {
		t.Errorf("gone %v of a peer that has as many as any, want its oldest, 0", got)
	}
}

func TestHogsWithAssuredFlowsDoNotLockOthersOut(t *testing.T) {
	tab := New(Config{Max: 40, MaxPerPeer: 40})
	hogs := [][]*Flow{fill(t, tab, 1, 20, StateAssured, 0), fill(t, tab, 2, 20, StateAssured, 100)}
	for i, f := range hogs[0] {
		f.Touch(int64(1000 - i)) // the last is the least recently active
	}
	late := fill(t, tab, 3, 13, StateAssured, 2000) // 40 by 3 peers
	if got := gone(hogs[0]); !slices.Equal(got, []int{13, 14, 15, 16, 17, 18, 19}) {
		t.Errorf("gone %v, want the least active 7 of 20", got)
	}
	if got := gone(hogs[1]); !slices.Equal(got, []int{0, 1, 2, 3, 4, 5}) {
		t.Errorf("gone %v of the other hog, want the least active 6", got)
	}
	if tab.Insert(&Flow{Key: key(3, packet.ProtoUDP, 9, 9)}, 3000) {
		t.Error("a peer with its fair share took a place of an assured flow")
	}
	tab.SetState(late[5], StateClosing)
	if !tab.Insert(&Flow{Key: key(3, packet.ProtoUDP, 9, 9)}, 3000) || !late[5].Dead() {
		t.Error("a peer with its fair share may not use its own places")
	}
}

func TestExpiryLetsOthersInBetween(t *testing.T) {
	const n = 20 * expireHold
	var tab *Table
	var left []int
	tab = New(Config{Max: 2 * n, MaxPerPeer: 2 * n, OnEnd: func(*Flow, End) {
		if l := tab.Len(); len(left) == 0 || left[len(left)-1] != l {
			left = append(left, l)
		}
		f := &Flow{Key: key(1, packet.ProtoTCP, 1, 1)} // the shard is open
		if !tab.Insert(f, sec(40)) || !tab.Remove(f) {
			t.Error("refused during expiry")
		}
	}})
	fill(t, tab, 1, n, StateNew, 0)
	tab.Expire(sec(40))
	for i, l := range left {
		if l != n-(i+1)*expireHold {
			t.Fatalf("%v flows were left after each hold of the mutex, want %d fewer each time", left, expireHold)
		}
	}
	if tab.Len() != 0 {
		t.Errorf("%d flows left", tab.Len())
	}
}

func TestIndexGrowsAndShrinksInBoundedSteps(t *testing.T) {
	const n = 12000
	tab := New(Config{Max: n, MaxPerPeer: n})
	all := make([]*Flow, n)
	for i := range all {
		all[i] = benchFlow(uint32(i))
		tab.Insert(all[i], 0)
	}
	for i := range tab.index.stripes {
		s := &tab.index.stripes[i]
		if b := len(*s.buckets.Load()); s.tuples > 2*stripeTuples || float64(s.tuples) > bucketLoad*float64(b)+1 {
			t.Errorf("stripe %d has %d tuples in %d buckets", i, s.tuples, b)
		}
	}
	checkTable(t, tab)
	for _, f := range all[100:] {
		tab.Remove(f)
	}
	buckets := 0
	for i := range tab.index.stripes {
		if b := tab.index.stripes[i].buckets.Load(); b != nil {
			buckets += len(*b)
		}
	}
	if buckets > 2*200/minLoad {
		t.Errorf("%d buckets for 100 flows", buckets)
	}
	checkTable(t, tab)
}

// TestCollidingTuplesAreFound puts all tuples into one bucket.
func TestCollidingTuplesAreFound(t *testing.T) {
	all := make(buckets, 1)
	flows := make([]*Flow, 100)
	for i := range flows {
		flows[i] = benchFlow(uint32(i))
		all.add(uint64(i%3)<<32, flows[i], Dir(i&1))
	}
	for i, f := range flows {
		seen := 0
		all.each(func(g *Flow, d Dir) {
			if g == f && d == Dir(i&1) {
				seen++
			}
		})
		if seen != 1 || all.remove(uint64(i%3)<<32, f, Dir(i&1).Other()) || !all.remove(uint64(i%3)<<32, f, Dir(i&1)) {
			t.Fatalf("flow %d: seen %d times, or not removed as what it is", i, seen)
		}
	}
	all.each(func(*Flow, Dir) { t.Error("not empty") })
}

func TestTablesHashDifferently(t *testing.T) {
	var a, b index
	a.init(1)
	b.init(1)
	same := 0
	for i := range uint32(1000) {
		k := benchKey(i, Original)
		if a.stripeOf(a.hash(&k)) == &a.stripes[b.hash(&k)>>b.shift] {
			same++
		}
	}
	if same > 2000/len(a.stripes) {
		t.Errorf("%d of 1000 tuples are in the same of %d stripes", same, len(a.stripes))
	}
}

func TestAFlowFillsThreeCacheLines(t *testing.T) {
	if unsafe.Sizeof(uintptr(0)) == 8 && unsafe.Sizeof(Flow{}) != 192 {
		t.Errorf("a flow has %d bytes", unsafe.Sizeof(Flow{}))
	}
	if unsafe.Sizeof(uintptr(0)) == 8 && unsafe.Sizeof(bucket{}) != 64 {
		t.Errorf("a bucket has %d bytes", unsafe.Sizeof(bucket{}))
	}
}

func TestAFlowEntersOnce(t *testing.T) {
	tab := New(Config{})
	f := &Flow{Key: key(1, packet.ProtoUDP, 1, 2)}
	tab.Remove(f)
	tab.SetState(f, StateAssured)
	if f.State() != StateNew || f.Dead() {
		t.Error("a flow outside the table changes state")
	}
	if !tab.Insert(f, 0) || tab.Insert(f, 0) || !tab.Remove(f) || tab.Insert(f, 0) {
		t.Error("a flow was entered again")
	}
	g := &Flow{Key: f.Key}
	h := &Flow{Key: f.Key}
	if !tab.Insert(g, 0) || tab.Insert(h, 0) || tab.Remove(h) {
		t.Error("a refused flow can be removed")
	}
	if got, _ := tab.Lookup(&g.Key); got != g {
		t.Error("a refused flow took another with it")
	}
	checkTable(t, tab)
}

// TestManyGoroutines has all methods run into each other. Every flow must end exactly once, and those that stay must always be found.
func TestManyGoroutines(t *testing.T) {
	const workers, rounds = 6, 1500
	var ends, removed, entered, news, destroys atomic.Int64
	tab := New(Config{Max: 600, MaxPerPeer: 400, OnEnd: func(f *Flow, _ End) {
		if !f.Dead() {
			t.Error("a living flow ended")
		}
		ends.Add(1)
	}})
	tab.Observe(func(e Event) {
		switch e.Kind {
		case EventNew:
			news.Add(1)
		case EventDestroy:
			destroys.Add(1)
		}
	})
	stay := fill(t, tab, 99, 10, StateAssured, sec(1e5))
	tab.SetQuota(99, 10)
	entered.Add(10)
	var wg sync.WaitGroup
	for w := range uint32(workers) {
		wg.Go(func() {
			for i := range uint32(rounds) {
				n := scatter(w<<20|i, 1<<11)
				k := benchKey(n, Original)
				k.Peer = uint16(n % 5)
				f, _ := tab.Lookup(&k)
				if f == nil {
					f = &Flow{Key: k}
					if n%3 != 0 {
						f.Reply = benchKey(n/2, Reply)
					}
					if tab.Insert(f, int64(i)) {
						entered.Add(1)
					}
				}
				f.Touch(int64(i))
				f.Count(Original, 1, 100)
				switch i % 8 {
				case 0, 1:
					tab.SetState(f, StateAssured)
				case 2:
					tab.SetTCP(f, TCPState(n%10))
				case 3:
					if tab.Remove(f) {
						removed.Add(1)
					}
				case 4:
					tab.End(f, Withdrawn)
				case 5:
					tab.EvictOldest(k.Peer)
				}
				switch i % 500 {
				case 100:
					tab.Expire(int64(i) + sec(29)*int64(w%3))
				case 200:
					tab.Recheck(func(f *Flow) bool { return f.Key.SrcPort%7 != 0 || f.Key.Peer == 99 })
				case 300:
					tab.SetQuota(k.Peer, int(n%300)+1)
				}
				s := stay[i%10]
				if g, _ := tab.Lookup(&s.Key); g != s {
					t.Errorf("a flow that stays was not found: %v", g)
					return
				}
			}
		})
	}
	wg.Wait()
	checkTable(t, tab)
	tab.Close()
	checkTable(t, tab)
	if tab.Len() != 0 || ends.Load()+removed.Load() != entered.Load() || news.Load() != entered.Load() || destroys.Load() != entered.Load() {
		t.Errorf("%d entered, %d ended, %d removed, %d left; %d NEW, %d DESTROY",
			entered.Load(), ends.Load(), removed.Load(), tab.Len(), news.Load(), destroys.Load())
	}
}

// TestLookupsDuringGrowth has flows that stay looked up while the index is rebuilt under them, again and again.
func TestLookupsDuringGrowth(t *testing.T) {
	tab := New(Config{Max: 100000, MaxPerPeer: 100000})
	stay := make([]*Flow, 64)
	for i := range stay {
		stay[i] = benchFlow(1<<20 + uint32(i))
		tab.Insert(stay[i], 0)
	}
	var done atomic.Bool
	var wg sync.WaitGroup
	wg.Go(func() {
		for i := 0; !done.Load(); i++ {
			f, d := stay[i%len(stay)], Dir(i&1)
			if g, gd := tab.Lookup(f.Tuple(d)); g != f || gd != d {
				t.Errorf("%v %v, want %v %v", g, gd, f, d)
				return
			}
			if i%1000 == 0 {
				found := 0
				tab.Each(func(f *Flow) {
					if f.Key.SrcPort == stay[0].Key.SrcPort && f == stay[0] {
						found++
					}
				})
				if found != 1 {
					t.Errorf("Each gave a flow that stays %d times", found)
					return
				}
			}
		}
	})
	for start := time.Now(); time.Since(start) < 200*time.Millisecond; {
		var some []*Flow
		for i := range uint32(4000) {
			f := benchFlow(i)
			tab.Insert(f, 0)
			some = append(some, f)
		}
		for _, f := range some {
			tab.Remove(f)
		}
	}
	done.Store(true)
	wg.Wait()
	checkTable(t, tab)
}
