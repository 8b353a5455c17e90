package relayd

import (
	"maps"
	"slices"
	"time"

	"culvert.dev/culvert/internal/control"
)

// Metrics are the relay's figures for monitoring. Names stay. Clients have no figures of their own: there may be ten thousands.
func (s source) Metrics() []control.Metric {
	st := s.r.Status()
	ready, open := 1.0, 0.0
	if s.r.Health() != nil {
		ready = 0
	}
	if st.Open {
		open = 1
	}
	t := st.Traffic
	list := []control.Metric{
		{Name: "culvert_build", Type: control.Info, Help: "The program.", Samples: one(1, "version", st.Version)},
		gauge("culvert_relay_server_ready", "", "Whether the relay takes clients, as /readyz has it.", ready),
		gauge("culvert_relay_server_uptime_seconds", "seconds", "Time since the relay started.", time.Since(s.r.started).Seconds()),
		clientsByTransport(st.Clients),
		gauge("culvert_relay_server_clients_limit", "", "Clients that are admitted at most.", float64(st.Limits.MaxClients)),
		gauge("culvert_relay_server_allowed_keys", "", "Keys on the allow list.", float64(st.Allowed)),
		gauge("culvert_relay_server_open", "", "Whether every key is admitted.", open),
		counter("culvert_relay_server_accepted", "", "Connections of clients that were admitted.", t.Accepted),
		byReason("culvert_relay_server_refused", "Connections that were refused, by reason.", st.Refused),
		byReason("culvert_relay_server_cut", "Clients that the relay disconnected, by reason.", st.Ended),
		counter("culvert_relay_server_receive_packets", "", "Packets from clients.", t.RxPackets),
		counter("culvert_relay_server_receive_bytes", "bytes", "Bytes from clients, in frames of all types.", t.RxBytes),
		counter("culvert_relay_server_transmit_packets", "", "Packets to clients.", t.TxPackets),
		counter("culvert_relay_server_transmit_bytes", "bytes", "Bytes to clients, in frames of all types.", t.TxBytes),
		byReason("culvert_relay_server_drops", "Packets that were not passed on, by reason.", st.Dropped),
		counter("culvert_relay_server_rate_delays", "", "Times that a client was held to its rate.", t.Delayed),
		gauge("culvert_relay_server_queued_bytes", "bytes", "Memory of what waits for clients.", float64(t.QueuedBytes)),
	}
	list = append(list, certificateMetrics(st.Certificate)...)
	list = append(list, stunMetrics(st.STUN)...)
	list = append(list, wgstunMetrics(st.WGSTUN)...)
	return append(list, runtimeMetrics()...)
}

func clientsByTransport(clients []ClientStatus) control.Metric {
	count := map[string]uint64{"derp": 0, "fast-start": 0, "websocket": 0}
	for _, c := range clients {
		count[c.Transport]++
	}
	m := control.Metric{Name: "culvert_relay_server_clients", Help: "Connected clients by transport."}
	for _, name := range slices.Sorted(maps.Keys(count)) {
		m.Samples = append(m.Samples, one(float64(count[name]), "transport", name)...)
	}
	return m
}

// certificateMetrics are about the time that the certificate has left; without one there are none.
func certificateMetrics(c CertificateStatus) []control.Metric {
	if c.Expires.IsZero() {
		return nil
	}
	return []control.Metric{{
		Name: "culvert_relay_server_certificate_expiry_timestamp_seconds", Unit: "seconds", Help: "When the certificate ends, as Unix time.",
		Samples: one(float64(c.Expires.Unix()), "source", c.Source),
	}}
}

func stunMetrics(s *STUNStatus) []control.Metric {
	if s == nil {
		return nil
	}
	return []control.Metric{
		{Name: "culvert_relay_server_stun_responses", Type: control.Counter, Help: "Answers of the STUN server.", Samples: slices.Concat(
			one(float64(s.Answered), "kind", "success"), one(float64(s.Errors), "kind", "error"))},
		byReason("culvert_relay_server_stun_drops", "Datagrams that the STUN server did not answer, by reason.", s.Dropped),
		counter("culvert_relay_server_stun_transmit_bytes", "bytes", "Bytes that the STUN server has sent.", s.TxBytes),
	}
}

func wgstunMetrics(w *WGSTUNStatus) []control.Metric {
	if w == nil {
		return nil
	}
	return []control.Metric{
		gauge("culvert_relay_server_wgstun_clients", "", "Keys that the WG-STUN server knows.", float64(w.Clients)),
		counter("culvert_relay_server_wgstun_clients_refused", "", "Keys for which the WG-STUN server had no room.", w.Refused),
		{Name: "culvert_relay_server_wgstun_responses", Type: control.Counter, Help: "Answers of the WG-STUN server.", Samples: slices.Concat(
			one(float64(w.Answered), "kind", "stun"), one(float64(w.Echoes), "kind", "echo"))},
		byReason("culvert_relay_server_wgstun_drops", "Packets to the WG-STUN server that it did not answer, by reason.", w.Dropped),
	}
}

// runtimeMetrics are about the process; what cannot be read is absent.
func runtimeMetrics() []control.Metric {
	u, err := control.ReadRuntime()
	if err != nil {
		return nil
	}
	return []control.Metric{
		gauge("culvert_goroutines", "", "Goroutines of the process.", float64(u.Goroutines)),
		gauge("culvert_open_descriptors", "", "File descriptors that the process has open.", float64(u.FDs)),
		gauge("culvert_resident_memory_bytes", "bytes", "Memory of the process.", float64(u.RSSBytes)),
		gauge("culvert_heap_bytes", "bytes", "Heap objects, live or not yet swept.", float64(u.HeapBytes)),
	}
}

func gauge(name, unit, help string, v float64) control.Metric {
	return control.Metric{Name: name, Unit: unit, Help: help, Samples: one(v)}
}

func counter(name, unit, help string, v uint64) control.Metric {
	return control.Metric{Name: name, Type: control.Counter, Unit: unit, Help: help, Samples: one(float64(v))}
}

func byReason(name, help string, counts map[string]uint64) control.Metric {
	m := control.Metric{Name: name, Type: control.Counter, Help: help}
	for _, reason := range slices.Sorted(maps.Keys(counts)) {
		m.Samples = append(m.Samples, one(float64(counts[reason]), "reason", reason)...)
	}
	return m
}

// one is a sample with labels given as name, value, name, value.
func one(v float64, labels ...string) []control.Sample {
	s := control.Sample{Value: v}
	for i := 0; i+1 < len(labels); i += 2 {
		s.Labels = append(s.Labels, control.Label{Name: labels[i], Value: labels[i+1]})
	}
	return []control.Sample{s}
}
