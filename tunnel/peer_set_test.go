package tunnel

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.zx2c4.com/wireguard/tun/tuntest"

	"culvert.dev/culvert/internal/wgkey"
)

func TestAddAndRemovePeerLeaveTheOthersAlone(t *testing.T) {
	a, b := startPair(t, "127.0.0.1")
	ping(t, a, b, addrA, addrB)
	before := statsOf(t, a, b.key.Public())

	other := Peer{Name: "other", PublicKey: newKey(t).Public(), AllowedIPs: prefixes("10.9.3.0/24", "10.9.3.0/24"), Endpoint: "192.0.2.9:5"}
	if err := a.AddPeer(other); err != nil {
		t.Fatal(err)
	}
	if s := statsOf(t, a, other.PublicKey); s.Endpoint.String() != other.Endpoint {
		t.Errorf("the new peer: %+v", s)
	}
	ping(t, a, b, addrA, addrB)

	for _, c := range []struct {
		want string
		peer Peer
	}{
		{"no public key", Peer{}},
		{"own", Peer{PublicKey: a.key.Public()}},
		{"belongs to peer b", Peer{PublicKey: newKey(t).Public(), AllowedIPs: prefixes("10.9.0.2/32")}},
		{"belongs to peer other", Peer{PublicKey: b.key.Public(), AllowedIPs: prefixes("10.9.3.7/24")}},
		{"host:port", Peer{PublicKey: newKey(t).Public(), Endpoint: "x"}},
		{"nosuchif", Peer{PublicKey: newKey(t).Public(), Endpoint: "[fe80::1%nosuchif]:5"}},
	} {
		if err := a.AddPeer(c.peer); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("error %v, want %q in it", err, c.want)
		}
	}

	other.AllowedIPs, other.Endpoint = prefixes("10.9.4.0/24"), "192.0.2.9:6"
	if err := a.AddPeer(other); err != nil {
		t.Fatal(err)
	}
	if s := statsOf(t, a, other.PublicKey); s.Endpoint.String() != other.Endpoint {
		t.Errorf("the changed peer: %+v", s)
	}
	if err := a.AddPeer(Peer{PublicKey: newKey(t).Public(), AllowedIPs: prefixes("10.9.3.0/24")}); err != nil {
		t.Errorf("a prefix that its owner gave up: %v", err)
	}
	for range 2 {
		if err := a.RemovePeer(other.PublicKey); err != nil {
			t.Fatal(err)
		}
	}
	if all, err := a.Stats(); err != nil || len(all) != 2 {
		t.Errorf("after removal: %+v, %v", all, err)
	}
	ping(t, a, b, addrA, addrB)
	if after := statsOf(t, a, b.key.Public()); after.LastHandshake != before.LastHandshake || after.TxBytes <= before.TxBytes {
		t.Errorf("before %+v, after %+v", before, after)
	}
	a.Close()
	if err := a.AddPeer(other); err == nil {
		t.Error("AddPeer after Close succeeds")
	}
	if err := a.RemovePeer(b.key.Public()); err == nil {
		t.Error("RemovePeer after Close succeeds")
	}
}

// After any sequence of changes the device is as one that was configured so from the start, and nothing else is left.
func TestRandomChangesLeadToTheSameState(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := rand.New(rand.NewPCG(5, 6))
		network, relay, self := newMemNet(0), newMemRelay(0), newKey(t)
		make := func(peers ...Peer) *Tunnel {
			tn, err := New(tuntest.NewChannelTUN().TUN(), Config{PrivateKey: self, Peers: peers, Bind: network.bind(addressA), Relay: relay.client(self.Public())})
			if err != nil {
				t.Fatal(err)
			}
			pin(tn.dev, peers...)
			return tn
		}
		tn := make()
		defer tn.Close()
		keys := []wgkey.Public{newKey(t).Public(), newKey(t).Public(), newKey(t).Public(), newKey(t).Public()}
		random := func(i int) Peer {
			p := Peer{PublicKey: keys[i], Endpoint: []string{"", "192.0.2.7:7", "192.0.2.8:8"}[r.IntN(3)], Keepalive: r.IntN(3)}
			for range r.IntN(3) {
				p.AllowedIPs = append(p.AllowedIPs, netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, byte(r.IntN(3)), 1}), 24+r.IntN(2)*8))
			}
			return p
		}
		var want []Peer
		at := func(key wgkey.Public) int {
			return slices.IndexFunc(want, func(p Peer) bool { return p.PublicKey == key })
		}
		for step := range 400 {
			i := r.IntN(len(keys))
			switch r.IntN(4) {
			case 0:
				if err := tn.RemovePeer(keys[i]); err != nil {
					t.Fatal(err)
				}
				if k := at(keys[i]); k >= 0 {
					want = slices.Delete(want, k, k+1)
				}
			case 1:
				next := []Peer{random(i), random((i + 1) % len(keys))}
				if tn.SetPeers(next) == nil {
					want = next
				}
			default:
				p := random(i)
				if tn.AddPeer(p) != nil {
					break
				}
				if k := at(p.PublicKey); k >= 0 {
					want[k] = p
				} else {
					want = append(want, p)
				}
			}
			pin(tn.dev, want...)
			fresh := make(want...)
			if got, want := stateOf(t, tn), stateOf(t, fresh); got != want {
				t.Fatalf("step %d:\ngot  %s\nwant %s", step, got, want)
			}
			fresh.Close()
			n := len(want)
			if len(tn.peers.list) != n || len(tn.peers.byKey) != n || len(tn.shakes.peers) != n || len(tn.wire.link.peers) != n {
				t.Fatalf("step %d: %d peers, and %d, %d, %d, %d are kept", step, n, len(tn.peers.list), len(tn.peers.byKey), len(tn.shakes.peers), len(tn.wire.link.peers))
			}
		}
	})
}

// stateOf returns the device's peers as text in a fixed order, and their order in Stats.
func stateOf(t *testing.T, tn *Tunnel) string {
	t.Helper()
	text, err := tn.dev.IpcGet()
	if err != nil {
		t.Fatal(err)
	}
	var peers []string
	for _, p := range strings.Split(text, "public_key=")[1:] {
		lines := strings.Fields(p)
		slices.Sort(lines)
		peers = append(peers, strings.Join(lines, " "))
	}
	slices.Sort(peers)
	stats, err := tn.Stats()
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range stats {
		peers = append(peers, s.PublicKey.Short())
	}
	return strings.Join(peers, "\n")
}

// A peer that comes back is a new one: its name is looked up again and its endpoint is not that of before.
func TestPeerThatComesBackIsResolvedAgain(t *testing.T) {
	inWorld(t, "b.example:2000", 5, func(t *testing.T, w *world) {
		w.dns.set(nil, "192.0.2.2")
		w.start(t)
		w.untilPing(t, 6*time.Second)
		for range 3 {
			if err := w.caller.RemovePeer(w.peer.key.Public()); err != nil {
				t.Fatal(err)
			}
			if err := w.caller.AddPeer(w.callersPeer("b.example:2000", 5)); err != nil {
				t.Fatal(err)
			}
			pin(w.caller.dev, peersOf(w.caller)...)
			if took := w.untilPing(t, 20*time.Second); took > 7*time.Second {
				t.Errorf("back after %v", took)
			}
		}
	})
}

// manyPeers returns n peers with an address each.
func manyPeers(t testing.TB, n int) []Peer {
	peers := make([]Peer, n)
	for i := range peers {
		peers[i] = Peer{PublicKey: newKey(t).Public(), AllowedIPs: []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)}), 32)}}
	}
	return peers
}

func manyPeersTunnel(b *testing.B, n int) (*Tunnel, []Peer) {
	b.Helper()
	peers := manyPeers(b, n)
	key := newKey(b)
	tn, err := New(newBatchTUN(nil), Config{PrivateKey: key, Peers: peers, Relay: newMemRelay(0).client(key.Public()), AnyPort: true})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { tn.Close() })
	if err := tn.Start(); err != nil {
		b.Fatal(err)
	}
	return tn, peers
}

// BenchmarkAddPeer adds and removes one peer beside others. The cost is wireguard-go's, mostly a key exchange.
func BenchmarkAddPeer(b *testing.B) {
	for _, n := range []int{10, 5000} {
		b.Run(fmt.Sprintf("beside=%d", n), func(b *testing.B) {
			tn, _ := manyPeersTunnel(b, n)
			extra := Peer{PublicKey: newKey(b).Public(), AllowedIPs: prefixes("10.2.0.0/16")}
			for b.Loop() {
				if err := tn.AddPeer(extra); err != nil {
					b.Fatal(err)
				}
				if err := tn.RemovePeer(extra.PublicKey); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkSetPeers changes one of 5,000 peers.
func BenchmarkSetPeers(b *testing.B) {
	tn, peers := manyPeersTunnel(b, 5000)
	for i := 0; b.Loop(); i++ {
		peers[i%len(peers)].Keepalive ^= 1
		if err := tn.SetPeers(peers); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkIdlePeers tells what 5,000 peers that do nothing cost in memory, and how long it takes to configure them.
func BenchmarkIdlePeers(b *testing.B) {
	const n = 5000
	used := func() uint64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&m)
		return m.HeapAlloc + m.StackInuse
	}
	for b.Loop() {
		before := used()
		tn, _ := manyPeersTunnel(b, n)
		b.ReportMetric(float64(used()-before)/n, "B/peer")
		tn.Close()
	}
}
