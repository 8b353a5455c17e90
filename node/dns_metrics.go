package node

import (
	"culvert.dev/culvert/internal/control"
	"culvert.dev/culvert/internal/dns"
)

// dnsMetrics are the resolver's figures.
func dnsMetrics(c dns.Counters) []control.Metric {
	return []control.Metric{
		{Name: "culvert_dns_queries", Type: control.Counter, Help: "Questions received from peers.", Samples: control.One(float64(c.Queries))},
		control.ByReason("culvert_dns_answers", "Answers to peers that took nobody else, or none, by reason.", map[string]uint64{
			"cache": c.CacheHits, "local": c.Local, "failed": c.Failures, "refused": c.Refused, "dropped": c.Dropped,
		}),
		{Name: "culvert_dns_filtered_records", Type: control.Counter, Help: "Records with addresses that the asking peer may not reach.", Samples: control.One(float64(c.Filtered))},
	}
}
