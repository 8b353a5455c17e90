// Package report turns what a measurement has brought into something to look at: where and of what the figures were taken,
// medians, ratios to a reference, targets that were met or not, as a text table, as JSON with every sample, and as one page of
// HTML with charts.
//
// It measures nothing, and it knows nothing of what the figures mean beyond their unit and whether less is better. A Document
// has no locks: one goroutine fills it.
//
//	d := &report.Document{
//		Title: "Throughput", Environment: report.Environment(),
//		Subject: "ours", Contenders: []string{"ours", "theirs"},
//		Pairs: []report.Pair{{Of: "ours", To: "theirs"}},
//	}
//	c := d.Case("TCP, 1 stream", "up", "Mbit/s")
//	c.Target = report.RatioAtLeast(1.05)
//	c.Add("ours", 1, 2731)
//	c.Add("theirs", 1, 2640)
//	err := d.WriteText(os.Stdout)
package report
