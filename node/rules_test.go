package node

import (
	"net/netip"
	"strings"
	"testing"

	"culvert.dev/culvert/filter"
	"culvert.dev/culvert/internal/packet"
)

func TestReloadedRulesWithdrawPermissions(t *testing.T) {
	a, b := newSide(t, "100.70.8.1"), newSide(t, "100.70.8.2")
	peer := b.asPeer("bob", "AllowRouting = yes")
	n := start(t, a.write(t, peer), "")
	decide := func(port uint16) filter.Decision {
		k := packet.Key{
			Src: netip.MustParseAddr(b.addr).As16(), Dst: netip.MustParseAddr("198.51.100.7").As16(),
			SrcPort: 40000, DstPort: port, Proto: packet.ProtoTCP, V: 4,
		}
		return n.net.Policy().Decide(1, &k)
	}
	if d := decide(25); d.Action != filter.Accept || d.Rule != nil {
		t.Fatalf("without rules: %+v", d)
	}
	a.write(t, peer, "[Filter]\nSet = mail 198.51.100.0/24\nRule = reject log from bob to mail tcp/25")
	if err := n.Reload(); err != nil {
		t.Fatal(err)
	}
	if d := decide(25); d.Action != filter.Reject || d.Reason != filter.ReasonRule || !d.Log || d.Rule.File != n.cfg.File {
		t.Errorf("with the rule: %+v", d)
	}
	if d := decide(443); d.Action != filter.Accept {
		t.Errorf("beside the rule: %+v", d)
	}
	if !mayLearn(n.net.Policy(), netip.MustParseAddr(b.addr), netip.MustParseAddr("198.51.100.7")) {
		t.Error("a rule about a service hides a name")
	}
	a.write(t, peer, "[Filter]\nRule = accept from * to bobs-server")
	if err := n.Reload(); err == nil || !strings.Contains(err.Error(), "culvert.conf:") || !strings.Contains(err.Error(), "bobs-server") {
		t.Errorf("a faulty rule: %v", err)
	}
	if d := decide(25); d.Reason != filter.ReasonRule {
		t.Errorf("a refused reload changed the rules: %+v", d)
	}
	a.write(t, peer)
	if err := n.Reload(); err != nil || decide(25).Action != filter.Accept {
		t.Errorf("without rules again: %v, %+v", err, decide(25))
	}
}
