//go:build linux

package lab

import (
	"fmt"
	"os"
	"path/filepath"
	"time"
)

// NodeConfig describes a node of the product by its configuration file as it is.
type NodeConfig struct {
	Text  string
	Args  []string // further arguments of culvert up
	Env   []string // KEY=value
	Files int      // limit of its open files; zero: the laboratory's own
	Dir   string   // where its file and state are, of UnprivilegedDir; empty: a new one
}

// StartNode runs the product in the node as a user without any privilege, and waits until its WireGuard port is bound.
func (x *Node) StartNode(tb TB, c NodeConfig) *Exit {
	tb.Helper()
	x.Sysctl("net/ipv4/ping_group_range", pingGroups())
	if c.Dir == "" {
		c.Dir = UnprivilegedDir(tb)
	}
	e := &Exit{Kind: ExitCulvert, Conf: filepath.Join(c.Dir, "culvert.conf"), state: filepath.Join(c.Dir, "state"), node: x}
	e.Write(tb, c.Text)
	command := append([]string{Culvert.Path(), "up", "-c", e.Conf, "--state", e.state}, c.Args...)
	if c.Files > 0 {
		command = append([]string{"prlimit", fmt.Sprintf("--nofile=%d:%[1]d", c.Files)}, command...)
	}
	e.Process = x.StartUnprivileged(tb, c.Env, command[0], command[1:]...)
	WaitFor(tb, 20*time.Second, "culvert in "+x.Name+" to be up", func() bool {
		if !e.Alive() {
			tb.Fatalf("culvert in %s ended at once:\n%s", x.Name, e.Log())
		}
		return x.Bound("udp", ExitPort)
	})
	return e
}

// Write replaces the configuration file by a text, for a reload.
func (e *Exit) Write(tb TB, text string) {
	tb.Helper()
	if err := os.WriteFile(e.Conf, []byte(text), 0o600); err != nil {
		tb.Fatalf("%v", err)
	}
	chown(tb, e.Conf)
}

// Dir is where the product keeps the configuration file. Its own user can write there.
func (e *Exit) Dir() string { return filepath.Dir(e.Conf) }

// ManyUsers reports whether the laboratory has users beside root, as programs need that give up root for a part of their work.
func ManyUsers() bool { return realRoot() }
