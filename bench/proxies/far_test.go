//go:build linux

package main

import (
	"io"
	"net"
	"net/netip"
	"runtime"
	"strings"
	"testing"
)

// served returns the address of a loopback listener whose connections handle has.
func served(t *testing.T, handle func(*net.TCPConn)) netip.AddrPort {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		handle(c.(*net.TCPConn))
	}()
	t.Cleanup(func() { l.Close(); <-done })
	return l.Addr().(*net.TCPAddr).AddrPort()
}

func TestFarCountsUploads(t *testing.T) {
	f := &far{transfers: map[*transfer]struct{}{}}
	c, err := net.Dial("tcp", served(t, f.bulk).String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	const size = 3 << 20
	if _, err := io.WriteString(c, "PUT / HTTP/1.1\r\nHost: far\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	for f.underWay() == 0 { // what comes with the request is not counted
		runtime.Gosched()
	}
	if _, err := io.WriteString(c, strings.Repeat("x", size)); err != nil {
		t.Fatal(err)
	}
	for f.moved() < size { // the test's time limit ends it
		runtime.Gosched()
	}
	if got := f.moved(); got != size {
		t.Errorf("%d bytes were counted, want %d", got, size)
	}
	f.reset()
	if _, err := c.Read(make([]byte, 1)); err == nil {
		t.Error("the connection outlives the end of the transfers")
	}
}

func TestFarCountsWhatIsAcknowledgedOfDownloads(t *testing.T) {
	f := &far{transfers: map[*transfer]struct{}{}}
	c, err := net.Dial("tcp", served(t, f.bulk).String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := io.WriteString(c, "GET / HTTP/1.1\r\nHost: far\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	const size = 5 << 20
	if _, err := io.CopyN(io.Discard, c, size); err != nil {
		t.Fatal(err)
	}
	for f.moved() < size { // the last acknowledgement may be on its way
		runtime.Gosched()
	}
	f.reset()
}

func TestOpenReadsTheFirstByte(t *testing.T) {
	at := served(t, oneByte)
	b, err := dial(at, at)
	if err != nil {
		t.Fatal(err)
	}
	if err := b.end(); err != nil {
		t.Error(err)
	}
}

func TestOpenAsksTheProxy(t *testing.T) {
	to := netip.MustParseAddrPort("100.64.0.1:8081")
	for _, c := range []struct {
		name   string
		code   byte
		refuse string // a part of the error; "" for none
	}{
		{"which connects", 0, ""},
		{"which refuses", 4, "answers 4"},
	} {
		t.Run(c.name, func(t *testing.T) {
			requests := make(chan [10]byte, 1)
			proxy := served(t, func(conn *net.TCPConn) {
				var greeting [3]byte
				var asked [10]byte
				io.ReadFull(conn, greeting[:])
				conn.Write([]byte{5, 0})
				io.ReadFull(conn, asked[:])
				requests <- asked
				conn.Write([]byte{5, c.code, 0, 1, 0, 0, 0, 0, 0, 0, '!'})
			})
			b, err := dial(proxy, to)
			if (err == nil) != (c.refuse == "") || err != nil && !strings.Contains(err.Error(), c.refuse) {
				t.Fatalf("error %v, want %q", err, c.refuse)
			}
			if err == nil {
				b.Close()
			}
			if want := [10]byte{5, 1, 0, 1, 100, 64, 0, 1, 0x1f, 0x91}; <-requests != want {
				t.Errorf("the request is not % x", want)
			}
		})
	}
}
