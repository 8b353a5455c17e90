package node

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"culvert.dev/culvert/internal/config"
	"culvert.dev/culvert/internal/forward"
	"culvert.dev/culvert/internal/proxy"
)

// loneNode is a node whose one peer, which it would be an exit for, is away.
type loneNode struct {
	n    *Node
	side side
	user string // the peer's section
}

func newLoneNode(t *testing.T, text string) loneNode {
	w := loneNode{side: newSide(t, "100.70.4.2"), user: newSide(t, "100.70.4.9").asPeer("user", "AllowRouting = yes")}
	w.n = start(t, w.side.write(t, w.user, text), "")
	return w
}

func (w loneNode) reload(t *testing.T, text string) {
	t.Helper()
	w.side.write(t, w.user, text)
	if err := w.n.Reload(); err != nil {
		t.Fatal(err)
	}
}

func socksAnswers(t *testing.T, address string) {
	t.Helper()
	c, err := net.Dial("tcp", address)
	if err != nil {
		t.Error(err)
		return
	}
	defer c.Close()
	greets(t, c)
}

func greets(t *testing.T, c net.Conn) {
	t.Helper()
	c.SetDeadline(time.Now().Add(5 * time.Second))
	c.Write([]byte{5, 1, 0})
	if _, err := io.ReadFull(c, make([]byte, 2)); err != nil {
		t.Errorf("no SOCKS at %s: %v", c.RemoteAddr(), err)
	}
}

func TestReloadSwapsWildcardAndAddress(t *testing.T) {
	port, udp := freePort(t), freePort(t)
	at := fmt.Sprintf("127.0.0.1:%d", port)
	text := func(socks, forward string) string {
		return fmt.Sprintf("[SOCKS5]\nListen = %s:%d\nAllowFrom = 127.0.0.0/8, 10.0.0.0/8\n[Forward]\nListen = %s:%d/udp\nTo = nobody:7\nAllowFrom = 127.0.0.0/8, 10.0.0.0/8\n", socks, port, forward, udp)
	}
	w := newLoneNode(t, text("127.0.0.1", "0.0.0.0"))
	socksAnswers(t, at)
	for range 2 {
		w.reload(t, text("0.0.0.0", "127.0.0.1"))
		socksAnswers(t, at)
		w.reload(t, text("", ""))
		socksAnswers(t, at)
		w.reload(t, text("127.0.0.1", "0.0.0.0"))
		socksAnswers(t, at)
	}
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	w.side.write(t, w.user, text("0.0.0.0", "127.0.0.1")+fmt.Sprintf("[HTTP]\nListen = %s\n", taken.Addr()))
	if err := w.n.Reload(); err == nil {
		t.Error("a port of somebody else was taken")
	}
	socksAnswers(t, at)
}

func TestReloadKeepsConnectionsOfAnotherBound(t *testing.T) {
	port := freePort(t)
	at := fmt.Sprintf("127.0.0.1:%d", port)
	text := func(most int) string {
		return fmt.Sprintf("[SOCKS5]\nListen = %s\nMaxConnections = %d\n", at, most)
	}
	w := newLoneNode(t, text(100))
	c, err := net.Dial("tcp", at)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	greets(t, c)
	w.reload(t, text(50))
	c.SetDeadline(time.Now().Add(5 * time.Second))
	c.Write([]byte{5, 1, 0, 1, 127, 0, 0, 1, 0, 80})
	if b, err := io.ReadAll(c); err != nil || len(b) != 10 || b[1] != 2 {
		t.Errorf("a connection of before: % x, %v", b, err)
	}
	socksAnswers(t, at)
}

func TestReloadGivesNoSocketTwice(t *testing.T) {
	w := newLoneNode(t, "")
	w.side.write(t, w.user, "[Publish]\nListen = 1080\nTo = 127.0.0.1:9\n")
	if err := w.n.Reload(); err == nil {
		t.Error("port 1080 of the mesh address belongs to SOCKS5 and to a published port")
	}
	w.reload(t, "[Exit]\nSOCKS5 = no\n[Publish]\nListen = 1080\nTo = 127.0.0.1:9\n[Publish]\nListen = 1080/udp\nTo = 127.0.0.1:9\n")
	if kinds := kindsOf(w.n); !slices.Equal(kinds, []string{"Publish", "Publish"}) {
		t.Errorf("services %v", kinds)
	}
}

// One reload is enough for the port of the node's own SOCKS5 to change hands, in either direction.
func TestReloadGivesPort1080FromAPublishedPortToSOCKS5(t *testing.T) {
	far, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer far.Close()
	published := "[Exit]\nSOCKS5 = no\n[Publish]\nListen = 1080/tcp,udp\nTo = " + far.LocalAddr().String() + "\n"
	w := newLoneNode(t, published)
	for range 2 {
		w.reload(t, "")
		if kinds := kindsOf(w.n); !slices.Equal(kinds, []string{"exit SOCKS5"}) {
			t.Errorf("services %v", kinds)
		}
		w.reload(t, published)
		u, err := w.n.Dial(t.Context(), "udp", w.side.addr+":1080")
		if err != nil {
			t.Fatal(err)
		}
		io.WriteString(u, "hello")
		b := make([]byte, 100)
		far.SetReadDeadline(time.Now().Add(5 * time.Second))
		if n, _, err := far.ReadFrom(b); err != nil || string(b[:n]) != "hello" {
			t.Errorf("got %q, %v", b[:n], err)
		}
		u.Close()
	}
	w.side.write(t, w.user, "[SOCKS5]\nListen = 192.0.2.1:1\nAllowFrom = 192.0.2.0/24\n")
	if w.n.Reload() == nil { // which had SOCKS5 built before it failed
		t.Error("a listener at an address of nobody opened")
	}
	w.reload(t, "")
	w.n.services.n.mu.Lock()
	defer w.n.services.n.mu.Unlock()
	for _, network := range []string{"tcp", "udp"} {
		if w.n.services.slots["mesh "+network+" "+w.side.addr+":1080"] == nil {
			t.Errorf("no %s socket of SOCKS5", network)
		}
	}
}

func kindsOf(n *Node) (kinds []string) {
	for _, s := range n.Status().Services {
		kinds = append(kinds, s.Kind)
	}
	return kinds
}

// A socket that could not be opened is tried again by the next reload, though its service has not changed.
func TestReloadOpensWhatIsMissing(t *testing.T) {
	s := newServices(&Node{log: slog.New(slog.DiscardHandler)})
	there := false
	list := []wanted{{kind: "test", conf: 1, build: func() (*localService, error) {
		return &localService{
			handle: func(_ context.Context, c net.Conn) { c.Close() }, close: func() {},
			sockets: []socket{{key: "tcp 127.0.0.1:0", where: "here", optional: true, listen: func() (io.Closer, error) {
				if !there {
					return nil, syscall.EADDRNOTAVAIL
				}
				return net.Listen("tcp", "127.0.0.1:0")
			}}},
		}, nil
	}}}
	for _, want := range []int{0, 1, 1} {
		commit, _, err := s.prepare(list)
		if err != nil {
			t.Fatal(err)
		}
		if commit(); len(s.slots) != want {
			t.Errorf("%d sockets, not %d", len(s.slots), want)
		}
		there = true
	}
	s.closeAll()
}

func TestReloadKeepsAUnixSocketsFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "p.sock")
	w := newLoneNode(t, "[SOCKS5]\nListen = unix:"+path+"\n")
	for _, text := range []string{"HTTP = yes\n", "MaxConnections = 7\n", "[SOCKS5]\nListen = 127.0.0.1:" + fmt.Sprint(freePort(t)) + "\n"} {
		w.reload(t, "[SOCKS5]\nListen = unix:"+path+"\n"+text)
		c, err := net.Dial("unix", path)
		if err != nil {
			t.Fatalf("after %q: %v", text, err)
		}
		greets(t, c)
		c.Close()
	}
	w.n.Close()
	if _, err := os.Stat(path); err == nil {
		t.Error("the file is left")
	}
}

// The mode of a socket follows the configuration, also while its file stays.
func TestModeOfAUnixSocket(t *testing.T) {
	path, other := filepath.Join(t.TempDir(), "p.sock"), filepath.Join(t.TempDir(), "f.sock")
	text := func(proxy, forward string) string {
		return "[HTTP]\nListen = unix:" + path + "\n" + proxy + "[Forward]\nListen = unix:" + other + "\nTo = user:80\n" + forward
	}
	w := newLoneNode(t, text("", "Mode = 0666\n"))
	mode := func(file string, want fs.FileMode) {
		t.Helper()
		if info, err := os.Stat(file); err != nil || info.Mode().Perm() != want {
			t.Errorf("got %v, %v; want %o", info.Mode(), err, want)
		}
	}
	mode(path, 0o600)
	mode(other, 0o666)
	before, _ := os.Stat(path)
	w.reload(t, text("Mode = 0660\n", ""))
	mode(path, 0o660)
	mode(other, 0o600)
	if after, _ := os.Stat(path); !os.SameFile(before, after) {
		t.Error("the file is another one")
	}
	w.reload(t, text("Mode = 0660\nMaxConnections = 7\n", "")) // which makes a new socket
	mode(path, 0o660)
	w.side.write(t, w.user, text("Mode = 0600\n", "")+"[SOCKS5]\nListen = 192.0.2.1:1\nAllowFrom = 192.0.2.0/24\n")
	if w.n.Reload() == nil {
		t.Fatal("a listener at an address of nobody opened")
	}
	mode(path, 0o660) // a reload that fails changes nothing
}

func TestReloadIsRefusedWhileStopping(t *testing.T) {
	port := freePort(t)
	text := fmt.Sprintf("[SOCKS5]\nListen = 127.0.0.1:%d\n", port)
	w := newLoneNode(t, text)
	c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	greets(t, c)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		w.n.Shutdown(ctx)
	}()
	eventually(t, "it stops", func() bool { return w.n.stopping.Load() })
	w.side.write(t, w.user, text+fmt.Sprintf("[HTTP]\nListen = 127.0.0.1:%d\n", freePort(t)))
	if err := w.n.Reload(); err == nil {
		t.Error("a node that stops opens sockets")
	}
	cancel()
	<-done
}

// Many reloads under load leave nothing behind, and no moment without an answer.
func TestReloadUnderLoad(t *testing.T) {
	port := freePort(t)
	at := fmt.Sprintf("127.0.0.1:%d", port)
	base := fmt.Sprintf("[SOCKS5]\nListen = %s\nUDP = yes\n", at)
	w := newLoneNode(t, base)
	extra := []string{"", "HTTP = yes\n", "User = a:b\n[Forward]\nListen = 127.0.0.1:" + fmt.Sprint(freePort(t)) + "/tcp,udp\nTo = x.mesh:1\n", "[Publish]\nListen = 100-103\nTo = 127.0.0.1:1-4\n"}
	socksAnswers(t, at)
	w.reload(t, base)
	descriptors := func() int {
		list, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Skip("no list of descriptors")
		}
		return len(list)
	}
	goroutines, files := runtime.NumGoroutine(), descriptors()
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for ctx.Err() == nil {
				c, err := net.Dial("tcp", at)
				if err != nil {
					t.Errorf("a moment without a listener: %v", err)
					return
				}
				c.(*net.TCPConn).SetLinger(0) // thousands would stay in TIME_WAIT
				c.SetDeadline(time.Now().Add(5 * time.Second))
				c.Write([]byte{5, 2, 0, 2})
				if _, err := io.ReadFull(c, make([]byte, 2)); err != nil {
					t.Errorf("a moment without an answer: %v", err)
				}
				c.Close()
				w.n.Status()
			}
		})
	}
	for i := range 200 {
		w.reload(t, base+extra[i%len(extra)])
	}
	w.reload(t, base)
	cancel()
	wg.Wait()
	eventually(t, "all that reloads have made is gone", func() bool { return runtime.NumGoroutine() <= goroutines && descriptors() <= files })
}

func TestListenersConnectionsOutliveIt(t *testing.T) {
	p := newPair(t, "", "")
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	l, err := p.bob.Listen("tcp", ":80")
	if err != nil {
		t.Fatal(err)
	}
	c, err := p.alice.Dial(ctx, "tcp", "bob:80")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	served, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	go io.Copy(served, served)
	c.SetDeadline(time.Now().Add(5 * time.Second))
	fmt.Fprintln(c, "still there")
	if got, err := bufio.NewReader(c).ReadString('\n'); err != nil || got != "still there\n" {
		t.Errorf("got %q, %v", got, err)
	}
	if _, err := p.alice.Dial(ctx, "tcp", "bob:80"); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("after the listener is closed: %v", err)
	}
	served.Close()
	served.Close()
	p.bob.mu.Lock()
	defer p.bob.mu.Unlock()
	if len(p.bob.served) != 0 {
		t.Errorf("ports are still open: %v", p.bob.served)
	}
}

// A service that is told who its clients are is told so by the node's own programs too: nobody can say something else.
func TestOwnProgramsHaveAProxyHeader(t *testing.T) {
	service, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer service.Close()
	datagrams, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer datagrams.Close()
	w := newLoneNode(t, fmt.Sprintf("[Publish]\nListen = 7/tcp\nTo = %s\nProxyProtocol = v2\n[Publish]\nListen = 9/udp\nTo = %s\nProxyProtocol = v2\n", service.Addr(), datagrams.LocalAddr()))
	header := func(transport byte, port byte, b []byte) {
		t.Helper()
		own := netip.MustParseAddr(w.side.addr).AsSlice()
		if len(b) < 28 || !strings.HasPrefix(string(b), "\r\n\r\n\x00\r\nQUIT\n\x21"+string(rune(0x10|transport))) || !slices.Equal(b[16:20], own) || !slices.Equal(b[20:24], own) || b[27] != port {
			t.Errorf("the header is % x", b)
		} else if string(b[28:]) != "hello" {
			t.Errorf("behind it is %q", b[28:])
		}
	}
	c, err := w.n.Dial(t.Context(), "tcp", w.side.addr+":7")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	io.WriteString(c, "hello")
	s, err := service.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	b := make([]byte, 33)
	s.SetDeadline(time.Now().Add(5 * time.Second))
	if _, err := io.ReadFull(s, b); err != nil {
		t.Fatal(err)
	}
	header(1, 7, b)
	u, err := w.n.Dial(t.Context(), "udp", w.side.addr+":9")
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	io.WriteString(u, "hello")
	b = make([]byte, 100)
	datagrams.SetReadDeadline(time.Now().Add(5 * time.Second))
	n, _, err := datagrams.ReadFrom(b)
	if err != nil {
		t.Fatal(err)
	}
	header(2, 9, b[:n])
}

// No name leaves that has a meaning here only, whatever family is asked for.
func TestDialAsksNobodyForBareNames(t *testing.T) {
	w := newLoneNode(t, "")
	for _, network := range []string{"tcp", "tcp4", "tcp6", "udp4"} {
		for _, name := range []string{"localhost", "printer", "127.0.0.1"} {
			c, err := w.n.Dial(t.Context(), network, name+":80")
			if err == nil {
				c.Close()
			}
			if k := proxy.KindOf(err); network != "udp4" && (err == nil || k != proxy.NameNotFound && k != proxy.NotAllowed && !errors.Is(err, syscall.EADDRNOTAVAIL)) {
				t.Errorf("%s to %s: %v", network, name, err)
			}
		}
	}
}

// The same port of two addresses may lead to two ports of the target.
func TestForwardRangesAreToldApartByAddress(t *testing.T) {
	listen := func(text string, first uint16) config.Listen {
		return config.Listen{Network: "tcp", Addr: netip.AddrPortFrom(netip.MustParseAddr(text), first), Ports: config.PortRange{First: first, Last: first + 10}}
	}
	d := &forwardDialer{f: config.Forward{
		Host: "db", Ports: config.PortRange{First: 7000, Last: 7010},
		Listen: []config.Listen{listen("127.0.0.1", 8000), listen("127.0.0.2", 8005), listen("0.0.0.0", 9000)},
	}}
	for local, want := range map[string]uint16{"127.0.0.1:8005": 7005, "127.0.0.2:8005": 7000, "127.0.0.2:8015": 7010, "192.0.2.1:9001": 7001} {
		if to, err := d.target(forward.Origin{Local: netip.MustParseAddrPort(local)}); err != nil || to.Port != want {
			t.Errorf("%s leads to port %d, not %d; %v", local, to.Port, want, err)
		}
	}
}

func TestUDPConnectionsHaveDeadlines(t *testing.T) {
	p := newPair(t, "", "[Publish]\nListen = 9/udp\nTo = 127.0.0.1:9\n")
	far := netip.MustParseAddrPort("100.70.4.2:9")
	direct, err := p.alice.Dial(t.Context(), "udp", far.String())
	if err != nil {
		t.Fatal(err)
	}
	defer direct.Close()
	pc, err := p.alice.plain.ListenPacket(t.Context(), &proxy.Request{})
	if err != nil {
		t.Fatal(err)
	}
	other := &association{PacketConn: pc, to: proxy.Target{Addr: far.Addr(), Port: far.Port()}}
	defer other.Close()
	for _, c := range []net.Conn{direct, other} {
		if err := c.SetDeadline(time.Now().Add(10 * time.Millisecond)); err != nil {
			t.Error(err)
			continue
		}
		if _, err := c.Read(make([]byte, 10)); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("got %v", err)
		}
	}
}

func TestListenTakesEveryPortOnce(t *testing.T) {
	w := newLoneNode(t, "[Publish]\nListen = 7\nTo = 127.0.0.1:9\n")
	for _, taken := range []string{":7", ":53", ":1080", w.side.addr + ":7"} {
		if l, err := w.n.Listen("tcp", taken); !errors.Is(err, syscall.EADDRINUSE) {
			t.Errorf("%s: %v, %v", taken, l, err)
		}
	}
	for _, taken := range []string{":53", ":1080"} {
		if c, err := w.n.ListenPacket("udp", taken); !errors.Is(err, syscall.EADDRINUSE) {
			t.Errorf("%s: %v, %v", taken, c, err)
		}
	}
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			for range 5 {
				l, err := w.n.Listen("tcp", ":0")
				if err != nil {
					t.Error(err)
					return
				}
				l.Close()
				l.Close()
			}
		})
	}
	wg.Wait()
	w.n.mu.Lock()
	left := len(w.n.served)
	w.n.mu.Unlock()
	if left != 0 {
		t.Errorf("%d ports are left open", left)
	}
	w.n.Close()
	if _, err := w.n.Listen("tcp", ":0"); err == nil {
		t.Error("a closed node listens")
	}
	if _, err := w.n.Dial(t.Context(), "tcp", "100.70.4.1:80"); err == nil {
		t.Error("a closed node connects")
	}
	w.n.Close()
}
