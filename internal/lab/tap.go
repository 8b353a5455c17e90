//go:build linux

package lab

import (
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Tap writes and reads whole IP packets on an interface of a node, beside the kernel: a packet written leaves by the
// interface whatever its addresses, and every packet that arrives is seen even if the kernel would drop it. On a
// tunnel's interface it is a peer that sends what no honest kernel would.
type Tap struct {
	file    *os.File
	ifindex int
}

// Tap opens a tap on a device without link-layer addresses; it is closed when tb ends.
func (x *Node) Tap(tb TB, dev string) *Tap {
	tb.Helper()
	var t Tap
	err := x.Do(func() error {
		ifi, err := net.InterfaceByName(dev)
		if err != nil {
			return err
		}
		t.ifindex = ifi.Index
		all := int(htons(unix.ETH_P_ALL))
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, all)
		if err != nil {
			return err
		}
		t.file = os.NewFile(uintptr(fd), "tap")
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 8<<20) // best effort: rootless has the default
		return unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: uint16(all), Ifindex: t.ifindex})
	})
	if err != nil {
		tb.Fatalf("tap %s in %s: %v", dev, x.Name, err)
	}
	tb.Cleanup(func() { t.file.Close() })
	return &t
}

// Send writes one packet. The first four bits say of which family; a packet that is neither is sent as IPv4.
func (t *Tap) Send(packet []byte) error {
	proto := uint16(unix.ETH_P_IP)
	if len(packet) > 0 && packet[0]>>4 == 6 {
		proto = unix.ETH_P_IPV6
	}
	to := &unix.SockaddrLinklayer{Protocol: htons(proto), Ifindex: t.ifindex}
	c, err := t.file.SyscallConn()
	if err != nil {
		return err
	}
	for {
		var serr error
		err := c.Write(func(fd uintptr) bool {
			serr = unix.Sendto(int(fd), packet, 0, to)
			return serr != unix.EAGAIN
		})
		if err != nil {
			return err
		}
		if serr != unix.ENOBUFS {
			return serr
		}
		time.Sleep(time.Millisecond) // the interface's queue is full, which no poller reports
	}
}

// Receive returns the first packet for which match holds among those that arrive within limit, or nil.
func (t *Tap) Receive(limit time.Duration, match func(packet []byte) bool) []byte {
	t.file.SetReadDeadline(time.Now().Add(limit))
	c, err := t.file.SyscallConn()
	if err != nil {
		return nil
	}
	buf := make([]byte, 65536)
	for {
		var n int
		var from unix.Sockaddr
		var rerr error
		err := c.Read(func(fd uintptr) bool {
			n, from, rerr = unix.Recvfrom(int(fd), buf, 0)
			return rerr != unix.EAGAIN
		})
		if err != nil || rerr != nil { // the deadline, or the interface is gone
			return nil
		}
		if ll, ok := from.(*unix.SockaddrLinklayer); ok && ll.Pkttype == unix.PACKET_OUTGOING {
			continue
		}
		if match(buf[:n]) {
			return append([]byte(nil), buf[:n]...)
		}
	}
}

func htons(v uint16) uint16 { return v<<8 | v>>8 }
