package hotpath

import (
	"fmt"
	"net"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"culvert.dev/culvert/netstack"
)

// nothing is less than one object for a hundred packets: the collector empties pools before counting begins, and they fill again.
const nothing = 0.01

// TestEstablishedPathDoesNotAllocate counts every object that is allocated while packets of flows that stand pass the exit, by the
// package whose code asks for it. What culvert has to do with a packet costs none. gVisor's TCP and wireguard-go are not held to that, but
// what they take is logged.
func TestEstablishedPathDoesNotAllocate(t *testing.T) {
	if raceEnabled {
		t.Skip("allocations cannot be counted under the race detector")
	}
	if testing.CoverMode() != "" {
		t.Skip("coverage changes what is inlined")
	}
	for _, c := range []struct {
		name    string
		packets int // of 1420 bytes, or nearly
		start   func(t testing.TB) (pass func(packets int), check func())
	}{
		{"udp/up", 20000, onDevice(echoing)},
		{"udp/down", 20000, onDevice(func(t testing.TB, n *netstack.Net) func(int) { return newAnswers(t, n, mtu).receive })},
		{"tcp/up", 50000, onDevice(func(t testing.TB, n *netstack.Net) func(int) { return newUpload(t, n).send })},
		{"tcp/down", 50000, onDevice(func(t testing.TB, n *netstack.Net) func(int) { return newDownload(t, n).pass })},
		{"wireguard/udp/up", 20000, func(t testing.TB) (func(int), func()) {
			return newUDPPipe(t, startCulvert, mtu).up, func() {}
		}},
		{"wireguard/udp/down", 20000, func(t testing.TB) (func(int), func()) {
			return newUDPPipe(t, startCulvert, mtu).down, func() {}
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			pass, check := c.start(t)
			pass(c.packets) // pools fill, windows open
			by := allocations(func() { pass(c.packets) })
			for _, who := range []string{"culvert", "gvisor", "wireguard", "other"} {
				per := float64(by[who]) / float64(c.packets)
				t.Logf("%-9s %6d objects, %.4f per packet", who, by[who], per)
				if (who == "culvert" || who == "other") && per >= nothing {
					t.Errorf("%s allocates %d objects for %d packets", who, by[who], c.packets)
				}
			}
			for _, line := range by.lines() {
				t.Log(line)
			}
			check()
		})
	}
}

// onDevice has start pass packets through an exit without WireGuard.
func onDevice(start func(t testing.TB, n *netstack.Net) func(packets int)) func(t testing.TB) (func(int), func()) {
	return func(t testing.TB) (func(int), func()) {
		n := newExit(t)
		return start(t, n), func() { nothingDropped(t, n) }
	}
}

// echoing sends datagrams to a socket of the host that is read from, so that what is measured has arrived.
func echoing(t testing.TB, n *netstack.Net) func(packets int) {
	c, to := hostSocket(t)
	offload(t, c, unix.UDP_GRO, 1)
	bufs := buffers(32, udpPacket(at(peerAddr, 40000), to, mtu))
	in := make([]byte, 1<<16)
	return func(packets int) {
		for ; packets > 0; packets -= len(bufs) {
			n.Device().Write(bufs, headroom)
			read(t, c, in, len(bufs)*(mtu-udpOffset))
		}
	}
}

// read reads datagrams until it has so many bytes.
func read(t testing.TB, c *net.UDPConn, in []byte, bytes int) {
	for bytes > 0 {
		k, _, err := c.ReadFromUDPAddrPort(in)
		if err != nil {
			t.Fatal(err)
		}
		bytes -= k
	}
}

// census counts allocated objects by who has asked for them, and by stack.
type census map[string]int64

// allocations runs fn and counts every object that is allocated meanwhile, by any goroutine. The garbage collector, which empties pools,
// is off.
func allocations(fn func()) census {
	rate := runtime.MemProfileRate
	runtime.MemProfileRate = 1
	before := profile()
	gc := debug.SetGCPercent(-1)
	fn()
	debug.SetGCPercent(gc)
	after := profile()
	runtime.MemProfileRate = rate
	by := census{}
	for stack, objects := range after {
		if objects -= before[stack]; objects > 0 {
			who, path := blame(stack)
			by[who] += objects
			by[path] += objects
		}
	}
	return by
}

func profile() map[[32]uintptr]int64 {
	runtime.GC()
	runtime.GC() // what was allocated is in the profile after the second
	records := make([]runtime.MemProfileRecord, 20000)
	k, ok := runtime.MemProfile(records, true)
	if !ok {
		panic("more stacks allocate than there is room for")
	}
	sum := make(map[[32]uintptr]int64, k)
	for _, r := range records[:k] {
		sum[r.Stack0] += r.AllocObjects
	}
	return sum
}

// blame names whose code allocates at the top of a stack, the runtime apart, and the functions there. Measuring itself is nobody.
func blame(stack [32]uintptr) (who, path string) {
	frames := runtime.CallersFrames(stack[:slices.Index(append(stack[:], 0), 0)])
	var names []string
	for {
		f, more := frames.Next()
		switch name := f.Function; {
		case strings.HasPrefix(name, "runtime.") && len(names) == 0:
		case who != "" || len(names) > 3:
		default:
			names = append(names, name[strings.LastIndexByte(name, '/')+1:])
			switch {
			case strings.Contains(name, "bench/hotpath."):
				who = "measuring"
			case strings.HasPrefix(name, "culvert.dev/"):
				who = "culvert"
			case strings.HasPrefix(name, "gvisor.dev/"):
				who = "gvisor"
			case strings.HasPrefix(name, "golang.zx2c4.com/wireguard/"):
				who = "wireguard"
			}
		}
		if !more {
			break
		}
	}
	if who == "" {
		who = "other"
		if len(names) == 0 || strings.HasPrefix(names[0], "testing.") {
			who = "measuring"
		}
	}
	return who, who + ": " + strings.Join(names, " < ")
}

// lines are the stacks that have allocated, those with most objects first.
func (c census) lines() (list []string) {
	for path := range c {
		if strings.Contains(path, ": ") && !strings.HasPrefix(path, "measuring") {
			list = append(list, path)
		}
	}
	slices.SortFunc(list, func(a, b string) int { return int(c[b] - c[a]) })
	for i, path := range list[:min(len(list), 8)] {
		list[i] = fmt.Sprintf("%6d %s", c[path], path)
	}
	return list[:min(len(list), 8)]
}
