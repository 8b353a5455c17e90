package hotpath

import (
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"

	"culvert.dev/culvert/filter"
	"culvert.dev/culvert/internal/packet"
	"culvert.dev/culvert/nat"
)

// flowSizes are how many flows stand in a table: what a household has, and the limit of a node.
var flowSizes = []int{1 << 10, 1 << 16}

// flowKeys are the keys of n flows of 250 peers to servers all over, in random order.
func flowKeys(n int) []packet.Key {
	keys := make([]packet.Key, n)
	for i := range keys {
		keys[i] = packet.Key{
			Src: [16]byte{10: 0xff, 11: 0xff, 12: 100, 13: 64, 15: byte(i % 250)},
			Dst: [16]byte{10: 0xff, 11: 0xff, 12: 198, 13: 51, 14: byte(i >> 8), 15: byte(i)}, SrcPort: uint16(1024 + i/250), DstPort: 443,
			Peer: uint16(1 + i%250), Proto: packet.ProtoUDP, V: 4,
		}
	}
	r := rand.New(rand.NewPCG(1, 2))
	r.Shuffle(n, func(i, j int) { keys[i], keys[j] = keys[j], keys[i] })
	return keys
}

// flowTable has a flow for each key.
func flowTable(t testing.TB, keys []packet.Key) *nat.Table {
	table := nat.New(nat.Config{Max: len(keys), MaxPerPeer: len(keys)})
	t.Cleanup(table.Close)
	for _, k := range keys {
		if !table.Insert(&nat.Flow{Key: k}, 0) {
			t.Fatal("no room")
		}
	}
	return table
}

// BenchmarkLookup finds flows, and finds that there is none, in random order. The alternative is a Go map with the lock that writers
// make necessary; culvert's table takes none, finds a flow by either of two tuples, and knows its age.
func BenchmarkLookup(b *testing.B) {
	for _, n := range flowSizes {
		keys := flowKeys(n)
		absent := flowKeys(n)
		for i := range absent {
			absent[i].Proto = packet.ProtoTCP
		}
		table := flowTable(b, keys)
		var mu sync.RWMutex
		plain := make(map[packet.Key]*nat.Flow, n)
		for i := range keys {
			plain[keys[i]], _ = table.Lookup(&keys[i])
		}
		finders := []struct {
			by   string
			find func(k *packet.Key) *nat.Flow
		}{
			{"culvert", func(k *packet.Key) *nat.Flow { f, _ := table.Lookup(k); return f }},
			{"map", func(k *packet.Key) *nat.Flow { mu.RLock(); f := plain[*k]; mu.RUnlock(); return f }},
		}
		for _, what := range []struct {
			name  string
			keys  []packet.Key
			found bool
		}{{"hit", keys, true}, {"miss", absent, false}} {
			for _, f := range finders {
				b.Run(fmt.Sprintf("%s/flows=%d/by=%s", what.name, n, f.by), func(b *testing.B) {
					b.ReportAllocs()
					i := 0
					for b.Loop() {
						if (f.find(&what.keys[i]) != nil) != what.found {
							b.Fatal("wrong answer")
						}
						if i++; i == n {
							i = 0
						}
					}
					rate(b, int64(b.N))
				})
			}
		}
	}
}

// BenchmarkFilter is what policy costs a packet. That of a flow which stands is not judged again: its flow is found, and bears the
// generation of the policy that has admitted it. The first packet of a flow is judged by all rules, none of which applies: the worst
// case. by=list walks the rules one after the other, as a chain of netfilter does, and does not even classify addresses.
func BenchmarkFilter(b *testing.B) {
	b.Run("established/by=culvert", func(b *testing.B) {
		keys := flowKeys(1024)
		table := flowTable(b, keys)
		const generation = 1
		for i := range keys {
			f, _ := table.Lookup(&keys[i])
			f.Generation.Store(generation)
		}
		b.ReportAllocs()
		i := 0
		for b.Loop() {
			f, d := table.Lookup(&keys[i%len(keys)])
			if f == nil || f.Generation.Load() != generation {
				b.Fatal("not admitted")
			}
			f.Touch(1)
			f.Count(d, 1, mtu)
			i++
		}
		rate(b, int64(b.N))
	})
	keys := firstPackets()
	for _, n := range []int{0, 10, 1000} {
		rules := manyRules(b, n)
		policy := policyWith(b, func(c *filter.Config) { c.Rules = rules })
		b.Run(fmt.Sprintf("first/rules=%d/by=culvert", n), func(b *testing.B) {
			b.ReportAllocs()
			i := 0
			for b.Loop() {
				if policy.Decide(1, &keys[i%len(keys)]).Action != filter.Accept {
					b.Fatal("refused")
				}
				i++
			}
			rate(b, int64(b.N))
		})
		if n == 0 {
			continue
		}
		b.Run(fmt.Sprintf("first/rules=%d/by=list", n), func(b *testing.B) {
			b.ReportAllocs()
			i := 0
			for b.Loop() {
				if walk(rules, &keys[i%len(keys)]) != nil {
					b.Fatal("refused")
				}
				i++
			}
			rate(b, int64(b.N))
		})
	}
}
