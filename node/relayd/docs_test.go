package relayd

import (
	"os"
	"strings"
	"testing"

	"culvert.dev/culvert/internal/control"
)

// The table in docs/relay.md names every metric.
func TestMetricsAreDocumented(t *testing.T) {
	text, err := os.ReadFile("../../docs/relay.md")
	if err != nil {
		t.Skipf("SKIP the documentation is not here: %v", err)
	}
	conf := strings.ReplaceAll(quiet, "Listen = off", "Listen = 127.0.0.1:0")
	for _, m := range (source{start(t, setUp(t, conf))}).Metrics() {
		name := m.Name + map[control.MetricType]string{control.Counter: "_total", control.Info: "_info"}[m.Type]
		if !strings.Contains(string(text), "`"+name+"`") {
			t.Errorf("docs/relay.md does not have %s", name)
		}
	}
}
