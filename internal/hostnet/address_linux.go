package hostnet

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// procThread is of this thread, not of the process, so that it matches the sockets that are opened here where threads live in
// different network namespaces.
const procThread = "/proc/thread-self/net"

// Flags of addresses of <linux/if_addr.h>.
const (
	addrTemporary  = 0x01
	addrDADFailed  = 0x08
	addrDeprecated = 0x20
	addrTentative  = 0x40
)

// addresses asks package net, which knows interfaces, and /proc/net for the flags of IPv6 addresses. Where a sandbox refuses the
// first, there are the addresses alone.
func addresses() ([]Address, error) {
	list, err := interfaceAddresses()
	if err != nil {
		s, plainErr := Read()
		if plainErr != nil {
			return nil, errors.Join(err, plainErr)
		}
		for _, a := range s.Addrs {
			if !a.IsLoopback() {
				list = append(list, Address{Addr: a})
			}
		}
	}
	return withFlags(list, procThread), nil
}

// withFlags adds what if_inet6 in dir tells of IPv6 addresses.
func withFlags(list []Address, dir string) []Address {
	flags := map[netip.Addr]uint64{}
	// Without the file nothing is known of them, which is no error.
	_ = eachLine(dir, "if_inet6", func(f []string) {
		if len(f) < 6 {
			return
		}
		if v, err := strconv.ParseUint(f[4], 16, 32); err == nil {
			flags[hexPrefix6(f[0], f[2]).Addr()] = v
		}
	})
	list = slices.DeleteFunc(list, func(a Address) bool { return flags[a.Addr]&(addrDADFailed|addrTentative) != 0 })
	for i := range list {
		v := flags[list[i].Addr]
		list[i].Temporary, list[i].Deprecated = v&addrTemporary != 0, v&addrDeprecated != 0
	}
	return list
}

func gateways() ([]Gateway, error) { return gatewaysFrom(procThread) }

// gatewaysFrom reads the files of a /proc/net. A kernel without one of the families lacks its file.
func gatewaysFrom(dir string) (list []Gateway, err error) {
	for _, file := range []struct {
		name  string
		parse func([]string) defaultRoute
	}{{"route", defaultRoute4}, {"ipv6_route", defaultRoute6}} {
		var best defaultRoute
		err := eachLine(dir, file.name, func(f []string) { best.improve(file.parse(f)) })
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("read routes: %w", err)
		}
		if best.Addr.IsValid() {
			list = append(list, best.Gateway)
		}
	}
	return list, nil
}

// defaultRoute is a default route via a gateway; the zero value is none.
type defaultRoute struct {
	Gateway
	metric uint64
}

// improve keeps the better of two routes, the first of equals.
func (r *defaultRoute) improve(o defaultRoute) {
	if o.Addr.IsValid() && (!r.Addr.IsValid() || o.metric < r.metric) {
		*r = o
	}
}

// defaultRoute4 reads a line of the form that procRoute has.
func defaultRoute4(f []string) (r defaultRoute) {
	if len(f) < 8 || f[1] != "00000000" || f[7] != "00000000" {
		return r
	}
	via, err := strconv.ParseUint(f[2], 16, 32)
	flags, err2 := strconv.ParseUint(f[3], 16, 32)
	metric, err3 := strconv.ParseUint(f[6], 10, 32)
	if err != nil || err2 != nil || err3 != nil || flags&(rtfUp|rtfGateway|rtfReject) != rtfUp|rtfGateway {
		return r
	}
	var a [4]byte
	binary.NativeEndian.PutUint32(a[:], uint32(via))
	return defaultRoute{Gateway{netip.AddrFrom4(a), f[0]}, metric}
}

// defaultRoute6 reads a line of the form that procRoute6 has.
func defaultRoute6(f []string) (r defaultRoute) {
	if len(f) < 10 || strings.Trim(f[0], "0") != "" || f[1] != "00" || f[3] != "00" {
		return r
	}
	via := hexPrefix6(f[4], "80").Addr()
	metric, err := strconv.ParseUint(f[5], 16, 32)
	flags, err2 := strconv.ParseUint(f[8], 16, 32)
	if !via.IsValid() || err != nil || err2 != nil || flags&(rtfUp|rtfGateway|rtfReject) != rtfUp|rtfGateway {
		return r
	}
	if via.IsLinkLocalUnicast() {
		via = via.WithZone(f[9])
	}
	return defaultRoute{Gateway{via, f[9]}, metric}
}
