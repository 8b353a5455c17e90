//go:build linux

package lab_test

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"culvert.dev/culvert/internal/lab"
)

// TestProxyStreams has streams end in every order, by every way into the mesh and beyond it.
func TestProxyStreams(t *testing.T) {
	t.Parallel()
	w := newProxied(t, proxiedConfig{client: programProxies})
	serve := func(c *net.TCPConn) { behave(c) }
	for _, f := range families {
		serveTCP(t, w.S, lab.Port(lab.Server[f.i], 6000), serve)
		serveTCP(t, w.DB, lab.Port(lab.ProxyMesh["db"][f.i], 6000), serve)
	}
	w.listening(t, 1080)
	const proxy = "127.0.0.1:1080"
	for _, host := range []string{lab.ProxyMesh["db"][0], lab.ProxyMesh["db"][1], lab.Server[0], lab.Server[1]} {
		t.Run("SOCKS5 to "+host, func(t *testing.T) {
			streamCases(t, func() (net.Conn, error) { return w.socksTCP(proxy, socksUser{}, host, 6000) })
		})
		t.Run("CONNECT to "+host, func(t *testing.T) {
			streamCases(t, func() (net.Conn, error) { return w.connectHTTP(proxy, lab.Port(host, 6000)) })
		})
	}
	t.Run("bytes behind the request in one write", func(t *testing.T) {
		for name, first := range map[string]string{
			"SOCKS4":  "\x04\x01\x17\x70" + "\x64\x40\x00\x14" + "\x00",
			"CONNECT": "CONNECT db:6000 HTTP/1.1\r\nHost: db:6000\r\n\r\n",
		} {
			c, err := socksDial(w.C, proxy)
			if err != nil {
				t.Fatal(err)
			}
			c.Write([]byte(first + "Epipelined"))
			c.(halfConn).CloseWrite()
			b := make([]byte, 4096)
			n, got := 0, ""
			for err == nil {
				n, err = c.Read(b)
				got += string(b[:n])
			}
			if !strings.HasSuffix(got, "pipelined") {
				t.Errorf("%s: got %q, %v", name, got, err)
			}
			c.Close()
		}
	})
}

// TestForward leads ports of the client host into the mesh and beyond an exit.
func TestForward(t *testing.T) {
	t.Parallel()
	lab.Need(t, "nc")
	w := newProxied(t, proxiedConfig{
		client: `
[Forward]
Listen = 127.0.0.1:5400/tcp,udp, [::1]:5400/tcp,udp
To = db:6000
[Forward]
Listen = unix:db.sock
To = db.mesh:6000
[Forward]
Listen = 127.0.0.1:5410-5414/tcp,udp
To = db:6410-6414
[Forward]
Listen = 127.0.0.1:5420/tcp,udp
To = v4.example:6000
Exit = exit-fra
[Forward]
Listen = 127.0.0.1:5421
To = db:1
[Forward]
Listen = 127.0.0.1:5422
To = nobody.mesh:1
[Forward]
Listen = 127.0.0.1:5423
To = db:6000
AllowFrom = 10.1.2.3
`,
		args: []string{"-L", "5430:db:6000", "-L", "5431:db:6000/udp", "-D", "1090"},
	})
	serve := func(c *net.TCPConn) { behave(c) }
	for _, f := range families {
		serveTCP(t, w.DB, lab.Port(lab.ProxyMesh["db"][f.i], 6000), serve)
		echoUDP(t, w.DB, lab.Port(lab.ProxyMesh["db"][f.i], 6000))
		for i := range 5 {
			addr := lab.Port(lab.ProxyMesh["db"][f.i], 6410+i)
			serveTCP(t, w.DB, addr, func(c *net.TCPConn) { fmt.Fprint(c, 6410+i) })
			u := w.DB.ListenUDP(t, addr)
			go func() {
				for b := make([]byte, 100); ; {
					_, from, err := u.ReadFromUDPAddrPort(b)
					if err != nil {
						return
					}
					u.WriteToUDPAddrPort(fmt.Append(nil, 6410+i), from)
				}
			}()
		}
	}
	serveTCP(t, w.S, lab.Port(lab.Server[0], 6000), serve)
	echoUDP(t, w.S, lab.Port(lab.Server[0], 6000))
	w.listening(t, 5400, 5410, 5414, 5420, 5421, 5422, 5423, 5430, 1090)
	tcp := func(addr string) func() (net.Conn, error) {
		return func() (net.Conn, error) { return socksDial(w.C, addr) }
	}
	t.Run("TCP", func(t *testing.T) { streamCases(t, tcp("127.0.0.1:5400")) })
	t.Run("TCP over IPv6", func(t *testing.T) { streamCases(t, tcp("[::1]:5400")) })
	t.Run("TCP by an exit", func(t *testing.T) { streamCases(t, tcp("127.0.0.1:5420")) })
	t.Run("a unix socket", func(t *testing.T) {
		streamCases(t, func() (net.Conn, error) { return net.Dial("unix", filepath.Join(w.client.Dir(), "db.sock")) })
	})
	t.Run("-L", func(t *testing.T) { streamCases(t, tcp("127.0.0.1:5430")) })
	t.Run("-L on the other loopback address", func(t *testing.T) { streamCases(t, tcp("[::1]:5430")) })
	t.Run("-D", func(t *testing.T) {
		streamCases(t, func() (net.Conn, error) { return w.socksTCP("127.0.0.1:1090", socksUser{}, "db", 6000) })
		streamCases(t, func() (net.Conn, error) { return w.connectHTTP("[::1]:1090", "db:6000") })
	})
	t.Run("nc -N", func(t *testing.T) {
		if out, err := w.C.Exec("Ehalf close", "nc", "-N", "-w", "10", "127.0.0.1", "5400"); err != nil || out != "half close" {
			t.Errorf("got %q, %v", out, err)
		}
	})
	t.Run("a range leads port by port", func(t *testing.T) {
		for i := range 5 {
			want := fmt.Sprint(6410 + i)
			c, err := socksDial(w.C, fmt.Sprintf("127.0.0.1:%d", 5410+i))
			if err == nil {
				err = wantText(c, want)
				c.Close()
			}
			if err != nil {
				t.Errorf("TCP port %d: %v", 5410+i, err)
			}
			got, _ := exchange(t, w.C.ListenUDP(t, "127.0.0.1:0"), fmt.Sprintf("127.0.0.1:%d", 5410+i), []byte("?"))
			if string(got) != want {
				t.Errorf("UDP port %d: got %q, want %s", 5410+i, got, want)
			}
		}
	})
	for name, addr := range map[string]string{"UDP": "127.0.0.1:5400", "UDP over IPv6": "[::1]:5400", "UDP by an exit": "127.0.0.1:5420", "-L of UDP": "127.0.0.1:5431"} {
		t.Run(name, func(t *testing.T) {
			local := "127.0.0.1:0"
			if addr[0] == '[' {
				local = "[::1]:0"
			}
			u := w.C.ListenUDP(t, local)
			for _, size := range []int{0, 1, 1400, 4097, 60000} {
				data := random(t, size)
				if got, from := exchange(t, u, addr, data); !bytes.Equal(got, data) || from.String() != addr {
					t.Errorf("%d bytes: %d bytes came back from %v", size, len(got), from)
				}
			}
			other := w.C.ListenUDP(t, local)
			for _, x := range []*net.UDPConn{u, other, u} { // each client has its own answers
				if got, _ := exchange(t, x, addr, []byte(x.LocalAddr().String())); string(got) != x.LocalAddr().String() {
					t.Errorf("got %q, want that of %v", got, x.LocalAddr())
				}
			}
		})
	}
	t.Run("what cannot be reached is a closed port", func(t *testing.T) {
		for _, port := range []int{5421, 5422, 5423} {
			c, err := socksDial(w.C, fmt.Sprintf("127.0.0.1:%d", port))
			if err == nil {
				c.SetDeadline(time.Now().Add(5 * time.Second))
				_, err = c.Read(make([]byte, 1))
				c.Close()
			}
			if !errors.Is(err, syscall.ECONNRESET) && !errors.Is(err, syscall.ECONNREFUSED) {
				t.Errorf("port %d: got %v, want a reset", port, err)
			}
		}
	})
}
