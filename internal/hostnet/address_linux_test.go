package hostnet

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

const heading = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n"

// route4 is a line of /proc/net/route. The addresses are written in the machine's byte order there.
func route4(iface, dst, via string, flags, metric int, mask string) string {
	word := func(s string) string {
		b := netip.MustParseAddr(s).As4()
		return fmt.Sprintf("%08X", binary.NativeEndian.Uint32(b[:]))
	}
	return fmt.Sprintf("%s\t%s\t%s\t%04X\t0\t0\t%d\t%s\t0\t0\t0\n", iface, word(dst), word(via), flags, metric, word(mask))
}

func route6(dst, bits, via string, metric, flags int, iface string) string {
	hex := func(s string) string { return fmt.Sprintf("%x", netip.MustParseAddr(s).As16()) }
	return fmt.Sprintf("%s %s %s 00 %s %08x 00000001 00000000 %08x %8s\n", hex(dst), bits, hex("::"), hex(via), metric, flags, iface)
}

func TestGatewaysOfLinux(t *testing.T) {
	const zero = "0.0.0.0"
	gw := func(addr, iface string) Gateway { return Gateway{netip.MustParseAddr(addr), iface} }
	for _, c := range []struct {
		name, route, route6 string
		want                []Gateway
	}{
		{name: "no files at all"},
		{name: "no route", route: heading},
		{name: "IPv4", route: heading + route4("eth0", zero, "192.168.1.1", 3, 100, zero) + route4("eth0", "192.168.1.0", zero, 1, 100, "255.255.255.0"),
			want: []Gateway{gw("192.168.1.1", "eth0")}},
		{name: "the lower metric", route: heading + route4("wlan0", zero, "192.168.3.1", 3, 600, zero) + route4("eth0", zero, "192.168.1.1", 3, 100, zero),
			want: []Gateway{gw("192.168.1.1", "eth0")}},
		{name: "a tunnel without a gateway", route: heading + route4("wg0", zero, zero, 1, 0, zero) + route4("eth0", zero, "192.168.1.1", 3, 100, zero),
			want: []Gateway{gw("192.168.1.1", "eth0")}},
		{name: "half of the internet is no default", route: heading + route4("tun0", zero, "10.8.0.1", 3, 0, "128.0.0.0")},
		{name: "down", route: heading + route4("eth0", zero, "192.168.1.1", 2, 100, zero)},
		{name: "an unreachable default", route: heading + route4("lo", zero, "192.168.1.1", 0x203, 100, zero)},
		{name: "nonsense", route: heading + "eth0 0 0 0 0 0 0 0 0\neth0\n\n", route6: "x y\n"},
		{name: "IPv6", route6: route6("2001:db8::", "40", "::", 256, 1, "eth0") + route6("::", "00", "fe80::1", 1024, 3, "eth0") + route6("::", "00", "::", 0xffffffff, 0x200200, "lo"),
			want: []Gateway{gw("fe80::1%eth0", "eth0")}},
		{name: "IPv6 of a global address", route6: route6("::", "00", "2001:db8::1", 1024, 3, "eth0"), want: []Gateway{gw("2001:db8::1", "eth0")}},
		{name: "both", route: heading + route4("eth0", zero, "192.168.1.1", 3, 100, zero), route6: route6("::", "00", "fe80::1", 1024, 3, "wlan0"),
			want: []Gateway{gw("192.168.1.1", "eth0"), gw("fe80::1%wlan0", "wlan0")}},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			for name, text := range map[string]string{"route": c.route, "ipv6_route": c.route6} {
				if text != "" {
					if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
						t.Fatal(err)
					}
				}
			}
			got, err := gatewaysFrom(dir)
			if err != nil || !slices.Equal(got, c.want) {
				t.Errorf("%v %v, want %v", got, err, c.want)
			}
		})
	}
	if _, err := gatewaysFrom("testdata/proc/route"); err == nil {
		t.Error("a folder that is a file is no error")
	}
}

func TestFlagsOfIPv6Addresses(t *testing.T) {
	line := func(a string, flags int) string {
		return fmt.Sprintf("%x 02 40 00 %02x     eth0\n", netip.MustParseAddr(a).As16(), flags)
	}
	dir := t.TempDir()
	text := line("2001:db8::1", 0x80) + line("2001:db8::2", 0x01) + line("2001:db8::3", 0x21) + line("2001:db8::4", 0x40) + line("2001:db8::5", 0x08) + "z\n"
	if err := os.WriteFile(filepath.Join(dir, "if_inet6"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	var list []Address
	for _, a := range addrs("192.0.2.1", "2001:db8::1", "2001:db8::2", "2001:db8::3", "2001:db8::4", "2001:db8::5", "2001:db8::6") {
		list = append(list, Address{Addr: a, Interface: "eth0"})
	}
	got := withFlags(slices.Clone(list), dir)
	want := slices.Clone(list[:4])
	want[2].Temporary, want[3].Temporary, want[3].Deprecated = true, true, true
	want = append(want, list[6])
	if !slices.Equal(got, want) {
		t.Errorf("%+v\nwant %+v", got, want)
	}
	if got := withFlags(slices.Clone(list), t.TempDir()); !slices.Equal(got, list) {
		t.Errorf("without the file: %+v", got)
	}
}
