package filter

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"runtime"
	"testing"

	"culvert.dev/culvert/internal/packet"
)

// benchRules returns rules of one shape, none of which ends the search for most packets: the worst case.
func benchRules(shape string, n int) (list []Rule) {
	r := rand.New(rand.NewPCG(3, 4))
	for i := range n {
		text := ""
		host := netip.AddrFrom4([4]byte{byte(1 + r.IntN(223)), byte(r.Uint32()), byte(r.Uint32()), byte(r.Uint32())})
		switch shape {
		case "hosts":
			text = fmt.Sprintf("reject from * to %s tcp/%d", host, 1+r.IntN(1000))
		case "networks":
			text = fmt.Sprintf("reject from roamer to %s tcp/22,%d-%d", netip.PrefixFrom(host, 8+r.IntN(20)).Masked(), 1000+i%100, 1100+i%100)
		case "sources":
			text = fmt.Sprintf("reject from %s to internet udp/%d", netip.PrefixFrom(host, 12+r.IntN(20)).Masked(), 1+r.IntN(1000))
		case "ports":
			text = fmt.Sprintf("reject from * to * udp/%d", 1+i)
		case "crossed": // every packet meets a hundredth of the sources and of the destinations
			text = fmt.Sprintf("reject from %s to %d.0.0.0/8 tcp/%d", benchSources[r.IntN(len(benchSources))], 1+r.IntN(100), 1+r.IntN(1000))
		case "mixed": // dense, between rules that make the tables large
			text = []string{
				fmt.Sprintf("reject from %s to %s tcp/%d", netip.PrefixFrom(host, 12+r.IntN(20)).Masked(), host.Next(), 1+r.IntN(1000)),
				"reject from inmate to * tcp", "reject from * to lan tcp", "reject from * to * udp",
			}[i%4]
		case "dense": // each condition is met all over the list, no two by the same rule
			text = []string{"reject from inmate to * tcp", "reject from * to lan tcp", "reject from * to * udp"}[i%3]
		}
		rule, err := ParseRule(text)
		if err != nil {
			panic(err)
		}
		list = append(list, rule)
	}
	return list
}

var benchShapes = []string{"hosts", "networks", "sources", "ports", "crossed", "mixed", "dense"}

// BenchmarkRules is the price of a flow's first packet to random hosts of the internet, by the number of rules.
func BenchmarkRules(b *testing.B) {
	for _, shape := range benchShapes {
		for _, n := range []int{0, 10, 10000} {
			b.Run(fmt.Sprintf("%s/%d", shape, n), func(b *testing.B) {
				cfg := fixture()
				cfg.Rules = benchRules(shape, n)
				p := mustNew(b, cfg)
				r := rand.New(rand.NewPCG(5, 6))
				keys := make([]packet.Key, 1<<14)
				src := netip.MustParseAddr(peerAddrs[roamer][0])
				for i := range keys {
					dst := netip.AddrFrom4([4]byte{byte(1 + r.IntN(223)), byte(r.Uint32()), byte(r.Uint32()), byte(r.Uint32())})
					keys[i] = *key(src, dst, packet.ProtoTCP, uint16(1024+r.IntN(60000)))
				}
				i := 0
				b.ReportAllocs()
				for b.Loop() {
					p.Decide(roamer, &keys[i%len(keys)])
					i++
				}
			})
		}
	}
}

// BenchmarkCompileRules is the price of a reload.
func BenchmarkCompileRules(b *testing.B) {
	cfg := fixture()
	cfg.Rules = benchRules("networks", 10000)
	for b.Loop() {
		mustNew(b, cfg)
	}
}

// Ten thousand rules stay small, even those of networks that lie within each other and differ in all else.
func TestRulesTakeLittleMemory(t *testing.T) {
	const most = 20 << 20
	for _, shape := range []string{"networks", "mixed", "nested"} {
		cfg := fixture()
		if shape != "nested" {
			cfg.Rules = benchRules(shape, 10000)
		}
		for i := 0; shape == "nested" && i < 10000; i++ {
			net := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i >> 6), byte(i << 2), 0}), 8+i%17).Masked()
			cfg.Rules = append(cfg.Rules, mustRule(t, fmt.Sprintf("reject from %s to %s tcp/%d-%d", net, net, 1+i, 40000+i)))
		}
		var before, after runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&before)
		p := mustNew(t, cfg)
		runtime.GC()
		runtime.ReadMemStats(&after)
		if used := int64(after.HeapAlloc) - int64(before.HeapAlloc); used > most {
			t.Errorf("%s: %d bytes, want at most %d", shape, used, most)
		} else {
			t.Logf("%s: %d KiB", shape, used>>10)
		}
		runtime.KeepAlive(p)
	}
}

// benchSources are a hundred networks, of which few hold the sender.
var benchSources = func() (list []netip.Prefix) {
	for i := range 100 {
		list = append(list, netip.PrefixFrom(netip.AddrFrom4([4]byte{100, 64, byte(i), 0}), 24))
	}
	return list
}()
