package hostnet

import (
	"bufio"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// Route flags of <linux/route.h> and <linux/ipv6_route.h>.
const (
	rtfUp      = 0x1
	rtfGateway = 0x2
	rtfReject  = 0x200
	rtfAnycast = 0x100000
	rtfCache   = 0x1000000
	rtfLocal   = 0x80000000
)

// procAll collects addresses and routes from the files in dir, which is /proc/net. Without fib_trie or if_inet6 the
// addresses of a family are not known, which is an error; a kernel without IPv6 has no if_inet6. The files with routes may
// be missing.
func (c *collection) procAll(dir string) error {
	err := eachLine(dir, "fib_trie", c.fibTrie())
	if err6 := eachLine(dir, "if_inet6", c.ifInet6); !errors.Is(err6, fs.ErrNotExist) {
		err = errors.Join(err, err6)
	}
	if err != nil {
		return err
	}
	for name, line := range map[string]func([]string){"route": c.procRoute, "ipv6_route": c.procRoute6} {
		if err := eachLine(dir, name, line); err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, fs.ErrPermission) {
			return err
		}
	}
	return nil
}

// eachLine calls line with the fields of every line. Lines that do not look as expected are left out by line itself: these
// files have headings, and kernels add columns.
func eachLine(dir, name string, line func(fields []string)) error {
	f, err := os.Open(filepath.Join(dir, name))
	if err != nil {
		return err
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

// fibTrie reads the tree of IPv4 routes. A leaf is a line with its address, and below one line for each prefix length:
//
//	|-- 192.0.2.2
//	   /32 host LOCAL
func (c *collection) fibTrie() func([]string) {
	var leaf netip.Addr
	return func(f []string) {
		switch {
		case len(f) == 2 && f[0] == "|--":
			leaf, _ = netip.ParseAddr(f[1])
		case len(f) >= 3 && strings.HasPrefix(f[0], "/") && f[2] == "LOCAL":
			if bits, err := strconv.Atoi(f[0][1:]); err == nil {
				c.localRoute(netip.PrefixFrom(leaf, bits))
			}
		}
	}
}

// ifInet6 reads "fd000000000000000000000000000002 04 40 00 80 eth0": address, index, prefix length, scope, flags, name, in
// hexadecimal.
func (c *collection) ifInet6(f []string) {
	if len(f) < 6 {
		return
	}
	c.address(hexPrefix6(f[0], f[2]), f[5] == "lo")
}

// procRoute reads "eth0 000200C0 00000000 0001 0 0 0 00FFFFFF …": interface, destination, gateway, flags, counters,
// metric, mask. Addresses are words of the machine's byte order.
func (c *collection) procRoute(f []string) {
	if len(f) < 8 || f[0] == "lo" {
		return
	}
	dst, err := strconv.ParseUint(f[1], 16, 32)
	flags, err2 := strconv.ParseUint(f[3], 16, 32)
	mask, err3 := strconv.ParseUint(f[7], 16, 32)
	if err != nil || err2 != nil || err3 != nil || flags&(rtfUp|rtfGateway|rtfReject) != rtfUp {
		return
	}
	var a, m [4]byte
	binary.NativeEndian.PutUint32(a[:], uint32(dst))
	binary.NativeEndian.PutUint32(m[:], uint32(mask))
	bits := 0
	for v := binary.BigEndian.Uint32(m[:]); v&0x80000000 != 0; v <<= 1 {
		bits++
	}
	c.route(netip.PrefixFrom(netip.AddrFrom4(a), bits))
}

// procRoute6 reads destination, prefix length, source, its length, next hop, metric, two counters, flags and interface, in
// hexadecimal.
func (c *collection) procRoute6(f []string) {
	if len(f) < 10 {
		return
	}
	p := hexPrefix6(f[0], f[1])
	flags, err := strconv.ParseUint(f[8], 16, 32)
	switch {
	case err != nil || flags&rtfUp == 0 || flags&(rtfReject|rtfCache) != 0:
	case flags&(rtfLocal|rtfAnycast) != 0:
		c.localRoute(p)
	case flags&rtfGateway == 0 && f[9] != "lo":
		c.route(p)
	}
}

// hexPrefix6 returns an invalid prefix for anything that is not 32 digits and a length.
func hexPrefix6(addr, length string) netip.Prefix {
	b, err := hex.DecodeString(addr)
	bits, err2 := strconv.ParseUint(length, 16, 8)
	if err != nil || err2 != nil || len(b) != 16 {
		return netip.Prefix{}
	}
	return netip.PrefixFrom(netip.AddrFrom16([16]byte(b)), int(bits))
}
