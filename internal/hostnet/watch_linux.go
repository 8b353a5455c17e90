package hostnet

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// subscribe asks the kernel to announce changes of links, addresses and routes. Where that is refused, events is nil and
// the state is polled. stop ends the goroutine behind it and waits for that.
func subscribe() (events <-chan struct{}, stop func()) {
	const groups = unix.RTMGRP_LINK | unix.RTMGRP_IPV4_IFADDR | unix.RTMGRP_IPV6_IFADDR | unix.RTMGRP_IPV4_ROUTE | unix.RTMGRP_IPV6_ROUTE
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, func() {}
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: groups}); err != nil {
		unix.Close(fd)
		return nil, func() {}
	}
	f := os.NewFile(uintptr(fd), "rtnetlink")
	c, done := make(chan struct{}, 1), make(chan struct{})
	go func() {
		defer close(done)
		var b [4096]byte // what has changed does not matter, and a message cut short is still one
		for {
			// ENOBUFS says that announcements were lost, which is one too.
			if _, err := f.Read(b[:]); err != nil && !errors.Is(err, unix.ENOBUFS) {
				return
			}
			select {
			case c <- struct{}{}:
			default:
			}
		}
	}()
	return c, func() {
		f.Close()
		<-done
	}
}
