package proxy

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"net/netip"
	"runtime"
	"testing"
	"time"
)

// What an idle tunnel costs, with its four sockets, all of them in this process. SOCKS5 is what the relay alone costs.
func BenchmarkIdleTunnels(b *testing.B) {
	target := echoTCP(b, "tcp", "127.0.0.1:0")
	addrPort := netip.MustParseAddrPort(target)
	port := addrPort.Port()
	for name, open := range map[string]func(c net.Conn) error{
		"http": func(c net.Conn) error {
			io.WriteString(c, "CONNECT "+target+" HTTP/1.1\r\n\r\n")
			return readHeadPlainly(c)
		},
		"socks5": func(c net.Conn) error {
			c.Write([]byte{5, 1, 0, 5, 1, 0, 1, 127, 0, 0, 1, byte(port >> 8), byte(port)})
			_, err := io.ReadFull(c, make([]byte, 12))
			return err
		},
	} {
		b.Run(name, func(b *testing.B) {
			addr := startHTTP(b, &hostsDialer{}, Config{SOCKS: true})
			const tunnels = 200
			for b.Loop() {
				before := memoryInUse()
				clients := make([]net.Conn, tunnels)
				for i := range clients {
					c, err := net.Dial("tcp", addr)
					if err != nil {
						b.Fatal(err)
					}
					clients[i] = c
					if err := open(c); err != nil {
						b.Fatal(err)
					}
				}
				b.ReportMetric(float64(memoryInUse()-before)/tunnels, "B/tunnel")
				for _, c := range clients {
					c.Close()
				}
			}
		})
	}
}

// readHeadPlainly reads byte by byte, so that no buffer of the test counts.
func readHeadPlainly(c net.Conn) error {
	var b [1]byte
	for end := 0; end < 4; {
		if _, err := c.Read(b[:]); err != nil {
			return err
		}
		if b[0] == '\r' || b[0] == '\n' {
			end++
		} else {
			end = 0
		}
	}
	return nil
}

func memoryInUse() uint64 {
	for range 4 { // stacks shrink by half each time
		runtime.GC()
	}
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapInuse + m.StackInuse
}

// Small requests one after the other on one connection.
func BenchmarkPlainRequests(b *testing.B) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	defer l.Close()
	go func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		for br := bufio.NewReader(c); ; {
			if _, err := http.ReadRequest(br); err != nil {
				return
			}
			io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
		}
	}()
	addr := startHTTP(b, &hostsDialer{}, Config{})
	c := dialRaw(b, addr)
	c.c.SetDeadline(time.Time{})
	b.ReportAllocs()
	for b.Loop() {
		c.send("GET http://" + l.Addr().String() + "/ HTTP/1.1\r\nAccept: */*\r\n\r\n")
		if res, body := c.answer("GET"); res.StatusCode != 200 || body != "ok" {
			b.Fatal(res.Status, body)
		}
	}
}

// A large body through the proxy, both ways at the speed of loopback.
func BenchmarkLargeAnswer(b *testing.B) {
	const size = 64 << 20
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	defer l.Close()
	go func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		block := make([]byte, 1<<20)
		for br := bufio.NewReader(c); ; {
			if _, err := http.ReadRequest(br); err != nil {
				return
			}
			io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 67108864\r\n\r\n")
			for range size / len(block) {
				c.Write(block)
			}
		}
	}()
	addr := startHTTP(b, &hostsDialer{}, Config{})
	c := dialRaw(b, addr)
	c.c.SetDeadline(time.Time{})
	b.SetBytes(size)
	for b.Loop() {
		c.send("GET http://" + l.Addr().String() + "/ HTTP/1.1\r\n\r\n")
		res, err := http.ReadResponse(c.br, nil)
		if err != nil {
			b.Fatal(err)
		}
		if n, err := io.Copy(io.Discard, res.Body); n != size || err != nil {
			b.Fatal(n, err)
		}
	}
}
