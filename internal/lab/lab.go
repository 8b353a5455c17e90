//go:build linux

// Package lab builds small networks out of Linux network namespaces and runs real programs in them: the product, stock
// wireguard-go, iperf3, curl, dig, ping, traceroute. Its tests are the end-to-end suite of the project.
//
// It is not a simulator (internal/testnet is), and it knows nothing of how the product works: it sees a process, its
// sockets and its packets. It needs no root: Main re-executes the calling binary inside a user, mount, PID and network
// namespace of its own, so that whatever a laboratory makes vanishes with the process, even one that is killed. Where the
// machine refuses that, New skips the test and says why; with CULVERT_LAB=require it fails the test instead.
//
//	func TestMain(m *testing.M) { os.Exit(lab.Main(m.Run, lab.WireGuardGo)) }
//
//	func TestHello(t *testing.T) {
//		n := lab.New(t)
//		a, b := n.Node("a"), n.Node("b")
//		n.Wire(a, b, lab.Addrs("10.0.0.1/24"), lab.Addrs("10.0.0.2/24"))
//		a.Run(t, "ping", "-c1", "10.0.0.2")
//	}
//
// CULVERT_LAB_ROOTLESS makes root go the way of other users, and CULVERT_LAB_RACE builds the product with the race detector.
// CULVERT_LAB_STRICT has the cases that compare figures ask for those that a quiet machine reaches.
//
// A Net belongs to one test; different tests may build theirs at the same time. The methods of a Node may be called from
// several goroutines, except those that change its addresses, routes or rules.
package lab

import (
	"os"
	"os/exec"
	"time"
)

// TB is the part of testing.TB that a laboratory needs, so that commands which are no tests can build one too.
type TB interface {
	Helper()
	Name() string
	Cleanup(func())
	Failed() bool
	Logf(format string, args ...any)
	Errorf(format string, args ...any)
	Fatalf(format string, args ...any)
	Skipf(format string, args ...any)
	TempDir() string
}

// requireEnv set to "require" turns every skip of the laboratory into a failure.
const requireEnv = "CULVERT_LAB"

// Skip ends the test with the reason why it cannot run here; it fails the test where the laboratory is required.
func Skip(tb TB, format string, args ...any) {
	tb.Helper()
	if os.Getenv(requireEnv) == "require" {
		tb.Fatalf(requireEnv+"=require, but: "+format, args...)
	}
	tb.Skipf(format, args...)
}

// Need skips the test unless every named program is installed.
func Need(tb TB, programs ...string) {
	tb.Helper()
	for _, p := range programs {
		if _, err := exec.LookPath(p); err != nil {
			Skip(tb, "%s is not installed", p)
		}
	}
}

// WaitFor polls cond until it holds, and fails the test after limit. The message completes "timed out waiting for ".
func WaitFor(tb TB, limit time.Duration, what string, cond func() bool) {
	tb.Helper()
	if !Poll(limit, cond) {
		tb.Fatalf("timed out after %v waiting for %s", limit, what)
	}
}

// Poll calls cond until it holds, at most for limit, and reports whether it ever held.
func Poll(limit time.Duration, cond func() bool) bool {
	const step = 5 * time.Millisecond
	for deadline := time.Now().Add(limit); ; time.Sleep(step) {
		if cond() {
			return true
		}
		if time.Now().After(deadline) {
			return false
		}
	}
}
