//go:build linux

package lab_test

import (
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"culvert.dev/culvert/internal/lab"
)

// allListeners are the proxies of the cases with curl.
const allListeners = `
[SOCKS5]
Listen = 127.0.0.1:1080, [::1]:1080, unix:proxy.sock
HTTP = yes
Exit = exit-fra, exit-ams
Route = ads.example block
[SOCKS5]
Listen = 127.0.0.1:1081
HTTP = yes
User = alice:secret
User = bob:builder
Exit = exit-fra
[HTTP]
Listen = 127.0.0.1:8080
Exit = exit-fra
`

// TestProxyCurl judges the proxies by curl.
func TestProxyCurl(t *testing.T) {
	t.Parallel()
	w := newProxied(t, proxiedConfig{client: allListeners})
	w.webEverywhere(t)
	w.names.set("rebind.example.", "127.0.0.1")
	w.listening(t, 1080, 1081, 8080)
	for _, c := range []struct {
		name string
		f    func(*testing.T)
	}{{"modes", w.curlModes}, {"keep-alive", w.curlKeepAlive}, {"users", w.curlUsers}, {"failures", w.curlFailures}} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			c.f(t)
		})
	}
}

// curlModes asks for the same things by every kind of proxying that curl has.
func (w *proxied) curlModes(t *testing.T) {
	for _, m := range []struct {
		name  string
		args  []string
		names bool // the proxy resolves them
		v6    bool // the protocol has IPv6 addresses
		plain bool // requests are read by the proxy
	}{
		{"SOCKS5", []string{"--socks5", "127.0.0.1:1080"}, false, true, false},
		{"SOCKS5 with names", []string{"--socks5-hostname", "127.0.0.1:1080"}, true, true, false},
		{"SOCKS5 over IPv6", []string{"--socks5-hostname", "[::1]:1080"}, true, true, false},
		{"SOCKS5 over a unix socket", []string{"-x", "socks5h://localhost" + filepath.Join(w.client.Dir(), "proxy.sock")}, true, true, false},
		{"SOCKS4", []string{"--socks4", "127.0.0.1:1080"}, false, false, false},
		{"SOCKS4a", []string{"--socks4a", "127.0.0.1:1080"}, true, false, false},
		{"HTTP", []string{"-x", "http://127.0.0.1:8080"}, true, true, true},
		{"HTTP on the listener of SOCKS", []string{"-x", "http://127.0.0.1:1080"}, true, true, true},
		{"HTTP over IPv6", []string{"-x", "http://[::1]:1080"}, true, true, true},
		{"CONNECT", []string{"-x", "http://127.0.0.1:8080", "--proxytunnel"}, true, true, false},
		{"CONNECT on the listener of SOCKS", []string{"-x", "http://127.0.0.1:1080", "--proxytunnel"}, true, true, false},
	} {
		t.Run(m.name, func(t *testing.T) {
			t.Parallel()
			w.curlTargets(t, m.args, m.names, m.v6)
			w.curlMethods(t, m.args)
		})
	}
}

// curlTargets asks every kind of target.
func (w *proxied) curlTargets(t *testing.T, args []string, names, v6 bool) {
	t.Helper()
	type target struct{ host, from string }
	fra, c := lab.ProxyOuter["fra"], lab.ProxyMesh["c"]
	targets := []target{{lab.Port(lab.Server[0], 80), fra[0]}, {lab.Port(lab.ProxyMesh["db"][0], 8080), c[0]}}
	if v6 {
		targets = append(targets, target{lab.Port(lab.Server[1], 80), fra[1]}, target{lab.Port(lab.ProxyMesh["db"][1], 8080), c[1]})
	}
	if names {
		targets = append(targets, target{"v4.example", fra[0]}, target{"db:8080", ""}, target{"DB.mesh:8080", ""})
	}
	for _, x := range targets {
		r := w.curl(append(args, "http://"+x.host+"/")...)
		if r.err != nil || r.Marker != marker || x.from != "" && r.From != x.from {
			t.Errorf("%s: %v, from %q, want from %q:\n%s", x.host, r.err, r.From, x.from, r.text)
		}
	}
	if names {
		if r := w.curl(append(args, "-k", "https://www.example/")...); r.err != nil || r.Marker != marker {
			t.Errorf("https: %v\n%s", r.err, r.text)
		}
	}
}

// curlMethods sends requests of several methods, with and without bodies, two of them by one connection.
func (w *proxied) curlMethods(t *testing.T, args []string) {
	t.Helper()
	body := random(t, 1<<20)
	file := filepath.Join(t.TempDir(), "body")
	if err := os.WriteFile(file, body, 0o644); err != nil {
		t.Fatal(err)
	}
	sum, empty := fmt.Sprintf("%x", sha256.Sum256(body)), fmt.Sprintf("%x", sha256.Sum256(nil))
	url := "http://" + lab.Port(lab.Server[0], 80) + "/path?q=1"
	for _, c := range []struct {
		name, method, sum string
		chunked           bool
		args              []string
	}{
		{"POST", "POST", sum, false, []string{"--data-binary", "@" + file, "-H", "Expect: 100-continue"}},
		{"PUT in chunks", "PUT", sum, true, []string{"-T", file, "-H", "Transfer-Encoding: chunked", "-H", "Expect: 100-continue"}},
		{"OPTIONS", "OPTIONS", empty, false, []string{"-X", "OPTIONS"}},
		{"DELETE", "DELETE", empty, false, []string{"-X", "DELETE"}},
	} {
		r := w.curl(append(append(args[:len(args):len(args)], c.args...), url)...)
		if r.err != nil || r.Method != c.method || r.Sum != c.sum || r.Chunked != c.chunked {
			t.Errorf("%s: %v, the server saw %s, sum right: %t, chunked: %t\n%s", c.name, r.err, r.Method, r.Sum == c.sum, r.Chunked, r.text)
		}
	}
	if r := w.curl(append(args, "-I", url)...); r.err != nil || r.status != 200 || strings.Contains(r.body, marker) {
		t.Errorf("HEAD: %v, status %d\n%s", r.err, r.status, r.text)
	}
	other := "http://" + lab.Port(lab.Server2[0], 80) + "/"
	if r := w.curl(append(args, url, other, url)...); r.err != nil || strings.Count(r.text, marker) != 3 {
		t.Errorf("two hosts in one run: %v\n%s", r.err, r.text)
	}
}

// curlKeepAlive has curl keep its connection to the proxy while it asks several hosts.
func (w *proxied) curlKeepAlive(t *testing.T) {
	urls := []string{"http://www.example/", "http://two.example/", "http://" + lab.Port(lab.ProxyMesh["db"][0], 8080) + "/", "http://www.example/"}
	r := w.curl(append([]string{"-v", "-x", "http://127.0.0.1:8080"}, urls...)...)
	if r.err != nil || strings.Count(r.text, marker) != len(urls) {
		t.Errorf("%v\n%s", r.err, r.text)
	}
	if n := strings.Count(r.text, "* Connected to "); n != 1 {
		t.Errorf("curl made %d connections to the proxy, want one:\n%s", n, r.text)
	}
	t.Run("credentials and hop-by-hop fields end at the proxy", func(t *testing.T) {
		r := w.curl("-x", "http://127.0.0.1:1081", "-U", "alice:secret", "-H", "Connection: X-Hop", "-H", "X-Hop: 1", "-H", "X-End: 1", "http://www.example/")
		if r.err != nil || r.Header.Get("X-End") != "1" || r.Header.Get("X-Hop") != "" || r.Header.Get("Proxy-Authorization") != "" || r.Header.Get("Proxy-Connection") != "" {
			t.Errorf("%v, the server saw %v\n%s", r.err, r.Header, r.text)
		}
	})
}

// curlUsers tries right and wrong credentials.
func (w *proxied) curlUsers(t *testing.T) {
	const url = "http://www.example/"
	for _, c := range []struct {
		name string
		args []string
		want int // HTTP status; 97 is curl's word for a refusal by SOCKS
	}{
		{"SOCKS5 right", []string{"-x", "socks5h://alice:secret@127.0.0.1:1081"}, 200},
		{"SOCKS5 the other user", []string{"-x", "socks5h://bob:builder@127.0.0.1:1081"}, 200},
		{"SOCKS5 wrong password", []string{"-x", "socks5h://alice:builder@127.0.0.1:1081"}, 97},
		{"SOCKS5 unknown user", []string{"-x", "socks5h://carol:secret@127.0.0.1:1081"}, 97},
		{"SOCKS5 without", []string{"-x", "socks5h://127.0.0.1:1081"}, 97},
		{"SOCKS4 without", []string{"-x", "socks4a://127.0.0.1:1081"}, 97},
		{"SOCKS5 not asked for", []string{"-x", "socks5h://alice:secret@127.0.0.1:1080"}, 200},
		{"HTTP right", []string{"-x", "http://alice:secret@127.0.0.1:1081"}, 200},
		{"HTTP wrong", []string{"-x", "http://alice:wrong@127.0.0.1:1081"}, 407},
		{"HTTP without", []string{"-x", "http://127.0.0.1:1081"}, 407},
		{"CONNECT right", []string{"-p", "-x", "http://alice:secret@127.0.0.1:1081"}, 200},
		{"CONNECT wrong", []string{"-p", "-x", "http://alice:wrong@127.0.0.1:1081"}, 407},
		{"CONNECT without", []string{"-p", "-x", "http://127.0.0.1:1081"}, 407},
		{"any method of authentication", []string{"--proxy-anyauth", "-x", "http://alice:secret@127.0.0.1:1081"}, 200},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := w.curl(append(c.args, url)...)
			got := r.status
			if r.code() == 97 {
				got = 97
			}
			if got != c.want || (c.want == 200) != (r.Marker == marker) {
				t.Errorf("got %d, want %d: %v\n%s", got, c.want, r.err, r.text)
			}
		})
	}
}

var socksReply = regexp.MustCompile(`\((\d+)\)\.?\s`)

// curlFailures wants every client told what happened.
func (w *proxied) curlFailures(t *testing.T) {
	for _, c := range []struct {
		name, url string
		reply     string // of SOCKS5
		status    int    // of HTTP
		word      string // of Proxy-Status
	}{
		{"a closed port on the internet", "http://" + lab.Port(lab.Server[0], 1) + "/", "5", 502, "connection_refused"},
		{"a closed port on the internet, IPv6", "http://" + lab.Port(lab.Server[1], 1) + "/", "5", 502, "connection_refused"},
		{"a closed port by name", "http://www.example:1/", "5", 502, "connection_refused"},
		{"a closed port in the mesh", "http://db:1/", "5", 502, "connection_refused"},
		{"an unreachable host", "http://" + lab.Port(lab.Unreachable[0], 80) + "/", "4", 502, "destination_ip_unroutable"},
		{"an unreachable host, IPv6", "http://" + lab.Port(lab.Unreachable[1], 80) + "/", "[34]", 502, "destination_ip_unroutable"},
		{"an unreachable host by name", "http://dead.example/", "4", 502, "destination_ip_unroutable"},
		{"an unknown name", "http://nothing.example/", "4", 502, "dns_error"}, // the exit tells by the address in its reply
		{"an unknown name of the mesh", "http://nobody.mesh/", "4", 502, "dns_error"},
		{"a single label that is no peer", "http://nobody/", "4", 502, "dns_error"},
		{"a blocked name", "http://ads.example/", "2", 403, ""},
		{"this host's loopback", "http://127.0.0.1:1/", "2", 403, ""},
		{"localhost", "http://localhost:1/", "2", 403, ""},
		{"the exit's loopback by rebinding", "http://rebind.example/", "[24]", 403, ""},
		{"the exit's local network", "http://" + lab.Port(lab.LANHost[0], 80) + "/", "2", 403, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			start := time.Now()
			r := w.curl("-v", "-x", "socks5h://127.0.0.1:1080", c.url)
			m := socksReply.FindStringSubmatch(r.text)
			if r.code() != 97 || m == nil || !regexp.MustCompile("^"+c.reply+"$").MatchString(m[1]) {
				t.Errorf("SOCKS5: %v, reply %v, want %s\n%s", r.err, m, c.reply, r.text)
			}
			for _, mode := range [][]string{nil, {"-p"}} {
				r := w.curl(append(mode, "-v", "-x", "http://127.0.0.1:1080", c.url)...)
				if r.status != c.status || !strings.Contains(r.text, "Proxy-Status: culvert; error="+c.word) {
					t.Errorf("HTTP %v: %v, status %d, want %d %s\n%s", mode, r.err, r.status, c.status, c.word, r.text)
				}
			}
			if d := time.Since(start); d > 3*soon {
				t.Errorf("took %v", d)
			}
		})
	}
}
