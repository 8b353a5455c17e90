//go:build linux

package lab_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"syscall"
	"testing"
	"time"

	"culvert.dev/culvert/internal/control"
	"culvert.dev/culvert/internal/lab"
)

// TestProxyPolicyReload withdraws permissions at an exit while connections run by its SOCKS5.
func TestProxyPolicyReload(t *testing.T) {
	t.Parallel()
	w := newProxied(t, proxiedConfig{client: programProxies})
	echo := func(c *net.TCPConn) { io.Copy(c, c) }
	for _, a := range []string{lab.Server[0], lab.Server2[0]} {
		serveTCP(t, w.S, lab.Port(a, 7), echo)
		echoUDP(t, w.S, lab.Port(a, 7))
	}
	serveTCP(t, w.DB, lab.Port(lab.ProxyMesh["db"][0], 7), echo)
	w.listening(t, 1080)
	open := func(host string) *net.TCPConn {
		t.Helper()
		c, err := w.socksTCP("127.0.0.1:1080", socksUser{}, host, 7)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		if err := turn(c.(*net.TCPConn)); err != nil {
			t.Fatal(err)
		}
		return c.(*net.TCPConn)
	}
	first, second, mesh := open(lab.Server[0]), open(lab.Server2[0]), open(lab.ProxyMesh["db"][0])
	byName := open("two.example")
	udp := w.associate(t, "127.0.0.1:1080", socksUser{})
	for _, a := range []string{lab.Server[0], lab.Server2[0]} {
		if _, _, err := udp.exchange(a, 7, []byte("x")); err != nil {
			t.Fatal(err)
		}
	}
	cut := func(t *testing.T, what string, c *net.TCPConn) {
		t.Helper()
		c.SetDeadline(time.Now().Add(soon))
		if n, err := c.Read(make([]byte, 1)); err == nil || strings.Contains(err.Error(), "timeout") {
			t.Errorf("%s goes on: %d, %v", what, n, err)
		}
	}
	alive := func(t *testing.T, what string, c *net.TCPConn) {
		t.Helper()
		if err := turn(c); err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	t.Run("DenyTo cuts its destination and nothing else", func(t *testing.T) {
		reload(t, w.fra, w.exitText(proxiedConfig{exit: "[Exit]\nDenyTo = " + lab.Server2[0] + "/32, " + lab.Server2[1] + "/128\n"}))
		cut(t, "the connection to what is denied", second)
		cut(t, "the one by its name", byName)
		alive(t, "the other connection", first)
		alive(t, "the one in the mesh", mesh)
		if _, err := w.socksTCP("127.0.0.1:1080", socksUser{}, lab.Server2[0], 7); err != errSOCKS(2) {
			t.Errorf("a new connection: %v, want reply 2", err)
		}
		udp.send(lab.Server2[0], 7, []byte("denied"))
		if got, from, err := udp.exchange(lab.Server[0], 7, []byte("other")); err != nil || string(got) != "other" {
			t.Errorf("UDP: got %q from %v, %v", got, from, err)
		}
	})
	t.Run("AllowRouting withdrawn cuts all that leaves by the exit", func(t *testing.T) {
		reload(t, w.fra, w.exitText(proxiedConfig{noRouting: true}))
		cut(t, "the connection", first)
		alive(t, "the one in the mesh", mesh)
		if c, err := w.socksTCP("127.0.0.1:1080", socksUser{}, lab.Server[0], 7); err == nil {
			c.Close()
			t.Error("a new connection was made")
		}
		udp.send(lab.Server[0], 7, []byte("x"))
		if got, _, err := udp.receive(200 * time.Millisecond); err == nil {
			t.Errorf("UDP is still answered: %q", got)
		}
	})
	t.Run("given back it works again", func(t *testing.T) {
		reload(t, w.fra, w.exitText(proxiedConfig{}))
		lab.WaitFor(t, 20*time.Second, "a connection by the exit", func() bool {
			c, err := w.socksTCP("127.0.0.1:1080", socksUser{}, lab.Server2[0], 7)
			if err == nil {
				c.Close()
			}
			return err == nil
		})
		alive(t, "the one in the mesh", mesh)
	})
}

// TestProxyReload reloads the node whose proxies are in use.
func TestProxyReload(t *testing.T) {
	t.Parallel()
	w := newProxied(t, proxiedConfig{client: programProxies})
	w.webEverywhere(t)
	w.listening(t, 1080)
	const half = 8 << 20
	release := make(chan struct{})
	slow := http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) { // half of it, the rest when told
		io.CopyN(rw, zeros{}, half)
		rw.(http.Flusher).Flush()
		<-release
		io.CopyN(rw, zeros{}, half)
	})
	web(t, w.S, slow, lab.Port(lab.Server[0], 8081))
	web(t, w.DB, slow, lab.Port(lab.ProxyMesh["db"][0], 8081))
	download := func(proxy, host string) <-chan string {
		done := make(chan string, 1)
		go func() {
			out, err := w.C.Exec("", "curl", "-sS", "--max-time", "60", "-o", "/dev/null", "-w", "%{size_download}", "-x", proxy+"://127.0.0.1:1080", "http://"+host+"/")
			if err != nil {
				out += err.Error()
			}
			done <- out
		}()
		return done
	}
	running := map[string]<-chan string{}
	for _, proxy := range []string{"socks5h", "http"} {
		for _, host := range []string{"v4.example:8081", lab.Port(lab.ProxyMesh["db"][0], 8081)} {
			running[proxy+" "+host] = download(proxy, host)
		}
	}
	udp := w.associate(t, "127.0.0.1:1080", socksUser{})
	echoUDP(t, w.S, lab.Port(lab.Server[0], 7))
	if _, _, err := udp.exchange(lab.Server[0], 7, []byte("x")); err != nil {
		t.Fatal(err)
	}
	lab.WaitFor(t, 10*time.Second, "the downloads to run", func() bool { return w.active(t) >= 5 })
	base := strings.TrimSuffix(w.conf.Text, programProxies)
	blocked := func() bool { return w.curl("-x", "socks5h://127.0.0.1:1080", "http://two.example/").code() == 97 }
	for _, c := range []struct {
		name, text string
		blocked    bool
	}{
		{"the same file", programProxies, false},
		{"one more service", programProxies + "[Forward]\nListen = 127.0.0.1:5400\nTo = db:8080\n", false},
		{"another rule on the listener that is in use", programProxies + "Route = two.example block\n", true},
		{"without it", programProxies, false},
	} {
		w.client.Write(t, base+c.text)
		if err := w.client.Signal(syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
		lab.WaitFor(t, 5*time.Second, "the reload: "+c.name, func() bool {
			return blocked() == c.blocked && w.C.Bound("tcp", 5400) == strings.Contains(c.text, "5400")
		})
	}
	t.Run("a bad file changes nothing", func(t *testing.T) {
		w.client.Write(t, base+programProxies+"[SOCKS5]\nListen = 0.0.0.0:1090\n")
		if out, err := w.client.Client("reload"); err == nil {
			t.Errorf("an open proxy was accepted: %s", out)
		}
		if r := w.curl("-x", "socks5h://127.0.0.1:1080", "http://two.example/"); r.Marker != marker {
			t.Errorf("%v\n%s", r.err, r.text)
		}
	})
	close(release)
	for name, done := range running {
		select {
		case got := <-done:
			if got != fmt.Sprint(2*half) {
				t.Errorf("the download by %s: got %s bytes, want %d", name, got, 2*half)
			}
		case <-time.After(30 * time.Second):
			t.Errorf("the download by %s hangs", name)
		}
	}
}

// active is how many connections and associations c's services have.
func (w *proxied) active(t *testing.T) (n int) {
	t.Helper()
	var s struct {
		Services []struct {
			Kind   string `json:"kind"`
			Active int    `json:"active"`
		} `json:"services"`
	}
	// Not by culvert status, which wants a configuration file without faults.
	if err := control.NewClient(w.client.Socket()).Status(context.Background(), &s); err != nil {
		t.Fatal(err)
	}
	for _, v := range s.Services {
		n += v.Active
	}
	return n
}
