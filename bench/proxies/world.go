//go:build linux

package main

import (
	"fmt"
	"os"
	"path/filepath"
	"time"

	"culvert.dev/culvert/internal/lab"
	"culvert.dev/culvert/internal/wgkey"
)

// way is one of the ways into the mesh.
type way string

const (
	culvert way = "culvert"
	stock   way = "stock"
	kernel  way = "kernel"
)

var ways = []way{culvert, stock, kernel}

// The laboratory: each way has a client host of its own, wired to the far end. While one is measured the others are idle.
const (
	farMesh   = "100.64.0.1"
	farPort   = 51820
	proxyPort = 1080
	mtu       = 1420
)

// contender is one way with its client host.
type contender struct {
	way  way
	host *lab.Node
	prog *lab.Process // the culvert, the stockproxy, or the wireguard-go of the client host

	key      wgkey.Private
	addr     string // in the mesh
	farKey   wgkey.Public
	endpoint string // of the far end
}

// world is the far end with its server, and the contenders.
type world struct {
	far        *far
	farProg    *lab.Process // the wireguard-go of the far end
	contenders []*contender
}

func newWorld(tb lab.TB) *world {
	tb.Helper()
	n := lab.New(tb)
	node, key := n.Node("far"), n.Key()
	w := &world{}
	tunnel := lab.Tunnel{Key: key, Addrs: lab.Addrs(farMesh + "/24"), Port: farPort, MTU: mtu}
	for i, way := range ways {
		c := &contender{way: way, host: n.Node(string(way)), key: n.Key(), farKey: key.Public()}
		outer := fmt.Sprintf("10.0.%d.", i)
		n.Wire(c.host, node, lab.Addrs(outer+"2/24"), lab.Addrs(outer+"1/24"))
		c.addr, c.endpoint = fmt.Sprintf("100.64.0.%d", i+2), lab.Port(outer+"1", farPort)
		tunnel.Peers = append(tunnel.Peers, lab.TunnelPeer{Key: c.key.Public(), AllowedIPs: c.addr + "/32"})
		w.contenders = append(w.contenders, c)
	}
	w.farProg = node.Stock(tb, tunnel).Process
	w.far = startFar(tb, node)
	for _, c := range w.contenders {
		c.start(tb)
	}
	return w
}

// start runs the contender's program, instead of the one that ran before, and waits until a connection has got through.
func (c *contender) start(tb lab.TB) {
	tb.Helper()
	if c.prog != nil {
		c.prog.Kill()
	}
	switch c.way {
	case culvert:
		c.prog = c.host.StartExit(tb, lab.ExitCulvert, lab.ExitConfig{
			Key: c.key, Addrs: lab.Addrs(c.addr + "/32"), MTU: mtu,
			Peers: []lab.ExitPeer{{Name: "far", Key: c.farKey, AllowedIPs: farMesh + "/32", Options: "Endpoint = " + c.endpoint}},
			Extra: fmt.Sprintf("\n[SOCKS5]\nListen = 127.0.0.1:%d\n", proxyPort),
		}).Process
	case stock:
		c.prog = c.startStock(tb)
	case kernel:
		c.prog = c.host.Stock(tb, c.tunnel()).Process
	}
	lab.WaitFor(tb, 20*time.Second, string(c.way)+" to get through", func() bool {
		if !c.prog.Alive() {
			tb.Fatalf("%s ended at once:\n%s", c.way, c.prog.Log())
		}
		return c.host.Do(c.touch) == nil
	})
}

func (c *contender) tunnel() lab.Tunnel {
	far := lab.TunnelPeer{Key: c.farKey, AllowedIPs: farMesh + "/32", Endpoint: c.endpoint}
	return lab.Tunnel{Key: c.key, Addrs: lab.Addrs(c.addr + "/32"), MTU: mtu, Peers: []lab.TunnelPeer{far}}
}

func (c *contender) startStock(tb lab.TB) *lab.Process {
	tb.Helper()
	file := filepath.Join(lab.UnprivilegedDir(tb), "client.conf")
	// What a wg-quick file has and wg's own has not; stockproxy does not ask in which section.
	conf := fmt.Sprintf("Address = %s/32\nMTU = %d\n%s", c.addr, mtu, c.tunnel().Conf())
	if err := os.WriteFile(file, []byte(conf), 0o644); err != nil { // of a key that lives for minutes
		tb.Fatalf("%v", err)
	}
	return c.host.StartUnprivileged(tb, nil, os.Getenv(stockEnv), "-config", file, "-listen", fmt.Sprintf("127.0.0.1:%d", proxyPort))
}

// proxied reports whether a connection of this way begins with SOCKS5.
func (c *contender) proxied() bool { return c.way != kernel }

// memoryMB is the resident memory of the contender's program.
func (c *contender) memoryMB(tb lab.TB) float64 {
	tb.Helper()
	p, err := c.prog.Proc()
	if err != nil {
		tb.Fatalf("%s: it ended: %v\n%s", c.way, err, c.prog.Log())
	}
	return float64(p.RSS) * 1024 / 1e6
}

// cpu is the processor time that a process has used so far.
func cpu(tb lab.TB, p *lab.Process) time.Duration {
	tb.Helper()
	t, err := p.CPU()
	if err != nil {
		tb.Fatalf("process %d ended: %v\n%s", p.PID, err, p.Log())
	}
	return t
}
