//go:build unix

package forward

import (
	"errors"
	"io/fs"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

func setMode(socket uintptr, mode fs.FileMode) error {
	err := unix.Fchmod(int(socket), uint32(mode.Perm()))
	if errors.Is(err, unix.EINVAL) { // a system whose sockets have no mode
		return nil
	}
	return err
}

func ownedBySelf(file fs.FileInfo) bool {
	s, ok := file.Sys().(*syscall.Stat_t)
	return ok && int(s.Uid) == os.Geteuid()
}
