//go:build linux

package lab

import (
	"os"
	"strconv"
	"strings"
)

// nobody is the user that programs run as where the laboratory has real root. Rootless, the user namespace maps one user
// only, and a program without capabilities is as powerless under uid 0 as under any other.
const nobody = 65534

// realRoot reports whether other users exist in the laboratory's user namespace.
func realRoot() bool {
	b, err := os.ReadFile("/proc/self/uid_map")
	f := strings.Fields(string(b))
	return err == nil && len(f) == 3 && f[2] != "1"
}

// pingGroups is the value of net.ipv4.ping_group_range that allows unprivileged echo to everybody.
func pingGroups() string {
	if realRoot() {
		return "0 2147483647"
	}
	return "0 0" // no other group exists
}

// unprivileged wraps a command so that it runs without root, capabilities, or a way to get them.
func unprivileged(name string, args ...string) (string, []string) {
	wrap := []string{"--no-new-privs", "--bounding-set=-all", "--inh-caps=-all", "--ambient-caps=-all"}
	if realRoot() {
		id := strconv.Itoa(nobody)
		wrap = append(wrap, "--reuid="+id, "--regid="+id, "--clear-groups")
	}
	return "setpriv", append(append(wrap, name), args...)
}

// StartUnprivileged is Start for a program without any privilege.
func (x *Node) StartUnprivileged(tb TB, env []string, name string, args ...string) *Process {
	tb.Helper()
	name, args = unprivileged(name, args...)
	return x.Start(tb, env, name, args...)
}

// UnprivilegedDir is a temporary directory that belongs to the user of unprivileged programs. Its path is short, as those
// of unix sockets must be.
func UnprivilegedDir(tb TB) string {
	tb.Helper()
	dir, err := os.MkdirTemp("", "u")
	if err == nil {
		err = os.Chmod(dir, 0o755)
	}
	if err != nil {
		tb.Fatalf("%v", err)
	}
	tb.Cleanup(func() { os.RemoveAll(dir) })
	chown(tb, dir)
	return dir
}

func chown(tb TB, path string) {
	tb.Helper()
	if !realRoot() {
		return
	}
	if err := os.Chown(path, nobody, nobody); err != nil {
		tb.Fatalf("%v", err)
	}
}
