package hostnet

import (
	"errors"
	"net"
	"net/netip"
	"runtime"
	"strings"
)

// Address is one of the host's, with what is known of it.
type Address struct {
	Addr       netip.Addr // without zone
	Interface  string     // "" if the system tells only addresses
	Temporary  bool       // made for privacy, and to be replaced (RFC 8981)
	Deprecated bool       // to be given up
	Internal   bool       // of a bridge or the like for containers and virtual machines: nobody outside of this host is behind it
}

// Gateway is a router on the way to the internet.
type Gateway struct {
	Addr      netip.Addr // with a zone if it is link-local
	Interface string
}

// ErrNoGateways means that this system does not tell its gateways, or not in a way that is known here.
var ErrNoGateways = errors.New("the default gateway cannot be found out on " + runtime.GOOS)

// Addresses returns the addresses of interfaces that are up, without those of loopback, and those of which it is not certain yet
// that no other host has them.
func Addresses() ([]Address, error) { return addresses() }

// Gateways returns the gateway of the best default route of each family, IPv4 first. Without any default route via a gateway the
// list is empty. It blocks for no longer than reading some files takes.
func Gateways() ([]Gateway, error) { return gateways() }

// Source is the address that this host would send to a destination from, invalid if there is no way. Nothing is sent.
func Source(to netip.Addr) netip.Addr {
	const discard = 9 // any port will do
	if !to.IsValid() {
		return netip.Addr{} // package net takes that for this host
	}
	c, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(netip.AddrPortFrom(to, discard)))
	if err != nil {
		return netip.Addr{}
	}
	defer c.Close()
	return c.LocalAddr().(*net.UDPAddr).AddrPort().Addr().Unmap().WithZone("")
}

// interfaceAddresses asks package net.
func interfaceAddresses() (list []Address, err error) {
	all, err := net.Interfaces()
	if err != nil {
		return nil, err
	}
	for _, i := range all {
		if i.Flags&net.FlagUp == 0 || i.Flags&net.FlagLoopback != 0 {
			continue
		}
		addrs, err := i.Addrs()
		if err != nil {
			return nil, err
		}
		for _, a := range addrs {
			if n, ok := a.(*net.IPNet); ok {
				ip, _ := netip.AddrFromSlice(n.IP)
				list = append(list, Address{Addr: ip.Unmap(), Interface: i.Name, Internal: internalName(i.Name)})
			}
		}
	}
	return list, nil
}

// internalName knows the names that programs for containers and virtual machines give to interfaces of their own.
func internalName(name string) bool {
	for _, prefix := range []string{
		"docker", "br-", "virbr", "veth", "vnet", "cni", "flannel", "cali", "podman", "lxcbr", "lxdbr", "incusbr", "vmnet", "vboxnet", "bridge1",
	} {
		if strings.HasPrefix(name, prefix) {
			return true
		}
	}
	return false
}
