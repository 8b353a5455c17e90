//go:build linux

package lab

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
)

// Nft loads an nftables script in the node.
func (x *Node) Nft(script string) {
	x.net.tb.Helper()
	if out, err := x.Exec(script, "nft", "-f", "-"); err != nil {
		x.net.tb.Fatalf("node %s: nft: %v\n%s\n%s", x.Name, err, out, script)
	}
}

// Masquerade makes the node a source-NATing router towards the given devices, for both families. Ports are preserved
// where they are free, as home routers do.
func (x *Node) Masquerade(outside ...string) {
	x.Forward()
	x.Nft(fmt.Sprintf(`table inet nat {
		chain post {
			type nat hook postrouting priority srcnat;
			oifname { %s } masquerade
		}
	}`, strings.Join(outside, ", ")))
}

// HomeRouter makes the node a masquerading router whose firewall drops whatever nobody inside asked for, silently.
func (x *Node) HomeRouter(wan string) {
	x.Masquerade(wan)
	x.Nft(fmt.Sprintf(`table inet firewall {
		chain input {
			type filter hook input priority 0;
			iifname %[1]q ct state new meta l4proto { tcp, udp } drop
		}
		chain forward {
			type filter hook forward priority 0;
			iifname %[1]q ct state new drop
		}
	}`, wan))
}

// Witness counts, in a node, the packets that a test wants to see or must not see: those to one TCP or UDP port, and echo
// requests, on their way in and on their way out.
type Witness struct{ node *Node }

// Count is what a Witness has seen.
type Count struct{ TCP, UDP, Echo int }

// Total is the number of packets of any kind.
func (c Count) Total() int { return c.TCP + c.UDP + c.Echo }

// Witness starts counting packets to port.
func (x *Node) Witness(port int) *Witness {
	var b strings.Builder
	b.WriteString("table inet witness {\n")
	for _, hook := range []string{"input", "output"} {
		fmt.Fprintf(&b, "chain %s {\n type filter hook %s priority -300;\n", hook, hook)
		for _, proto := range []string{"tcp", "udp"} {
			fmt.Fprintf(&b, " %s dport %d counter comment \"%s\"\n", proto, port, proto)
		}
		b.WriteString(" icmp type echo-request counter comment \"echo\"\n icmpv6 type echo-request counter comment \"echo\"\n}\n")
	}
	b.WriteString("}\n")
	x.Nft(b.String())
	return &Witness{node: x}
}

// In returns how many packets came to the node itself; over loopback counts too.
func (w *Witness) In() Count { in, _ := w.counts(); return in }

// Out returns how many packets the node's own processes sent.
func (w *Witness) Out() Count { _, out := w.counts(); return out }

// Silent reports whether nothing came or went.
func (w *Witness) Silent() bool { in, out := w.counts(); return in.Total()+out.Total() == 0 }

// Remove ends the counting.
func (w *Witness) Remove() { w.node.Nft("delete table inet witness") }

var counterLine = regexp.MustCompile(`counter packets (\d+) bytes \d+ comment "(\w+)"`)

func (w *Witness) counts() (in, out Count) {
	w.node.net.tb.Helper()
	text := w.node.must("nft", "list", "table", "inet", "witness")
	before, after, _ := strings.Cut(text, "chain output")
	return w.parse(before), w.parse(after)
}

func (w *Witness) parse(chain string) (c Count) {
	w.node.net.tb.Helper()
	lines := counterLine.FindAllStringSubmatch(chain, -1)
	if len(lines) != 4 {
		w.node.net.tb.Fatalf("node %s: a chain of the witness has %d counters, want 4:\n%s", w.node.Name, len(lines), chain)
	}
	for _, m := range lines {
		n, err := strconv.Atoi(m[1])
		if err != nil {
			w.node.net.tb.Fatalf("node %s: witness: %v", w.node.Name, err)
		}
		switch m[2] {
		case "tcp":
			c.TCP += n
		case "udp":
			c.UDP += n
		case "echo":
			c.Echo += n
		}
	}
	return c
}
