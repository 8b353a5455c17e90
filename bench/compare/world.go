//go:build linux

package main

import (
	"fmt"
	"os"
	"strings"
	"time"

	"culvert.dev/culvert/internal/lab"
)

// The contenders that are always there.
const (
	culvert   = string(lab.ExitCulvert)
	reference = string(lab.ExitReference)
)

const mtu = 1420

// contender is one exit in a world of its own (see lab.Internet): c is its client, x the exit, s the server. While another is
// measured it is idle.
type contender struct {
	name string
	opts options
	*lab.Internet
	exit   host
	client *lab.Stock
	key    string         // public, of the exit
	config lab.ExitConfig // what it was started with
	keys   lab.Clients
	tb     lab.TB    // of the world, which outlives the measurements
	served bool      // needServer was called
	line   *lab.Node // nil until wireLine
	pair   *pair     // nil until mesh needs it
	remark func(format string, args ...any)
	log    func() string // of the exit
}

// newContender builds the world and starts exit and client in it. It returns when the tunnel carries packets.
func newContender(tb lab.TB, name string, o options) *contender {
	tb.Helper()
	c := &contender{name: name, opts: o, tb: tb, Internet: lab.NewInternet(tb)}
	if o.TCP != "" {
		for _, node := range []*lab.Node{c.C, c.P, c.X, c.S} {
			node.Sysctl("net/ipv4/tcp_congestion_control", o.TCP)
		}
	}
	// Thousands of connections a second from one address to one port outlast the ports of a minute.
	c.C.Sysctl("net/ipv4/tcp_tw_reuse", "1")
	c.X.Sysctl("net/ipv4/tcp_tw_reuse", "1")
	c.keys = c.Keys()
	c.config = c.ExitConfig(c.keys, "AllowRouting = yes", "AllowRouting = yes")
	c.key = c.config.Key.Public().String()
	c.exit = newHost(tb, c.X, lab.ExitPort)
	switch slot, isSlot := o.slot(name); {
	case isSlot:
		c.X.Sysctl("net/ipv4/ping_group_range", pingGroups())
		c.log = slot.start(tb, c.X, c.config).Log
		tb.Cleanup(func() { c.exit.kill(tb) }) // what the command has left behind too
	default:
		c.log = c.X.StartExit(tb, lab.ExitKind(name), c.config).Log
	}
	c.client = c.StockClient(tb, c.C, c.keys.C, c.config.Key.Public())
	c.answers(tb)
	return c
}

// pingGroups lets the exits answer echo without privilege, as most hosts do.
func pingGroups() string {
	if lab.ManyUsers() {
		return "0 2147483647"
	}
	return "0 0"
}

// answers waits until a connection through the tunnel gets an answer: that nobody listens is one.
func (c *contender) answers(tb lab.TB) {
	tb.Helper()
	const nobody = 9
	lab.WaitFor(tb, 20*time.Second, c.name+" to carry a connection", func() bool {
		if _, err := c.exit.usage(); err != nil {
			tb.Fatalf("%s: %v\n%s", c.name, err, c.log())
		}
		conn, err := c.C.Dial(c.network("tcp"), lab.Port(c.server(), nobody), time.Second)
		if err == nil {
			conn.Close()
		}
		return err == nil || strings.Contains(err.Error(), "refused")
	})
}

// server is the address of s in the family that is measured, network the name of a protocol in it.
func (c *contender) server() string              { return lab.Server[c.opts.family()] }
func (c *contender) network(proto string) string { return fmt.Sprintf("%s%d", proto, c.opts.Family) }

// usage of the exit; the test ends where it has ended.
func (c *contender) usage(tb lab.TB) usage {
	tb.Helper()
	u, err := c.exit.usage()
	if err != nil {
		tb.Fatalf("%s: %v\n%s", c.name, err, c.log())
	}
	return u
}

// meter is what an exit has used and carried up to a moment.
type meter struct {
	usage
	toServer, fromServer int64 // bytes on the exit's link to the internet
}

func (c *contender) meter(tb lab.TB) (m meter) {
	tb.Helper()
	err := c.X.Do(func() error {
		table, err := os.ReadFile("/proc/thread-self/net/dev")
		if err == nil {
			m.fromServer, m.toServer, err = deviceBytes(string(table), c.config.Outside[0])
		}
		return err
	})
	if err != nil {
		tb.Fatalf("%s: count the exit's bytes: %v", c.name, err)
	}
	m.usage = c.usage(tb)
	return m
}

// deviceBytes reads what a device has received and sent from the kernel's table of devices.
func deviceBytes(table, dev string) (received, sent int64, err error) {
	for line := range strings.Lines(table) {
		name, rest, found := strings.Cut(line, ":")
		if !found || strings.TrimSpace(name) != dev {
			continue
		}
		const sentAt = 8
		f := strings.Fields(rest)
		if len(f) <= sentAt {
			break
		}
		if _, err := fmt.Sscan(f[0]+" "+f[sentAt], &received, &sent); err != nil {
			return 0, 0, err
		}
		return received, sent, nil
	}
	return 0, 0, fmt.Errorf("there is no device %s", dev)
}

// direction is seen from the client.
type direction string

const (
	up   direction = "up"
	down direction = "down"
)

var directions = []direction{up, down}

// carried is the processor time that the exit has spent since m on that many bytes of payload, which must have come by its link.
func (c *contender) carried(tb lab.TB, m meter, d direction, payload float64) (cpu time.Duration) {
	tb.Helper()
	now := c.meter(tb)
	moved := now.toServer - m.toServer
	if d == down {
		moved = now.fromServer - m.fromServer
	}
	if payload <= 0 {
		tb.Fatalf("%s: nothing arrived\n%s", c.name, c.log())
	}
	if float64(moved) < payload {
		tb.Fatalf("%s: %.0f bytes arrived, but only %d came by the exit", c.name, payload, moved)
	}
	return now.cpu - m.cpu
}
