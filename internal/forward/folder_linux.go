package forward

import (
	"context"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

const (
	lockTime  = 2 * time.Second // that somebody else may hold a folder: in /tmp anybody can
	lockPause = 5 * time.Millisecond
)

// lockFolder keeps other processes that make sockets in a folder out of it until unlock, which the end of the process is too. It
// goes on without where that is not to be had.
func lockFolder(ctx context.Context, folder string) (unlock func()) {
	f, err := os.Open(folder)
	if err != nil {
		return func() {}
	}
	for limit := time.Now().Add(lockTime); ; {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err != unix.EWOULDBLOCK && err != unix.EINTR || time.Now().After(limit) || ctx.Err() != nil {
			break
		}
		time.Sleep(lockPause)
	}
	return func() { f.Close() }
}
