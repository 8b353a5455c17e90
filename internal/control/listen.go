package control

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"
)

// maxPathLen is the room in sockaddr_un, unix(7), less its final zero.
const maxPathLen = 107

// Listener is the node's end of a control socket. Connections of other users are closed before they are handed out.
type Listener struct {
	net.Listener
	path string
	lock *os.File // held as long as the socket is ours

	close sync.Once
	err   error // of Close
}

// Listen opens the control socket at path, with mode 0600, in a folder that is made with mode 0700 if it is missing. A
// socket that a dead process left is replaced; one that is in use is an error that names its owner. Beside the socket lies
// a lock file with the suffix ".lock", which Close removes too.
func Listen(path string) (*Listener, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("control socket: %w", err)
	}
	if len(path) > maxPathLen {
		return nil, fmt.Errorf("control socket %s: the path has %d bytes, a socket can have %d; choose a shorter one", path, len(path), maxPathLen)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, fmt.Errorf("control socket: %w", err)
	}
	lock, err := acquire(path)
	if err != nil {
		return nil, err
	}
	inner, err := bind(path)
	if err != nil {
		release(path, lock)
		return nil, err
	}
	return &Listener{Listener: inner, path: path, lock: lock}, nil
}

// Path returns where the socket is.
func (l *Listener) Path() string { return l.path }

// Accept returns the next connection of the same user or of root.
func (l *Listener) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if peer, err := credentials(c); err == nil && peer.trusted {
			return c, nil
		}
		c.Close()
	}
}

// Close stops listening and removes the socket. Further calls do nothing.
func (l *Listener) Close() error {
	l.close.Do(func() {
		l.err = l.Listener.Close() // removes the socket's file
		release(l.path, l.lock)
	})
	return l.err
}

// bind makes the socket at path, which the lock file says nobody else uses.
func bind(path string) (net.Listener, error) {
	switch info, err := os.Lstat(path); {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return nil, fmt.Errorf("control socket: %w", err)
	case info.Mode()&fs.ModeSocket == 0:
		return nil, fmt.Errorf("control socket %s: there is a file that is not a socket; remove it or choose another path", path)
	default:
		if err := inUse(path); err != nil {
			return nil, err
		}
		if err := os.Remove(path); err != nil {
			return nil, fmt.Errorf("replace stale control socket: %w", err)
		}
	}
	// Linux gives the file the mode that the unbound socket has, so there is no moment at which others may connect. The
	// chmod is for systems that do not.
	config := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) (err error) {
		if e := raw.Control(func(fd uintptr) { err = makePrivate(fd) }); e != nil {
			return e
		}
		return err
	}}
	l, err := config.Listen(context.Background(), "unix", path)
	if err != nil {
		return nil, fmt.Errorf("control socket: %w", err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		l.Close()
		return nil, fmt.Errorf("control socket: %w", err)
	}
	return l, nil
}

// acquire locks the lock file of a socket. The lock ends with the process, however that ends.
func acquire(path string) (*os.File, error) {
	for {
		f, err := os.OpenFile(path+".lock", os.O_RDWR|os.O_CREATE|noFollow, 0o600)
		if err != nil {
			return nil, fmt.Errorf("control socket: %w", err)
		}
		err = lockFile(f)
		if errors.Is(err, errLocked) {
			f.Close()
			if err := inUse(path); err != nil {
				return nil, err
			}
			return nil, errRunning(path, 0)
		}
		// Some network file systems have no locks; there the probe in bind has to do.
		if err != nil || sameFile(f) {
			return f, nil
		}
		f.Close() // its last owner removed it while we opened it
	}
}

func release(path string, lock *os.File) {
	os.Remove(path + ".lock") // while it is locked: afterwards it may be another's
	lock.Close()
}

// sameFile reports whether the file that is open is still the one at its name.
func sameFile(f *os.File) bool {
	opened, err1 := f.Stat()
	named, err2 := os.Lstat(f.Name())
	return err1 == nil && err2 == nil && os.SameFile(opened, named)
}

// peerCredentials are those of the process at the other end of a connection.
type peerCredentials struct {
	pid     int  // 0 when not known
	trusted bool // the same user, or root
}

var errLocked = errors.New("locked by another process")

// inUse returns an error if somebody listens at path.
func inUse(path string) error {
	c, err := net.DialTimeout("unix", path, time.Second)
	switch {
	case err == nil:
		defer c.Close()
		peer, err := credentials(c)
		if err != nil {
			return errRunning(path, 0)
		}
		return errRunning(path, peer.pid)
	case errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, fs.ErrNotExist):
		return nil
	case errors.Is(err, syscall.EAGAIN): // its queue is full, so there is somebody
		return errRunning(path, 0)
	default:
		return fmt.Errorf("control socket: %w", err)
	}
}

func errRunning(path string, pid int) error {
	if pid <= 0 { // not told, or of another PID namespace
		return fmt.Errorf("another culvert is running at %s", path)
	}
	return fmt.Errorf("another culvert is running at %s (pid %d)", path, pid)
}
