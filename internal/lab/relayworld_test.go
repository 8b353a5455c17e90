//go:build linux

package lab_test

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"culvert.dev/culvert/internal/lab"
	"culvert.dev/culvert/internal/wgkey"
)

// relayWorld are two sites whose routers let no UDP out, and machines with public addresses that may run a relay:
//
//	c ── a ── ra ── i ── rb ── b ── s
//	                │
//	             v1, v2
//
// a and b are nodes. c is a machine with stock WireGuard beside a, which may reach b through it; s is a server in b's
// local network. So whatever c exchanges with s runs through a, a relay and b.
type relayWorld struct {
	*lab.Net
	c, a, ra, i, rb, b, s, v1, v2 *lab.Node

	cKey, aKey, bKey wgkey.Private
	nodeA, nodeB     *lab.Exit
}

const (
	relay1 = "198.18.3.2" // of v1, which has a second address for STUN
	relay2 = "198.18.4.2" // of v2

	meshA, meshB, meshC = "100.64.0.1", "100.64.0.2", "100.64.0.3"
	relayServed         = "10.3.0.10" // of s
)

func newRelayWorld(t testing.TB) *relayWorld {
	t.Helper()
	w := &relayWorld{Net: lab.New(t)}
	for _, x := range []struct {
		node **lab.Node
		name string
	}{{&w.c, "c"}, {&w.a, "a"}, {&w.ra, "ra"}, {&w.i, "i"}, {&w.rb, "rb"}, {&w.b, "b"}, {&w.s, "s"}, {&w.v1, "v1"}, {&w.v2, "v2"}} {
		*x.node = w.Node(x.name)
	}
	w.i.Forward()
	w.Wire(w.ra, w.i, lab.Addrs("198.18.1.2/24"), lab.Addrs("198.18.1.1/24"))
	w.Wire(w.rb, w.i, lab.Addrs("198.18.2.2/24"), lab.Addrs("198.18.2.1/24"))
	w.Wire(w.v1, w.i, lab.Addrs(relay1+"/24", "198.18.3.3/24"), lab.Addrs("198.18.3.1/24"))
	w.Wire(w.v2, w.i, lab.Addrs(relay2+"/24"), lab.Addrs("198.18.4.1/24"))
	w.Wire(w.a, w.ra, lab.Addrs("192.168.1.2/24"), lab.Addrs("192.168.1.1/24"))
	w.Wire(w.b, w.rb, lab.Addrs("192.168.3.2/24"), lab.Addrs("192.168.3.1/24"))
	w.Wire(w.c, w.a, lab.Addrs("10.1.0.2/24"), lab.Addrs("10.1.0.1/24"))
	w.Wire(w.s, w.b, lab.Addrs(relayServed+"/24"), lab.Addrs("10.3.0.1/24"))
	for node, via := range map[*lab.Node]string{w.ra: "198.18.1.1", w.rb: "198.18.2.1", w.v1: "198.18.3.1", w.v2: "198.18.4.1", w.a: "192.168.1.1", w.b: "192.168.3.1"} {
		node.Route("default", via)
	}
	w.ra.HomeRouter("i")
	w.rb.HomeRouter("i")
	w.cKey, w.aKey, w.bKey = w.Key(), w.Key(), w.Key()
	return w
}

// blockUDP has both routers drop, and count, every datagram.
func (w *relayWorld) blockUDP() {
	for _, r := range []*lab.Node{w.ra, w.rb} {
		r.Nft(`table inet noudp {
			chain forward {
				type filter hook forward priority -10;
				meta l4proto udp counter drop
			}
		}`)
	}
}

// relayConf is the configuration of a relay that admits both nodes.
func (w *relayWorld) relayConf(address, more string) string {
	return fmt.Sprintf("[Relay]\nName = relay\nListen = %s:443\nURL = https://%[1]s\nAllow = %s a\nAllow = %s b\n%s", address, w.aKey.Public(), w.bKey.Public(), more)
}

// clientLines returns what `culvert relay config` says that nodes need, the sections of the given names only.
func clientLines(t testing.TB, r *lab.Relay, sections ...string) string {
	t.Helper()
	var out strings.Builder
	keep := false
	for line := range strings.Lines(r.MustCommand(t, "config")) {
		if name, ok := strings.CutPrefix(line, "["); ok {
			keep = false
			for _, s := range sections {
				keep = keep || strings.HasPrefix(name, s+"]")
			}
		}
		if keep {
			out.WriteString(line)
		}
	}
	if out.Len() == 0 {
		t.Fatalf("culvert relay config has none of %v:\n%s", sections, r.MustCommand(t, "config"))
	}
	return "\n" + out.String()
}

// configs are those of both nodes. Each knows the other by its key only, but for options.
func (w *relayWorld) configs(extra, optionsOfB, optionsOfA string) (a, b lab.ExitConfig) {
	a = lab.ExitConfig{
		Key: w.aKey, Addrs: []string{meshA + "/32"}, Port: 40001, Extra: extra,
		Peers: []lab.ExitPeer{
			{Name: "b", Key: w.bKey.Public(), AllowedIPs: meshB + "/32, 10.3.0.0/24", Options: optionsOfB},
			{Name: "c", Key: w.cKey.Public(), AllowedIPs: meshC + "/32", Options: "AllowPeers = b\nAllowRouting = yes"},
		},
	}
	b = lab.ExitConfig{
		Key: w.bKey, Addrs: []string{meshB + "/32"}, Port: 40002, Extra: extra,
		Peers: []lab.ExitPeer{
			{Name: "a", Key: w.aKey.Public(), AllowedIPs: meshA + "/32, " + meshC + "/32", Options: "AllowRouting = yes\nAllowLAN = yes\n" + optionsOfA},
		},
	}
	return a, b
}

// start runs both nodes and the stock client.
func (w *relayWorld) start(t testing.TB, a, b lab.ExitConfig) {
	t.Helper()
	w.nodeA = w.a.StartExit(t, lab.ExitCulvert, a)
	w.nodeB = w.b.StartExit(t, lab.ExitCulvert, b)
	w.c.Stock(t, lab.Tunnel{
		Key: w.cKey, Addrs: []string{meshC + "/32"},
		Peers: []lab.TunnelPeer{{Key: w.aKey.Public(), AllowedIPs: meshA + "/32, " + meshB + "/32, 10.3.0.0/24", Endpoint: "10.1.0.1:40001"}},
	})
	lab.WaitFor(t, 20*time.Second, "an echo from the node beside", func() bool { return echoes(w.c, meshA) })
}

// connected waits for an echo from the far node.
func (w *relayWorld) connected(t testing.TB) {
	t.Helper()
	lab.WaitFor(t, 20*time.Second, "an echo from the far node", func() bool { return echoes(w.c, meshB) })
}

// path is how a node reaches its first peer, as status says.
type path struct {
	Kind     string  `json:"kind"`
	Endpoint string  `json:"endpoint"`
	Relay    string  `json:"relay"`
	Reason   string  `json:"reason"`
	RTT      float64 `json:"rtt_ms"`
}

func pathOf(t testing.TB, e *lab.Exit) path {
	t.Helper()
	var s struct {
		Peers []struct {
			Path path `json:"path"`
		} `json:"peers"`
	}
	if err := e.Status(&s); err != nil {
		t.Fatal(err)
	}
	if len(s.Peers) == 0 {
		t.Fatal("status shows no peer")
	}
	return s.Peers[0].Path
}

var pingTime = regexp.MustCompile(`time=([0-9.]+) ms`)

// medianRTT is the median round-trip time between c and the far node.
func (w *relayWorld) medianRTT(t testing.TB) time.Duration {
	t.Helper()
	var times []float64
	for _, m := range pingTime.FindAllStringSubmatch(w.c.Run(t, "ping", "-n", "-c", "100", "-i", "0.01", meshB), -1) {
		ms, _ := strconv.ParseFloat(m[1], 64)
		times = append(times, ms)
	}
	slices.Sort(times)
	return time.Duration(times[len(times)/2] * float64(time.Millisecond))
}

var pingStat = regexp.MustCompile(`icmp_seq=(\d+) .*time=`)

// pinging sends echo requests from c to the far node every 20 ms until stop, which returns how long the longest time without
// an answer was. Answers to requests that were lost do not come later, so that gaps in their numbers are gaps in time.
func (w *relayWorld) pinging(t testing.TB) (stop func() (longest time.Duration, lost int)) {
	t.Helper()
	const every = 20 * time.Millisecond
	p := w.c.Start(t, nil, "ping", "-n", "-i", "0.02", meshB)
	lab.WaitFor(t, 10*time.Second, "the first answers", func() bool { return len(pingStat.FindAllString(p.Log(), -1)) > 20 })
	return func() (longest time.Duration, lost int) {
		p.Kill()
		last := 0
		for _, m := range pingStat.FindAllStringSubmatch(p.Log(), -1) {
			n, _ := strconv.Atoi(m[1])
			if last > 0 && n > last {
				longest = max(longest, time.Duration(n-last)*every)
				lost += n - last - 1
			}
			last = max(last, n)
		}
		return longest, lost
	}
}
