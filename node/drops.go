package node

import "culvert.dev/culvert/filter"

// dropTexts explain the reasons of the decoder and the data path; those of the policy explain themselves.
var dropTexts = map[string]string{
	// malformed packets
	"short":            "too short for an IP header",
	"bad-version":      "neither IPv4 nor IPv6",
	"bad-ip-length":    "the lengths in the IP header are wrong",
	"bad-ip-checksum":  "the checksum of the IPv4 header is wrong",
	"bad-ip-option":    "malformed IPv4 options, or a source route",
	"bad-extension":    "malformed IPv6 extension headers, or a source route",
	"bad-tcp-header":   "the TCP header is cut short",
	"bad-udp-length":   "the length in the UDP header is wrong",
	"bad-icmp-header":  "the ICMP header is cut short, or of the other family",
	"tiny-fragment":    "a fragment that cuts the transport header",
	"bad-fragment":     "a fragment with an impossible offset or length",
	"bad-checksum":     "the transport checksum is wrong",
	"fragment-overlap": "fragments of one datagram overlap",
	"fragment-limit":   "too many fragments wait for the rest of their datagram",

	// what the data path cannot pass on
	"no-flow":        "TCP that belongs to no connection, as after a restart",
	"flow-limit":     "the flow table, or the peer's share of it, is full",
	"socket-limit":   "the process may not open more sockets: raise its limit of descriptors (ulimit -n)",
	"queue-full":     "packets for peers come faster than the tunnel takes them",
	"protocol":       "a protocol that an exit cannot carry: it knows TCP, UDP and echo",
	"icmp-error":     "an ICMP error about no known flow",
	"icmp-other":     "an ICMP message that is neither echo nor error",
	"ttl-exceeded":   "the time to live is used up",
	"too-big":        "does not fit the next hop and must not be fragmented",
	"host-send":      "the host's kernel refused to send it: no route, or a firewall",
	"unsolicited":    "comes from an address that the peer has not written to",
	"reject-limit":   "refused without an answer, since too many were due",
	"echo-forbidden": "the host forbids ping sockets: set net.ipv4.ping_group_range",
	"dialing":        "a repeated connection request while the destination is being dialled",
	"rate-limit":     "the peer's Rate is used up",
	"flow-rate":      "the peer opens flows that nobody answers, or pings, too fast",

	// the upstream
	"upstream-down":        "the upstream is out of reach, and its traffic goes no other way",
	"upstream-route":       "the upstream does not lead there: its AllowedIPs or its addresses have none of that family",
	"upstream-unsolicited": "came out of the upstream and belongs to no flow from this side",
	"no-port":              "no port of the upstream's address is free for a new flow",

	"receive-full": "datagrams for this node itself come faster than its programs read them",

	"truncated": "a datagram from the host side larger than any buffer",
}

// explainDrop says what a reason for a dropped packet means, "" for one that is not known here, as that of a newer node.
func explainDrop(name string) string {
	if r, ok := filter.ReasonNamed(name); ok {
		return r.Explain()
	}
	return dropTexts[name]
}
