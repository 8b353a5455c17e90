package path

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	"culvert.dev/culvert/traversal/exchange"
)

// neighbours are two nodes behind one NAT, by which they reach each other if it hairpins, and on a local network that lets nothing
// through yet.
func neighbours(t *testing.T, seed uint64, hairpin bool) (w *world, lan *realm) {
	w = newWorld(t, seed)
	outside := w.internet(prc(), prc())
	outside.cut = !hairpin
	lan = w.realm("192.168.1.0/24", 300*time.Microsecond)
	lan.cut = true
	for i, n := range w.nodes {
		n.attach[0].nat.ip = netip.MustParseAddr("198.51.100.1")
		n.attach = append(n.attach, &attachment{
			realm: lan, host: netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 168, 1, byte(i + 10)}), 51820), kind: exchange.Host,
		})
	}
	return w, lan
}

func (w *world) directOn(r *realm) func() bool {
	return func() bool {
		return w.direct() && r.prefix.Contains(w.nodes[0].route.WG.Addr()) && r.prefix.Contains(w.nodes[1].route.WG.Addr())
	}
}

// Two nodes behind one NAT come to use the local network within a minute of its letting them through, without any traffic, be they
// relayed or on a path by that NAT.
func TestLocalNetworkAppearsWithoutTraffic(t *testing.T) {
	for name, hairpin := range map[string]bool{"hairpin": true, "relayed": false} {
		for seed := range uint64(4) {
			w, lan := neighbours(t, seed+1, hairpin)
			w.begin()
			w.run(5 * time.Minute)
			if w.direct() != hairpin {
				t.Fatalf("%s: %s", name, w.describe())
			}
			from := len(w.nodes[0].checks)
			w.run(2 * time.Minute)
			t.Logf("%s: %d checks in 2 min", name, len(w.nodes[0].checks)-from)
			lan.cut = false
			begin := w.now
			if !w.runUntil(61*time.Second, w.directOn(lan)) {
				t.Errorf("%s: not on the local network after %v: %s", name, w.now.Sub(begin), w.describe())
			}
		}
	}
}

// Hours later it takes a few minutes, and costs next to nothing until then.
func TestLocalNetworkAppearsAfterHours(t *testing.T) {
	w, lan := neighbours(t, 1, true)
	w.begin()
	w.run(time.Hour)
	n := w.nodes[0]
	from := w.now
	w.run(6 * time.Hour)
	if most := within(since(n.checks, from), time.Minute); most > 5 { // every 25 s on the path in use
		t.Errorf("%d checks in a minute", most)
	}
	lan.cut = false
	if !w.runUntil(6*time.Minute, w.directOn(lan)) {
		t.Error(w.describe())
	}
}

// Nodes of one local network that is on no path to each other are told by the candidates of one that it is now.
func TestNodeComesHome(t *testing.T) {
	for mover := range 2 {
		w, lan := neighbours(t, 2, true)
		lan.cut = false
		n := w.nodes[mover]
		home := n.attach
		n.attach = []*attachment{{
			realm: w.realms[0], host: netip.AddrPortFrom(netip.MustParseAddr("10.77.0.2"), 51820),
			nat: &natModel{kind: *prc(), ip: netip.MustParseAddr("198.51.100.9"), nextPort: 4000},
		}}
		w.begin()
		if !w.runUntil(10*time.Second, w.direct) {
			t.Fatal(w.describe())
		}
		w.run(30 * time.Minute) // nothing flows
		n.attach = append(n.attach, home...)
		n.gather(false)
		if !w.runUntil(10*time.Second, w.directOn(lan)) {
			t.Errorf("node %d: %s", mover, w.describe())
		}
	}
}

// A faster path that appears without news is adopted within a minute when only the controlled node sends, and nothing comes back.
func TestBetterPathForOneWayTraffic(t *testing.T) {
	for sender := range 2 {
		w := newWorld(t, 5)
		fast := w.realm("203.0.113.0/24", 2*time.Millisecond)
		fast.cut = true
		for i, n := range w.nodes {
			n.attach = append(n.attach, &attachment{
				realm: fast, host: netip.AddrPortFrom(netip.AddrFrom4([4]byte{203, 0, 113, byte(i + 1)}), 51820), kind: exchange.Host,
			})
		}
		w.internet(prc(), prc())
		w.begin()
		w.nodes[sender].talk(100*time.Millisecond, 10*time.Minute)
		w.run(2 * time.Minute)
		if !w.direct() {
			t.Fatal(w.describe())
		}
		fast.cut = false
		if !w.runUntil(time.Minute, w.directOn(fast)) {
			t.Errorf("node %d sends: %s", sender, w.describe())
		}
	}
}

// A relayed pair of nodes, quiet since long, uses a port mapping of either within a minute.
func TestMappingEndsRelaying(t *testing.T) {
	for mapper := range 2 {
		for _, active := range []bool{true, false} {
			w := newWorld(t, 1)
			w.internet(hard(), hard())
			w.nodes[1].active = active // the controlled one alone has traffic
			w.begin()
			w.run(2 * time.Hour)
			n := w.nodes[mapper]
			n.attach = slices.Insert(n.attach, 0, &attachment{
				realm: w.realms[0], host: netip.MustParseAddrPort("198.51.100.99:51820"), kind: exchange.Mapped,
			})
			n.gather(false)
			begin := w.now
			if !w.runUntil(time.Minute, w.direct) {
				t.Errorf("mapping of node %d, active %v: %s", mapper, active, w.describe())
			}
			t.Logf("mapping of node %d, active %v: after %v", mapper, active, w.now.Sub(begin))
		}
	}
}
