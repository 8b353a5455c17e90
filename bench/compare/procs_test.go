//go:build linux

package main

import (
	"os"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestStatHasProcessorTimeOfAProcessAndItsChildren(t *testing.T) {
	// The command may hold anything; fields 14 to 17 are utime, stime, cutime and cstime.
	const stat = "4711 (a) b (c) S 1 2 3 4 5 6 7 8 9 10 100 20 3 4 20 0 9 0"
	name, cpu, err := parseStat(stat)
	if name != "a) b (c" || cpu != 1270*time.Millisecond || err != nil {
		t.Errorf("got %q, %v, %v", name, cpu, err)
	}
	for _, bad := range []string{"", "4711 (a", "4711 (a) S 1 2 3", strings.Replace(stat, " 20 3 ", " x 3 ", 1)} {
		if _, _, err := parseStat(bad); err == nil {
			t.Errorf("%q: no error", bad)
		}
	}
}

func TestStatusHasMemory(t *testing.T) {
	const status = "Name:\tx\nState:\tS (sleeping)\nVmPeak:\t  900000 kB\nVmHWM:\t    2048 kB\nVmRSS:\t    1024 kB\nThreads:\t3\n"
	rss, peak, err := parseStatus(status)
	if rss != 1<<20 || peak != 2<<20 || err != nil {
		t.Errorf("got %d, %d, %v", rss, peak, err)
	}
	for _, bad := range []string{"", strings.Replace(status, "VmRSS", "VmXSS", 1), strings.Replace(status, "2048", "x", 1)} {
		if _, _, err := parseStatus(bad); err == nil {
			t.Errorf("%q: no error", bad)
		}
	}
	if _, _, err := parseStatus("Name:\tx\nState:\tZ (zombie)\nThreads:\t1\n"); err != nil {
		t.Errorf("a process that has ended: %v", err)
	}
}

func TestOwnProcessIsReadable(t *testing.T) {
	u, err := readProcess(1)
	if err != nil || len(u.names) != 1 {
		t.Errorf("process 1: %+v, %v", u, err)
	}
	u, err = readProcess(os.Getpid())
	if err != nil || u.rss == 0 || u.peak < u.rss {
		t.Errorf("this process: %+v, %v", u, err)
	}
}

func TestBoundToFindsThePort(t *testing.T) {
	const table = `  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode ref pointer drops
  100: 00000000:CA6C 00000000:0000 07 00000000:00000000 00:00000000 00000000 65534        0 4242 2 0000000000000000 0
  101: 0100007F:0035 00000000:CA6C 07 00000000:00000000 00:00000000 00000000     0        0 4243 2 0000000000000000 0
  102: 00000000000000000000000000000000:CA6C 00000000000000000000000000000000:0000 07 00000000:00000000 00:00000000 00000000 0 0 4244 2 0 0
`
	if got, want := boundTo(table, 51820), []string{"socket:[4242]", "socket:[4244]"}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestDeviceBytes(t *testing.T) {
	const table = `Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo:       1       2    0    0    0     0          0         0        3       4    0    0    0     0       0          0
    r: 1000    10    0    0    0     0          0         0     2000    20    0    0    0     0       0          0
`
	received, sent, err := deviceBytes(table, "r")
	if received != 1000 || sent != 2000 || err != nil {
		t.Errorf("got %d, %d, %v", received, sent, err)
	}
	for _, dev := range []string{"", "x", "face |bytes"} {
		if _, _, err := deviceBytes(table, dev); err == nil {
			t.Errorf("device %q: no error", dev)
		}
	}
	if _, _, err := deviceBytes("r: 1 2\n", "r"); err == nil {
		t.Error("a line that is too short: no error")
	}
}
