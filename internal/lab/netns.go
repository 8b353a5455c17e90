//go:build linux

package lab

import (
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// namespace is a network namespace with a name below /run/netns, where ip(8) and a curious human find it.
type namespace struct {
	path string
	fd   int // keeps it alive and is what threads enter it by
}

// newNamespace makes an empty network namespace.
func newNamespace(name string) (*namespace, error) {
	ns := &namespace{path: "/run/netns/" + name, fd: -1}
	err := onOwnThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("make network namespace %s: %w", name, err)
		}
		fd, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		ns.fd = fd
		if err := os.WriteFile(ns.path, nil, 0o600); err != nil {
			return err
		}
		return unix.Mount("/proc/thread-self/ns/net", ns.path, "", unix.MS_BIND, "")
	})
	if err != nil {
		return nil, err
	}
	return ns, nil
}

// do runs f on a thread inside the namespace. Sockets that f opens and processes that it starts stay there.
func (ns *namespace) do(f func() error) error {
	return onOwnThread(func() error {
		if err := unix.Setns(ns.fd, unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter %s: %w", ns.path, err)
		}
		return f()
	})
}

func (ns *namespace) close() {
	unix.Unmount(ns.path, unix.MNT_DETACH)
	os.Remove(ns.path)
	unix.Close(ns.fd)
}

// onOwnThread runs f on a thread that it may move between network namespaces, and brings the thread back afterwards. A
// thread that cannot be brought back is never used again. It must come back rather than end: the kernel would kill the
// processes that were started on it, if they asked for a signal at their parent's death.
func onOwnThread(f func() error) error {
	result := make(chan error)
	go func() {
		runtime.LockOSThread()
		home, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			result <- err
			return
		}
		defer unix.Close(home)
		err = f()
		if back := unix.Setns(home, unix.CLONE_NEWNET); back == nil {
			runtime.UnlockOSThread()
		}
		result <- err
	}()
	return <-result
}
