package node

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"culvert.dev/culvert/internal/testnet"
	"culvert.dev/culvert/traversal/agent"
)

// simExpected is what each pair of router types comes to, in the order of testnet.RouterTypes, from the diagonal on: w plain checks
// from WireGuard's own socket, p prediction, b birthday, r low ports or a sweep; - nothing but the relay.
var simExpected = []string{
	"wwwwwwwwwwwww-", // pub
	"wwwwwwbbpbwb-",  // pubfw
	"wwwwwwwwwww-",   // fc
	"wwwwwwwwww-",    // fcr
	"wwwwwwwww-",     // arc
	"wwbbpbwb-",      // prc
	"wbbpbwb-",       // prcr
	"----b--",        // adm
	"rrrbr-",         // symkeep
	"prpr-",          // symseq
	"rbr-",           // sym
	"wb-",            // cgnE
	"r-",             // cgnS
	"-",              // blocked
}

// simMeeting is how two nodes have met.
type simMeeting struct {
	relayed, direct time.Duration // from the start; direct 0: never
	technique       string
}

// TestSimulationOfAllPairs has nodes behind each pair of router types start at the same instant, with traffic, and proves those
// direct that can be.
func TestSimulationOfAllPairs(t *testing.T) {
	types := testnet.RouterTypes()
	var relayed, easy []time.Duration
	found := map[string]int{}
	table := []string{fmt.Sprintf("%8s", "")}
	for _, b := range types {
		table[0] += fmt.Sprintf("%16s", b)
	}
	for i, a := range types {
		row := fmt.Sprintf("%8s", a) + strings.Repeat(" ", 16*i)
		for j, b := range types[i:] {
			if simFewer() && (i+j)%4 != 0 {
				row += fmt.Sprintf("%16s", "")
				continue
			}
			want := simExpected[i][j]
			t.Run(fmt.Sprintf("%s-%s", a, b), func(t *testing.T) {
				m := meetPair(t, a, b, want)
				relayed = append(relayed, m.relayed)
				cell := "-"
				if m.direct != 0 {
					cell = fmt.Sprintf("%s %.1f s", m.technique, m.direct.Seconds())
					found[m.technique]++
				}
				if want == 'w' {
					easy = append(easy, m.direct)
				}
				row += fmt.Sprintf("%16s", cell)
			})
		}
		table = append(table, row)
	}
	slices.Sort(relayed)
	slices.Sort(easy)
	t.Logf("from the start to a direct path:\n%s", strings.Join(table, "\n"))
	t.Logf("by technique: %v", found)
	checkTimes(t, "relayed", relayed, 500*ms, time.Second)
	checkTimes(t, "direct, easy pairs", easy, 1500*ms, 4*time.Second)
}

// checkTimes wants percentiles of times, which are in order, to be below limits.
func checkTimes(t *testing.T, what string, times []time.Duration, p50, p95 time.Duration) {
	n := len(times)
	if n == 0 {
		t.Fatalf("%s: none", what)
	}
	t.Logf("%s: %d, p50 %v, p95 %v, most %v", what, n, times[n/2], times[n*95/100], times[n-1])
	if times[n/2] > p50 || times[n*95/100] > p95 {
		t.Errorf("%s: want p50 below %v and p95 below %v", what, p50, p95)
	}
}

func meetPair(t *testing.T, a, b testnet.RouterType, want byte) (m simMeeting) {
	simulate(t, 7, func(w *simWorld) {
		x, y := w.node("x", w.home("a", a).Host, simConfig{}), w.node("y", w.home("b", b).Host, simConfig{})
		w.meet(x, y)
		var ok bool
		if m.relayed, ok = x.ping(y, 10*time.Second); !ok {
			t.Fatalf("no way at all\n%s", state(x, y))
		}
		_, stop := x.flow(y, 200*ms)
		_, stopBack := y.flow(x, 200*ms)
		limit := 120 * time.Second
		if want == 'w' {
			limit = 20 * time.Second
		}
		m.direct, ok = within(limit, func() bool { return direct(x, y) })
		m.direct += m.relayed
		m.technique = x.status(y).Technique
		switch {
		case ok != (want != '-'):
			t.Fatalf("direct: %v, want %v\n%s", ok, want != '-', state(x, y))
		case ok:
			w.provesDirect(x, y)
			return
		}
		m.direct = 0
		stop()
		stopBack()
		staysQuiet(w, x, y)
	})
	return m
}

// staysQuiet wants a pair that cannot be direct to be reached by the relay, and to be left in peace otherwise.
func staysQuiet(w *simWorld, x, y *simNode) {
	x.flow(y, 2*time.Second)
	y.flow(x, 2*time.Second)
	time.Sleep(12 * time.Minute) // techniques are tried once more after ten
	const minutes = 8
	var before [2]uint64
	for i, n := range []*simNode{x, y} {
		before[i] = n.agent.Stats().Counts[agent.RequestsSent]
	}
	time.Sleep(minutes * time.Minute)
	for i, n := range []*simNode{x, y} {
		if sent := n.agent.Stats().Counts[agent.RequestsSent] - before[i]; sent > 2*minutes {
			w.Errorf("%s: %d probes in %d minutes of a pair that cannot be direct\n%s", n.name, sent, minutes, state(x, y))
		}
	}
	if _, ok := x.ping(y, time.Second); !ok {
		w.Errorf("nothing passes by the relay\n%s", state(x, y))
	}
	w.relay.setDown(true)
	if _, ok := x.ping(y, time.Second); ok {
		w.Errorf("there is a direct path\n%s", state(x, y))
	}
}

// TestSimulationOfMoreRouterTypes has what is met beside the types of the table.
func TestSimulationOfMoreRouterTypes(t *testing.T) {
	for _, c := range []struct {
		a, b testnet.RouterType
		want byte
	}{
		{testnet.Linux, testnet.Linux, 'w'},
		{testnet.Linux, testnet.PRC, 'w'},
		{testnet.LinuxOpen, testnet.LinuxOpen, 'w'},
		{testnet.LinuxOpen, testnet.PRC, 'w'},
		{testnet.LinuxOpen, testnet.FC, 'w'},
		{testnet.SymBlock, testnet.Pub, 'w'},
		{testnet.SymBlock, testnet.PRC, 'b'},
		{testnet.SymPF, testnet.FC, 'w'},
		{testnet.SymPF, testnet.PRC, 'b'},
	} {
		t.Run(fmt.Sprintf("%s-%s", c.a, c.b), func(t *testing.T) {
			m := meetPair(t, c.a, c.b, c.want)
			t.Logf("%s after %v", m.technique, m.direct)
		})
	}
}
