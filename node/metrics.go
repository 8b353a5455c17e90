package node

import (
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
		{Name: "culvert_build", Type: control.Info, Help: "The program.", Samples: control.One(1, "version", st.Version)},
		control.Level("culvert_ready", "", "Whether the node is ready, as culvert health has it.", ready),
		control.Level("culvert_uptime_seconds", "seconds", "Time since the node started.", time.Since(n.started).Seconds()),
	}
	list = append(list, n.peerMetrics(st.Peers)...)
	list = append(list, upstreamMetrics(st.Upstream)...)
	list = append(list, relayMetrics(st.Relays, st.RelayLost)...)
	list = append(list, outerMetrics(st.Outer)...)
	list = append(list, dnsMetrics(n.dns.Counters())...)
	list = append(list, serviceMetrics(st.Services, st.Exits)...)
	list = append(list, traversalMetrics(st.Peers, n.direct.stats())...)
	list = append(list,
		control.Metric{Name: "culvert_flows", Help: "Live flows by protocol.", Samples: slices.Concat(
			control.One(float64(st.Flows.TCP), "proto", "tcp"), control.One(float64(st.Flows.UDP), "proto", "udp"), control.One(float64(st.Flows.ICMP), "proto", "icmp"))},
		control.Level("culvert_flows_limit", "", "Flows that the table holds at most.", float64(n.net.FlowLimit())),
		control.ByReason("culvert_drops", "Packets that were not passed on, by reason.", st.Drops),
		control.Metric{Name: "culvert_rejects", Type: control.Counter, Help: "Answers to packets that were not passed on.", Samples: slices.Concat(
			control.One(float64(resets), "answer", "reset"), control.One(float64(icmp), "answer", "icmp"))},
		control.Metric{Name: "culvert_flow_log_lost_lines", Type: control.Counter, Help: "Lines that the flow log should have and has not.",
			Samples: control.One(float64(n.flowLogLoss.Load()))},
	)
	return append(list, control.RuntimeMetrics()...)
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
			m.Samples = append(m.Samples, control.One(v, append([]string{"peer", p.Name}, labels...)...)...)
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
		state.Samples = append(state.Samples, control.One(truth(u.State == s.String()), "state", s.String())...)
	}
	received := control.Metric{Name: "culvert_upstream_receive_bytes", Type: control.Counter, Unit: "bytes", Help: "Received through the upstream tunnel."}
	sent := control.Metric{Name: "culvert_upstream_transmit_bytes", Type: control.Counter, Unit: "bytes", Help: "Sent through the upstream tunnel."}
	age := control.Metric{Name: "culvert_upstream_handshake_age_seconds", Unit: "seconds", Help: "Time since the last handshake; absent when there was none."}
	for _, p := range u.Peers {
		received.Samples = append(received.Samples, control.One(float64(p.RxBytes), "endpoint", p.Endpoint)...)
		sent.Samples = append(sent.Samples, control.One(float64(p.TxBytes), "endpoint", p.Endpoint)...)
		if !p.LastHandshake.IsZero() {
			age.Samples = append(age.Samples, control.One(max(0, time.Since(p.LastHandshake.Time).Seconds()), "endpoint", p.Endpoint)...)
		}
	}
	return []control.Metric{state, received, sent, age, control.Level("culvert_upstream_flows", "", "Live flows through the upstream tunnel.", float64(u.Flows))}
}
