package netstack

import (
	"sync/atomic"

	"culvert.dev/culvert/filter"
	"culvert.dev/culvert/internal/packet"
)

// drop is why the pipeline itself, neither the decoder nor the policy, let go of a packet.
type drop uint8

const (
	dropNoFlow              drop = iota // TCP that belongs to no connection
	dropFlowLimit                       // the flow table, or the peer's share of it, is full of assured flows
	dropSocketLimit                     // no descriptor left for a host socket
	dropQueueFull                       // the queue towards the peers is full
	dropProtocol                        // a protocol that an exit cannot carry
	dropICMPError                       // an ICMP error about no known flow
	dropICMPOther                       // an ICMP message that is neither echo nor error
	dropTTL                             // time to live used up
	dropTooBig                          // does not fit the next hop and must not be fragmented
	dropHostSend                        // the host's kernel refused the datagram
	dropUnsolicited                     // a datagram from an address the peer has not written to (RFC 4787 section 5)
	dropRejectLimit                     // an answer to a refused packet was due, but over the rate limit
	dropEchoForbidden                   // the host forbids unprivileged echo (net.ipv4.ping_group_range)
	dropDialing                         // a repeated SYN while the host side is being dialled
	dropRateLimit                       // the peer's Rate is used up, in either direction
	dropFlowRate                        // the peer opens flows that nobody answers too fast
	dropUpstreamDown                    // through an upstream that is absent or out of reach
	dropUpstreamRoute                   // to what the upstream does not lead to: its AllowedIPs, its address families
	dropUpstreamUnsolicited             // out of the upstream, belonging to no flow that was opened on this side
	dropNoPort                          // no external port is free for a new flow
	dropReceiveFull                     // the reader of a socket of the node's own is too slow
	numDrops
)

var dropNames = [numDrops]string{
	"no-flow", "flow-limit", "socket-limit", "queue-full", "protocol", "icmp-error", "icmp-other", "ttl-exceeded",
	"too-big", "host-send", "unsolicited", "reject-limit", "echo-forbidden", "dialing", "rate-limit", "flow-rate",
	"upstream-down", "upstream-route", "upstream-unsolicited", "no-port", "receive-full",
}

// counters counts what was not passed on, by reason. Index with the three enums.
type counters struct {
	faults  [packet.NumFaults]atomic.Uint64
	reasons [filter.NumReasons]atomic.Uint64
	drops   [numDrops]atomic.Uint64
}

func (c *counters) fault(f packet.Fault)   { c.faults[f].Add(1) }
func (c *counters) reason(r filter.Reason) { c.reasons[r].Add(1) }
func (c *counters) drop(d drop)            { c.drops[d].Add(1) }

// snapshot returns the counters that are not zero, under their stable names.
func (c *counters) snapshot() map[string]uint64 {
	m := make(map[string]uint64)
	add := func(name string, n uint64) {
		if n > 0 {
			m[name] += n
		}
	}
	for i := range c.faults {
		add(packet.Fault(i).String(), c.faults[i].Load())
	}
	for i := range c.reasons {
		add(filter.Reason(i).String(), c.reasons[i].Load())
	}
	for i := range c.drops {
		add(dropNames[i], c.drops[i].Load())
	}
	return m
}
