package path

import (
	"log/slog"
	"time"

	"culvert.dev/culvert/traversal/exchange"
	"culvert.dev/culvert/traversal/punch"
)

func (m *Machine) info(text string, attrs ...slog.Attr) {
	m.do(Report{Level: slog.LevelInfo, Text: text, Attrs: attrs})
}

func (m *Machine) debug(text string, attrs ...slog.Attr) {
	m.do(Report{Level: slog.LevelDebug, Text: text, Attrs: attrs})
}

// Attributes of reports. The peer is added by who logs them.

func attrRoute(r Route) slog.Attr         { return slog.String("endpoint", r.String()) }
func attrRTT(d time.Duration) slog.Attr   { return slog.Duration("rtt", d) }
func attrReason(s string) slog.Attr       { return slog.String("reason", s) }
func attrAfter(d time.Duration) slog.Attr { return slog.Duration("after", d.Round(time.Millisecond)) }
func attrPairs(n int) slog.Attr           { return slog.Int("pairs", n) }
func attrCount(n int) slog.Attr           { return slog.Int("rounds", n) }
func attrFound(b bool) slog.Attr          { return slog.Bool("found", b) }
func attrErr(err error) slog.Attr         { return slog.Any("err", err) }

func attrRemote(k exchange.CandidateKind) slog.Attr { return slog.String("remote", k.String()) }
func attrTechnique(t punch.Technique) slog.Attr     { return slog.String("technique", t.String()) }
