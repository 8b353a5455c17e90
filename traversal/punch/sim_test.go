package punch

import (
	"flag"
	"fmt"
	"math"
	"slices"
	"testing"
	"time"
)

// usual is a way of 40 ms there and back, with a relay that takes as long.
var usual = world{delay: 20 * time.Millisecond, negotiation: 120 * time.Millisecond}

// seeds: the rates that doc.go has are those of -seeds 200.
var seeds = flag.Int("seeds", usualSeeds, "how many times each pair of NATs is simulated")

// TestSuccessRates prints what to expect of the techniques that Choose takes, one after the other, for pairs of NATs that filter
// by address and port.
func TestSuccessRates(t *testing.T) {
	for _, c := range []struct {
		a, b  string
		first Technique
		least float64 // share that the first technique brings together
		all   float64 // all that are tried
	}{
		// One side counts, and the other covers the next ports.
		{"symseq", "prc", Prediction, 1, 1},
		{"symseq", "prcr", Prediction, 1, 1},
		{"seqdown", "prc", Prediction, 1, 1},
		{"seq20", "prc", Prediction, 1, 1},
		{"seq100", "prc", Prediction, 0.98, 1},
		{"admseq", "prc", Prediction, 1, 1},
		{"seqwrap", "prc", Prediction, 1, 1},

		// Both count, and hit a port that the other comes to.
		{"symseq", "symseq", Prediction, 1, 1},
		{"seq5", "seq5", Prediction, 0.98, 0.98},
		{"seq20", "seq20", Prediction, 0.98, 0.98},
		{"seq100", "seq100", Prediction, 0.95, 0.95},
		{"seqdown", "symseq", Prediction, 0.98, 0.98},
		{"admseq", "admseq", Prediction, 1, 1},

		// The own port is kept for the first destination, which is the peer.
		{"symkeep", "prc", Prediction, 1, 1},
		{"keepflat", "prcr", Prediction, 1, 1},
		{"symkeep", "symkeep", Prediction, 1, 1},
		{"symkeep", "symseq", Prediction, 1, 1},
		{"seq20", "keepflat", Prediction, 0.98, 0.98},

		// Low ports stay low, on one side or on both.
		{"sym", "prc", LowPort, 1, 1},
		{"sym", "prcr", LowPort, 1, 1},
		{"cisco", "prc", LowPort, 1, 1},
		{"admlow", "prc", LowPort, 1, 1},
		{"sym", "sym", LowPort, 0.99, 0.99},
		{"cisco", "sym", LowPort, 0.98, 0.98},
		{"cisco", "cisco", LowPort, 0.98, 0.98},
		{"sym", "admlow", LowPort, 0.99, 0.99},
		{"admlow", "admlow", LowPort, 1, 1},
		{"sym", "symkeep", LowPort, 0.99, 0.99},
		{"sym", "symseq", LowPort, 0.98, 0.98},
		{"sym", "seq20", LowPort, 0.95, 0.95},
		{"sym", "admseq", LowPort, 1, 1},
		{"sym", "block64", LowPort, 0.99, 0.99},
		{"sym", "block1024", LowPort, 0.99, 0.99},
		{"sym", "block4096", LowPort, 0.97, 0.97},
		{"block512", "symkeep", LowPort, 0.98, 0.98},

		// Low ports do not stay low, which costs nothing but the question.
		{"adm", "prc", LowPort, 0, 0.99},
		{"symflat", "prc", LowPort, 0, 0.99},
		{"pf", "prc", LowPort, 0, 1},
		{"sym", "keepflat", LowPort, 0, 0.98},
		{"block512", "keepflat", LowPort, 0, 0.95},
		{"symflat", "symflat", LowPort, 0, 0},
		{"adm", "adm", LowPort, 0, 0},
		{"pf", "sym", LowPort, 0, 0},

		// The NAT draws from a block.
		{"block64", "prc", Sweep, 1, 1},
		{"block512", "prc", Sweep, 1, 1},
		{"block1024", "prc", Sweep, 1, 1},
		{"block1008", "prc", Sweep, 1, 1},
		{"block4096", "prc", Sweep, 0.98, 0.98},
		{"block64", "block64", Sweep, 1, 1},
		{"block1024", "block512", Sweep, 0.98, 0.98},
		{"block1024", "block1024", Sweep, 0.98, 0.98},
		{"block1008", "block1008", Sweep, 0.98, 0.98},
		{"block2048", "block2048", Sweep, 0.75, 0.75},
		{"block64", "block4096", Sweep, 0.98, 0.98},
		{"quota1024", "prc", Sweep, 1, 1},
		{"quota1024", "quota1024", Sweep, 0.4, 0.4}, // no port is used twice: one match is the most to be expected
		{"block512", "symseq", Sweep, 0.95, 0.95},
		{"block1024", "symseq", Sweep, 0.85, 0.85},
	} {
		t.Run(c.a+"-"+c.b, func(t *testing.T) {
			t.Parallel()
			first, all, most := simulate(t, c.a, c.b, c.first)
			t.Logf("%-9s x %-9s %-10v %v; with all techniques %3d; at most %4d shots a side", c.a, c.b, c.first, first, all, most)
			if least := int(c.least * float64(*seeds)); first.n < least || c.least == 0 && first.n > 0 {
				t.Errorf("%d by %v, want %d", first.n, c.first, least)
			}
			if least := int(c.all * float64(*seeds)); all < least || c.all == 0 && all > 0 {
				t.Errorf("%d by all techniques, want %d", all, least)
			}
			if most > MaxPackets {
				t.Errorf("%d shots", most)
			}
		})
	}
}

// successes are those of one technique.
type successes struct {
	n       int
	packets []int // of the side that had sent more, until then
	after   []time.Duration
}

func (s *successes) add(r result) {
	s.n++
	s.packets = append(s.packets, max(r.packets[0], r.packets[1]))
	s.after = append(s.after, r.after)
}

func (s successes) String() string {
	line := fmt.Sprintf("%3d of %d", s.n, *seeds)
	if s.n > 0 {
		slices.Sort(s.packets)
		slices.Sort(s.after)
		line += fmt.Sprintf(", packets median %4d worst %4d, after %v and %v", s.packets[s.n/2], s.packets[s.n-1],
			s.after[s.n/2].Round(time.Millisecond), s.after[s.n-1].Round(time.Millisecond))
	}
	return line
}

// simulate has pairs try all that Choose says until they meet.
func simulate(t *testing.T, kindA, kindB string, want Technique) (first successes, all, most int) {
	for seed := range uint64(*seeds) {
		a, b := newSide(t, kindA, "192.0.2.1", seed*2), newSide(t, kindB, "203.0.113.1", seed*2+1)
		var tried []Technique
		for {
			technique := Choose(a.hints, b.hints, true, tried)
			if len(tried) == 0 && technique != want {
				t.Fatalf("%v is chosen, want %v", technique, want)
			}
			if technique == None {
				break
			}
			r := attempt(t, technique, a, b, usual, seed)
			tried = append(tried, technique)
			most = max(most, r.shots[0], r.shots[1])
			if r.ok {
				if all++; len(tried) == 1 {
					first.add(r)
				}
				break
			}
		}
	}
	return first, all, most
}

// mathSeeds is enough for the shares below to be told apart.
const mathSeeds = 200

// TestLowPortsFollowTheMaths: with k sockets a side and all 424 ports swept, k² matches are to be expected, and the chance of none
// is e^-k².
func TestLowPortsFollowTheMaths(t *testing.T) {
	for k, slack := range []float64{1: 0.12, 2: 0.04, 3: 0.005} {
		if k == 0 {
			continue
		}
		w := usual
		w.sockets = k
		n := 0
		for seed := range uint64(mathSeeds) {
			a, b := newSide(t, "sym", "192.0.2.1", seed*2), newSide(t, "sym", "203.0.113.1", seed*2+1)
			if attempt(t, LowPort, a, b, w, seed).ok {
				n++
			}
		}
		want := 1 - math.Exp(-float64(k*k))
		t.Logf("%d sockets a side: %d of %d connect; 1-e^-%d is %.2f %%", k, n, mathSeeds, k*k, want*100)
		if math.Abs(float64(n)/mathSeeds-want) > slack {
			t.Errorf("%d sockets: %d of %d, want %.2f %%", k, n, mathSeeds, want*100)
		}
	}
}

// TestBirthdayFollowsTheMaths: 256 sockets and n probes of 64,512 ports meet with a chance of 1-e^(-256n/64512).
func TestBirthdayFollowsTheMaths(t *testing.T) {
	var probes []int
	for seed := range uint64(mathSeeds) {
		a, b := newSide(t, "symflat", "192.0.2.1", seed*2), newSide(t, "prc", "203.0.113.1", seed*2+1)
		r := attempt(t, Birthday, a, b, usual, seed)
		if r.shots[0] > 3*manySockets || r.shots[1] > maxGuesses {
			t.Fatalf("%d shots of the hard side, %d of the other", r.shots[0], r.shots[1])
		}
		if r.ok {
			probes = append(probes, r.packets[1])
		}
	}
	slices.Sort(probes)
	for _, c := range []struct {
		n     int
		slack float64
	}{{175, 0.12}, {577, 0.07}, {1148, 0.02}, {2048, 0.01}} {
		within, _ := slices.BinarySearch(probes, c.n+1)
		want := 1 - math.Exp(-float64(manySockets*c.n)/(lastPort-firstPort+1))
		t.Logf("within %4d probes: %3d of %d; by the maths %.2f %%", c.n, within, mathSeeds, want*100)
		if math.Abs(float64(within)/mathSeeds-want) > c.slack {
			t.Errorf("within %d probes: %d of %d, want %.2f %%", c.n, within, mathSeeds, want*100)
		}
	}
}

// TestUnderLossSkewAndOpenRouters has the conditions that single packets die of.
func TestUnderLossSkewAndOpenRouters(t *testing.T) {
	for _, c := range []struct {
		name  string
		a, b  string
		with  Technique
		w     world
		least float64
	}{
		{"a fifth is lost", "sym", "sym", LowPort, world{loss: 0.2}, 0.98},
		{"a fifth is lost", "sym", "prc", LowPort, world{loss: 0.2}, 0.99},
		{"a fifth is lost", "block1024", "block512", Sweep, world{loss: 0.2}, 0.97},
		{"a fifth is lost", "symseq", "symseq", Prediction, world{loss: 0.2}, 0.99},
		{"a fifth is lost", "symkeep", "prc", Prediction, world{loss: 0.2}, 0.99},
		{"one side is late", "sym", "sym", LowPort, world{skew: 300 * time.Millisecond}, 0.99},
		{"one side is late", "symseq", "prc", Prediction, world{skew: 300 * time.Millisecond}, 0.99},
		{"the other is late", "prc", "symseq", Prediction, world{skew: 300 * time.Millisecond}, 0.99},
		{"the other is late", "prc", "symflat", Birthday, world{skew: 300 * time.Millisecond}, 0.98},
		{"routers answer strangers", "openin", "openin", LowPort, world{}, 0.98},
		{"routers answer strangers", "openin", "openin", LowPort, world{skew: 100 * time.Millisecond}, 0.98},
		{"routers answer strangers", "openin", "prcopenin", LowPort, world{}, 0.99},
		{"routers answer strangers", "openin", "prcopenin", Birthday, world{}, 0.95},
		{"a carrier's NAT is six hops away", "sym", "sym", LowPort, world{hops: 6}, 0.98},
		{"the peer is three hops away", "sym", "prc", LowPort, world{hops: 3}, 0.99},
	} {
		t.Run(c.name+" "+c.a+"-"+c.b, func(t *testing.T) {
			t.Parallel()
			c.w.delay, c.w.negotiation = usual.delay, usual.negotiation
			n := 0
			for seed := range uint64(*seeds) {
				a, b := newSide(t, c.a, "192.0.2.1", seed*2), newSide(t, c.b, "203.0.113.1", seed*2+1)
				r := attempt(t, c.with, a, b, c.w, seed)
				if r.err != nil {
					t.Fatal(r.err)
				}
				if r.ok {
					n++
				}
			}
			t.Logf("%s: %s x %s by %v: %d of %d", c.name, c.a, c.b, c.with, n, *seeds)
			if least := int(c.least * float64(*seeds)); n < least {
				t.Errorf("%d, want %d", n, least)
			}
		})
	}
}
