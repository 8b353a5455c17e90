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
		{Name: "culvert_build", Type: control.Info, Help: "The program.", Samples: control.One(1, "version", st.Version)},
		control.Level("culvert_relay_server_ready", "", "Whether the relay takes clients, as /readyz has it.", ready),
		control.Level("culvert_relay_server_uptime_seconds", "seconds", "Time since the relay started.", time.Since(s.r.started).Seconds()),
		clientsByTransport(st.Clients),
		control.Level("culvert_relay_server_clients_limit", "", "Clients that are admitted at most.", float64(st.Limits.MaxClients)),
		control.Level("culvert_relay_server_allowed_keys", "", "Keys on the allow list.", float64(st.Allowed)),
		control.Level("culvert_relay_server_open", "", "Whether every key is admitted.", open),
		control.Total("culvert_relay_server_accepted", "", "Connections of clients that were admitted.", t.Accepted),
		control.ByReason("culvert_relay_server_refused", "Connections that were refused, by reason.", st.Refused),
		control.ByReason("culvert_relay_server_cut", "Clients that the relay disconnected, by reason.", st.Ended),
		control.Total("culvert_relay_server_receive_packets", "", "Packets from clients.", t.RxPackets),
		control.Total("culvert_relay_server_receive_bytes", "bytes", "Bytes from clients, in frames of all types.", t.RxBytes),
		control.Total("culvert_relay_server_transmit_packets", "", "Packets to clients.", t.TxPackets),
		control.Total("culvert_relay_server_transmit_bytes", "bytes", "Bytes to clients, in frames of all types.", t.TxBytes),
		control.ByReason("culvert_relay_server_drops", "Packets that were not passed on, by reason.", st.Dropped),
		control.Total("culvert_relay_server_rate_delays", "", "Times that a client was held to its rate.", t.Delayed),
		control.Level("culvert_relay_server_queued_bytes", "bytes", "Memory of what waits for clients.", float64(t.QueuedBytes)),
	}
	list = append(list, certificateMetrics(st.Certificate)...)
	list = append(list, stunMetrics(st.STUN)...)
	list = append(list, wgstunMetrics(st.WGSTUN)...)
	return append(list, control.RuntimeMetrics()...)
}

func clientsByTransport(clients []ClientStatus) control.Metric {
	count := map[string]uint64{"derp": 0, "fast-start": 0, "websocket": 0}
	for _, c := range clients {
		count[c.Transport]++
	}
	m := control.Metric{Name: "culvert_relay_server_clients", Help: "Connected clients by transport."}
	for _, name := range slices.Sorted(maps.Keys(count)) {
		m.Samples = append(m.Samples, control.One(float64(count[name]), "transport", name)...)
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
		Samples: control.One(float64(c.Expires.Unix()), "source", c.Source),
	}}
}

func stunMetrics(s *STUNStatus) []control.Metric {
	if s == nil {
		return nil
	}
	return []control.Metric{
		{Name: "culvert_relay_server_stun_responses", Type: control.Counter, Help: "Answers of the STUN server.", Samples: slices.Concat(
			control.One(float64(s.Answered), "kind", "success"), control.One(float64(s.Errors), "kind", "error"))},
		control.ByReason("culvert_relay_server_stun_drops", "Datagrams that the STUN server did not answer, by reason.", s.Dropped),
		control.Total("culvert_relay_server_stun_transmit_bytes", "bytes", "Bytes that the STUN server has sent.", s.TxBytes),
	}
}

func wgstunMetrics(w *WGSTUNStatus) []control.Metric {
	if w == nil {
		return nil
	}
	return []control.Metric{
		control.Level("culvert_relay_server_wgstun_clients", "", "Keys that the WG-STUN server knows.", float64(w.Clients)),
		control.Total("culvert_relay_server_wgstun_clients_refused", "", "Keys for which the WG-STUN server had no room.", w.Refused),
		{Name: "culvert_relay_server_wgstun_responses", Type: control.Counter, Help: "Answers of the WG-STUN server.", Samples: slices.Concat(
			control.One(float64(w.Answered), "kind", "stun"), control.One(float64(w.Echoes), "kind", "echo"))},
		control.ByReason("culvert_relay_server_wgstun_drops", "Packets to the WG-STUN server that it did not answer, by reason.", w.Dropped),
	}
}
