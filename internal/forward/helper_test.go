package forward

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"testing"
	"time"
)

const testTimeout = 10 * time.Second

// loopbacks are the addresses that tests of both families listen on.
func loopbacks(t *testing.T, test func(t *testing.T, host string)) {
	for _, host := range []string{"127.0.0.1", "::1"} {
		t.Run(host, func(t *testing.T) {
			l, err := net.Listen("tcp", net.JoinHostPort(host, "0"))
			if err != nil {
				t.Skip("this host has no loopback of the family:", err)
			}
			l.Close()
			test(t, host)
		})
	}
}

func listenUDP(t testing.TB, host string) *net.UDPConn {
	t.Helper()
	pc, err := ListenPacketHost(t.Context(), net.JoinHostPort(host, "0"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { pc.Close() })
	return pc.(*net.UDPConn)
}

// echoUDP answers each datagram with itself.
func echoUDP(t testing.TB, host string) *net.UDPConn {
	c := listenUDP(t, host)
	go func() {
		b := make([]byte, 1<<16)
		for {
			n, from, err := c.ReadFromUDPAddrPort(b)
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err == nil {
				c.WriteToUDPAddrPort(b[:n], from)
			}
		}
	}()
	return c
}

// dialTo opens UDP sockets to a target of the host.
func dialTo(target net.Addr) Dial {
	return func(ctx context.Context, _ Origin) (net.Conn, error) {
		return DialHost(ctx, target.Network(), target.String())
	}
}

// serveUDP runs an engine on pc until the end of the test, which fails if Serve fails.
func serveUDP(t testing.TB, cfg UDPConfig, pc net.PacketConn) *UDP {
	t.Helper()
	u := NewUDP(cfg)
	done := make(chan error, 1)
	go func() { done <- u.Serve(pc) }()
	t.Cleanup(func() {
		u.Close()
		if err := <-done; err != nil {
			t.Error("Serve:", err)
		}
	})
	return u
}

func dialUDP(t testing.TB, to net.Addr) *net.UDPConn {
	t.Helper()
	c, err := net.Dial("udp", to.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(testTimeout))
	return c.(*net.UDPConn)
}

func send(t testing.TB, c net.Conn, b []byte) {
	t.Helper()
	if _, err := c.Write(b); err != nil {
		t.Fatal(err)
	}
}

func receive(t testing.TB, c net.Conn) []byte {
	t.Helper()
	b := make([]byte, 1<<16)
	n, err := c.Read(b)
	if err != nil {
		t.Fatal(err)
	}
	return b[:n]
}

// await waits for what other goroutines bring about.
func await(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(testTimeout); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("never happened: ", what)
		}
	}
}

func openFiles(t testing.TB) int {
	d, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Skip("cannot count descriptors:", err)
	}
	return len(d)
}

// leaks fails the test if it ends with more goroutines or descriptors than now.
func leaks(t *testing.T) {
	goroutines, files := runtime.NumGoroutine(), openFiles(t)
	t.Cleanup(func() {
		await(t, fmt.Sprintf("%d goroutines and %d files again", goroutines, files), func() bool {
			return runtime.NumGoroutine() <= goroutines && openFiles(t) <= files
		})
	})
}

// parsedHeader is what a reader of PROXY protocol headers understands.
type parsedHeader struct {
	local    bool
	datagram bool
	from     Origin
	rest     []byte
}

// parseProxy is written from haproxy's specification, without regard to how the engine writes headers.
func parseProxy(b []byte) (p parsedHeader, err error) {
	signature := []byte{0x0d, 0x0a, 0x0d, 0x0a, 0x00, 0x0d, 0x0a, 0x51, 0x55, 0x49, 0x54, 0x0a}
	if len(b) < 16 || string(b[:12]) != string(signature) {
		return p, errors.New("no signature")
	}
	if b[12]>>4 != 2 {
		return p, fmt.Errorf("version %d", b[12]>>4)
	}
	length := int(binary.BigEndian.Uint16(b[14:]))
	if len(b) < 16+length {
		return p, errors.New("cut short")
	}
	p.rest = b[16+length:]
	b = b[:16+length]
	switch command := b[12] & 15; command {
	case 0:
		p.local = true
		return p, nil
	case 1:
	default:
		return p, fmt.Errorf("command %d", command)
	}
	switch b[13] & 15 {
	case 1:
	case 2:
		p.datagram = true
	default:
		return p, fmt.Errorf("transport %d", b[13]&15)
	}
	size := map[byte]int{1: 4, 2: 16}[b[13]>>4]
	if size == 0 || length != 2*size+4 {
		return p, fmt.Errorf("family %d with %d bytes", b[13]>>4, length)
	}
	src, _ := netip.AddrFromSlice(b[16 : 16+size])
	dst, _ := netip.AddrFromSlice(b[16+size : 16+2*size])
	ports := b[16+2*size:]
	p.from.Client = netip.AddrPortFrom(src, binary.BigEndian.Uint16(ports))
	p.from.Local = netip.AddrPortFrom(dst, binary.BigEndian.Uint16(ports[2:]))
	return p, nil
}
