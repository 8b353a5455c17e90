package control

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
)

// Lock says that a folder is in use by this process. It ends with Release, or with the process, however that ends.
type Lock struct{ file *os.File }

// InUseError means that another process holds a Lock.
type InUseError struct {
	Path string
	PID  int // 0 when not known
}

func (e *InUseError) Error() string {
	if e.PID == 0 {
		return fmt.Sprintf("lock %s: another process holds it", e.Path)
	}
	return fmt.Sprintf("lock %s: process %d holds it", e.Path, e.PID)
}

// Acquire takes the lock file at path, whose folder must exist, with mode 0600. The error is an *InUseError while another
// process has it. On the few file systems without locks it succeeds always.
func Acquire(path string) (*Lock, error) {
	for {
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|noFollow, 0o600)
		if err != nil {
			return nil, fmt.Errorf("lock: %w", err)
		}
		err = lockFile(f)
		if errors.Is(err, errLocked) {
			defer f.Close()
			return nil, &InUseError{Path: path, PID: readPID(f)}
		}
		if err == nil && !sameFile(f) { // its last owner removed it while we opened it
			f.Close()
			continue
		}
		writePID(f)
		return &Lock{f}, nil
	}
}

// Release lets go of the lock and removes its file. Further calls do nothing.
func (l *Lock) Release() {
	if l.file == nil {
		return
	}
	os.Remove(l.file.Name()) // while it is locked: afterwards it may be another's
	l.file.Close()
	l.file = nil
}

// readPID returns who wrote the lock file, 0 if that cannot be read.
func readPID(f *os.File) int {
	b := make([]byte, 20)
	n, _ := f.ReadAt(b, 0)
	pid, err := strconv.Atoi(strings.TrimSpace(string(b[:n])))
	if err != nil || pid < 0 {
		return 0
	}
	return pid
}

// writePID is for messages only, so that a failure does not matter.
func writePID(f *os.File) {
	f.Truncate(0)
	f.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0)
}
