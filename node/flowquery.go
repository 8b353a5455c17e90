package node

import (
	"fmt"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"culvert.dev/culvert/internal/packet"
	"culvert.dev/culvert/nat"
	"culvert.dev/culvert/netstack"
)

// FlowQuery chooses flows and events.
type FlowQuery struct {
	filter netstack.FlowFilter
	peer   string          // by name, not looked up yet
	events []nat.EventKind // none: all
}

// flowParameters are what a query may have, each at most once. An empty value counts as absent.
var flowParameters = map[string]func(*FlowQuery, string) error{
	"family": func(q *FlowQuery, s string) error {
		switch strings.ToLower(s) {
		case "ipv4", "inet", "4":
			q.filter.V = 4
		case "ipv6", "inet6", "6":
			q.filter.V = 6
		default:
			return fmt.Errorf("%q is neither ipv4 nor ipv6", s)
		}
		return nil
	},
	"proto": func(q *FlowQuery, s string) (err error) {
		q.filter.Protos, err = parseProto(s)
		return err
	},
	"src":   func(q *FlowQuery, s string) (err error) { q.filter.Src, err = parsePrefix(s); return err },
	"dst":   func(q *FlowQuery, s string) (err error) { q.filter.Dst, err = parsePrefix(s); return err },
	"sport": func(q *FlowQuery, s string) (err error) { q.filter.SrcPort, err = parsePort(s); return err },
	"dport": func(q *FlowQuery, s string) (err error) { q.filter.DstPort, err = parsePort(s); return err },
	"state": func(q *FlowQuery, s string) error {
		var names []string
		for st := nat.TCPSynSent; st <= nat.TCPSynSent2; st++ {
			if names = append(names, st.String()); strings.EqualFold(s, st.String()) {
				q.filter.TCP = st
				return nil
			}
		}
		return fmt.Errorf("%q is none of %s", s, strings.Join(names, ", "))
	},
	"peer": func(q *FlowQuery, s string) error {
		q.peer = s
		return nil
	},
	"event-mask": func(q *FlowQuery, s string) error {
		for _, word := range strings.Split(s, ",") {
			kinds := []nat.EventKind{nat.EventNew, nat.EventUpdate, nat.EventDestroy}
			i := slices.IndexFunc(kinds, func(k nat.EventKind) bool {
				return strings.EqualFold(word, k.String()+"S") || strings.EqualFold(word, k.String())
			})
			if strings.EqualFold(word, "all") {
				q.events = append(q.events, kinds...)
			} else if i < 0 {
				return fmt.Errorf("%q is none of NEW, UPDATE, DESTROY", word)
			} else {
				q.events = append(q.events, kinds[i])
			}
		}
		return nil
	},
}

// ParseFlowQuery reads the parameters of a query: family, proto, src, dst, sport, dport, state, peer, event-mask. An error names the
// parameter.
func ParseFlowQuery(values url.Values) (FlowQuery, error) {
	var q FlowQuery
	for name, list := range values {
		set := flowParameters[name]
		switch {
		case set == nil:
			return q, fmt.Errorf("%q is no filter of flows", name)
		case len(list) != 1:
			return q, fmt.Errorf("%s: given more than once", name)
		case list[0] == "":
			continue
		}
		if err := set(&q, list[0]); err != nil {
			return q, fmt.Errorf("%s: %w", name, err)
		}
	}
	return q, nil
}

// parseProto reads a protocol; icmp is that of either family, as in rules.
func parseProto(s string) ([]uint8, error) {
	switch strings.ToLower(s) {
	case "icmp":
		return []uint8{packet.ProtoICMPv4, packet.ProtoICMPv6}, nil
	case "icmpv6", "ipv6-icmp":
		return []uint8{packet.ProtoICMPv6}, nil
	}
	for p, name := range protoNames {
		if strings.EqualFold(s, name) {
			return []uint8{p}, nil
		}
	}
	n, err := strconv.ParseUint(s, 10, 8)
	if err != nil {
		return nil, fmt.Errorf("%q is none of tcp, udp, icmp, icmpv6, nor a protocol number", s)
	}
	return []uint8{uint8(n)}, nil
}

func parsePrefix(s string) (netip.Prefix, error) {
	if a, err := netip.ParseAddr(s); err == nil && a.Zone() == "" {
		return netip.PrefixFrom(a, a.BitLen()), nil
	}
	p, err := netip.ParsePrefix(s)
	if err != nil {
		return p, fmt.Errorf("%q is not an address or prefix such as 10.0.0.2 or fd00::/64", s)
	}
	return p.Masked(), nil
}

func parsePort(s string) (uint16, error) {
	n, err := strconv.ParseUint(s, 10, 16)
	if err != nil || n == 0 {
		return 0, fmt.Errorf("%q is not a port (1 to 65535)", s)
	}
	return uint16(n), nil
}
