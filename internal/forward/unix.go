package forward

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"
)

// maxPathLen is the room in sockaddr_un, unix(7), less its final zero.
const maxPathLen = 107

// unixListener removes its file on Close, if it still is its own: by then another process may have one of that name.
type unixListener struct {
	*net.UnixListener
	path string
	file fs.FileInfo

	once sync.Once
	err  error // of Close
}

func listenUnix(ctx context.Context, path string, mode fs.FileMode) (net.Listener, error) {
	switch {
	case path == "" || strings.HasPrefix(path, "@"):
		return nil, fmt.Errorf("listen on unix socket %q: a path is needed; an abstract socket is open to every user of the host", path)
	case len(path) > maxPathLen:
		return nil, fmt.Errorf("listen on unix socket %s: the path has %d bytes, a socket can have %d; choose a shorter one", path, len(path), maxPathLen)
	}
	// Between two that find a dead socket the second would remove that of the first, or one that is bound but does not listen yet.
	defer lockFolder(ctx, filepath.Dir(path))()
	l, err := bindUnix(ctx, path, mode)
	if errors.Is(err, syscall.EADDRINUSE) {
		if err := removeStale(ctx, path); err != nil {
			return nil, fmt.Errorf("listen on unix socket %s: %w", path, err)
		}
		l, err = bindUnix(ctx, path, mode)
	}
	if err != nil {
		return nil, err
	}
	l.SetUnlinkOnClose(false)
	if err = os.Chmod(path, mode); err == nil { // for hosts where the unbound socket has no mode
		var file fs.FileInfo
		if file, err = os.Lstat(path); err == nil {
			return &unixListener{UnixListener: l, path: path, file: file}, nil
		}
	}
	l.Close()
	return nil, fmt.Errorf("listen on unix socket %s: %w", path, err)
}

// bindUnix gives the socket its mode before it has a name, so that there is no moment at which others may connect.
func bindUnix(ctx context.Context, path string, mode fs.FileMode) (*net.UnixListener, error) {
	config := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) (err error) {
		if e := raw.Control(func(fd uintptr) { err = setMode(fd, mode) }); e != nil {
			return e
		}
		return err
	}}
	l, err := config.Listen(ctx, "unix", path)
	if err != nil {
		return nil, err
	}
	return l.(*net.UnixListener), nil
}

// removeStale removes a socket of this user that nobody answers at, and returns why it did not otherwise.
func removeStale(ctx context.Context, path string) error {
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist): // gone meanwhile
		return nil
	case err != nil:
		return err
	case info.Mode()&fs.ModeSocket == 0:
		return errors.New("there is a file that is not a socket; remove it or choose another path")
	case !ownedBySelf(info):
		return errors.New("there is a socket of another user; remove it or choose another path")
	}
	dialer := net.Dialer{Timeout: time.Second}
	c, err := dialer.DialContext(ctx, "unix", path)
	switch {
	case err == nil:
		c.Close()
		return errors.New("another process listens there")
	case errors.Is(err, syscall.ECONNREFUSED):
		return os.Remove(path)
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case errors.Is(err, syscall.EPROTOTYPE):
		return errors.New("another process uses a datagram socket of that name")
	default: // EAGAIN: its queue is full, so there is somebody
		return fmt.Errorf("another process seems to listen there: %w", err)
	}
}

// SetMode gives the file another mode, if it still is the listener's own.
func (l *unixListener) SetMode(mode fs.FileMode) error {
	now, err := os.Lstat(l.path)
	if err == nil && !os.SameFile(now, l.file) {
		err = errors.New("another file has its name by now")
	}
	if err == nil {
		err = os.Chmod(l.path, mode)
	}
	if err != nil {
		return fmt.Errorf("mode of unix socket %s: %w", l.path, err)
	}
	return nil
}

// Close stops listening and removes the file. Further calls do nothing.
func (l *unixListener) Close() error {
	l.once.Do(func() {
		if now, err := os.Lstat(l.path); err == nil && os.SameFile(now, l.file) {
			os.Remove(l.path)
		}
		l.err = l.UnixListener.Close()
	})
	return l.err
}
