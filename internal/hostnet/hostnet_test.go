package hostnet

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"runtime"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func addrs(list ...string) (out []netip.Addr) {
	for _, s := range list {
		out = append(out, netip.MustParseAddr(s))
	}
	return out
}

func prefixes(list ...string) (out []netip.Prefix) {
	for _, s := range list {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

func TestSnapshotIsSortedMaskedAndWithoutDuplicates(t *testing.T) {
	var c collection
	c.address(netip.MustParsePrefix("192.0.2.9/24"), false)
	c.address(netip.MustParsePrefix("192.0.2.5/24"), false)
	c.address(netip.MustParsePrefix("127.0.0.1/8"), true)
	c.address(netip.PrefixFrom(netip.MustParseAddr("fe80::5"), 64), false)
	c.address(netip.MustParsePrefix("198.51.100.1/32"), false)
	c.address(netip.Prefix{}, false)
	c.route(netip.MustParsePrefix("192.0.2.0/24"))
	c.route(netip.MustParsePrefix("10.0.0.2/32"))
	c.localRoute(netip.MustParsePrefix("192.0.2.5/32"))
	c.localRoute(netip.MustParsePrefix("127.0.0.0/8"))
	c.localRoute(netip.MustParsePrefix("203.0.113.0/24"))
	got := c.snapshot()
	want := Snapshot{
		Addrs:  addrs("127.0.0.1", "192.0.2.5", "192.0.2.9", "198.51.100.1", "fe80::5"),
		OnLink: prefixes("10.0.0.2/32", "192.0.2.0/24", "fe80::/64"),
		Local:  prefixes("203.0.113.0/24"),
	}
	if !got.Equal(want) {
		t.Errorf("%v\nwant %v", got, want)
	}
}

// The internet behind a point-to-point link is not a local network.
func TestShortRoutesAreNotLocalNetworks(t *testing.T) {
	var c collection
	for _, p := range prefixes("0.0.0.0/0", "0.0.0.0/1", "128.0.0.0/1", "64.0.0.0/2", "8.0.0.0/7", "::/0", "2000::/3", "8000::/1", "ff00::/8", "224.0.0.0/24") {
		c.route(p)
	}
	if len(c.onLink) != 0 {
		t.Errorf("taken for local: %v", c.onLink)
	}
	for _, p := range prefixes("10.0.0.0/8", "fd00::/16", "fd00::/48") {
		c.route(p)
	}
	if len(c.onLink) != 3 {
		t.Errorf("local: %v", c.onLink)
	}
}

func TestSnapshotEqual(t *testing.T) {
	base := Snapshot{Addrs: addrs("10.0.0.1"), OnLink: prefixes("10.0.0.0/8"), Local: prefixes("192.0.2.0/24")}
	if !base.Equal(base) {
		t.Error("a snapshot differs from itself")
	}
	for _, change := range []func(*Snapshot){
		func(s *Snapshot) { s.Addrs = nil },
		func(s *Snapshot) { s.OnLink = prefixes("10.0.0.0/9") },
		func(s *Snapshot) { s.Local = prefixes("192.0.2.0/25") },
	} {
		other := base
		change(&other)
		if base.Equal(other) {
			t.Errorf("%v equals %v", base, other)
		}
	}
}

func TestReadKnowsThisHost(t *testing.T) {
	s, err := Read()
	if err != nil {
		t.Fatal(err)
	}
	list, err := net.InterfaceAddrs()
	if err != nil {
		t.Skipf("package net cannot list addresses to compare with: %v", err)
	}
	for _, a := range list {
		n := a.(*net.IPNet)
		ip, _ := netip.AddrFromSlice(n.IP)
		ip = ip.Unmap()
		if !slices.Contains(s.Addrs, ip) {
			t.Errorf("%s is missing in %v", ip, s.Addrs)
		}
		ones, _ := n.Mask.Size()
		p := netip.PrefixFrom(ip, ones).Masked()
		if !ip.IsLoopback() && !p.IsSingleIP() && !slices.Contains(s.OnLink, p) {
			t.Errorf("the network %s is missing in %v", p, s.OnLink)
		}
	}
	for _, p := range s.OnLink {
		if p.Addr().IsLoopback() || p.Addr().Zone() != "" || p != p.Masked() {
			t.Errorf("on link: %s", p)
		}
	}
}

// host is a made-up host for follow.
type host struct {
	mu    sync.Mutex // guards the following
	now   Snapshot
	err   error
	reads int
	calls []Snapshot
}

func (h *host) read() (Snapshot, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.reads++
	return h.now, h.err
}

func (h *host) changed(s Snapshot) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.calls = append(h.calls, s)
}

func (h *host) set(s Snapshot, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.now, h.err = s, err
}

// seen returns how often follow has read and called, when it is at rest.
func (h *host) seen() (reads int, calls []Snapshot) {
	synctest.Wait()
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.reads, h.calls
}

func TestFollowReportsChangesOnly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		first, second := Snapshot{Addrs: addrs("10.0.0.1")}, Snapshot{Addrs: addrs("10.0.0.2")}
		h := host{now: first}
		events, ended := make(chan struct{}, 1), make(chan struct{})
		ctx, cancel := context.WithCancel(t.Context())
		go func() {
			follow(ctx, events, h.read, first, 10*time.Second, h.changed)
			close(ended)
		}()
		expect := func(when string, want ...Snapshot) {
			t.Helper()
			if _, got := h.seen(); !slices.EqualFunc(got, want, Snapshot.Equal) {
				t.Fatalf("%s: reported %v, want %v", when, got, want)
			}
		}
		expect("at the start")
		time.Sleep(25 * time.Second)
		expect("without a change")
		h.set(second, nil)
		time.Sleep(4 * time.Second)
		expect("before the next poll")
		time.Sleep(2 * time.Second)
		expect("after the poll", second)

		h.set(first, nil)
		before, _ := h.seen()
		for range 5 {
			events <- struct{}{}
			time.Sleep(50 * time.Millisecond)
		}
		expect("in a burst", second)
		time.Sleep(100 * time.Millisecond)
		expect("after the burst", second, first)
		if after, _ := h.seen(); after != before+1 {
			t.Errorf("%d reads for one burst", after-before)
		}

		h.set(second, nil)
		for range 25 {
			events <- struct{}{}
			time.Sleep(50 * time.Millisecond)
		}
		expect("in a burst without end", second, first, second)

		h.set(first, errors.New("refused for now"))
		time.Sleep(time.Minute)
		expect("while it cannot be read", second, first, second)
		h.set(first, nil)
		time.Sleep(10 * time.Second)
		expect("when it can be read again", second, first, second, first)

		cancel()
		<-ended
	})
}

func TestFollowReportsWhatChangedBefore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := host{now: Snapshot{Addrs: addrs("10.0.0.2")}}
		ctx, cancel := context.WithCancel(t.Context())
		go follow(ctx, nil, h.read, Snapshot{Addrs: addrs("10.0.0.1")}, time.Hour, h.changed)
		if _, calls := h.seen(); len(calls) != 1 {
			t.Errorf("%d calls, want 1", len(calls))
		}
		cancel()
	})
}

func TestWatchLeavesNothingBehind(t *testing.T) {
	before := runtime.NumGoroutine()
	for range 20 {
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Millisecond)
		Watch(ctx, time.Hour, func(Snapshot) {})
		cancel()
	}
	for end := time.Now().Add(10 * time.Second); runtime.NumGoroutine() > before; time.Sleep(time.Millisecond) { // the last may be about to end
		if time.Now().After(end) {
			t.Fatalf("%d goroutines, %d before", runtime.NumGoroutine(), before)
		}
	}
}
