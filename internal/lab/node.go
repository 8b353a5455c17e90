//go:build linux

package lab

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
)

// Net is one laboratory: nodes and the wires between them. It is taken down when its test ends.
type Net struct {
	tb  TB
	id  int32
	dir string
}

// Node is one machine: a network namespace with a name.
type Node struct {
	Name     string
	net      *Net
	ns       *namespace
	resolver string // file that stands for /etc/resolv.conf, if the node has its own
}

// serial numbers laboratories and interfaces, since names below /run are shared between the tests of one process.
var serial atomic.Int32

// New starts a laboratory, or skips the test if none can be had here.
func New(tb TB) *Net {
	tb.Helper()
	if os.Getenv(stageEnv) != stageRun {
		reason := os.Getenv(refusedEnv)
		if reason == "" {
			reason = "the laboratory was not entered"
		}
		Skip(tb, "%s", reason)
	}
	touchSources()
	return &Net{tb: tb, id: serial.Add(1), dir: tb.TempDir()}
}

// Node adds a machine without any link but loopback.
func (n *Net) Node(name string) *Node {
	n.tb.Helper()
	ns, err := newNamespace(fmt.Sprintf("%d-%s", n.id, name))
	if err != nil {
		n.tb.Fatalf("node %s: %v", name, err)
	}
	n.tb.Cleanup(ns.close)
	x := &Node{Name: name, net: n, ns: ns}
	// What a namespace inherits differs between machines, so everything that matters is set. No duplicate address
	// detection and no ICMP rate limit: both would only make tests wait.
	for _, s := range [][2]string{
		{"net/ipv4/ip_forward", "0"}, {"net/ipv6/conf/all/forwarding", "0"},
		{"net/ipv4/conf/all/rp_filter", "0"}, {"net/ipv4/conf/default/rp_filter", "0"},
		{"net/ipv6/conf/all/disable_ipv6", "0"}, {"net/ipv6/conf/default/disable_ipv6", "0"},
		{"net/ipv6/conf/all/accept_dad", "0"}, {"net/ipv6/conf/default/accept_dad", "0"},
		{"net/ipv6/conf/default/accept_ra", "0"}, {"net/ipv6/conf/all/accept_ra", "0"},
		{"net/ipv4/icmp_ratelimit", "0"}, {"net/ipv6/icmp/ratelimit", "0"},
		{"net/ipv4/ip_local_port_range", "10000 60999"},
	} {
		x.Sysctl(s[0], s[1])
	}
	x.IP("link", "set", "lo", "up")
	return x
}

// Addrs is a list of prefixes for Wire; it exists to keep calls short.
func Addrs(prefixes ...string) []string { return prefixes }

// Wire connects two nodes by a veth pair. Each end is named after the node at the other end.
func (n *Net) Wire(a, b *Node, aAddrs, bAddrs []string) {
	n.tb.Helper()
	a.IP("link", "add", "name", b.Name, "type", "veth", "peer", "name", a.Name, "netns", b.ns.path)
	a.up(b.Name, aAddrs)
	b.up(a.Name, bAddrs)
}

func (x *Node) up(dev string, addrs []string) {
	for _, a := range addrs {
		x.Addr(dev, a)
	}
	x.IP("link", "set", "dev", dev, "up")
}

// Addr gives a device one more address, a prefix.
func (x *Node) Addr(dev, prefix string) {
	x.net.tb.Helper()
	args := []string{"addr", "add", prefix, "dev", dev}
	if p := netip.MustParsePrefix(prefix); p.Addr().Is6() {
		args = append(args, "nodad")
	}
	x.IP(args...)
}

// Route adds a route; via is a gateway's address, a device, or one of blackhole and unreachable.
func (x *Node) Route(dst, via string) {
	x.net.tb.Helper()
	if dst == "default" && strings.Contains(via, ":") {
		dst = "::/0"
	}
	switch _, err := netip.ParseAddr(via); {
	case err == nil:
		x.IP("route", "add", dst, "via", via)
	case via == "blackhole" || via == "unreachable":
		x.IP("route", "add", via, dst)
	default:
		x.IP("route", "add", dst, "dev", via)
	}
}

// IP runs ip(8) in the node, in the family that its arguments imply.
func (x *Node) IP(args ...string) {
	x.net.tb.Helper()
	if strings.Contains(strings.Join(args, " "), ":") && args[0] == "route" {
		args = append([]string{"-6"}, args...)
	}
	x.must("ip", args...)
}

// Forward makes the node a router.
func (x *Node) Forward() {
	x.Sysctl("net/ipv4/ip_forward", "1")
	x.Sysctl("net/ipv6/conf/all/forwarding", "1")
}

// Sysctl sets a kernel parameter, named as a path below /proc/sys.
func (x *Node) Sysctl(name, value string) {
	x.net.tb.Helper()
	err := x.Do(func() error { return os.WriteFile("/proc/sys/"+name, []byte(value), 0o644) })
	if err != nil {
		x.net.tb.Fatalf("node %s: %v", x.Name, err)
	}
}

// Resolver makes programs started in the node from now on see a resolv.conf that names these servers.
func (x *Node) Resolver(servers ...string) {
	var b strings.Builder
	for _, s := range servers {
		b.WriteString("nameserver " + s + "\n")
	}
	b.WriteString("options timeout:2 attempts:2\n")
	x.resolver = filepath.Join(x.net.dir, x.Name+".resolv.conf")
	if err := os.WriteFile(x.resolver, []byte(b.String()), 0o644); err != nil {
		x.net.tb.Fatalf("node %s: %v", x.Name, err)
	}
}

// Do runs f on a thread inside the node: sockets that f opens, and processes that it starts, belong to the node for good.
// Goroutines that f starts do not.
func (x *Node) Do(f func() error) error { return x.ns.do(f) }

// Dial connects from the node to a literal address. Network is tcp4, tcp6, udp4 or udp6.
func (x *Node) Dial(network, remote string, limit time.Duration) (c net.Conn, err error) {
	d := net.Dialer{Timeout: limit}
	err = x.Do(func() (err error) {
		c, err = d.Dial(network, remote)
		return err
	})
	return c, err
}

// Listen opens a TCP listener in the node; it is closed when tb ends.
func (x *Node) Listen(tb TB, addr string) (l net.Listener) {
	tb.Helper()
	err := x.Do(func() (err error) {
		l, err = net.Listen("tcp"+familyOf(addr), addr)
		return err
	})
	if err != nil {
		tb.Fatalf("node %s: %v", x.Name, err)
	}
	tb.Cleanup(func() { l.Close() })
	return l
}

// ListenUDP opens an unconnected UDP socket in the node; it is closed when tb ends.
func (x *Node) ListenUDP(tb TB, addr string) *net.UDPConn {
	tb.Helper()
	var c net.PacketConn
	err := x.Do(func() (err error) {
		c, err = new(net.ListenConfig).ListenPacket(context.Background(), "udp"+familyOf(addr), addr)
		return err
	})
	if err != nil {
		tb.Fatalf("node %s: %v", x.Name, err)
	}
	tb.Cleanup(func() { c.Close() })
	return c.(*net.UDPConn)
}

func familyOf(addrPort string) string {
	if strings.HasPrefix(addrPort, "[") {
		return "6"
	}
	return "4"
}

// Bound reports whether a socket of the node listens on a TCP port, or is bound to a UDP port.
func (x *Node) Bound(proto string, port int) bool {
	found := false
	x.Do(func() error {
		for _, family := range []string{"", "6"} {
			b, err := os.ReadFile("/proc/thread-self/net/" + proto + family)
			if err != nil {
				return err
			}
			for line := range strings.Lines(string(b)) {
				const local, state, listening, unconnected = 1, 3, "0A", "07"
				f := strings.Fields(line)
				if len(f) > state && strings.HasSuffix(f[local], fmt.Sprintf(":%04X", port)) {
					found = found || f[state] == listening || f[state] == unconnected
				}
			}
		}
		return nil
	})
	return found
}

// Port renders an address and port as dial and listen calls take them.
func Port(addr string, port int) string { return net.JoinHostPort(addr, strconv.Itoa(port)) }
