//go:build linux

package main

import (
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"

	"culvert.dev/culvert/internal/lab"
)

// With -pin the programs of the client hosts have one core, and the far end and this process another.
const (
	clientCore = 0
	farCore    = 1
)

// pin keeps a process on one core: the threads that it has, and so those that these start.
func pin(tb lab.TB, pid, core int) {
	tb.Helper()
	var set unix.CPUSet
	set.Set(core)
	// Threads may start while the list is being read; those are there the next time.
	for seen := 0; ; {
		tasks, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
		if err != nil {
			tb.Fatalf("pin process %d: %v", pid, err)
		}
		if len(tasks) == seen {
			return
		}
		seen = len(tasks)
		for _, t := range tasks {
			id, err := strconv.Atoi(t.Name())
			if err == nil {
				err = unix.SchedSetaffinity(id, &set)
			}
			if err != nil && err != unix.ESRCH {
				tb.Fatalf("pin thread %s of process %d: %v", t.Name(), pid, err)
			}
		}
	}
}

// pin gives both ends their cores. What a contender starts as later, for idle connections, is not kept there.
func (w *world) pin(tb lab.TB) {
	tb.Helper()
	pin(tb, w.farProg.PID, farCore)
	pin(tb, os.Getpid(), farCore)
	for _, c := range w.contenders {
		pin(tb, c.prog.PID, clientCore)
	}
}
