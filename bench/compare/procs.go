//go:build linux

package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"culvert.dev/culvert/internal/lab"
)

// host is the machine that an exit runs on, as the kernel accounts for it. Nothing but the exit runs there, so that the exit
// is whatever processes are in the machine's network namespace: one program, or a script with all that it has started.
type host struct {
	node *lab.Node
	ns   string // what /proc/PID/ns/net of its processes refers to
	port int    // the UDP port that one of them must hold; 0: none
}

func newHost(tb lab.TB, node *lab.Node, port int) host {
	tb.Helper()
	h := host{node: node, port: port}
	err := node.Do(func() (err error) {
		h.ns, err = os.Readlink("/proc/thread-self/ns/net")
		return err
	})
	if err != nil {
		tb.Fatalf("node %s: %v", node.Name, err)
	}
	return h
}

// usage is what the processes of a host have used.
type usage struct {
	cpu   time.Duration // user and system, to the kernel's tick of 10 ms; with ended children that were waited for
	rss   int64         // bytes
	peak  int64         // bytes: the sum of each process's own peak since it started
	names []string
}

// pids lists the processes of the host.
func (h host) pids() (list []int, err error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		if ns, err := os.Readlink(filepath.Join("/proc", e.Name(), "ns/net")); err == nil && ns == h.ns {
			list = append(list, pid)
		}
	}
	return list, nil
}

// usage adds up all processes. It fails unless one of them holds the port, as no figure may be
// another program's.
func (h host) usage() (u usage, err error) {
	pids, err := h.pids()
	if err != nil {
		return u, err
	}
	holds := h.port == 0
	if !holds {
		if holds, err = h.holdsPort(pids, h.port); err != nil {
			return u, err
		}
	}
	for _, pid := range pids {
		p, err := readProcess(pid)
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ESRCH) { // it has ended since
			continue
		}
		if err != nil {
			return u, err
		}
		u.cpu, u.rss, u.peak, u.names = u.cpu+p.cpu, u.rss+p.rss, u.peak+p.peak, append(u.names, p.names...)
	}
	if len(u.names) == 0 {
		return u, errors.New("no process is left")
	}
	if !holds {
		return u, fmt.Errorf("none of the exit's processes %q holds UDP port %d: a data path inside the kernel cannot be accounted for", u.names, h.port)
	}
	return u, nil
}

func readProcess(pid int) (u usage, err error) {
	dir := filepath.Join("/proc", strconv.Itoa(pid))
	stat, err := os.ReadFile(filepath.Join(dir, "stat"))
	if err != nil {
		return u, err
	}
	name, cpu, err := parseStat(string(stat))
	if err != nil {
		return u, fmt.Errorf("%s/stat: %w", dir, err)
	}
	u.names, u.cpu = []string{name}, cpu
	status, err := os.ReadFile(filepath.Join(dir, "status"))
	if err != nil {
		return u, err
	}
	if u.rss, u.peak, err = parseStatus(string(status)); err != nil {
		return u, fmt.Errorf("%s/status: %w", dir, err)
	}
	return u, nil
}

// parseStat reads the name and the processor time of a process from its stat file (proc_pid_stat(5)).
func parseStat(stat string) (name string, cpu time.Duration, err error) {
	open, end := strings.IndexByte(stat, '('), strings.LastIndexByte(stat, ')')
	if open < 0 || end < open {
		return "", 0, errors.New("it names no command")
	}
	const utime, cstime = 14 - 3, 17 - 3 // counted from the field that follows the name
	f := strings.Fields(stat[end+1:])
	if len(f) <= cstime {
		return "", 0, errors.New("it has too few fields")
	}
	for _, field := range f[utime : cstime+1] {
		ticks, err := strconv.ParseInt(field, 10, 64)
		if err != nil {
			return "", 0, err
		}
		const tick = 10 * time.Millisecond // USER_HZ is 100 on every Linux that Go runs on
		cpu += time.Duration(ticks) * tick
	}
	return stat[open+1 : end], cpu, nil
}

// parseStatus reads the memory of a process from its status file. A process that has ended and was not waited for has none.
func parseStatus(status string) (rss, peak int64, err error) {
	if strings.Contains(status, "\nState:\tZ") {
		return 0, 0, nil
	}
	for field, to := range map[string]*int64{"VmRSS": &rss, "VmHWM": &peak} {
		_, rest, found := strings.Cut(status, "\n"+field+":")
		value, _, _ := strings.Cut(rest, "\n")
		kib, err := strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(value, " kB")), 10, 64)
		if !found || err != nil {
			return 0, 0, fmt.Errorf("it has no %s in kB", field)
		}
		*to = kib << 10
	}
	return rss, peak, nil
}

// holdsPort reports whether one of the processes has a UDP socket that is bound to the port.
func (h host) holdsPort(pids []int, port int) (bool, error) {
	var sockets []string
	err := h.node.Do(func() error {
		for _, name := range []string{"udp", "udp6"} {
			table, err := os.ReadFile("/proc/thread-self/net/" + name)
			if err != nil {
				return err
			}
			sockets = append(sockets, boundTo(string(table), port)...)
		}
		return nil
	})
	if err != nil {
		return false, err
	}
	for _, pid := range pids {
		dir := filepath.Join("/proc", strconv.Itoa(pid), "fd")
		fds, err := os.ReadDir(dir)
		if err != nil {
			continue // it has ended since
		}
		for _, fd := range fds {
			target, err := os.Readlink(filepath.Join(dir, fd.Name()))
			if err == nil && slices.Contains(sockets, target) {
				return true, nil
			}
		}
	}
	return false, nil
}

// boundTo lists the sockets of a table of the kernel that are bound to the port, as links of /proc/PID/fd name them.
func boundTo(table string, port int) (list []string) {
	const local, inode = 1, 9
	suffix := fmt.Sprintf(":%04X", port)
	for line := range strings.Lines(table) {
		f := strings.Fields(line)
		if len(f) > inode && strings.HasSuffix(f[local], suffix) {
			list = append(list, "socket:["+f[inode]+"]")
		}
	}
	return list
}

// kill ends all processes of the host and waits until the port is free.
func (h host) kill(tb lab.TB) {
	tb.Helper()
	lab.WaitFor(tb, 10*time.Second, "the exit to be gone", func() bool {
		pids, err := h.pids()
		if err != nil {
			tb.Fatalf("%v", err)
		}
		for _, pid := range pids {
			unix.Kill(pid, unix.SIGKILL)
		}
		return len(pids) == 0
	})
}
