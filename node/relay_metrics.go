package node

import (
	"time"

	"culvert.dev/culvert/internal/control"
	"culvert.dev/culvert/traversal/relay"
)

// relayMetrics are about the relays that the node keeps connections to; without any there are none.
func relayMetrics(relays []RelayStatus, lost uint64) []control.Metric {
	if len(relays) == 0 {
		return nil
	}
	connected := control.Metric{Name: "culvert_relay_connected", Help: "Whether there is a connection to the relay."}
	state := control.Metric{Name: "culvert_relay_state", Help: "1 for what the node is doing about the relay."}
	home := control.Metric{Name: "culvert_relay_home", Help: "Whether the node has named the relay as the place to find it."}
	rtt := control.Metric{Name: "culvert_relay_rtt_seconds", Unit: "seconds", Help: "Round-trip time to the relay; absent when not measured."}
	counters := []struct {
		metric control.Metric
		of     func(*RelayStatus) uint64
	}{
		{control.Metric{Name: "culvert_relay_receive_bytes", Unit: "bytes", Help: "Received by the relay, as WireGuard counts."}, func(r *RelayStatus) uint64 { return r.RxBytes }},
		{control.Metric{Name: "culvert_relay_transmit_bytes", Unit: "bytes", Help: "Sent by the relay, as WireGuard counts."}, func(r *RelayStatus) uint64 { return r.TxBytes }},
		{control.Metric{Name: "culvert_relay_receive_packets", Help: "Datagrams received by the relay."}, func(r *RelayStatus) uint64 { return r.RxPackets }},
		{control.Metric{Name: "culvert_relay_transmit_packets", Help: "Datagrams sent by the relay."}, func(r *RelayStatus) uint64 { return r.TxPackets }},
		{control.Metric{Name: "culvert_relay_reconnects", Help: "Connections to the relay after the first."}, func(r *RelayStatus) uint64 { return r.Reconnects }},
		{control.Metric{Name: "culvert_relay_drops", Help: "Datagrams for the relay that found no room."}, func(r *RelayStatus) uint64 { return r.Drops }},
	}
	for i := range relays {
		r := &relays[i]
		add := func(m *control.Metric, v float64, labels ...string) {
			m.Samples = append(m.Samples, control.One(v, append([]string{"relay", r.URL}, labels...)...)...)
		}
		add(&connected, truth(r.Connected))
		for is := relay.StateConnecting; is <= relay.StateWaiting; is++ {
			add(&state, truth(r.State == is.String()), "state", is.String())
		}
		add(&home, truth(r.Home))
		if r.RTT > 0 {
			add(&rtt, time.Duration(r.RTT).Seconds())
		}
		for c := range counters {
			counters[c].metric.Type = control.Counter
			add(&counters[c].metric, float64(counters[c].of(r)))
		}
	}
	list := []control.Metric{connected, state, home, rtt}
	for _, c := range counters {
		list = append(list, c.metric)
	}
	return append(list, control.Metric{
		Name: "culvert_relay_lost_packets", Type: control.Counter, Help: "Datagrams for relayed peers that were lost because no relay was connected.",
		Samples: control.One(float64(lost)),
	})
}

// outerMetrics tell of the servers that see the node from outside. One that answers by both families counts once.
func outerMetrics(outer []OuterStatus) []control.Metric {
	if len(outer) == 0 {
		return nil
	}
	known := control.Metric{Name: "culvert_outer_known", Help: "Whether the source tells the outer endpoint of the node."}
	rtt := control.Metric{Name: "culvert_outer_rtt_seconds", Unit: "seconds", Help: "Round-trip time to the source, the shorter of both families; absent when not known."}
	for len(outer) > 0 {
		source, is, least := outer[0].Source, false, Millis(0)
		for ; len(outer) > 0 && outer[0].Source == source; outer = outer[1:] {
			is = is || outer[0].Endpoint.IsValid()
			if d := outer[0].RTT; d > 0 && (least == 0 || d < least) {
				least = d
			}
		}
		known.Samples = append(known.Samples, control.One(truth(is), "source", source)...)
		if least > 0 {
			rtt.Samples = append(rtt.Samples, control.One(time.Duration(least).Seconds(), "source", source)...)
		}
	}
	return []control.Metric{known, rtt}
}

func truth(is bool) float64 {
	if is {
		return 1
	}
	return 0
}
