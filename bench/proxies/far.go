//go:build linux

package main

import (
	"bufio"
	"net"
	"net/http"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"culvert.dev/culvert/internal/lab"
)

// Ports of the far end's server.
const (
	bulkPort  = 8080 // HTTP: GET brings data without end, PUT takes it
	touchPort = 8081 // sends one byte and ends
	idlePort  = 8082 // sends one byte and waits
)

// far is the server at the far end. Its work per byte is small: large writes for downloads, and uploads are discarded by the
// kernel without being copied.
type far struct {
	mu sync.Mutex // guards the following
	// transfers are those under way.
	transfers map[*transfer]struct{}

	idle atomic.Int64 // connections to idlePort
}

// transfer is one bulk connection.
type transfer struct {
	conn      *net.TCPConn
	upload    bool
	swallowed atomic.Int64
}

func startFar(tb lab.TB, node *lab.Node) *far {
	tb.Helper()
	f := &far{transfers: map[*transfer]struct{}{}}
	for port, handle := range map[int]func(*net.TCPConn){bulkPort: f.bulk, touchPort: oneByte, idlePort: f.wait} {
		l := node.Listen(tb, lab.Port(farMesh, port))
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				go func() {
					defer c.Close()
					handle(c.(*net.TCPConn))
				}()
			}
		}()
	}
	return f
}

func oneByte(c *net.TCPConn) { c.Write([]byte{'!'}) }

// wait holds a connection until the client ends it.
func (f *far) wait(c *net.TCPConn) {
	f.idle.Add(1)
	defer f.idle.Add(-1)
	oneByte(c)
	c.Read(make([]byte, 1))
}

func (f *far) bulk(c *net.TCPConn) {
	r, err := http.ReadRequest(bufio.NewReaderSize(c, 4096))
	if err != nil {
		return
	}
	t := &transfer{conn: c, upload: r.Method == http.MethodPut}
	f.mu.Lock()
	f.transfers[t] = struct{}{}
	f.mu.Unlock()
	defer func() {
		f.mu.Lock()
		delete(f.transfers, t)
		f.mu.Unlock()
	}()
	if t.upload {
		t.swallow()
		return
	}
	buf := make([]byte, 1<<20)
	for _, err = c.Write([]byte("HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")); err == nil; {
		_, err = c.Write(buf)
	}
}

// swallow discards what arrives until the end.
func (t *transfer) swallow() {
	raw, err := t.conn.SyscallConn()
	if err != nil {
		return
	}
	buf := make([]byte, 1<<20) // not touched: MSG_TRUNC discards (tcp(7))
	for ended := false; !ended; {
		err := raw.Read(func(fd uintptr) bool {
			n, _, err := unix.Recvfrom(int(fd), buf, unix.MSG_TRUNC)
			switch {
			case err == unix.EAGAIN:
				return false
			case err == unix.EINTR:
			case err != nil || n == 0:
				ended = true
			default:
				t.swallowed.Add(int64(n))
			}
			return true
		})
		ended = ended || err != nil
	}
}

// moved is how many bytes the transfers under way have brought: taken by this server, or acknowledged by the client's side of
// the tunnel.
func (f *far) moved() (n int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for t := range f.transfers {
		if t.upload {
			n += t.swallowed.Load()
		} else {
			n += t.acknowledged()
		}
	}
	return n
}

func (t *transfer) acknowledged() (n int64) {
	raw, err := t.conn.SyscallConn()
	if err != nil {
		return 0
	}
	raw.Control(func(fd uintptr) {
		if info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO); err == nil {
			n = int64(info.Bytes_acked)
		}
	})
	return n
}

func (f *far) underWay() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.transfers)
}

// reset ends the transfers.
func (f *far) reset() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for t := range f.transfers {
		t.conn.SetLinger(0)
		t.conn.Close()
	}
}
