package control

import (
	"maps"
	"slices"
)

// Level is a gauge of one sample without labels.
func Level(name, unit, help string, v float64) Metric {
	return Metric{Name: name, Unit: unit, Help: help, Samples: One(v)}
}

// Total is a counter of one sample without labels.
func Total(name, unit, help string, v uint64) Metric {
	return Metric{Name: name, Type: Counter, Unit: unit, Help: help, Samples: One(float64(v))}
}

// ByReason is a counter with a sample for each reason, in their order.
func ByReason(name, help string, counts map[string]uint64) Metric {
	m := Metric{Name: name, Type: Counter, Help: help}
	for _, reason := range slices.Sorted(maps.Keys(counts)) {
		m.Samples = append(m.Samples, One(float64(counts[reason]), "reason", reason)...)
	}
	return m
}

// One is a sample with labels given as name, value, name, value.
func One(v float64, labels ...string) []Sample {
	s := Sample{Value: v}
	for i := 0; i+1 < len(labels); i += 2 {
		s.Labels = append(s.Labels, Label{Name: labels[i], Value: labels[i+1]})
	}
	return []Sample{s}
}

// RuntimeMetrics are about the process; what cannot be read is absent.
func RuntimeMetrics() []Metric {
	u, err := ReadRuntime()
	if err != nil {
		return nil
	}
	return []Metric{
		Level("culvert_goroutines", "", "Goroutines of the process.", float64(u.Goroutines)),
		Level("culvert_open_descriptors", "", "File descriptors that the process has open.", float64(u.FDs)),
		Level("culvert_resident_memory_bytes", "bytes", "Memory of the process.", float64(u.RSSBytes)),
		Level("culvert_heap_bytes", "bytes", "Heap objects, live or not yet swept.", float64(u.HeapBytes)),
	}
}
