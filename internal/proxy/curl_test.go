package proxy

import (
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"strings"
	"testing"
)

// TestCurlSOCKS has a client that others have written.
func TestCurlSOCKS(t *testing.T) {
	curl, err := exec.LookPath("curl")
	if err != nil {
		t.Skip("curl is not installed")
	}
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		io.WriteString(w, r.Host+" "+string(body))
	}))
	defer web.Close()
	port := web.Listener.Addr().(*net.TCPAddr).AddrPort().Port()
	url := "http://127.0.0.1:" + web.URL[strings.LastIndexByte(web.URL, ':')+1:] + "/"
	named := strings.Replace(url, "127.0.0.1", "Name.Example", 1)
	address := targetAt(web.Listener.Addr().(*net.TCPAddr).AddrPort())
	name := Target{Name: "name.example", Port: port}
	for _, c := range []struct {
		args  string // in front of the proxy's address
		creds string
		url   string
		users []User
		want  Request
	}{
		{"--socks5", "", url, nil, Request{Protocol: "socks5", Target: address}},
		{"--socks5-hostname", "", named, nil, Request{Protocol: "socks5", Target: name}},
		{"--socks5-hostname", "alice:secret", named, alice, Request{Protocol: "socks5", User: "alice", Target: name}},
		{"--socks5-hostname", "alice+exit+fra:secret", named, alice, Request{Protocol: "socks5", User: "alice", Exit: "fra", Target: name}},
		{"--socks5-hostname", "exit+fra:x", named, nil, Request{Protocol: "socks5", Exit: "fra", Target: name}},
		{"--socks4", "", url, nil, Request{Protocol: "socks4", Target: address}},
		{"--socks4a", "", named, nil, Request{Protocol: "socks4", Target: name}},
	} {
		t.Run(c.args+" "+c.creds, func(t *testing.T) {
			d := hostDialer(web.Listener.Addr().String())
			_, addr := run(t, Config{SOCKS: true, HTTP: true, Users: c.users, Dialer: d})
			args := []string{"-q", "--silent", "--show-error", "--max-time", "10", "--noproxy", "", "--data", "body", c.args, addr}
			if c.creds != "" {
				args = append(args, "--proxy-user", c.creds)
			}
			out, err := exec.Command(curl, append(args, c.url)...).CombinedOutput()
			if err != nil {
				t.Fatalf("curl: %v: %s", err, out)
			}
			if !strings.HasSuffix(string(out), " body") {
				t.Errorf("got %q", out)
			}
			got := d.last(t)
			got.Client = c.want.Client
			if got != c.want {
				t.Errorf("got %+v, want %+v", got, c.want)
			}
		})
	}
	t.Run("wrong password", func(t *testing.T) {
		_, addr := run(t, Config{SOCKS: true, Users: alice, Dialer: failing(errPlain)})
		out, err := exec.Command(curl, "-q", "--silent", "--max-time", "10", "--socks5", addr, "--proxy-user", "alice:wrong", url).CombinedOutput()
		if e, ok := err.(*exec.ExitError); !ok || e.ExitCode() != 97 { // CURLE_PROXY
			t.Errorf("curl: %v: %s", err, out)
		}
	})
}
