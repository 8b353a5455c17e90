//go:build linux

package lab

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"culvert.dev/culvert/internal/wgkey"
)

// ExitKind says which program is the exit.
type ExitKind string

const (
	// ExitCulvert is the product, without root, capabilities or TUN.
	ExitCulvert ExitKind = "culvert"
	// ExitReference is what the product is measured by: stock wireguard-go on a kernel TUN as root, ip_forward, nft masquerade.
	ExitReference ExitKind = "reference"
)

// ExitConfig describes an exit.
type ExitConfig struct {
	Key    wgkey.Private
	Addrs  []string
	Port   int
	MTU    int // zero: 1420
	Peers  []ExitPeer
	Extra  string // appended to the product's configuration
	Files  int    // limit of the product's open files; zero: the laboratory's own
	NoEcho bool   // leave the host as it is after a boot: nobody may open ping sockets

	// Outside are the devices that do not lead to clients; the reference masquerades there.
	Outside []string
}

// ExitPeer is a peer of the exit. The reference knows AllowedIPs only and routes everything.
type ExitPeer struct {
	Name       string
	Key        wgkey.Public
	AllowedIPs string
	Options    string // further lines of the [Peer] section
}

// Exit is a running exit.
type Exit struct {
	*Process
	Kind ExitKind
	Key  wgkey.Public
	Conf string // file; the product's

	node  *Node
	state string
}

// StartExit runs an exit in the node and waits until its UDP port is bound, if the configuration says which one.
func (x *Node) StartExit(tb TB, kind ExitKind, c ExitConfig) *Exit {
	tb.Helper()
	if !c.NoEcho {
		x.Sysctl("net/ipv4/ping_group_range", pingGroups())
	}
	var e *Exit
	if kind == ExitReference {
		e = x.startReference(tb, c)
	} else {
		e = x.startCulvert(tb, c)
	}
	if c.Port == 0 {
		return e
	}
	WaitFor(tb, 20*time.Second, fmt.Sprintf("the exit to bind UDP port %d", c.Port), func() bool {
		if !e.Alive() {
			tb.Fatalf("the exit ended at once")
		}
		return x.Bound("udp", c.Port)
	})
	return e
}

func (x *Node) startReference(tb TB, c ExitConfig) *Exit {
	tb.Helper()
	x.Masquerade(c.Outside...)
	x.Nft(`table inet clamp {
		chain forward {
			type filter hook forward priority mangle;
			tcp flags syn tcp option maxseg size set rt mtu
		}
	}`)
	t := Tunnel{Key: c.Key, Addrs: c.Addrs, Port: c.Port, MTU: c.MTU}
	for _, p := range c.Peers {
		t.Peers = append(t.Peers, TunnelPeer{Key: p.Key, AllowedIPs: p.AllowedIPs})
	}
	return &Exit{Process: x.Stock(tb, t).Process, Kind: ExitReference, Key: c.Key.Public(), node: x}
}

func (x *Node) startCulvert(tb TB, c ExitConfig) *Exit {
	tb.Helper()
	e := &Exit{Kind: ExitCulvert, Key: c.Key.Public(), node: x}
	dir := UnprivilegedDir(tb)
	e.Conf, e.state = filepath.Join(dir, "culvert.conf"), filepath.Join(dir, "state")
	e.WriteConf(tb, c)
	command := []string{Culvert.Path(), "up", "-c", e.Conf, "--state", e.state}
	if c.Files > 0 {
		command = append([]string{"prlimit", fmt.Sprintf("--nofile=%d:%[1]d", c.Files)}, command...)
	}
	e.Process = x.StartUnprivileged(tb, nil, command[0], command[1:]...)
	tb.Cleanup(func() { // before the process is killed, as the last to be registered runs first
		if tb.Failed() && e.Alive() {
			out, err := e.Client("status", "--json")
			tb.Logf("status of the exit (%v): %s", err, out)
		}
	})
	return e
}

// WriteConf writes the product's configuration file, for a start or a reload.
func (e *Exit) WriteConf(tb TB, c ExitConfig) {
	tb.Helper()
	var b strings.Builder
	fmt.Fprintf(&b, "[Interface]\nName = exit\nPrivateKey = %s\nAddress = %s\n", c.Key.Reveal(), strings.Join(c.Addrs, ", "))
	if c.Port != 0 {
		fmt.Fprintf(&b, "ListenPort = %d\n", c.Port)
	}
	if c.MTU != 0 {
		fmt.Fprintf(&b, "MTU = %d\n", c.MTU)
	}
	for _, p := range c.Peers {
		fmt.Fprintf(&b, "\n[Peer]\nName = %s\nPublicKey = %s\nAllowedIPs = %s\n%s\n", p.Name, p.Key, p.AllowedIPs, p.Options)
	}
	b.WriteString(c.Extra)
	if err := os.WriteFile(e.Conf, []byte(b.String()), 0o600); err != nil {
		tb.Fatalf("%v", err)
	}
	chown(tb, e.Conf)
}

// Client runs a culvert command against the running product, as the same user, and returns its output and exit status.
func (e *Exit) Client(command string, args ...string) (string, error) {
	args = append([]string{command, "-c", e.Conf, "--state", e.state}, args...)
	name, wrapped := unprivileged(Culvert.Path(), args...)
	return e.node.Exec("", name, wrapped...)
}

// Status decodes status --json into v.
func (e *Exit) Status(v any) error {
	out, err := e.Client("status", "--json")
	if err != nil {
		return fmt.Errorf("culvert status: %w: %s", err, out)
	}
	return json.Unmarshal([]byte(out), v)
}
