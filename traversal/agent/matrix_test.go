package agent

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"culvert.dev/culvert/internal/testnet"
)

// expected is what a laboratory of network namespaces with the real thing has shown for each pair of router types, in the order of
// testnet.RouterTypes, from the diagonal on: w plain checks from WireGuard's own socket, p prediction, b birthday, r low ports or a
// sweep; - nothing.
var expected = []string{
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

// TestMatrix has every pair of router types meet.
func TestMatrix(t *testing.T) {
	types := testnet.RouterTypes()
	var easy []time.Duration
	found := map[string]int{}
	table := []string{fmt.Sprintf("%8s", "")}
	for _, b := range types {
		table[0] += fmt.Sprintf("%14s", b)
	}
	for i, a := range types {
		row := fmt.Sprintf("%8s", a) + strings.Repeat(" ", 14*i)
		for j, b := range types[i:] {
			want := expected[i][j]
			t.Run(fmt.Sprintf("%s-%s", a, b), func(t *testing.T) {
				took, technique, ok := meeting(t, a, b, want)
				cell := "-"
				if ok {
					cell = fmt.Sprintf("%s %.1f s", technique, took.Seconds())
					found[technique]++
				}
				row += fmt.Sprintf("%14s", cell)
				if want == 'w' {
					easy = append(easy, took)
				}
				if ok != (want != '-') {
					t.Errorf("direct: %v, want %v", ok, want != '-')
				}
			})
		}
		table = append(table, row)
	}
	slices.Sort(easy)
	t.Logf("\n%s", strings.Join(table, "\n"))
	if n := len(easy); n > 0 {
		t.Logf("direct by technique: %v; the %d easy pairs: p50 %v, p95 %v, most %v", found, n, easy[n/2], easy[n*95/100], easy[n-1])
	}
}

// behind makes a host behind a router of a type, 8 ms from the internet. The home router before a carrier's symmetric NAT is Linux
// here, as in the laboratory: that of testnet.Site has the engine of package nat, which takes low ports out of their range, so that
// no low ports reach the carrier, and symkeep, symseq, sym and cgnS have no way to a cgnS.
func (w *world) behind(name string, typ testnet.RouterType) *testnet.Host {
	link := testnet.LinkConfig{Latency: 8 * time.Millisecond}
	if typ != testnet.CGNS {
		return w.inet.Site(name, typ, testnet.SiteConfig{Link: link}).Host(name, testnet.HostConfig{})
	}
	carrier := w.inet.Gateway(name+" carrier", testnet.GatewayConfig{
		Link: link, NAT: &testnet.NATConfig{Netfilter: &testnet.NetfilterConfig{Random: true}},
		LAN: []netip.Prefix{netip.MustParsePrefix("100.64.0.0/10")},
	})
	home := carrier.Gateway(name, testnet.GatewayConfig{NAT: &testnet.NATConfig{Netfilter: &testnet.NetfilterConfig{}}})
	return home.Host(name, testnet.HostConfig{})
}

// meeting has two nodes behind routers meet, and returns how long it took until both were direct, and by what.
func meeting(t *testing.T, a, b testnet.RouterType, want byte) (took time.Duration, technique string, ok bool) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 7)
		defer w.end()
		x := w.newNode(w.behind("a", a), nodeConfig{port: 21001})
		y := w.newNode(w.behind("b", b), nodeConfig{port: 21002})
		w.meet(x, y)
		x.flow(y, 100*time.Millisecond)
		y.flow(x, 100*time.Millisecond)
		limit := 150 * time.Second
		if want == 'w' {
			limit = 30 * time.Second
		}
		took, ok = wait(limit, func() bool { return direct(x, y) })
		technique = x.status(y).Technique
		if x.mostOpen > 256 || y.mostOpen > 256 {
			t.Errorf("%d and %d helper sockets were open at once", x.mostOpen, y.mostOpen)
		}
		if ok != (want != '-') || testing.Verbose() {
			s := x.status(y)
			t.Logf("%v %v after %v: %v %v, punched %+v and %+v, tried %v", a, b, took, s.Phase, s.Reason, s.Punched, y.status(x).Punched, s.Tried)
		}
	})
	return took, technique, ok
}
