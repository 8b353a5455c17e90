package hotpath

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"gvisor.dev/gvisor/pkg/tcpip/checksum"

	"culvert.dev/culvert/filter"
	"culvert.dev/culvert/internal/packet"
)

// checksumOf is gVisor's sum of the bytes.
func checksumOf(b []byte) uint16 { return checksum.Checksum(b, 0) }

// policyWith lets peer 1 go everywhere but to this host's loopback. The host's own addresses are left out, so that its sockets are the
// outside.
func policyWith(t testing.TB, change func(*filter.Config)) *filter.Policy {
	t.Helper()
	c := filter.Config{
		Self: []netip.Addr{nodeAddr},
		Mesh: []netip.Prefix{netip.PrefixFrom(nodeAddr, 24).Masked()},
		Routes: []filter.Route{
			{Prefix: netip.PrefixFrom(peerAddr, 32), Peer: 1},
			{Prefix: netip.PrefixFrom(peerAddr.Next(), 32), Peer: 2},
		},
		Peers: []filter.Peer{{ID: 1, Name: "laptop", AllowRouting: true, AllowLAN: true}, {ID: 2, Name: "phone"}},
	}
	if change != nil {
		change(&c)
	}
	p, err := filter.New(c)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// manyRules are n rules as operators write them, none of which applies to firstPackets: hosts, networks, ports, another peer.
func manyRules(t testing.TB, n int) (list []filter.Rule) {
	t.Helper()
	r := rand.New(rand.NewPCG(3, 4))
	for i := range n {
		host := netip.AddrFrom4([4]byte{byte(1 + r.IntN(223)), byte(r.Uint32()), byte(r.Uint32()), byte(r.Uint32())})
		text := []string{
			fmt.Sprintf("reject from * to %s tcp/%d", host, 1+r.IntN(1000)),
			fmt.Sprintf("reject from laptop to %s tcp/22,%d-%d", netip.PrefixFrom(host, 8+r.IntN(20)).Masked(), 1000+i%100, 1020+i%100),
			fmt.Sprintf("reject from * to * udp/%d", 1+i),
			fmt.Sprintf("reject from phone to %s tcp", netip.PrefixFrom(host, 16).Masked()),
		}[i%4]
		rule, err := filter.ParseRule(text)
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, rule)
	}
	return list
}

// firstPackets are the keys of SYNs of peer 1 to random hosts of the internet.
func firstPackets() []packet.Key {
	r := rand.New(rand.NewPCG(5, 6))
	keys := make([]packet.Key, 1<<12)
	for i := range keys {
		dst := netip.AddrFrom4([4]byte{8, byte(r.Uint32()), byte(r.Uint32()), byte(r.Uint32())})
		keys[i] = packet.Key{
			Src: peerAddr.As16(), Dst: dst.As16(), SrcPort: 40000, DstPort: uint16(2000 + r.IntN(60000)), Peer: 1, Proto: packet.ProtoTCP, V: 4,
		}
	}
	return keys
}

// walk returns the first rule that applies to what peer 1 sends.
func walk(rules []filter.Rule, k *packet.Key) *filter.Rule {
	src, dst := k.SrcAddr(), k.DstAddr()
	for i := range rules {
		r := &rules[i]
		if r.Proto != filter.ProtoAny && r.Proto != filter.Proto(k.Proto) || !meets(&r.From, src) || !meets(&r.To, dst) {
			continue
		}
		if len(r.Ports) == 0 || slices.ContainsFunc(r.Ports, func(p filter.Ports) bool { return p.First <= k.DstPort && k.DstPort <= p.Last }) {
			return r
		}
	}
	return nil
}

func meets(t *filter.Term, a netip.Addr) bool {
	switch t.Kind {
	case filter.TermPrefix:
		return t.Prefix.Contains(a)
	case filter.TermName:
		return t.Name == "laptop"
	}
	return true
}

func TestRulesOfTheBenchmarkAgree(t *testing.T) {
	rules := manyRules(t, 1000)
	policy := policyWith(t, func(c *filter.Config) { c.Rules = rules })
	met := 0
	for _, k := range firstPackets() {
		if d := policy.Decide(1, &k); d.Action != filter.Accept || walk(rules, &k) != nil {
			t.Fatalf("a rule applies to %v: %v", k.DstAddrPort(), d)
		}
		k.DstPort = 22 // that of a quarter of the rules
		d, r := policy.Decide(1, &k), walk(rules, &k)
		if (d.Rule != nil) != (r != nil) || r != nil && d.Rule.Text != r.Text {
			t.Errorf("to %v: the policy says %v, the list %v", k.DstAddrPort(), d.Rule, r)
		}
		if r != nil {
			met++
		}
	}
	if met == 0 {
		t.Error("no rule ever applies, so that this test tests nothing")
	}
}

// clientPolicy is that of a client who reaches everything by its only peer.
func clientPolicy(t testing.TB) *filter.Policy {
	t.Helper()
	p, err := filter.New(filter.Config{
		Self:   []netip.Addr{peerAddr},
		Mesh:   []netip.Prefix{netip.PrefixFrom(nodeAddr, 24).Masked()},
		Routes: []filter.Route{{Prefix: netip.MustParsePrefix("0.0.0.0/0"), Peer: 1}},
		Peers:  []filter.Peer{{ID: 1, Name: "exit"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	return p
}
