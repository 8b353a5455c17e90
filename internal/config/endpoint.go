package config

import (
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// Endpoint is where devices find this node from outside.
type Endpoint struct {
	Host    string // an IP address without brackets, or a DNS name
	Port    uint16
	Guessed bool // Host is one of this host's own addresses, which may not be reachable from elsewhere
}

// String returns "host:port", with brackets around an IPv6 address.
func (e Endpoint) String() string { return net.JoinHostPort(e.Host, strconv.Itoa(int(e.Port))) }

// ParseEndpoint reads HOST or HOST:PORT as a user gives it; Port is 0 where none is given. Brackets around an IPv6 address
// without port are optional.
func ParseEndpoint(s string) (Endpoint, error) {
	bare := strings.TrimSuffix(strings.TrimPrefix(s, "["), "]")
	if a, err := netip.ParseAddr(bare); err == nil {
		return Endpoint{Host: a.String()}, nil
	}
	if !strings.Contains(s, ":") {
		return Endpoint{Host: s}, checkHost(s)
	}
	whole, err := parseEndpoint(s)
	if err != nil {
		return Endpoint{}, err
	}
	host, port, _ := net.SplitHostPort(whole)
	n, _ := strconv.ParseUint(port, 10, 16)
	return Endpoint{Host: host, Port: uint16(n)}, nil
}

// GuessHost returns the address of this host that most likely is the one to reach it at: the source address of its default
// route, IPv4 first, else a global unicast address of an interface, else loopback. It sends nothing.
func GuessHost() netip.Addr {
	return guessHost(routeSource, interfaceAddrs())
}

func guessHost(source func(network, target string) netip.Addr, own []netip.Addr) netip.Addr {
	// Any public addresses do; these are known to be routed wherever there is an internet.
	if a := source("udp4", "1.1.1.1:53"); a.IsValid() {
		return a
	}
	if a := source("udp6", "[2606:4700:4700::1111]:53"); a.IsValid() {
		return a
	}
	for _, v4 := range []bool{true, false} {
		i := slices.IndexFunc(own, func(a netip.Addr) bool { return a.Is4() == v4 && a.IsGlobalUnicast() })
		if i >= 0 {
			return own[i]
		}
	}
	return netip.AddrFrom4([4]byte{127, 0, 0, 1})
}

// routeSource connects a UDP socket, which looks up the route and sends no packet.
func routeSource(network, target string) netip.Addr {
	c, err := net.Dial(network, target)
	if err != nil {
		return netip.Addr{}
	}
	defer c.Close()
	a := c.LocalAddr().(*net.UDPAddr).AddrPort().Addr().Unmap()
	if !a.IsGlobalUnicast() {
		return netip.Addr{}
	}
	return a
}

// interfaceAddrs lists the addresses of interfaces that are up, without loopback; none where the host refuses to tell.
func interfaceAddrs() []netip.Addr {
	var list []netip.Addr
	interfaces, _ := net.Interfaces()
	for _, i := range interfaces {
		if i.Flags&net.FlagUp == 0 || i.Flags&net.FlagLoopback != 0 {
			continue
		}
		addrs, _ := i.Addrs()
		for _, a := range addrs {
			if p, err := netip.ParsePrefix(a.String()); err == nil {
				list = append(list, p.Addr())
			}
		}
	}
	return list
}
