package hostnet

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"syscall"

	"golang.org/x/sys/unix"
)

func read() (*collection, error) {
	var c collection
	err := firstOf(c.netlinkAddrs, c.netlinkRoutes, func() error { return c.procAll("/proc/net") })
	return &c, err
}

// firstOf asks rtnetlink, and /proc/net for what that refuses. Networks of interfaces without the routes are accepted: they
// are most of what there is to know.
func firstOf(netlinkAddrs, netlinkRoutes, proc func() error) error {
	addrErr := netlinkAddrs()
	if addrErr == nil && netlinkRoutes() == nil {
		return nil
	}
	if procErr := proc(); addrErr != nil && procErr != nil {
		return fmt.Errorf("read host addresses: rtnetlink: %w; /proc/net: %w", addrErr, procErr)
	}
	return nil
}

// netlinkAddrs collects the addresses of all interfaces.
func (c *collection) netlinkAddrs() error {
	loopback, err := loopbacks()
	if err != nil {
		return err
	}
	return dump(unix.RTM_GETADDR, unix.RTM_NEWADDR, unix.SizeofIfAddrmsg, func(m syscall.NetlinkMessage, attrs []syscall.NetlinkRouteAttr) {
		// struct ifaddrmsg: family, prefix length, flags, scope, index
		bits, index := int(m.Data[1]), binary.NativeEndian.Uint32(m.Data[4:])
		var local, network netip.Addr
		for _, a := range attrs {
			switch a.Attr.Type {
			case unix.IFA_LOCAL:
				local, _ = netip.AddrFromSlice(a.Value)
			case unix.IFA_ADDRESS:
				network, _ = netip.AddrFromSlice(a.Value)
			}
		}
		if !local.IsValid() || local == network {
			c.address(netip.PrefixFrom(network, bits), loopback[index])
			return
		}
		// Point-to-point: the network lies around the other end.
		c.addrs = append(c.addrs, local)
		if !loopback[index] {
			c.route(netip.PrefixFrom(network, bits))
		}
	})
}

// netlinkRoutes collects from all routing tables what needs no gateway, and what the host takes for itself.
func (c *collection) netlinkRoutes() error {
	loopback, err := loopbacks()
	if err != nil {
		return err
	}
	return dump(unix.RTM_GETROUTE, unix.RTM_NEWROUTE, unix.SizeofRtMsg, func(m syscall.NetlinkMessage, attrs []syscall.NetlinkRouteAttr) {
		// struct rtmsg: family, destination length, source length, tos, table, protocol, scope, type, flags
		bits, kind := int(m.Data[1]), m.Data[7]
		if binary.NativeEndian.Uint32(m.Data[8:])&unix.RTM_F_CLONED != 0 {
			return
		}
		var dst netip.Addr // stays invalid for a default route, which is no local network
		gateway, lo := false, false
		for _, a := range attrs {
			switch a.Attr.Type {
			case unix.RTA_DST:
				dst, _ = netip.AddrFromSlice(a.Value)
			case unix.RTA_GATEWAY, unix.RTA_VIA:
				gateway = true
			case unix.RTA_MULTIPATH:
				gateway = !onLinkHop(a.Value)
			case unix.RTA_OIF:
				lo = len(a.Value) >= 4 && loopback[binary.NativeEndian.Uint32(a.Value)]
			}
		}
		switch p := netip.PrefixFrom(dst, bits); kind {
		case unix.RTN_LOCAL, unix.RTN_ANYCAST:
			c.localRoute(p)
		case unix.RTN_UNICAST:
			if !gateway && !lo {
				c.route(p)
			}
		}
	})
}

// onLinkHop reports whether one of the next hops of a multipath route needs no gateway. b is a list of struct rtnexthop
// (length, flags, hops, interface index), each followed by its attributes.
func onLinkHop(b []byte) bool {
	for len(b) >= unix.SizeofRtNexthop {
		size := int(binary.NativeEndian.Uint16(b))
		if size < unix.SizeofRtNexthop || size > len(b) {
			return false
		}
		gateway := false
		for attrs := b[unix.SizeofRtNexthop:size]; len(attrs) >= unix.SizeofRtAttr; {
			n, kind := int(binary.NativeEndian.Uint16(attrs)), binary.NativeEndian.Uint16(attrs[2:])
			if n < unix.SizeofRtAttr || n > len(attrs) {
				break
			}
			gateway = gateway || kind == unix.RTA_GATEWAY || kind == unix.RTA_VIA
			attrs = attrs[min(align4(n), len(attrs)):]
		}
		if !gateway {
			return true
		}
		b = b[min(align4(size), len(b)):]
	}
	return false
}

func align4(n int) int { return (n + 3) &^ 3 }

func loopbacks() (map[uint32]bool, error) {
	list, err := net.Interfaces()
	if err != nil {
		return nil, err
	}
	set := map[uint32]bool{}
	for _, i := range list {
		if i.Flags&net.FlagLoopback != 0 {
			set[uint32(i.Index)] = true
		}
	}
	return set, nil
}

// dump asks for everything of one kind and calls each for every answer of type want with at least size bytes of header.
func dump(request, want, size int, each func(syscall.NetlinkMessage, []syscall.NetlinkRouteAttr)) error {
	b, err := syscall.NetlinkRIB(request, unix.AF_UNSPEC)
	if err != nil {
		return err
	}
	messages, err := syscall.ParseNetlinkMessage(b)
	if err != nil {
		return err
	}
	for _, m := range messages {
		if m.Header.Type == unix.NLMSG_ERROR {
			return errors.New("the kernel refuses the request")
		}
		if int(m.Header.Type) != want || len(m.Data) < size || m.Data[0] != unix.AF_INET && m.Data[0] != unix.AF_INET6 {
			continue
		}
		attrs, err := syscall.ParseNetlinkRouteAttr(&m)
		if err != nil {
			return err
		}
		each(m, attrs)
	}
	return nil
}
