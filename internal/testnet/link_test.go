package testnet

import (
	"encoding/binary"
	"fmt"
	"math"
	"net/netip"
	"runtime"
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

// pair is two hosts at one router.
func pair(n *Network, cfg LinkConfig) (a, b *Host) {
	r := n.Internet()
	return r.Host("a", HostConfig{Link: cfg}), r.Host("b", HostConfig{})
}

func listen(t testing.TB, h *Host, port uint16) *Socket {
	t.Helper()
	s, err := h.ListenPacket(netip.AddrPortFrom(netip.Addr{}, port))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// arrival is a datagram as a reader saw it.
type arrival struct {
	n    uint32 // its first four bytes
	size int
	at   time.Duration
	from netip.AddrPort
}

// collect reads s until nothing has come for a second.
func collect(t testing.TB, s *Socket, start time.Time) (list []arrival) {
	t.Helper()
	buf := make([]byte, 65536)
	for {
		s.SetReadDeadline(time.Now().Add(time.Second))
		n, from, err := s.ReadFromUDPAddrPort(buf)
		if err != nil {
			return list
		}
		a := arrival{size: n, at: time.Since(start), from: from}
		if n >= 4 {
			a.n = binary.BigEndian.Uint32(buf)
		}
		list = append(list, a)
	}
}

// burst sends count numbered datagrams of size bytes, gap apart.
func burst(t testing.TB, s *Socket, to netip.AddrPort, count, size int, gap time.Duration) {
	t.Helper()
	for i := range count {
		b := make([]byte, size)
		binary.BigEndian.PutUint32(b, uint32(i))
		if _, err := s.WriteToUDPAddrPort(b, to); err != nil {
			t.Error(err)
		}
		time.Sleep(gap)
	}
}

// run sends count datagrams over a link and returns what arrives, and what the link has counted.
func run(t *testing.T, seed uint64, cfg LinkConfig, count, size int, gap time.Duration) (list []arrival, up LinkStats) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		n := New(Config{Seed: seed})
		a, b := pair(n, cfg)
		sa, sb := listen(t, a, 1000), listen(t, b, 2000)
		start := time.Now()
		go burst(t, sa, netip.AddrPortFrom(b.Addr(), 2000), count, size, gap)
		list = collect(t, sb, start)
		up, _ = a.Link().Stats()
	})
	return list, up
}

func near(got, want, within float64) bool { return math.Abs(got-want) <= within }

func TestLatencyIsExactInVirtualTime(t *testing.T) {
	got, _ := run(t, 1, LinkConfig{Latency: 30 * time.Millisecond}, 5, 100, 10*time.Millisecond)
	if len(got) != 5 {
		t.Fatalf("%d of 5 arrived", len(got))
	}
	for i, a := range got {
		want := time.Duration(i)*10*time.Millisecond + 30*time.Millisecond + 100*time.Microsecond // b's own link
		if a.at != want || a.n != uint32(i) {
			t.Errorf("datagram %d arrived at %v as %d, want %v", i, a.at, a.n, want)
		}
	}
}

func TestLossDuplicationAndReorderingComeInTheConfiguredShare(t *testing.T) {
	const count = 20000
	got, up := run(t, 1, LinkConfig{Loss: 0.1, Duplicate: 0.05, Reorder: 0.02, ReorderBy: 5 * time.Millisecond}, count, 4, time.Millisecond)
	want := LinkStats{
		Sent: count, Lost: up.Lost, Delivered: count - up.Lost + up.Duplicated, Duplicated: up.Duplicated,
		Reordered: up.Reordered, Bytes: 32 * up.Delivered,
	}
	if up != want || len(got) != up.Delivered {
		t.Errorf("%d arrived, counted %+v", len(got), up)
	}
	if !near(float64(up.Lost)/count, 0.1, 0.01) || !near(float64(up.Duplicated)/count, 0.045, 0.008) ||
		!near(float64(up.Reordered)/count, 0.018, 0.004) {
		t.Errorf("shares are off: %+v", up)
	}
	late, seen := 0, uint32(0)
	for _, a := range got {
		if a.n < seen {
			late++
		}
		seen = max(seen, a.n)
	}
	if late < up.Reordered*9/10 || late > up.Reordered*12/10 {
		t.Errorf("%d datagrams were overtaken, the link held %d back", late, up.Reordered)
	}
}

func TestJitterSpreadsEvenlyAndKeepsTheOrder(t *testing.T) {
	got, _ := run(t, 2, LinkConfig{Latency: 20 * time.Millisecond, Jitter: 10 * time.Millisecond}, 2000, 4, 20*time.Millisecond)
	var sum time.Duration
	low, high := time.Hour, time.Duration(0)
	for i, a := range got {
		d := a.at - time.Duration(i)*20*time.Millisecond - 100*time.Microsecond
		sum += d
		low, high = min(low, d), max(high, d)
	}
	mean := sum / time.Duration(len(got))
	if len(got) != 2000 || low < 20*time.Millisecond || high > 30*time.Millisecond || !near(mean.Seconds(), 0.025, 0.0005) {
		t.Errorf("%d arrived, delays %v to %v, mean %v", len(got), low, high, mean)
	}
	got, _ = run(t, 2, LinkConfig{Jitter: 10 * time.Millisecond}, 2000, 4, 0)
	if !slices.IsSortedFunc(got, func(a, b arrival) int { return int(a.n) - int(b.n) }) || len(got) != 2000 {
		t.Errorf("jitter has reordered %d datagrams", len(got))
	}
}

func TestRateLimitsThroughputAndTheQueueDropsItsTail(t *testing.T) {
	// 972 + 28 bytes at 8 Mbit/s take 1 ms each.
	got, up := run(t, 1, LinkConfig{Rate: 8e6, Queue: 20000}, 100, 972, 0)
	if up.Full != 80 || len(got) != 20 {
		t.Fatalf("%d arrived, %d found no room, want 20 and 80", len(got), up.Full)
	}
	for i, a := range got {
		if want := time.Duration(i+1)*time.Millisecond + 200*time.Microsecond; a.at != want || a.n != uint32(i) {
			t.Errorf("datagram %d arrived at %v, want %d at %v", a.n, a.at, i, want)
		}
	}
}

func TestEqualSeedsGiveEqualNetworks(t *testing.T) {
	cfg := LinkConfig{Loss: 0.2, Jitter: 9 * time.Millisecond, Duplicate: 0.1, Reorder: 0.1, Rate: 1e6}
	one, _ := run(t, 7, cfg, 2000, 100, time.Millisecond)
	two, _ := run(t, 7, cfg, 2000, 100, time.Millisecond)
	other, _ := run(t, 8, cfg, 2000, 100, time.Millisecond)
	if !slices.Equal(one, two) {
		t.Error("the same seed gave another result")
	}
	if slices.Equal(one, other) {
		t.Error("the seed makes no difference")
	}
}

func TestCutLosesWhatIsOnTheWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := New(Config{})
		a, b := pair(n, LinkConfig{Latency: 50 * time.Millisecond})
		sa, sb := listen(t, a, 1), listen(t, b, 2)
		to := netip.AddrPortFrom(b.Addr(), 2)
		start := time.Now()
		send := func(i byte) { sa.WriteToUDPAddrPort([]byte{0, 0, 0, i}, to) }
		send(1)
		time.Sleep(49 * time.Millisecond)
		a.Link().Cut()
		send(2)
		time.Sleep(time.Millisecond)
		a.Link().Restore()
		send(3)
		got := collect(t, sb, start)
		up, _ := a.Link().Stats()
		if len(got) != 1 || got[0].n != 3 || up.Cut != 2 {
			t.Errorf("arrived %v, %d cut off", got, up.Cut)
		}
	})
}

func TestFilterPicksPackets(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := New(Config{})
		a, b := pair(n, LinkConfig{})
		sa, sb := listen(t, a, 1), listen(t, b, 2)
		count := 0
		a.Link().Filter(func([]byte) bool { count++; return count != 2 }, nil)
		burst(t, sa, netip.AddrPortFrom(b.Addr(), 2), 3, 4, time.Millisecond)
		got := collect(t, sb, time.Now())
		if len(got) != 2 || got[0].n != 0 || got[1].n != 2 {
			t.Errorf("arrived %v, want 0 and 2", got)
		}
	})
}

func TestRealTime(t *testing.T) {
	n := New(Config{})
	a, b := pair(n, LinkConfig{Latency: 20 * time.Millisecond})
	sa, sb := listen(t, a, 1), listen(t, b, 2)
	start := time.Now()
	burst(t, sa, netip.AddrPortFrom(b.Addr(), 2), 100, 4, 0)
	sb.SetReadDeadline(start.Add(10 * time.Second))
	buf := make([]byte, 10)
	for i := range 100 {
		if _, _, err := sb.ReadFromUDPAddrPort(buf); err != nil {
			t.Fatal(i, err)
		}
		if d := time.Since(start); d < 20*time.Millisecond {
			t.Fatalf("datagram %d arrived after %v", i, d)
		}
	}
}

func TestThousandHostsAreCheap(t *testing.T) {
	received := 0
	perHost := 0
	synctest.Test(t, func(t *testing.T) {
		before := heapInUse()
		n := New(Config{Seed: 3})
		r := n.Internet()
		var socks []*Socket
		var to []netip.AddrPort
		for i := range 1000 {
			h := r.Host(fmt.Sprint("host ", i), HostConfig{Link: LinkConfig{Latency: time.Duration(i%50+1) * time.Millisecond}})
			socks = append(socks, listen(t, h, 9))
			to = append(to, netip.AddrPortFrom(h.Addr(), 9))
		}
		perHost = (heapInUse() - before) / 1000
		for i := range 10000 {
			if _, err := socks[i%1000].WriteToUDPAddrPort([]byte("hello"), to[(i*7+1)%1000]); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(time.Second)
		synctest.Wait()
		for _, s := range socks {
			received += len(s.queue)
		}
	})
	if received != 10000 || perHost > 16<<10 {
		t.Errorf("%d of 10000 datagrams between 1000 hosts; %d bytes a host", received, perHost)
	}
}

// heapInUse is the memory in use.
func heapInUse() int {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int(m.HeapAlloc)
}

// TestOrderDoesNotDependOnTheScheduler: hosts that act at the same instants from goroutines of their own.
func TestOrderDoesNotDependOnTheScheduler(t *testing.T) {
	var first []arrival
	for i := range 10 {
		var got []arrival
		synctest.Test(t, func(t *testing.T) {
			n := New(Config{Seed: 4})
			inet := n.Internet()
			server := inet.Host("server", HostConfig{Link: LinkConfig{Rate: 5e6, Loss: 0.1}})
			s := listen(t, server, 9)
			to := netip.AddrPortFrom(server.Addr(), 9)
			start := time.Now()
			for i := range 40 {
				h := inet.Site(fmt.Sprint("site", i), RouterTypes()[i%13], SiteConfig{Link: LinkConfig{Jitter: time.Millisecond}}).Host("h", HostConfig{})
				x := listen(t, h, 0)
				go burst(t, x, to, 20, 100, 5*time.Millisecond)
			}
			got = collect(t, s, start)
		})
		if i == 0 {
			first = got
		}
		if len(got) < 300 || !slices.Equal(got, first) {
			t.Fatalf("run %d: %d arrivals, others than the %d of the first run", i, len(got), len(first))
		}
	}
}
