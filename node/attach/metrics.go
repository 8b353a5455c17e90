package attach

import (
	"time"

	"culvert.dev/culvert/internal/control"
)

// Metrics are the attachment's figures for monitoring. Names stay.
func (s source) Metrics() []control.Metric {
	st := s.a.Status()
	ready := 1.0
	if s.a.Health() != nil {
		ready = 0
	}
	list := []control.Metric{
		{Name: "culvert_build", Type: control.Info, Help: "The program.", Samples: control.One(1, "version", st.Version)},
		control.Level("culvert_attach_ready", "", "Whether the device answers and peers can be reached, as /readyz has it.", ready),
		control.Level("culvert_attach_uptime_seconds", "seconds", "Time since culvert attached to the device.", time.Since(s.a.started).Seconds()),
		{Name: "culvert_attach_drops", Type: control.Counter, Help: "Datagrams between the relay and WireGuard that were not passed on, by reason.",
			Samples: append(append(control.One(float64(st.Drops.Unknown), "reason", "unknown-peer"),
				control.One(float64(st.Drops.Foreign), "reason", "not-wireguard")...), control.One(float64(st.Drops.Down), "reason", "no-port")...)},
	}
	list = append(list, peerMetrics(st.Peers)...)
	connected := control.Metric{Name: "culvert_attach_relay_connected", Help: "Whether a relay is connected."}
	for _, r := range st.Relays {
		up := 0.0
		if r.Connected {
			up = 1
		}
		connected.Samples = append(connected.Samples, control.One(up, "relay", r.URL)...)
	}
	return append(append(list, connected), control.RuntimeMetrics()...)
}

func peerMetrics(peers []PeerStatus) []control.Metric {
	kind := control.Metric{Name: "culvert_attach_peer_path", Help: "How a peer is reached: 1 for the path in use."}
	rx := control.Metric{Name: "culvert_attach_peer_receive_bytes", Type: control.Counter, Unit: "bytes", Help: "Bytes from a peer, as the device counts them."}
	tx := control.Metric{Name: "culvert_attach_peer_transmit_bytes", Type: control.Counter, Unit: "bytes", Help: "Bytes to a peer, as the device counts them."}
	up := control.Metric{Name: "culvert_attach_peer_upgrades", Type: control.Counter, Help: "Moves of a peer to a direct path."}
	down := control.Metric{Name: "culvert_attach_peer_fallbacks", Type: control.Counter, Help: "Moves of a peer back to the relay."}
	for _, p := range peers {
		key := p.PublicKey.String()
		for _, k := range []string{pathDirect, pathRelay, pathNone} {
			v := 0.0
			if p.Path.Kind == k {
				v = 1
			}
			kind.Samples = append(kind.Samples, control.One(v, "peer", key, "path", k)...)
		}
		rx.Samples = append(rx.Samples, control.One(float64(p.RxBytes), "peer", key)...)
		tx.Samples = append(tx.Samples, control.One(float64(p.TxBytes), "peer", key)...)
		if t := p.Traversal; t != nil {
			up.Samples = append(up.Samples, control.One(float64(t.Upgrades), "peer", key)...)
			down.Samples = append(down.Samples, control.One(float64(t.Fallbacks), "peer", key)...)
		}
	}
	return []control.Metric{kind, rx, tx, up, down}
}
