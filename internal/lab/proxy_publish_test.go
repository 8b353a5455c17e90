//go:build linux

package lab_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"culvert.dev/culvert/internal/lab"
)

// TestPublish leads peers to services on the client host's loopback.
func TestPublish(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	app := filepath.Join(dir, "app.sock")
	w := newProxied(t, proxiedConfig{
		client: `
[Publish]
Listen = 8000/tcp
To = 127.0.0.1:6000
[Publish]
Listen = 8001/tcp
To = unix:` + app + `
[Publish]
Listen = 9000-9002/tcp,udp
To = 127.0.0.1:7000-7002
[Publish]
Listen = 8002/tcp,udp
To = 127.0.0.1:6002
ProxyProtocol = v2
[Publish]
Listen = 8003
To = 127.0.0.1:6003
ProxyProtocol = v2
[Publish]
Listen = 8006
To = 6001
[Publish]
Listen = 8004
To = 127.0.0.1:1
[SOCKS5]
Listen = 1080
`,
		args:      []string{"-R", "8010:127.0.0.1:6000", "-R", "8011:" + app},
		dbOptions: "AllowInbound = yes\n", guest: true,
	})
	serve := func(c *net.TCPConn) { behave(c) }
	serveTCP(t, w.C, "127.0.0.1:6000", serve)
	serveUnix(t, app)
	for i := range 3 {
		serveTCP(t, w.C, fmt.Sprintf("127.0.0.1:%d", 7000+i), func(c *net.TCPConn) { fmt.Fprint(c, 7000+i) })
		echoUDP(t, w.C, fmt.Sprintf("127.0.0.1:%d", 7000+i))
	}
	w.listening(t, 1080)
	c := lab.ProxyMesh["c"]
	lab.WaitFor(t, 10*time.Second, "the tunnel of db", func() bool {
		_, err := w.DB.Exec("", "ping", "-n", "-c", "1", "-W", "1", c[0])
		return err == nil
	})
	from := func(node *lab.Node, f family, port int) func() (net.Conn, error) {
		return func() (net.Conn, error) { return node.Dial(f.tcp, lab.Port(c[f.i], port), 5*time.Second) }
	}
	bothFamilies(t, func(t *testing.T, f family) {
		for port, what := range map[int]string{8000: "TCP", 8010: "-R"} {
			t.Run(what, func(t *testing.T) { streamCases(t, from(w.DB, f, port)) })
		}
		for port, what := range map[int]string{8001: "a unix socket", 8011: "-R to a unix socket"} {
			t.Run(what, func(t *testing.T) { streamCases(t, from(w.DB, f, port), 'R') }) // such sockets have no resets
		}
		t.Run("a range of TCP and UDP", func(t *testing.T) {
			for i := range 3 {
				conn, err := from(w.DB, f, 9000+i)()
				if err == nil {
					err = wantText(conn, fmt.Sprint(7000+i))
					conn.Close()
				}
				if err != nil {
					t.Errorf("TCP port %d: %v", 9000+i, err)
				}
				u := w.DB.ListenUDP(t, f.any+":0")
				to := lab.Port(c[f.i], 9000+i)
				for _, size := range []int{0, 100, 1400, 60000} {
					data := random(t, size)
					if got, sender := exchange(t, u, to, data); !bytes.Equal(got, data) || sender.String() != to {
						t.Errorf("%d bytes to UDP port %d: %d bytes from %v", size, 9000+i, len(got), sender)
					}
				}
			}
		})
		t.Run("a service that is not there", func(t *testing.T) { wantReset(t, from(w.DB, f, 8004)) })
		t.Run("a port that is not published", func(t *testing.T) { wantReset(t, from(w.DB, f, 8005)) })
		t.Run("a peer without AllowInbound is refused", func(t *testing.T) {
			for _, port := range []int{8000, 8001, 8002, 9000, 8010} {
				start := time.Now()
				if _, err := from(w.VPN, f, port)(); !errors.Is(err, syscall.ECONNREFUSED) {
					t.Errorf("port %d: got %v, want a reset", port, err)
				}
				if d := time.Since(start); d > soon {
					t.Errorf("took %v", d)
				}
			}
		})
		t.Run("PROXY protocol", func(t *testing.T) { w.proxyProtocol(t, f) })
	})
	t.Run("curl from a peer", func(t *testing.T) {
		web(t, w.C, asking, "127.0.0.1:6001")
		for _, f := range families {
			if r := curlIn(w.DB, "-d", "@/proc/version", "http://"+lab.Port(c[f.i], 8006)+"/"); r.Marker != marker || r.Method != "POST" || r.From != "127.0.0.1" {
				t.Errorf("%s: %v\n%s", f.name, r.err, r.text)
			}
		}
	})
	t.Run("PROXY protocol to haproxy", func(t *testing.T) { w.haproxy(t, dir) })
	t.Run("this node's own proxy reaches what it publishes", func(t *testing.T) {
		streamCases(t, func() (net.Conn, error) { return w.socksTCP("127.0.0.1:1080", socksUser{}, "client.mesh", 8000) })
	})
}

// wantReset wants a connection that is refused, or reset before a byte comes.
func wantReset(t *testing.T, dial func() (net.Conn, error)) {
	t.Helper()
	c, err := dial()
	if err == nil {
		c.SetDeadline(time.Now().Add(5 * time.Second))
		_, err = c.Read(make([]byte, 1))
		c.Close()
	}
	if !errors.Is(err, syscall.ECONNREFUSED) && !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("got %v, want a reset", err)
	}
}

// serveUnix serves a unix socket that everybody may connect to.
func serveUnix(t *testing.T, path string) {
	t.Helper()
	l, err := net.Listen("unix", path)
	if err == nil {
		err = os.Chmod(path, 0o666)
	}
	for dir := filepath.Dir(path); err == nil && dir != "/run"; dir = filepath.Dir(dir) { // temporary directories are their owner's only
		err = os.Chmod(dir, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				behave(c)
			}()
		}
	}()
}

// proxyProtocol reads the header that services get, by the text of the protocol's version 2.
func (w *proxied) proxyProtocol(t *testing.T, f family) {
	service := w.C.Listen(t, "127.0.0.1:6002")
	defer service.Close()
	to := netip.MustParseAddrPort(lab.Port(lab.ProxyMesh["c"][f.i], 8002))
	client, err := w.DB.Dial(f.tcp, to.String(), 5*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	fmt.Fprint(client, "hello")
	client.(*net.TCPConn).CloseWrite()
	c, err := service.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(5 * time.Second))
	b, err := io.ReadAll(c)
	want := append(proxyHeader(1, client.LocalAddr().(*net.TCPAddr).AddrPort(), to), "hello"...)
	if err != nil || !bytes.Equal(b, want) {
		t.Errorf("TCP: %v\ngot  %x\nwant %x", err, b, want)
	}

	datagrams := w.C.ListenUDP(t, "127.0.0.1:6002")
	defer datagrams.Close()
	local, _ := netip.ParseAddr(lab.ProxyMesh["db"][f.i])
	u := w.DB.ListenUDP(t, lab.Port(local.String(), 0))
	buf := make([]byte, 65536)
	for _, text := range []string{"one", "two"} {
		u.WriteToUDPAddrPort([]byte(text), to)
		datagrams.SetReadDeadline(time.Now().Add(5 * time.Second))
		n, from, err := datagrams.ReadFromUDPAddrPort(buf)
		if want := append(proxyHeader(2, u.LocalAddr().(*net.UDPAddr).AddrPort(), to), text...); err != nil || !bytes.Equal(buf[:n], want) {
			t.Errorf("UDP: %v\ngot  %x\nwant %x", err, buf[:n], want)
		}
		datagrams.WriteToUDPAddrPort([]byte("answer"), from)
		u.SetReadDeadline(time.Now().Add(5 * time.Second))
		if n, from, err := u.ReadFromUDPAddrPort(buf); err != nil || string(buf[:n]) != "answer" || from != to {
			t.Errorf("UDP: the client got %q from %v, %v", buf[:n], from, err)
		}
	}
}

// proxyHeader is the header for one of two transports: 1 a stream, 2 datagrams.
func proxyHeader(transport byte, from, to netip.AddrPort) []byte {
	family, length := byte(0x10), byte(12)
	if from.Addr().Is6() {
		family, length = 0x20, 36
	}
	b := append([]byte("\r\n\r\n\x00\r\nQUIT\n"), 0x21, family|transport, 0, length)
	b = append(append(b, from.Addr().AsSlice()...), to.Addr().AsSlice()...)
	return binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(b, from.Port()), to.Port())
}

// haproxy is a service that believes the header.
func (w *proxied) haproxy(t *testing.T, dir string) {
	lab.Need(t, "haproxy", "curl")
	conf := filepath.Join(dir, "haproxy.cfg")
	text := `defaults
  mode http
  timeout client 5s
frontend f
  bind 127.0.0.1:6003 accept-proxy
  http-request return status 200 content-type text/plain lf-string "%[src] to %[dst]:%[dst_port]"
`
	if err := os.WriteFile(conf, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	w.C.Start(t, nil, "haproxy", "-db", "-f", conf)
	lab.WaitFor(t, 10*time.Second, "haproxy", func() bool { return w.C.Bound("tcp", 6003) })
	for _, f := range families {
		to := lab.Port(lab.ProxyMesh["c"][f.i], 8003)
		want := fmt.Sprintf("%s to %s:8003", lab.ProxyMesh["db"][f.i], lab.ProxyMesh["c"][f.i])
		if r := curlIn(w.DB, "http://"+to+"/"); r.body != want {
			t.Errorf("%v: got %q, want %q", r.err, r.body, want)
		}
	}
}
