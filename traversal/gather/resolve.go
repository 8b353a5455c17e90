package gather

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"time"
)

// resolveTimeout leaves time for a question to the addresses known before.
const resolveTimeout = 3 * time.Second

// addresses returns the first address of each family that server, "host:port", has.
func (g *Gatherer) addresses(ctx context.Context, server string) ([]netip.AddrPort, error) {
	host, service, err := net.SplitHostPort(server)
	if err != nil {
		return nil, fmt.Errorf("STUN server %s: %w", server, err)
	}
	port, err := strconv.ParseUint(service, 10, 16)
	if err != nil {
		return nil, fmt.Errorf("STUN server %s: %w", server, err)
	}
	all := make([]netip.Addr, 1)
	if all[0], err = netip.ParseAddr(host); err != nil {
		lookup, cancel := context.WithTimeout(ctx, resolveTimeout)
		defer cancel()
		if all, err = g.cfg.Resolve(lookup, host); err != nil {
			return nil, fmt.Errorf("resolve STUN server %s: %w", host, err)
		}
	}
	var list []netip.AddrPort
	for _, a := range all {
		a = a.Unmap()
		if !slices.ContainsFunc(list, func(b netip.AddrPort) bool { return b.Addr().Is4() == a.Is4() }) {
			list = append(list, netip.AddrPortFrom(a, uint16(port)))
		}
	}
	if len(list) == 0 {
		return nil, fmt.Errorf("resolve STUN server %s: no address", host)
	}
	return list, nil
}

func familyOf(a netip.Addr) uint8 {
	if a.Is4() {
		return 4
	}
	return 6
}
