package main

import (
	"syscall"

	"golang.org/x/sys/unix"
)

// noNewPrivileges gives up, for the whole process and for good, the right to gain privileges by executing a file.
func noNewPrivileges() error {
	_, _, errno := syscall.AllThreadsSyscall(unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 1, 0)
	if errno != 0 {
		return errno
	}
	return nil
}
