//go:build linux

package lab

import (
	"errors"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// slowWire connects two nodes by a pair of TUN devices, between which this process carries packets after a delay, in order.
// Many kernels come without the queueing discipline that could do it.
func slowWire(tb TB, a *Node, aDev string, b *Node, bDev string, delay time.Duration) {
	tb.Helper()
	x, y := openTUN(tb, a, aDev), openTUN(tb, b, bDev)
	done := make(chan struct{}, 2)
	for _, way := range [][2]*os.File{{x, y}, {y, x}} {
		go func() {
			carry(way[0], way[1], delay)
			done <- struct{}{}
		}()
	}
	b.batch("link set dev " + bDev + " up")
	tb.Cleanup(func() {
		x.Close()
		y.Close()
		<-done
		<-done
	})
}

// openTUN makes a device for whole IP packets in the node; it vanishes when the file is closed.
func openTUN(tb TB, x *Node, dev string) (f *os.File) {
	tb.Helper()
	err := x.Do(func() error {
		fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
		if err != nil {
			return err
		}
		req, err := unix.NewIfreq(dev)
		if err == nil {
			req.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
			err = unix.IoctlIfreq(fd, unix.TUNSETIFF, req)
		}
		if err != nil {
			unix.Close(fd)
			return err
		}
		f = os.NewFile(uintptr(fd), dev)
		return nil
	})
	if err != nil {
		tb.Fatalf("node %s: TUN device %s: %v", x.Name, dev, err)
	}
	return f
}

// carry copies packets until a file is closed. What finds the queue full is lost.
func carry(from, to *os.File, delay time.Duration) {
	type packet struct {
		due  time.Time
		data []byte
	}
	queue := make(chan packet, 8192)
	written := make(chan struct{})
	go func() {
		defer close(written)
		for p := range queue {
			time.Sleep(time.Until(p.due))
			to.Write(p.data) // a device that is down loses it
		}
	}()
	buf := make([]byte, 65536)
	for {
		n, err := from.Read(buf)
		if err != nil {
			if errors.Is(err, unix.EIO) { // the device is not up yet
				time.Sleep(time.Millisecond)
				continue
			}
			break
		}
		select {
		case queue <- packet{time.Now().Add(delay), append([]byte(nil), buf[:n]...)}:
		default:
		}
	}
	close(queue)
	<-written
}
