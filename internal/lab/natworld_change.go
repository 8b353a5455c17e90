//go:build linux

package lab

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"os"
	"regexp"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Reboot makes the router forget every mapping, and choose other ports where it does not keep them.
func (s *Site) Reboot() {
	s.world.tb.Helper()
	s.Router.Nft(s.rules.script())
	s.Router.FlushConntrack()
}

// SetWAN gives the site another outer address, as an internet provider does at night. Mappings of the old one are lost.
func (s *Site) SetWAN(addr string) {
	s.world.tb.Helper()
	if s.Carrier != nil || s.rules.direct() {
		s.world.tb.Fatalf("site %s: only a router on the internet itself can change its address", s.Name)
	}
	old := s.rules.wan
	s.rules.wan = netip.MustParseAddr(addr)
	s.Router.batch("addr flush dev wan")
	s.world.Core.batch(fmt.Sprintf("route del %s/32 dev %s", old, s.Name))
	s.attach(s.world.Core, coreGateway)
	s.Reboot()
}

// impairment is what the internet does to packets that cross it.
type impairment struct {
	loss  map[string]int // percent of UDP, by site, each way
	cut   [][2]string    // pairs of sites between which no UDP passes
	noTLS bool           // nobody reaches a relay
}

// Loss has a part of the datagrams from and to the site vanish.
func (w *NATWorld) Loss(s *Site, percent int) {
	w.tb.Helper()
	if w.impair.loss == nil {
		w.impair.loss = map[string]int{}
	}
	w.impair.loss[s.device()] = percent
	w.impair.load(w.Core)
}

// Cut lets no UDP pass between two sites from now on.
func (w *NATWorld) Cut(a, b *Site) {
	w.tb.Helper()
	w.impair.cut = append(w.impair.cut, [2]string{a.device(), b.device()})
	w.impair.load(w.Core)
}

// Mend undoes every Cut.
func (w *NATWorld) Mend() {
	w.tb.Helper()
	w.impair.cut = nil
	w.impair.load(w.Core)
}

// CutRelays ends the relay, without a word, and lets nobody connect to any.
func (w *NATWorld) CutRelays() {
	w.tb.Helper()
	w.impair.noTLS = true
	w.impair.load(w.Core)
	if w.Relay != nil {
		w.Relay.Crash()
	}
}

// device is the core's device towards the site.
func (s *Site) device() string {
	if s.Carrier != nil {
		return s.Carrier.device()
	}
	return s.Name
}

// load replaces the core's rules. Real paths are longer than the two or three routers of this world: datagrams with so few
// hops left that they would die on the way die here.
func (i *impairment) load(core *Node) {
	var b strings.Builder
	b.WriteString("table inet impair\ndelete table inet impair\ntable inet impair {\nchain forward {\ntype filter hook forward priority 0;\n")
	b.WriteString("meta l4proto udp ip ttl < 4 drop\nmeta l4proto udp ip6 hoplimit < 4 drop\n")
	for _, p := range i.cut {
		fmt.Fprintf(&b, "iifname %q oifname %q meta l4proto udp drop\niifname %[2]q oifname %[1]q meta l4proto udp drop\n", p[0], p[1])
	}
	for dev, percent := range i.loss {
		fmt.Fprintf(&b, "iifname %q meta l4proto udp numgen random mod 100 < %d drop\noifname %[1]q meta l4proto udp numgen random mod 100 < %[2]d drop\n", dev, percent)
	}
	if i.noTLS {
		b.WriteString("oifname \"srv\" meta l4proto tcp drop\niifname \"srv\" meta l4proto tcp drop\n")
	}
	b.WriteString("}\n}\n")
	core.Nft(b.String())
}

// CountUDP counts the datagrams that processes of the node send to any of these addresses from now on.
func (x *Node) CountUDP(to ...netip.Addr) func() int {
	x.net.tb.Helper()
	table := fmt.Sprintf("count%d", serial.Add(1))
	var rules strings.Builder
	for _, a := range to {
		family := "ip"
		if a.Is6() {
			family = "ip6"
		}
		fmt.Fprintf(&rules, "meta l4proto udp %s daddr %s counter\n", family, a)
	}
	x.Nft(fmt.Sprintf("table inet %s {\nchain output {\ntype filter hook output priority -300;\n%s}\n}\n", table, rules.String()))
	return func() (sum int) {
		for _, m := range counted.FindAllStringSubmatch(x.must("nft", "list", "table", "inet", table), -1) {
			n, err := strconv.Atoi(m[1])
			if err != nil {
				x.net.tb.Fatalf("node %s: counter: %v", x.Name, err)
			}
			sum += n
		}
		return sum
	}
}

var counted = regexp.MustCompile(`counter packets (\d+) `)

// FlushConntrack makes the node's kernel forget every connection (ctnetlink's request to delete, which names none).
func (x *Node) FlushConntrack() {
	x.net.tb.Helper()
	err := x.Do(func() error {
		fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		const headerLen, ctDelete = unix.SizeofNlMsghdr + 4, unix.NFNL_SUBSYS_CTNETLINK<<8 | 2
		msg := make([]byte, headerLen) // behind the header: address family (any), version, resource
		binary.NativeEndian.PutUint32(msg, headerLen)
		binary.NativeEndian.PutUint16(msg[4:], ctDelete)
		binary.NativeEndian.PutUint16(msg[6:], unix.NLM_F_REQUEST|unix.NLM_F_ACK)
		if err := unix.Sendto(fd, msg, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
			return err
		}
		answer := make([]byte, 4096)
		n, _, err := unix.Recvfrom(fd, answer, 0)
		if err != nil {
			return err
		}
		if n < unix.SizeofNlMsghdr+4 {
			return fmt.Errorf("an answer of %d bytes", n)
		}
		if code := int32(binary.NativeEndian.Uint32(answer[unix.SizeofNlMsghdr:])); code != 0 {
			return unix.Errno(-code)
		}
		return nil
	})
	if err != nil {
		x.net.tb.Fatalf("node %s: flush connection tracking: %v", x.Name, err)
	}
}

// sysctlIfPresent is Sysctl for a parameter that not every kernel has.
func (x *Node) sysctlIfPresent(name, value string) {
	x.net.tb.Helper()
	err := x.Do(func() error { return os.WriteFile("/proc/sys/"+name, []byte(value), 0o644) })
	if err != nil && !os.IsNotExist(err) {
		x.net.tb.Fatalf("node %s: %v", x.Name, err)
	}
}
