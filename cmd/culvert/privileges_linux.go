package main

import (
	"errors"
	"os"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

// noNewPrivileges gives up, for the whole process and for good, the right to gain privileges by executing a file.
//
// The kernel keeps that per thread, and a program that is linked with cgo cannot set it on all of its threads. There the
// program starts itself anew, in the same process, from a thread that has it: call this before anything else is done.
func noNewPrivileges() error {
	if set, err := unix.PrctlRetInt(unix.PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0); err == nil && set == 1 {
		return nil
	}
	_, _, errno := syscall.AllThreadsSyscall(unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 1, 0)
	if errno == 0 {
		return nil
	}
	if errno != syscall.ENOTSUP {
		return os.NewSyscallError("prctl", errno)
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return os.NewSyscallError("prctl", err)
	}
	exe, err := os.Executable()
	if err != nil {
		return err
	}
	return errors.Join(errors.New("start anew"), syscall.Exec(exe, os.Args, os.Environ()))
}
