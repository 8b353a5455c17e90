//go:build linux

package lab

import (
	"os"
	"path/filepath"
	"syscall"
	"time"
)

// Relay is a running `culvert relay`.
type Relay struct {
	*Process
	Conf  string // file; empty: it runs without any
	State string

	node *Node
}

// RelayFiles makes the folder of a relay in the node: its configuration, unless that is empty, and its state. Nothing runs yet.
func (x *Node) RelayFiles(tb TB, conf string) *Relay {
	tb.Helper()
	dir := UnprivilegedDir(tb)
	r := &Relay{State: filepath.Join(dir, "state"), node: x}
	if conf != "" {
		r.Conf = filepath.Join(dir, "relay.conf")
		if err := os.WriteFile(r.Conf, []byte(conf), 0o600); err != nil {
			tb.Fatalf("%v", err)
		}
		chown(tb, r.Conf)
	}
	// A relay runs without privilege where its port is free for everybody, as on a machine that was set up for it.
	x.Sysctl("net/ipv4/ip_unprivileged_port_start", "0")
	return r
}

// StartRelay runs a relay in the node and waits until it answers its own status command.
func (x *Node) StartRelay(tb TB, conf string) *Relay {
	tb.Helper()
	r := x.RelayFiles(tb, conf)
	r.Start(tb)
	return r
}

// Start runs the relay, again if it has ended.
func (r *Relay) Start(tb TB) {
	tb.Helper()
	r.Process = r.node.StartUnprivileged(tb, r.env(), Culvert.Path(), r.args("relay")...)
	WaitFor(tb, 20*time.Second, "the relay to answer", func() bool {
		if !r.Alive() {
			tb.Fatalf("the relay ended at once")
		}
		_, err := r.Command("status")
		return err == nil
	})
}

// Command runs a subcommand of culvert relay with the relay's own files and user.
func (r *Relay) Command(sub string, args ...string) (string, error) {
	args = append(r.args("relay", sub), args...)
	name, wrapped := unprivileged(Culvert.Path(), args...)
	return r.node.Exec("", "env", append(append(r.env(), name), wrapped...)...)
}

// MustCommand is Command for what has to succeed.
func (r *Relay) MustCommand(tb TB, sub string, args ...string) string {
	tb.Helper()
	out, err := r.Command(sub, args...)
	if err != nil {
		tb.Fatalf("culvert relay %s: %v\n%s", sub, err, out)
	}
	return out
}

// Crash ends the relay without letting it say so to anybody.
func (r *Relay) Crash() { r.Kill() }

// Reload makes the relay read its files again.
func (r *Relay) Reload() error { return r.Signal(syscall.SIGHUP) }

func (r *Relay) args(command ...string) []string {
	if r.Conf != "" {
		command = append(command, "-c", r.Conf)
	}
	return append(command, "--state", r.State)
}

// env keeps a relay without a configuration from finding one of the machine's.
func (r *Relay) env() []string {
	dir := filepath.Dir(r.State)
	return []string{"HOME=" + dir, "XDG_CONFIG_HOME=" + filepath.Join(dir, "config"), "XDG_RUNTIME_DIR=" + dir}
}
