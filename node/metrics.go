package node

import (
	"cmp"
	"maps"
	"slices"
	"time"

	"culvert.dev/culvert/internal/control"
)

// Metrics are the node's figures for monitoring. Names stay.
func (s source) Metrics() []control.Metric {
	n := s.n
	st := n.Status()
	resets, icmp := n.net.Answers()
	ready := 1.0
	if n.Health() != nil {
		ready = 0
	}
	list := []control.Metric{
		{Name: "culvert_build", Type: control.Info, Help: "The program.", Samples: one(1, "version", st.Version)},
		gauge("culvert_ready", "", "Whether the node is ready, as culvert health has it.", ready),
		gauge("culvert_uptime_seconds", "seconds", "Time since the node started.", time.Since(n.started).Seconds()),
	}
	list = append(list, n.peerMetrics(st.Peers)...)
	list = append(list, upstreamMetrics(st.Upstream)...)
	list = append(list, relayMetrics(st.Relays, st.RelayLost)...)
	list = append(list, outerMetrics(st.Outer)...)
	list = append(list,
		control.Metric{Name: "culvert_flows", Help: "Live flows by protocol.", Samples: slices.Concat(
			one(float64(st.Flows.TCP), "proto", "tcp"), one(float64(st.Flows.UDP), "proto", "udp"), one(float64(st.Flows.ICMP), "proto", "icmp"))},
		gauge("culvert_flows_limit", "", "Flows that the table holds at most.", float64(n.net.FlowLimit())),
		drops(st.Drops),
		control.Metric{Name: "culvert_rejects", Type: control.Counter, Help: "Answers to packets that were not passed on.", Samples: slices.Concat(
			one(float64(resets), "answer", "reset"), one(float64(icmp), "answer", "icmp"))},
		control.Metric{Name: "culvert_flow_log_lost_lines", Type: control.Counter, Help: "Lines that the flow log should have and has not.",
			Samples: one(float64(n.flowLogLoss.Load()))},
	)
	return append(list, runtimeMetrics()...)
}

func (n *Node) peerMetrics(peers []PeerStatus) []control.Metric {
	received := control.Metric{Name: "culvert_peer_receive_bytes", Type: control.Counter, Unit: "bytes", Help: "Received from the peer through WireGuard."}
	sent := control.Metric{Name: "culvert_peer_transmit_bytes", Type: control.Counter, Unit: "bytes", Help: "Sent to the peer through WireGuard."}
	age := control.Metric{Name: "culvert_peer_handshake_age_seconds", Unit: "seconds", Help: "Time since the last handshake; absent when there was none."}
	rtt := control.Metric{Name: "culvert_peer_rtt_seconds", Unit: "seconds", Help: "Round-trip time of the path in use; absent when not measured."}
	path := control.Metric{Name: "culvert_peer_path", Help: "1 for the kind of path by which the peer is reached."}
	flows := control.Metric{Name: "culvert_peer_flows", Help: "Live flows that the peer has opened."}
	count := make(map[string]int)
	for id, c := range n.net.FlowsByPeer() {
		count[n.names.of(id)] += c
	}
	for _, p := range peers {
		add := func(m *control.Metric, v float64, labels ...string) {
			m.Samples = append(m.Samples, one(v, append([]string{"peer", p.Name}, labels...)...)...)
		}
		add(&received, float64(p.RxBytes))
		add(&sent, float64(p.TxBytes))
		add(&flows, float64(count[p.Name]))
		if !p.LastHandshake.IsZero() {
			add(&age, max(0, time.Since(p.LastHandshake.Time).Seconds()))
		}
		if p.Path.RTT > 0 {
			add(&rtt, time.Duration(p.Path.RTT).Seconds())
		}
		for _, kind := range []string{PathDirect, PathRelay, PathNone} {
			add(&path, truth(p.Path.Kind == kind), "kind", kind)
		}
	}
	return []control.Metric{received, sent, age, rtt, path, flows}
}

// upstreamMetrics are about the second tunnel; without one there are none.
func upstreamMetrics(u *UpstreamStatus) []control.Metric {
	if u == nil {
		return nil
	}
	state := control.Metric{Name: "culvert_upstream_state", Help: "1 for the state of the upstream tunnel."}
	for s := linkIdle; s <= linkDown; s++ {
		state.Samples = append(state.Samples, one(truth(u.State == s.String()), "state", s.String())...)
	}
	received := control.Metric{Name: "culvert_upstream_receive_bytes", Type: control.Counter, Unit: "bytes", Help: "Received through the upstream tunnel."}
	sent := control.Metric{Name: "culvert_upstream_transmit_bytes", Type: control.Counter, Unit: "bytes", Help: "Sent through the upstream tunnel."}
	age := control.Metric{Name: "culvert_upstream_handshake_age_seconds", Unit: "seconds", Help: "Time since the last handshake; absent when there was none."}
	for _, p := range u.Peers {
		received.Samples = append(received.Samples, one(float64(p.RxBytes), "endpoint", p.Endpoint)...)
		sent.Samples = append(sent.Samples, one(float64(p.TxBytes), "endpoint", p.Endpoint)...)
		if !p.LastHandshake.IsZero() {
			age.Samples = append(age.Samples, one(max(0, time.Since(p.LastHandshake.Time).Seconds()), "endpoint", p.Endpoint)...)
		}
	}
	return []control.Metric{state, received, sent, age, gauge("culvert_upstream_flows", "", "Live flows through the upstream tunnel.", float64(u.Flows))}
}

func drops(byReason map[string]uint64) control.Metric {
	m := control.Metric{Name: "culvert_drops", Type: control.Counter, Help: "Packets that were not passed on, by reason."}
	for _, reason := range slices.SortedFunc(maps.Keys(byReason), cmp.Compare[string]) {
		m.Samples = append(m.Samples, one(float64(byReason[reason]), "reason", reason)...)
	}
	return m
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

// one is a sample with labels given as name, value, name, value.
func one(v float64, labels ...string) []control.Sample {
	s := control.Sample{Value: v}
	for i := 0; i+1 < len(labels); i += 2 {
		s.Labels = append(s.Labels, control.Label{Name: labels[i], Value: labels[i+1]})
	}
	return []control.Sample{s}
}
