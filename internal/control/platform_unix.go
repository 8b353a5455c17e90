//go:build unix

package control

import (
	"errors"
	"fmt"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

const noFollow = unix.O_NOFOLLOW

func makePrivate(socket uintptr) error {
	err := unix.Fchmod(int(socket), 0o600)
	if errors.Is(err, unix.EINVAL) { // a system whose sockets have no mode
		return nil
	}
	return err
}

// lockFile returns errLocked when another process has the lock, which ends with the process.
func lockFile(f *os.File) error {
	err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return errLocked
	}
	return err
}

// owner tells for an error message who may use a socket.
func owner(path string) string {
	info, err := os.Lstat(path)
	if err != nil {
		return ""
	}
	s, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return ""
	}
	return fmt.Sprintf(" (uid %d)", s.Uid)
}
