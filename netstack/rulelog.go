package netstack

import (
	"log/slog"
	"sync/atomic"
	"time"

	"culvert.dev/culvert/filter"
	"culvert.dev/culvert/internal/packet"
)

// ruleLog reports what rules with the word log decide, at a rate that a peer cannot turn into a full disk.
type ruleLog struct {
	spent   atomic.Int64 // table time at which the bucket would have been empty
	skipped atomic.Int64 // flows since the last line that found it empty
}

const (
	ruleLogRate  = 10 // lines per second, of all peers together
	ruleLogBurst = 10
)

// take spends a token at table time now.
func (l *ruleLog) take(now int64) bool {
	const token = int64(time.Second) / ruleLogRate
	now += ruleLogBurst * token // the clock starts at zero, the bucket full
	for {
		spent := l.spent.Load()
		next := max(spent, now-ruleLogBurst*token) + token
		if next > now {
			l.skipped.Add(1)
			return false
		}
		if l.spent.CompareAndSwap(spent, next) {
			return true
		}
	}
}

// logRule writes a line about a new flow if the rule that decided on it asks for one.
func (n *Net) logRule(b *batch, p *packet.Packet, d *filter.Decision) {
	if d.Log && n.ruleLog.take(b.now) {
		n.writeRule(b.policy, &p.Key, d)
	}
}

// LogRule writes the same line about what a peer asked this node for by other means than packets, as by says. It has the bound of
// the others.
func (n *Net) LogRule(k *packet.Key, d *filter.Decision, by string) {
	if d.Log && n.ruleLog.take(n.table.Now()) {
		n.writeRule(n.Policy(), k, d, slog.String("by", by))
	}
}

func (n *Net) writeRule(policy *filter.Policy, k *packet.Key, d *filter.Decision, more ...slog.Attr) {
	proto := filter.Proto(k.Proto)
	if k.Proto == packet.ProtoICMPv4 || k.Proto == packet.ProtoICMPv6 {
		proto = filter.ProtoICMP
	}
	peer := "" // one that was removed just now
	if p := policy.Peer(k.Peer); p != nil {
		peer = p.Name
	}
	n.log.LogAttrs(n.ctx, slog.LevelInfo, "rule", append([]slog.Attr{
		slog.String("action", d.Action.String()),
		slog.String("peer", peer),
		slog.String("proto", proto.String()),
		slog.String("src", k.SrcAddrPort().String()),
		slog.String("dst", k.DstAddrPort().String()),
		slog.String("rule", d.Rule.Place()),
		slog.Int64("skipped", n.ruleLog.skipped.Swap(0)),
	}, more...)...)
}
