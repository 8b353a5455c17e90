package node

import (
	"strings"
	"time"

	"culvert.dev/culvert/internal/control"
	"culvert.dev/culvert/traversal/agent"
	"culvert.dev/culvert/traversal/path"
)

// traversalMetrics are about the search for direct paths; where none are sought there are none.
func traversalMetrics(peers []PeerStatus, counts *agent.Stats) []control.Metric {
	if counts == nil {
		return nil
	}
	phase := control.Metric{Name: "culvert_traversal_phase", Help: "1 for where the search for a direct path to the peer stands."}
	upgrades := control.Metric{Name: "culvert_traversal_upgrades", Type: control.Counter, Help: "Times that the peer was moved to a direct path, or to a better one."}
	fallbacks := control.Metric{Name: "culvert_traversal_fallbacks", Type: control.Counter, Help: "Times that a direct path to the peer was given up."}
	checks := control.Metric{Name: "culvert_traversal_checks", Type: control.Counter, Help: "Connectivity checks sent to the peer's endpoints."}
	after := control.Metric{Name: "culvert_traversal_direct_after_seconds", Unit: "seconds", Help: "From the start of the search to the first direct path; absent when there was none."}
	for _, p := range peers {
		s := p.Traversal
		if s == nil {
			continue
		}
		add := func(m *control.Metric, v float64, labels ...string) {
			m.Samples = append(m.Samples, control.One(v, append([]string{"peer", p.Name}, labels...)...)...)
		}
		for ph := path.Off; ph <= path.Punching; ph++ {
			add(&phase, truth(s.Phase == ph.String()), "phase", ph.String())
		}
		add(&upgrades, float64(s.Upgrades))
		add(&fallbacks, float64(s.Fallbacks))
		add(&checks, float64(s.Checks))
		if s.DirectAfter > 0 {
			add(&after, time.Duration(s.DirectAfter).Seconds())
		}
	}
	events := map[string]uint64{}
	for c := range agent.NumCounters {
		events[strings.ReplaceAll(c.String(), " ", "-")] = counts.Counts[c]
	}
	return []control.Metric{phase, upgrades, fallbacks, checks, after,
		control.ByReason("culvert_traversal_events", "What became of checks, sealed messages and attempts with hard NATs.", events)}
}
