package attach

import (
	"fmt"
	"net"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// bindTo has a socket use one interface, whatever the routes say.
func bindTo(device string) func(network, address string, c syscall.RawConn) error {
	return func(_, _ string, c syscall.RawConn) error {
		var err error
		if fault := c.Control(func(fd uintptr) { err = bindFD(int(fd), device) }); fault != nil {
			return fault
		}
		return err
	}
}

func bindFD(fd int, device string) error {
	if err := unix.BindToDevice(fd, device); err != nil {
		return fmt.Errorf("use interface %s: %w", device, err)
	}
	return nil
}

// listenEcho opens a socket for echo by one interface: one that needs no privilege if the host grants it (net.ipv4.ping_group_range),
// else a raw one. raw says which.
func listenEcho(device string, v4 bool) (c net.PacketConn, raw bool, err error) {
	family, protocol := unix.AF_INET6, unix.IPPROTO_ICMPV6
	if v4 {
		family, protocol = unix.AF_INET, unix.IPPROTO_ICMP
	}
	fd, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, protocol)
	if err != nil {
		raw = true
		if fd, err = unix.Socket(family, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, protocol); err != nil {
			return nil, true, os.NewSyscallError("socket", err)
		}
	}
	f := os.NewFile(uintptr(fd), "echo")
	defer f.Close() // FilePacketConn has its own
	if err := bindFD(fd, device); err != nil {
		return nil, raw, err
	}
	c, err = net.FilePacketConn(f)
	return c, raw, err
}
