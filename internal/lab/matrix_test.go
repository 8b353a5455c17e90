//go:build linux

package lab_test

import (
	"flag"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"culvert.dev/culvert/internal/lab"
	"culvert.dev/culvert/internal/testnet"
)

// matrixFlag chooses the pairs of TestMatrix. All take four minutes with -parallel 6.
var matrixFlag = flag.String("matrix", "few", "pairs of router types in TestMatrix: few (one for each technique and filtering) or full (all 105)")

// reach is by what technique, at best, two types of routers come to a direct path.
type reach byte

const (
	byPlain      reach = 'H' // checks on WireGuard's own socket
	byPrediction reach = 'P' // one side's ports follow each other
	byBirthday   reach = 'B' // some hundred sockets against random ports
	byLowPorts   reach = 'R' // ports below 1024, which many NATs keep among each other
	byNone       reach = '-'
)

// matrix is what was found by experiment with each pair: rows and columns in the order of testnet.RouterTypes, each row
// from the pair of a type with itself on.
var matrix = []string{
	"HHHHHHHHHHHHH-", // pub
	"HHHHHHBBPBHB-",  // pubfw
	"HHHHHHHHHHH-",   // fc
	"HHHHHHHHHH-",    // fcr
	"HHHHHHHHH-",     // arc
	"HHBBPBHB-",      // prc
	"HBBPBHB-",       // prcr
	"----B--",        // adm
	"RRRBR-",         // symkeep
	"PRPR-",          // symseq
	"RBR-",           // sym
	"HB-",            // cgnE
	"R-",             // cgnS
	"-",              // blocked
}

// limits are how long a technique may take on a busy machine. Cheap ones are tried first, so that later ones take longer.
var limits = map[reach]time.Duration{byPlain: 15 * time.Second, byPrediction: 45 * time.Second, byBirthday: 120 * time.Second, byLowPorts: 90 * time.Second}

// hopeless is for how long pairs without a technique are watched: several rounds of attempts.
const hopeless = 45 * time.Second

type matrixPair struct {
	a, b testnet.RouterType
	want reach
}

func (p matrixPair) String() string { return fmt.Sprintf("%s and %s", p.a, p.b) }

func matrixPairs() (list []matrixPair) {
	types := testnet.RouterTypes()
	for i, row := range matrix {
		for j, r := range row {
			list = append(list, matrixPair{types[i], types[i+j], reach(r)})
		}
	}
	return list
}

// fewPairs has every technique, every filtering on the side that matters, carriers' NATs, and what cannot be.
func fewPairs() []matrixPair {
	few := []matrixPair{
		{a: testnet.Pub, b: testnet.Sym}, {a: testnet.PubFW, b: testnet.PRC}, {a: testnet.FCR, b: testnet.CGNS}, {a: testnet.ARC, b: testnet.SymKeep},
		{a: testnet.PRC, b: testnet.PRC}, {a: testnet.PRCR, b: testnet.CGNE}, {a: testnet.FC, b: testnet.ADM},
		{a: testnet.PRC, b: testnet.SymSeq}, {a: testnet.SymSeq, b: testnet.SymSeq},
		{a: testnet.PRC, b: testnet.Sym}, {a: testnet.ADM, b: testnet.CGNE},
		{a: testnet.Sym, b: testnet.Sym}, {a: testnet.SymKeep, b: testnet.CGNS},
		{a: testnet.ADM, b: testnet.Sym}, {a: testnet.PRC, b: testnet.Blocked},
	}
	all := matrixPairs()
	for i, p := range few {
		at := slices.IndexFunc(all, func(q matrixPair) bool { return q.a == p.a && q.b == p.b })
		few[i] = all[at]
	}
	return few
}

// TestMatrixIsComplete counts what the table promises.
func TestMatrixIsComplete(t *testing.T) {
	count := map[reach]int{}
	for _, p := range matrixPairs() {
		count[p.want]++
	}
	if count[byPlain] != 56 || count[byPrediction] != 5 || count[byBirthday] != 16 || count[byLowPorts] != 9 || count[byNone] != 19 {
		t.Errorf("pairs by technique: %v", count)
	}
}

// matrixResult is what became of a pair.
type matrixResult struct {
	matrixPair
	direct    bool
	technique string
	relayed   time.Duration // from the start of the nodes to the first echo
	took      time.Duration // from the start of the nodes to both being direct
	proven    bool          // echoes went on without any relay
}

// TestMatrix has pairs of nodes find each other through real NATs, and then does without relays.
func TestMatrix(t *testing.T) {
	t.Parallel()
	pairs := fewPairs()
	switch *matrixFlag {
	case "few":
	case "full":
		pairs = matrixPairs()
	default:
		t.Fatalf("-matrix=%s: want few or full", *matrixFlag)
	}
	var mu sync.Mutex
	var results []matrixResult
	t.Run("pairs", func(t *testing.T) {
		for _, p := range pairs {
			t.Run(p.String(), func(t *testing.T) {
				t.Parallel()
				r := tryPair(t, p)
				mu.Lock()
				defer mu.Unlock()
				results = append(results, r)
			})
		}
	})
	if len(results) == 0 {
		return
	}
	first, easy := matrixTimes(results)
	t.Log(matrixTable(results) + matrixFigures(results, first, easy))
	// On a quiet machine it is 0.1 s and 0.7 s. These bounds are for something broken.
	if m := first[len(first)/2]; m > 3*time.Second {
		t.Errorf("half of the pairs have no echo after %v", m)
	}
	if len(easy) > 0 && easy[len(easy)/2] > 5*time.Second {
		t.Errorf("half of the pairs that need no technique are not direct after %v", easy[len(easy)/2])
	}
}

// tryPair starts two nodes behind routers of these types and waits for what is promised.
func tryPair(t *testing.T, m matrixPair) (r matrixResult) {
	t.Helper()
	r.matrixPair = m
	p := plainPair(t, m.a, m.b)
	for _, s := range []*lab.Site{p.siteA, p.siteB} {
		s.Hosts[0].Sysctl("net/ipv4/ip_unprivileged_port_start", "0") // as in a container: low ports are free for all
	}
	start := time.Now()
	p.start(t)
	if !poll(20*time.Second, func() bool { return answers(p.a, p.b, time.Second) }) {
		t.Fatal("no echo, by whatever path")
	}
	r.relayed = time.Since(start)
	direct := func() bool {
		a, _ := viewOf(p.a, p.b)
		b, _ := viewOf(p.b, p.a)
		r.technique = a.Traversal.Technique
		return a.Path.Kind == "direct" && b.Path.Kind == "direct"
	}
	limit := limits[m.want]
	if m.want == byNone {
		limit = hopeless
	}
	r.direct = poll(limit, direct)
	r.took = time.Since(start)
	if m.want == byNone {
		if r.direct {
			t.Errorf("direct by %q, which cannot be", r.technique)
		}
		p.mustAnswer(t, "by relay")
		if v, _ := viewOf(p.a, p.b); v.Path.Kind != "relay" || v.Path.Reason == "" {
			t.Errorf("path %+v", v.Path)
		}
		return r
	}
	if !r.direct {
		a, _ := viewOf(p.a, p.b)
		b, _ := viewOf(p.b, p.a)
		t.Errorf("not direct after %v:\n%+v\n%+v", limit, a, b)
		return r
	}
	p.CutRelays()
	p.mustAnswer(t, "without any relay")
	r.proven = !t.Failed()
	t.Logf("direct by %q after %s; first echo after %s", r.technique, ms(r.took), ms(r.relayed))
	return r
}

// techniqueLetters abbreviate what status calls a technique.
var techniqueLetters = map[string]string{"plain": "H", "prediction": "P", "low ports": "R", "sweep": "W", "birthday": "B"}

// matrixTable has technique and seconds of every pair that was tried.
func matrixTable(results []matrixResult) string {
	types := testnet.RouterTypes()
	cells := map[[2]testnet.RouterType]string{}
	for _, r := range results {
		text := "-"
		if r.direct {
			text = fmt.Sprintf("%s %.1f", techniqueLetters[r.technique], r.took.Seconds())
		}
		cells[[2]testnet.RouterType{r.a, r.b}] = text
	}
	var b strings.Builder
	b.WriteString("\nH plain, P prediction, R low ports, W sweep, B birthday, - relayed; seconds from the start of both nodes\n")
	fmt.Fprintf(&b, "%-9s", "")
	for _, typ := range types {
		fmt.Fprintf(&b, "%-9s", typ)
	}
	for _, row := range types {
		fmt.Fprintf(&b, "\n%-9s", row)
		for _, column := range types {
			fmt.Fprintf(&b, "%-9s", cells[[2]testnet.RouterType{row, column}])
		}
	}
	return b.String() + "\n"
}

// matrixTimes are, sorted, the times to the first echo, and to a direct path where no technique is needed.
func matrixTimes(results []matrixResult) (first, easy []time.Duration) {
	for _, r := range results {
		first = append(first, r.relayed)
		if r.direct && r.want == byPlain {
			easy = append(easy, r.took)
		}
	}
	slices.Sort(first)
	slices.Sort(easy)
	return first, easy
}

// matrixFigures counts what became of the pairs, and says how long it took.
func matrixFigures(results []matrixResult, first, easy []time.Duration) string {
	count := map[string]int{}
	for _, r := range results {
		if r.direct {
			count[r.technique]++
		} else {
			count["relayed"]++
		}
	}
	return fmt.Sprintf("%d pairs: %v\nto the first echo: %s\nto a direct path, for the %d pairs that need no technique: %s\n",
		len(results), count, quantiles(first), len(easy), quantiles(easy))
}

// quantiles summarises sorted times.
func quantiles(d []time.Duration) string {
	if len(d) == 0 {
		return "none"
	}
	at := func(q float64) string { return ms(d[min(int(q*float64(len(d))), len(d)-1)]) }
	return fmt.Sprintf("p50 %s, p95 %s, worst %s", at(0.5), at(0.95), ms(d[len(d)-1]))
}
