package node

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/proxy"
)

// pair is two nodes that reach each other: alice has the programs, bob is an exit and publishes.
type pair struct {
	alice, bob         *Node
	aliceSide, bobSide side
}

// newPair starts both; the texts are sections that they have besides the peers.
func newPair(t *testing.T, alice, bob string) *pair {
	t.Helper()
	p := &pair{aliceSide: newSide(t, "100.70.4.1"), bobSide: newSide(t, "100.70.4.2")}
	p.bob = start(t, p.bobSide.write(t, p.aliceSide.asPeer("alice", "AllowInbound = yes\nAllowRouting = yes\nAllowLAN = yes"), bob), "")
	p.alice = start(t, p.aliceSide.write(t, p.bobSide.asPeer("bob", ""), alice), "")
	eventually(t, "the nodes reach each other", func() bool {
		return !p.alice.Status().Peers[0].LastHandshake.IsZero()
	})
	return p
}

// echoServer answers each connection with what it sends, on this host.
func echoServer(t *testing.T, address string) *net.TCPAddr {
	t.Helper()
	l, err := net.Listen("tcp", address)
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
				io.Copy(c, c)
				c.(*net.TCPConn).CloseWrite()
				io.Copy(io.Discard, c)
				c.Close()
			}()
		}
	}()
	return l.Addr().(*net.TCPAddr)
}

// converse sends text, half-closes, and returns what comes back until the end.
func converse(t *testing.T, c net.Conn, text string) string {
	t.Helper()
	defer c.Close()
	c.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := io.WriteString(c, text); err != nil {
		t.Fatal(err)
	}
	if err := c.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(c)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestServicesOfTwoNodes(t *testing.T) {
	echo := echoServer(t, "127.0.0.1:0")
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprintf(w, "%s %s", r.Method, r.URL.Path) }))
	defer web.Close()
	datagrams, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer datagrams.Close()
	go func() {
		b := make([]byte, 2000)
		for {
			n, from, err := datagrams.ReadFrom(b)
			if err != nil {
				return
			}
			datagrams.WriteTo(b[:n], from)
		}
	}()
	webPort := web.Listener.Addr().(*net.TCPAddr).Port
	socks, forwarded, forwardedUDP := freePort(t), freePort(t), freePort(t)
	p := newPair(t,
		fmt.Sprintf("[SOCKS5]\nListen = 127.0.0.1:%d\nHTTP = yes\n[Forward]\nListen = 127.0.0.1:%d\nTo = bob:7\n[Forward]\nListen = 127.0.0.1:%d/udp\nTo = bob:9\n", socks, forwarded, forwardedUDP),
		fmt.Sprintf("[Publish]\nListen = 7/tcp\nTo = %s\n[Publish]\nListen = 80\nTo = 127.0.0.1:%d\n[Publish]\nListen = 9/udp\nTo = %s\n", echo, webPort, datagrams.LocalAddr()))
	proxyAt := fmt.Sprintf("127.0.0.1:%d", socks)

	t.Run("forward", func(t *testing.T) {
		c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", forwarded))
		if err != nil {
			t.Fatal(err)
		}
		if got := converse(t, c, "through the tunnel"); got != "through the tunnel" {
			t.Errorf("got %q", got)
		}
	})
	t.Run("forward UDP", func(t *testing.T) {
		c, err := net.Dial("udp", fmt.Sprintf("127.0.0.1:%d", forwardedUDP))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(10 * time.Second))
		for _, size := range []int{1, 100, 1900} {
			want := strings.Repeat("x", size)
			b := make([]byte, 3000)
			if _, err := io.WriteString(c, want); err != nil {
				t.Fatal(err)
			}
			if n, err := c.Read(b); err != nil || string(b[:n]) != want {
				t.Errorf("%d bytes: got %d, %v", size, n, err)
			}
		}
	})
	t.Run("SOCKS5 by name and address", func(t *testing.T) {
		d, err := proxy.SOCKS5("tcp", proxyAt, nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		for _, target := range []string{"bob:7", "bob.mesh:7", "100.70.4.2:7"} {
			c, err := d.Dial("tcp", target)
			if err != nil {
				t.Errorf("%s: %v", target, err)
				continue
			}
			if got := converse(t, c.(interface{ CloseWrite() error }).(net.Conn), target); got != target {
				t.Errorf("%s: got %q", target, got)
			}
		}
		for target, want := range map[string]string{"bob:8": "refused", "nobody:7": "unreachable", "192.0.2.1:7": "network unreachable", "127.0.0.1:7": "not allowed"} {
			if c, err := d.Dial("tcp", target); err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%s: %v, %v, not %q", target, c, err, want)
			}
		}
	})
	t.Run("HTTP proxy on the same listener", func(t *testing.T) {
		client := http.Client{Transport: &http.Transport{Proxy: http.ProxyURL(&url.URL{Scheme: "http", Host: proxyAt})}, Timeout: 10 * time.Second}
		defer client.CloseIdleConnections()
		r, err := client.Get("http://bob/page")
		if err != nil {
			t.Fatal(err)
		}
		defer r.Body.Close()
		if b, _ := io.ReadAll(r.Body); string(b) != "GET /page" {
			t.Errorf("%s: %q", r.Status, b)
		}
	})
	t.Run("status", func(t *testing.T) {
		st := p.alice.Status()
		kinds := ""
		for _, s := range st.Services {
			kinds += s.Kind + ","
		}
		if kinds != "SOCKS5,Forward,Forward," {
			t.Errorf("services %s", kinds)
		}
		var text strings.Builder
		if err := st.WriteText(&text, time.Now()); err != nil || !strings.Contains(text.String(), "bob:7") {
			t.Errorf("%v:\n%s", err, &text)
		}
	})
}

// TestExitByName sees what bob's SOCKS5 refuses: from here everything that could answer is an address of bob's host. What it lets
// through is the laboratory's to show.
func TestExitByName(t *testing.T) {
	echo := echoServer(t, "127.0.0.1:0")
	socks := freePort(t)
	p := newPair(t, fmt.Sprintf("[SOCKS5]\nListen = 127.0.0.1:%d\nExit = bob\nRoute = 127.0.0.1/32 via bob\nRoute = *.example via bob\n", socks), "")
	d, err := proxy.SOCKS5("tcp", fmt.Sprintf("127.0.0.1:%d", socks), nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, target := range []string{echo.String(), "169.254.169.254:80", "[::ffff:127.0.0.1]:80", "224.0.0.1:80", "100.70.4.77:80"} {
		if _, err := d.Dial("tcp", target); err == nil {
			t.Errorf("%s was reached", target)
		}
	}
	if st := p.alice.Status(); len(st.Exits) != 1 || st.Exits[0].Name != "bob" || st.Exits[0].State != "up" {
		t.Errorf("exits %+v", st.Exits)
	}
	p.bobSide.write(t, p.aliceSide.asPeer("alice", "AllowInbound = yes"))
	if err := p.bob.Reload(); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Dial("tcp", "192.0.2.1:80"); err == nil || !strings.Contains(err.Error(), "unreachable") {
		t.Errorf("an exit that does not want this node: %v", err)
	}
	if st := p.alice.Status(); st.Exits[0].State != "down" || !strings.Contains(st.Exits[0].LastError, "AllowRouting") {
		t.Errorf("exits %+v", st.Exits)
	}
}

func TestServicesFollowAReload(t *testing.T) {
	echo := echoServer(t, "127.0.0.1:0")
	one, two := freePort(t), freePort(t)
	forwardTo := func(port, to int) string {
		return fmt.Sprintf("[Forward]\nListen = 127.0.0.1:%d\nTo = bob:%d\n", port, to)
	}
	p := newPair(t, forwardTo(one, 7), fmt.Sprintf("[Publish]\nListen = 7\nTo = %s\n", echo))
	dial := func(port int) net.Conn {
		t.Helper()
		c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	live := dial(one)
	defer live.Close()
	say := func(word string) {
		t.Helper()
		live.SetDeadline(time.Now().Add(10 * time.Second))
		fmt.Fprintln(live, word)
		if got, err := bufio.NewReader(live).ReadString('\n'); err != nil || got != word+"\n" {
			t.Fatalf("got %q, %v", got, err)
		}
	}
	say("before")
	reload := func(text string) error {
		p.aliceSide.write(t, p.bobSide.asPeer("bob", ""), text)
		return p.alice.Reload()
	}
	if err := reload(forwardTo(one, 7) + forwardTo(two, 7)); err != nil {
		t.Fatal(err)
	}
	say("after another was added")
	if got := converse(t, dial(two), "new"); got != "new" {
		t.Errorf("the new forward: %q", got)
	}
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	if err := reload(forwardTo(taken.Addr().(*net.TCPAddr).Port, 7)); err == nil || !strings.Contains(err.Error(), "[Forward] Listen") {
		t.Errorf("a port that is taken: %v", err)
	}
	say("after a reload that failed")
	if got := converse(t, dial(two), "still"); got != "still" {
		t.Errorf("the forward that stays: %q", got)
	}
	if err := reload(forwardTo(one, 8)); err != nil { // another target: connections of the old one go on
		t.Fatal(err)
	}
	say("after the target changed")
	c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", one))
	if err == nil { // else the reset was quicker than the dialler
		defer c.Close()
		c.SetDeadline(time.Now().Add(10 * time.Second))
		_, err = c.Read(make([]byte, 1))
	}
	if !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("nothing is published at the new target: %v", err)
	}
	if c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", two)); err == nil {
		c.Close()
		t.Error("a forward that was taken away accepts")
	}
}

func TestEmbeddedNode(t *testing.T) {
	p := newPair(t, "", "")
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if _, err := p.alice.Dial(ctx, "tcp", "bob:80"); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("before anything listens: %v", err)
	}
	l, err := p.bob.Listen("tcp", ":80")
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "hello ", r.RemoteAddr) })}
	go server.Serve(l)
	defer server.Close()
	client := http.Client{Transport: &http.Transport{DialContext: p.alice.Dial}}
	defer client.CloseIdleConnections()
	r, err := client.Get("http://bob.mesh/")
	if err != nil {
		t.Fatal(err)
	}
	b, _ := io.ReadAll(r.Body)
	r.Body.Close()
	if !strings.HasPrefix(string(b), "hello 100.70.4.1:") {
		t.Errorf("got %q", b)
	}
	pc, err := p.bob.ListenPacket("udp", ":5300")
	if err != nil {
		t.Fatal(err)
	}
	defer pc.Close()
	c, err := p.alice.Dial(ctx, "udp", "bob:5300")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	io.WriteString(c, "ping")
	buf := make([]byte, 100)
	pc.SetDeadline(time.Now().Add(10 * time.Second))
	n, from, err := pc.ReadFrom(buf)
	if err != nil || string(buf[:n]) != "ping" {
		t.Fatalf("%q, %v", buf[:n], err)
	}
	pc.WriteTo([]byte("pong"), from)
	c.SetDeadline(time.Now().Add(10 * time.Second))
	if n, err := c.Read(buf); err != nil || string(buf[:n]) != "pong" {
		t.Errorf("%q, %v", buf[:n], err)
	}
	server.Close()
	if _, err := p.alice.Dial(ctx, "tcp", "bob:80"); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("after the listener is closed: %v", err)
	}
	if _, err := p.alice.Dial(ctx, "tcp", "www.example:80"); !errors.Is(err, syscall.ENETUNREACH) {
		t.Errorf("a name outside of the mesh has no way to go: %v", err)
	}
}

func TestServicesLeaveNothing(t *testing.T) {
	before := runtime.NumGoroutine()
	t.Run("nodes", func(t *testing.T) {
		echo := echoServer(t, "127.0.0.1:0")
		port := freePort(t)
		newPair(t, fmt.Sprintf("[SOCKS5]\nListen = 127.0.0.1:%d\nUDP = yes\n[HTTP]\nListen = unix:%s\n[Forward]\nListen = 127.0.0.1:%d/udp\nTo = bob:53\n",
			port, filepath.Join(t.TempDir(), "http.sock"), freePort(t)), fmt.Sprintf("[Publish]\nListen = 7-9\nTo = 127.0.0.1:%d-%d\n", echo.Port, echo.Port+2))
		d, _ := proxy.SOCKS5("tcp", fmt.Sprintf("127.0.0.1:%d", port), nil, nil)
		for range 20 {
			c, err := d.Dial("tcp", "bob:7")
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			fmt.Fprintln(c, "open while the nodes close")
		}
	})
	eventually(t, "all goroutines of the nodes have ended", func() bool { return runtime.NumGoroutine() <= before })
}
