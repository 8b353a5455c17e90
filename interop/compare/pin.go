//go:build linux

package main

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

// The server has one core to itself and the load generator another.
const (
	serverCore = 0
	loadCore   = 1
)

const pinnedVar = "CULVERT_COMPARE_PINNED"

// pinSelf makes this process run on one core. Only a new process image has all of its threads there, so it executes
// itself again, once.
func pinSelf(core int) error {
	if os.Getenv(pinnedVar) != "" || runtime.NumCPU() < 2 {
		return nil
	}
	exe, err := os.Executable()
	if err != nil {
		return err
	}
	runtime.LockOSThread()
	if err := setAffinity(core); err != nil {
		return err
	}
	os.Setenv(pinnedVar, "1")
	return syscall.Exec(exe, os.Args, os.Environ())
}

// startPinned starts a process that has one core, and procs threads of Go code on it.
func startPinned(core, procs int) func(*exec.Cmd) error {
	return func(cmd *exec.Cmd) error {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		var before unix.CPUSet
		if err := unix.SchedGetaffinity(0, &before); err != nil {
			return fmt.Errorf("read CPU affinity: %w", err)
		}
		if err := setAffinity(core); err != nil {
			return err
		}
		defer unix.SchedSetaffinity(0, &before)
		if cmd.Env == nil {
			cmd.Env = os.Environ()
		}
		cmd.Env = append(cmd.Env, fmt.Sprintf("GOMAXPROCS=%d", procs), pinnedVar+"=1")
		return cmd.Start() // a child has the affinity of the thread that forked it
	}
}

func setAffinity(core int) error {
	var set unix.CPUSet
	set.Set(core)
	if err := unix.SchedSetaffinity(0, &set); err != nil {
		return fmt.Errorf("pin to core %d: %w", core, err)
	}
	return nil
}

// raiseFiles lets this process and its children have as many connections as the host permits.
func raiseFiles() (uint64, error) {
	var lim unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &lim); err != nil {
		return 0, fmt.Errorf("read RLIMIT_NOFILE: %w", err)
	}
	lim.Cur = lim.Max
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &lim); err != nil {
		return 0, fmt.Errorf("raise RLIMIT_NOFILE: %w", err)
	}
	return lim.Cur, nil
}
