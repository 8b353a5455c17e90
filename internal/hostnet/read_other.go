//go:build !linux

package hostnet

import (
	"fmt"
	"net"
	"net/netip"
)

func read() (*collection, error) {
	list, err := net.InterfaceAddrs()
	if err != nil {
		return nil, fmt.Errorf("read host addresses: %w", err)
	}
	var c collection
	for _, a := range list {
		n, ok := a.(*net.IPNet)
		if !ok {
			continue
		}
		ip, _ := netip.AddrFromSlice(n.IP)
		ip = ip.Unmap()
		ones, size := n.Mask.Size()
		c.address(netip.PrefixFrom(ip, ones-size+ip.BitLen()), ip.IsLoopback())
	}
	return &c, nil
}

// subscribe has nothing to offer: the state is polled.
func subscribe() (events <-chan struct{}, stop func()) { return nil, func() {} }
