package config

import (
	"errors"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// ListenAddr is where a server listens on this host.
type ListenAddr struct {
	Addr netip.Addr // invalid: every address of the host, of both families
	Port uint16     // 0: any free one
}

// String returns the form that net.Listen takes.
func (a ListenAddr) String() string {
	host := ""
	if a.Addr.IsValid() {
		host = a.Addr.String()
	}
	return net.JoinHostPort(host, strconv.Itoa(int(a.Port)))
}

// ParseListenAddr reads ":443", "192.0.2.1:443" or "[2001:db8::1]:443".
func ParseListenAddr(s string) (ListenAddr, error) {
	if port, ok := strings.CutPrefix(s, ":"); ok {
		n, err := parseRange(port, "a port", 0, 65535)
		if err != nil {
			return ListenAddr{}, reject(s, "is not an address and port such as :443 or 192.0.2.1:443")
		}
		return ListenAddr{Port: uint16(n)}, nil
	}
	a, err := netip.ParseAddrPort(s)
	if err != nil || a.Addr().Is4In6() {
		return ListenAddr{}, reject(s, "is not an address and port such as :443, 192.0.2.1:443 or [2001:db8::1]:443")
	}
	return ListenAddr{a.Addr(), a.Port()}, nil
}

// appendListen adds the listeners of a list, each once.
func appendListen(list []ListenAddr, s string) ([]ListenAddr, error) {
	elements := splitList(s)
	if len(elements) == 0 {
		return list, errors.New("no address is given")
	}
	for _, element := range elements {
		a, err := ParseListenAddr(element)
		if err != nil {
			return list, err
		}
		if a.Port == 0 || !slices.Contains(list, a) {
			list = append(list, a)
		}
	}
	return list, nil
}

// appendListenOrOff is appendListen where "off" alone means none.
func appendListenOrOff(list []ListenAddr, off bool, s string) ([]ListenAddr, bool, error) {
	if off || strings.EqualFold(s, "off") {
		if len(list) > 0 || !strings.EqualFold(s, "off") {
			return list, off, reject(s, "contradicts another Listen: off stands alone")
		}
		return nil, true, nil
	}
	list, err := appendListen(list, s)
	return list, false, err
}
