package netcheck

import (
	"fmt"
	"strings"
	"testing"

	"culvert.dev/culvert/internal/testnet"
)

// TestOutlookTable is what each kind can expect of each, without low ports; a pair is entered once.
func TestOutlookTable(t *testing.T) {
	const table = `
		public                public direct
		public                symmetric-random direct
		public                blocked relay
		firewall              firewall direct
		firewall              full-cone direct
		firewall              port-restricted direct
		firewall              symmetric-sequential direct with prediction
		firewall              symmetric-random direct with birthday
		full-cone             port-restricted direct
		full-cone             symmetric-sequential direct
		full-cone             symmetric-random direct
		address-restricted    address-restricted direct
		address-restricted    symmetric-random direct
		port-restricted       port-restricted direct
		port-restricted       symmetric-sequential direct with prediction
		port-restricted       symmetric-random direct with birthday
		symmetric-sequential  symmetric-sequential direct with prediction
		symmetric-random      symmetric-random relay
		blocked               blocked relay
	`
	for line := range strings.Lines(table) {
		f := strings.Fields(line)
		if len(f) == 0 {
			continue
		}
		a, b, want := Kind(f[0]), Kind(f[1]), Result(strings.Join(f[2:], " "))
		for _, pair := range [][2]Kind{{a, b}, {b, a}} {
			if got := of(pair[0], pair[1], false); got != want {
				t.Errorf("%s with %s: %s, want %s", pair[0], pair[1], got, want)
			}
		}
	}
	if got := of(KindRandom, KindRandom, true); got != DirectLowPorts {
		t.Errorf("two symmetric NATs with low ports: %s", got)
	}
}

// of is the outlook of one kind for another.
func of(own, peer Kind, lowPorts bool) Result {
	f := &Family{Kind: own, Hints: hintsOf(own)}
	for _, o := range outlooks(f, lowPorts) {
		if o.Peer == peer {
			return o.Result
		}
	}
	return "none"
}

func TestHintsOfAKindAreOfThatKind(t *testing.T) {
	for _, k := range kinds {
		if k == KindBlocked {
			continue
		}
		h := hintsOf(k)
		if got, sure := kindOfHints(&h); got != k || !sure {
			t.Errorf("%s: %s, %v", k, got, sure)
		}
	}
}

// TestOutlookFromBehindEachRouter prints what is expected between the router types, and checks it against what each pair's own
// behaviour permits: a direct path at once, or not.
func TestOutlookFromBehindEachRouter(t *testing.T) {
	reports := map[testnet.RouterType]Family{}
	for _, typ := range testnet.RouterTypes() {
		inWorld(t, typ, testnet.SiteConfig{}, func(w *world) {
			w.serve(false, 2)
			reports[typ] = w.run(1 << 40).IPv4
		})
	}
	// Which pairs need nothing but checks, as measured with programs: every one has a side that strangers may send to from any
	// port, or both have one mapping for all.
	steady := map[testnet.RouterType]bool{"pub": true, "pubfw": true, "fc": true, "fcr": true, "arc": true, "prc": true, "prcr": true, "cgnE": true}
	open := map[testnet.RouterType]bool{"pub": true, "fc": true, "fcr": true, "arc": true}
	for _, a := range testnet.RouterTypes() {
		row := fmt.Sprintf("%-8s", a)
		for _, b := range testnet.RouterTypes() {
			fa, fb := reports[a], reports[b]
			got := ByRelay
			if a != testnet.Blocked && b != testnet.Blocked {
				got = outlook(fa.Hints, fb.Hints, false)
				want := steady[a] && steady[b] || open[a] || open[b]
				if (got == Direct) != want {
					t.Errorf("%s with %s: %s, plain checks are enough: %v", a, b, got, want)
				}
				if other := outlook(fb.Hints, fa.Hints, false); other != got {
					t.Errorf("%s with %s: %s, but %s from the other side", a, b, got, other)
				}
			}
			row += fmt.Sprintf(" %-10s", strings.TrimPrefix(string(got), "direct with "))
		}
		t.Log(row)
	}
}
