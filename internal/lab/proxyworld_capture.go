//go:build linux

package lab

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// Capture reads every frame that passes a device, both ways, and keeps an account of what must not pass.
type Capture struct {
	fd     int
	marker []byte
	done   chan struct{}

	packets, dns, plain atomic.Int64
	first               atomic.Pointer[string] // of those that must not be
}

// Capture starts to watch a device of the node for DNS, and for packets that carry marker in plain text. It ends with tb.
func (x *Node) Capture(tb TB, dev, marker string) *Capture {
	tb.Helper()
	c := &Capture{marker: []byte(marker), done: make(chan struct{})}
	err := x.Do(func() error {
		ifi, err := net.InterfaceByName(dev)
		if err != nil {
			return err
		}
		all := int(htons(unix.ETH_P_ALL))
		// SOCK_DGRAM: packets begin with the network header.
		if c.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, all); err != nil {
			return err
		}
		unix.SetsockoptInt(c.fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 32<<20) // rootless has the default
		unix.SetsockoptTimeval(c.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 20_000})
		return unix.Bind(c.fd, &unix.SockaddrLinklayer{Protocol: uint16(all), Ifindex: ifi.Index})
	})
	if err != nil {
		tb.Fatalf("capture on %s in %s: %v", dev, x.Name, err)
	}
	stop := make(chan struct{})
	go c.run(stop)
	tb.Cleanup(func() {
		close(stop)
		<-c.done
		unix.Close(c.fd)
	})
	return c
}

func (c *Capture) run(stop <-chan struct{}) {
	defer close(c.done)
	buf := make([]byte, 1<<17)
	for {
		select {
		case <-stop:
			return
		default:
		}
		n, _, err := unix.Recvfrom(c.fd, buf, 0)
		if err == nil {
			c.see(buf[:n])
		}
	}
}

func (c *Capture) see(packet []byte) {
	c.packets.Add(1)
	if len(c.marker) > 0 && bytes.Contains(packet, c.marker) {
		c.plain.Add(1)
		c.remember("plain text", packet)
	}
	if proto, src, dst := ports(packet); (proto == unix.IPPROTO_UDP || proto == unix.IPPROTO_TCP) && (src == 53 || dst == 53) {
		c.dns.Add(1)
		c.remember("DNS", packet)
	}
}

func (c *Capture) remember(what string, packet []byte) {
	s := fmt.Sprintf("%s: %x", what, packet[:min(len(packet), 200)])
	c.first.CompareAndSwap(nil, &s)
}

// ports finds the protocol and ports of a packet without extension headers.
func ports(b []byte) (proto int, src, dst uint16) {
	var at int
	switch {
	case len(b) >= 20 && b[0]>>4 == 4:
		proto, at = int(b[9]), int(b[0]&15)*4
	case len(b) >= 40 && b[0]>>4 == 6:
		proto, at = int(b[6]), 40
	}
	if at == 0 || len(b) < at+4 {
		return proto, 0, 0
	}
	return proto, binary.BigEndian.Uint16(b[at:]), binary.BigEndian.Uint16(b[at+2:])
}

// Settle waits until what has passed so far has been looked at, and fails tb if the kernel had to leave something out.
func (c *Capture) Settle(tb TB) {
	tb.Helper()
	last := int64(-1)
	WaitFor(tb, 5*time.Second, "the capture to be quiet", func() bool {
		n := c.packets.Load()
		quiet := n == last
		last = n
		time.Sleep(30 * time.Millisecond) // longer than a read of the capture waits
		return quiet
	})
	if s, err := unix.GetsockoptTpacketStats(c.fd, unix.SOL_PACKET, unix.PACKET_STATISTICS); err != nil || s.Drops > 0 {
		tb.Errorf("the capture is not whole: %v, %+v", err, s)
	}
}

// Packets is how many have passed.
func (c *Capture) Packets() int64 { return c.packets.Load() }

// DNS is how many of them came from or went to port 53.
func (c *Capture) DNS() int64 { return c.dns.Load() }

// Plain is how many of them held the marker.
func (c *Capture) Plain() int64 { return c.plain.Load() }

// First describes the first packet that was DNS or held the marker; empty if there was none.
func (c *Capture) First() string {
	if s := c.first.Load(); s != nil {
		return *s
	}
	return ""
}
