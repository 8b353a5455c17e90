package portmap

import (
	"bufio"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// Flags of <linux/route.h>, and of addresses in <linux/if_addr.h>.
const (
	rtfUp      = 0x1
	rtfGateway = 0x2
	rtfReject  = 0x200

	addrDADFailed  = 0x08
	addrDeprecated = 0x20
	addrTentative  = 0x40
)

const maxAddrs6 = 4 // of this host, for which IPv6 pinholes are made

// procNet is of this thread, not of the process, so that it matches the sockets that are opened here where threads live in
// different network namespaces.
const procNet = "/proc/thread-self/net"

func systemGateways() ([]Gateway, error) { return gatewaysFrom(procNet, sourceTowards) }

// sourceTowards is the address that the kernel would send from. Nothing is sent.
func sourceTowards(a netip.Addr) netip.Addr {
	c, err := net.Dial("udp", netip.AddrPortFrom(a, servicePort).String())
	if err != nil {
		return netip.Addr{}
	}
	defer c.Close()
	local, _ := netip.AddrFromSlice(c.LocalAddr().(*net.UDPAddr).IP)
	return local.Unmap()
}

// gatewaysFrom reads the files of a /proc/net. A kernel without one of the families lacks its files.
func gatewaysFrom(dir string, source func(netip.Addr) netip.Addr) ([]Gateway, error) {
	var list []Gateway
	var best4, best6 route
	if err := eachLine(dir, "route", func(f []string) { best4.improve(parseRoute4(f)) }); err != nil {
		return nil, err
	}
	if best4.gateway.IsValid() {
		list = append(list, Gateway{Addr: best4.gateway, Local: source(best4.gateway), Interface: best4.iface})
	}
	if err := eachLine(dir, "ipv6_route", func(f []string) { best6.improve(parseRoute6(f)) }); err != nil {
		return nil, err
	}
	if !best6.gateway.IsValid() {
		return usable(list), nil
	}
	n := 0
	err := eachLine(dir, "if_inet6", func(f []string) {
		if local, ok := parseAddr6(f, best6.iface); ok && n < maxAddrs6 {
			list = append(list, Gateway{Addr: best6.gateway, Local: local, Interface: best6.iface})
			n++
		}
	})
	return usable(list), err
}

// route is a default route via a gateway; the zero value is none.
type route struct {
	gateway netip.Addr
	iface   string
	metric  uint64
}

// improve keeps the better of two routes, the first of equals.
func (r *route) improve(o route) {
	if o.gateway.IsValid() && (!r.gateway.IsValid() || o.metric < r.metric) {
		*r = o
	}
}

// eachLine calls line with the fields of every line; a file that is missing has none. Lines that do not look as expected are
// for line to leave out: these files have headings, and kernels add columns.
func eachLine(dir, name string, line func(fields []string)) error {
	f, err := os.Open(filepath.Join(dir, name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read routes: %w", err)
	}
	defer f.Close()
	s := bufio.NewScanner(f)
	for s.Scan() {
		line(strings.Fields(s.Text()))
	}
	if err := s.Err(); err != nil {
		return fmt.Errorf("read %s: %w", f.Name(), err)
	}
	return nil
}

// parseRoute4 reads "eth0 00000000 0100A8C0 0003 0 0 100 00000000 …": interface, destination, gateway, flags, two counters,
// metric, mask. Addresses are words of the machine's byte order.
func parseRoute4(f []string) (r route) {
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
	return route{netip.AddrFrom4(a), f[0], metric}
}

// parseRoute6 reads destination, its length, source, its length, next hop, metric, two counters, flags and interface, in
// hexadecimal.
func parseRoute6(f []string) (r route) {
	if len(f) < 10 || strings.Trim(f[0], "0") != "" || f[1] != "00" || f[3] != "00" {
		return r
	}
	via, ok := hexAddr6(f[4])
	metric, err := strconv.ParseUint(f[5], 16, 32)
	flags, err2 := strconv.ParseUint(f[8], 16, 32)
	if !ok || err != nil || err2 != nil || flags&(rtfUp|rtfGateway|rtfReject) != rtfUp|rtfGateway {
		return r
	}
	if via.IsLinkLocalUnicast() {
		via = via.WithZone(f[9])
	}
	return route{via, f[9], metric}
}

// parseAddr6 reads "20010db8… 02 40 00 80 eth0": address, index, prefix length, scope, flags, name, in hexadecimal. It wants
// addresses that strangers may send to. Unique local ones (fc00::/7) need no pinhole, since nobody outside has a route to them.
func parseAddr6(f []string, iface string) (a netip.Addr, ok bool) {
	if len(f) < 6 || f[5] != iface {
		return a, false
	}
	a, ok = hexAddr6(f[0])
	flags, err := strconv.ParseUint(f[4], 16, 32)
	return a, ok && err == nil && flags&(addrDADFailed|addrDeprecated|addrTentative) == 0 && a.IsGlobalUnicast() && !a.IsPrivate()
}

func hexAddr6(s string) (netip.Addr, bool) {
	b, err := hex.DecodeString(s)
	if err != nil || len(b) != 16 {
		return netip.Addr{}, false
	}
	return netip.AddrFrom16([16]byte(b)), true
}
