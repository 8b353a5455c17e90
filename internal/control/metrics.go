package control

import (
	"bufio"
	"io"
	"math"
	"net/http"
	"strconv"
	"strings"
)

// MetricsSource is a Source that has metrics.
type MetricsSource interface {
	Metrics() []Metric
}

// Metric is a family of samples with one name.
type Metric struct {
	Name    string // as in Prometheus' data model; of a counter, without _total
	Type    MetricType
	Unit    string // of the values, if they have one; the name ends in it
	Help    string
	Samples []Sample
}

// MetricType is what values mean.
type MetricType uint8

const (
	Gauge   MetricType = iota // may go up and down
	Counter                   // only goes up, from zero at the start of the process
	Info                      // always 1, its labels are what it says
)

func (t MetricType) String() string { return [...]string{"gauge", "counter", "info"}[t] }

// suffix is what the names of the samples have behind that of the family.
func (t MetricType) suffix() string { return [...]string{"", "_total", "_info"}[t] }

// Sample is one value. No two samples of a metric have the same labels.
type Sample struct {
	Labels []Label
	Value  float64
}

// Label is a name and any text.
type Label struct{ Name, Value string }

// metricsType is the media type of OpenMetrics 1.0.0.
const metricsType = "application/openmetrics-text; version=1.0.0; charset=utf-8"

// WriteMetrics writes families in the text format of OpenMetrics 1.0.0, which Prometheus reads. A family without samples is left
// out.
func WriteMetrics(w io.Writer, families []Metric) error {
	b := bufio.NewWriter(w)
	for i := range families {
		if m := &families[i]; len(m.Samples) > 0 {
			m.write(b)
		}
	}
	b.WriteString("# EOF\n")
	return b.Flush()
}

func (m *Metric) write(b *bufio.Writer) {
	b.WriteString("# TYPE " + m.Name + " " + m.Type.String() + "\n")
	if m.Unit != "" {
		b.WriteString("# UNIT " + m.Name + " " + m.Unit + "\n")
	}
	b.WriteString("# HELP " + m.Name + " " + escapeMetric(m.Help) + "\n")
	for _, s := range m.Samples {
		b.WriteString(m.Name + m.Type.suffix())
		for i, l := range s.Labels {
			b.WriteString("{,"[min(i, 1) : min(i, 1)+1])
			b.WriteString(l.Name + `="` + escapeMetric(l.Value) + `"`)
		}
		if len(s.Labels) > 0 {
			b.WriteByte('}')
		}
		b.WriteString(" " + metricValue(s.Value) + "\n")
	}
}

var metricEscapes = strings.NewReplacer(`\`, `\\`, `"`, `\"`, "\n", `\n`)

func escapeMetric(s string) string { return metricEscapes.Replace(strings.ToValidUTF8(s, "\uFFFD")) }

func metricValue(v float64) string {
	switch {
	case math.IsNaN(v):
		return "NaN"
	case math.IsInf(v, 0):
		return map[bool]string{true: "+Inf", false: "-Inf"}[v > 0]
	case v == math.Trunc(v) && math.Abs(v) < 1<<53:
		return strconv.FormatInt(int64(v), 10)
	}
	return strconv.FormatFloat(v, 'g', -1, 64)
}

// serveMetrics answers with the metrics of a source.
func serveMetrics(w http.ResponseWriter, source MetricsSource) {
	w.Header().Set("Content-Type", metricsType)
	w.Header().Set("Cache-Control", "no-store")
	WriteMetrics(w, source.Metrics()) // an error means that the client has gone
}
