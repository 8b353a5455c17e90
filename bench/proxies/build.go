//go:build linux

package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// stockEnv tells the stages of the laboratory, which are executions of this program, where the binary is.
const stockEnv = "PROXIES_STOCK_BINARY"

// buildStock compiles bench/stockproxy, which is no package of this module, before the laboratory takes the network away.
// remove deletes the binary.
func buildStock() (remove func(), err error) {
	if os.Getenv(stockEnv) != "" {
		return func() {}, nil
	}
	root, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "culvert.dev/culvert").Output()
	if err != nil {
		return nil, fmt.Errorf("find the module culvert.dev/culvert: run this inside it: %w", err)
	}
	dir, err := os.MkdirTemp("", "stockproxy")
	if err != nil {
		return nil, err
	}
	remove = func() { os.RemoveAll(dir) }
	binary := filepath.Join(dir, "stockproxy")
	if err := os.Chmod(dir, 0o755); err != nil { // it runs as another user
		remove()
		return nil, err
	}
	cmd := exec.Command("go", "build", "-trimpath", "-buildvcs=false", "-o", binary, ".")
	cmd.Dir = filepath.Join(strings.TrimSpace(string(root)), "bench", "stockproxy")
	cmd.Env = append(cmd.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		remove()
		return nil, fmt.Errorf("build bench/stockproxy: %w\n%s", err, out)
	}
	os.Setenv(stockEnv, binary)
	return remove, nil
}

// raiseFiles lets this process and its children have as many connections as the host permits, and asks for more where that
// is permitted too.
func raiseFiles() error {
	var lim unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &lim); err != nil {
		return fmt.Errorf("read RLIMIT_NOFILE: %w", err)
	}
	const plenty = 65536
	if lim.Max < plenty && unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: plenty, Max: plenty}) == nil {
		return nil
	}
	lim.Cur = lim.Max
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &lim); err != nil {
		return fmt.Errorf("raise RLIMIT_NOFILE: %w", err)
	}
	return nil
}
