//go:build linux

package lab_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"culvert.dev/culvert/internal/lab"
)

// TestProxyExits sends connections by names, rules and exits, lets an exit die and come back, and watches the outer interface of the
// client all the time: no question about a name leaves the host, and nothing in plain text.
func TestProxyExits(t *testing.T) {
	t.Parallel()
	w := newProxied(t, proxiedConfig{client: `
[SOCKS5]
Listen = 1080
HTTP = yes
Exit = exit-fra, exit-ams
Route = *.corp.example via exit-ams
Route = ads.example block
Route = 198.51.100.11 via exit-ams
[SOCKS5]
Listen = 127.0.0.1:1081
User = alice:secret
Exit = exit-fra
[SOCKS5]
Listen = 127.0.0.1:1082
[SOCKS5]
Listen = 127.0.0.1:1083
Exit = exit-fra
Route = * via exit-ams
`})
	w.webEverywhere(t)
	w.listening(t, 1080, 1081, 1082, 1083)
	capture := w.C.Capture(t, "r", marker)
	timedOut := w.silentPeer(8000, "127.0.0.1:1080")
	fra, ams := lab.ProxyOuter["fra"][0], lab.ProxyOuter["ams"][0]
	const proxy, users, none, all = "127.0.0.1:1080", "127.0.0.1:1081", "127.0.0.1:1082", "127.0.0.1:1083"
	for _, c := range []struct{ name, proxy, url, from string }{
		{"the first exit of the list", "socks5h://" + proxy, "http://v4.example/", fra},
		{"the same by HTTP", "http://" + proxy, "http://v4.example/", fra},
		{"the same by address", "socks5h://" + proxy, "http://" + lab.Server[0] + "/", fra},
		{"a route by domain", "socks5h://" + proxy, "http://www.corp.example/", "ams"},
		{"a route by address", "socks5h://" + proxy, "http://" + lab.Server2[0] + "/", ams},
		{"a route by address is not for names", "socks5h://" + proxy, "http://v4.example/", fra},
		{"a peer by name", "socks5h://" + proxy, "http://db.mesh:8080/", "c"},
		{"a peer by address", "socks5h://" + proxy, "http://" + lab.Port(lab.ProxyMesh["db"][0], 8080) + "/", lab.ProxyMesh["c"][0]},
		{"an exit by user name", "socks5h://exit+exit-ams:x@" + proxy, "http://v4.example/", ams},
		{"an exit by user name, HTTP", "http://exit+exit-ams:x@" + proxy, "http://v4.example/", ams},
		{"an exit behind a user's name", "socks5h://alice+exit+exit-ams:secret@" + users, "http://v4.example/", ams},
		{"a user without an exit", "socks5h://alice:secret@" + users, "http://v4.example/", fra},
		{"a user with a wrong password and an exit", "socks5h://alice+exit+exit-ams:wrong@" + users, "http://v4.example/", ""},
		{"an exit that is no peer", "socks5h://exit+nobody:x@" + proxy, "http://v4.example/", ""},
		{"a peer by name whatever the exit", "socks5h://exit+exit-ams:x@" + proxy, "http://db:8080/", "c"},
		{"a route for all comes before the list", "socks5h://" + all, "http://v4.example/", ams},
		{"a route for all comes after the mesh", "socks5h://" + all, "http://db:8080/", "c"},
		{"no way out", "socks5h://" + none, "http://v4.example/", ""},
		{"the mesh without a way out", "socks5h://" + none, "http://db:8080/", "c"},
		{"blocked", "socks5h://" + proxy, "http://ads.example/", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := w.curl("-x", c.proxy, c.url)
			from := []string{c.from}
			if addrs, ok := lab.ProxyOuter[c.from]; ok {
				from = addrs[:]
			}
			if c.from == "c" {
				from = append([]string(nil), lab.ProxyMesh["c"][0], lab.ProxyMesh["c"][1])
			}
			if got := r.From; c.from == "" && r.code() != 97 || !strings.Contains(strings.Join(from, " "), got) || (got == "") != (c.from == "") {
				t.Errorf("from %q, want %v: %v\n%s", got, from, r.err, r.text)
			}
		})
	}
	t.Run("no way out is said so", func(t *testing.T) {
		r := w.curl("-v", "-x", "socks5h://"+none, "http://v4.example/")
		if m := socksReply.FindStringSubmatch(r.text); m == nil || m[1] != "3" {
			t.Errorf("reply %v, want 3, network unreachable\n%s", m, r.text)
		}
	})
	w.failover(t, fra, ams)
	t.Run("a peer that says nothing is a timeout", timedOut)

	capture.Settle(t)
	if capture.Packets() < 200 {
		t.Errorf("the capture saw %d packets, so it proves nothing", capture.Packets())
	}
	if capture.DNS() != 0 || capture.Plain() != 0 {
		t.Errorf("%d packets of DNS, %d with plain text left the host: %s", capture.DNS(), capture.Plain(), capture.First())
	}
	t.Run("the capture sees what it is for", func(t *testing.T) {
		curlIn(w.C, "http://v4.example/")
		if !lab.Poll(soon, func() bool { return capture.DNS() > 0 && capture.Plain() > 0 }) {
			t.Errorf("a request without a proxy: %d packets of DNS, %d with plain text", capture.DNS(), capture.Plain())
		}
	})
}

// silentPeer has db drop what comes to a port, and asks for it by both protocols meanwhile; the case waits for what curl says.
func (w *proxied) silentPeer(port int, proxy string) func(t *testing.T) {
	w.DB.Nft(fmt.Sprintf("table inet silent {\n chain in {\n type filter hook input priority 0;\n tcp dport %d drop\n }\n}", port))
	url := fmt.Sprintf("http://db:%d/", port)
	ask := func(how string) <-chan reply {
		done := make(chan reply, 1)
		go func() { done <- w.curl("-v", "--max-time", "50", "-x", how+"://"+proxy, url) }()
		return done
	}
	bySOCKS, byHTTP := ask("socks5h"), ask("http")
	return func(t *testing.T) {
		if r := <-byHTTP; r.status != 504 || !strings.Contains(r.text, "error=connection_timeout") {
			t.Errorf("HTTP: %v, status %d, want 504\n%s", r.err, r.status, r.text)
		}
		r := <-bySOCKS
		if m := socksReply.FindStringSubmatch(r.text); m == nil || m[1] != "4" {
			t.Errorf("SOCKS5: %v, reply %v, want 4\n%s", r.err, m, r.text)
		}
	}
}

// failover kills fra and brings it back.
func (w *proxied) failover(t *testing.T, fra, ams string) {
	from := func(url string) string { return w.curl("-x", "socks5h://127.0.0.1:1080", url).From }
	const url = "http://v4.example/"
	w.fra.Kill()
	t.Run("a dead exit is passed over", func(t *testing.T) {
		start := time.Now()
		if got := from(url); got != ams {
			t.Errorf("from %q, want %q", got, ams)
		}
		first := time.Since(start)
		start = time.Now()
		if got := from(url); got != ams {
			t.Errorf("the second request: from %q, want %q", got, ams)
		}
		t.Logf("the first request took %s, the second %s", ms(first), ms(time.Since(start)))
		if d := time.Since(start); d > time.Second {
			t.Errorf("the second request took %v: it is known that the exit is dead", d)
		}
	})
	t.Run("an exit by name has no other", func(t *testing.T) {
		if r := w.curl("-x", "socks5h://exit+exit-fra:x@127.0.0.1:1080", url); r.code() != 97 {
			t.Errorf("%v, from %q", r.err, r.From)
		}
	})
	t.Run("the mesh does not need it", func(t *testing.T) {
		if got := from("http://db:8080/"); got == "" {
			t.Error("no answer")
		}
	})
	w.fra = w.Fra.StartNode(t, w.exits[w.Fra])
	t.Run("an exit that is back is used again", func(t *testing.T) {
		start := time.Now()
		lab.WaitFor(t, 30*time.Second, "the first exit to be used again", func() bool { return from(url) == fra })
		t.Logf("after %s", ms(time.Since(start)))
	})
}

// TestProxyDirect lets a route lead to this host's own network, and nothing else.
func TestProxyDirect(t *testing.T) {
	t.Parallel()
	w := newProxied(t, proxiedConfig{client: `
[SOCKS5]
Listen = 1080
HTTP = yes
Exit = exit-fra
Route = home.example direct
Route = 198.51.100.11 direct
Route = 127.0.0.1 direct
`})
	w.webEverywhere(t)
	web(t, w.C, asking, "127.0.0.1:8081")
	w.listening(t, 1080)
	for _, c := range []struct{ url, from string }{
		{"http://home.example/", "c"}, {"http://" + lab.Server2[0] + "/", "c"}, {"http://v4.example/", "fra"}, {"http://" + lab.Server[0] + "/", "fra"},
	} {
		if r := w.curl("-x", "socks5h://127.0.0.1:1080", c.url); r.From != lab.ProxyOuter[c.from][0] && r.From != lab.ProxyOuter[c.from][1] {
			t.Errorf("%s: from %q, want %s: %v\n%s", c.url, r.From, c.from, r.err, r.text)
		}
	}
	if r := w.curl("-x", "socks5h://127.0.0.1:1080", "http://127.0.0.1:8081/"); r.Marker != marker {
		t.Errorf("loopback that a route names: %v\n%s", r.err, r.text)
	}
}

// TestProxyDefaultRoute leaves by a stock router with a default route, which resolves nothing: the resolver of [Interface] is asked
// through the tunnel.
func TestProxyDefaultRoute(t *testing.T) {
	t.Parallel()
	w := newProxied(t, proxiedConfig{vpn: true, options: "DNS = " + lab.NameServer[0], client: `
[SOCKS5]
Listen = 1080
HTTP = yes
`})
	w.webEverywhere(t)
	w.listening(t, 1080)
	capture := w.C.Capture(t, "r", marker)
	vpn, c := lab.ProxyOuter["vpn"], lab.ProxyMesh["c"]
	for _, row := range []struct{ name, proxy, url, from string }{
		{"IPv4 by name", "socks5h", "http://v4.example/", vpn[0]}, {"IPv6 by name", "socks5h", "http://v6.example/", vpn[1]},
		{"IPv4 by address", "socks5h", "http://" + lab.Server[0] + "/", vpn[0]}, {"IPv6 by address", "socks5h", "http://[" + lab.Server[1] + "]/", vpn[1]},
		{"by HTTP", "http", "http://v4.example/", vpn[0]},
		{"the mesh", "socks5h", "http://" + lab.Port(lab.ProxyMesh["db"][0], 8080) + "/", c[0]},
	} {
		t.Run(row.name, func(t *testing.T) {
			if r := w.curl("-x", row.proxy+"://127.0.0.1:1080", row.url); r.From != row.from {
				t.Errorf("from %q, want %q: %v\n%s", r.From, row.from, r.err, r.text)
			}
		})
	}
	t.Run("names are asked of the resolver by the router", func(t *testing.T) {
		if n := w.names.asked("v4.example."); n == 0 {
			t.Error("nobody asked")
		}
		r := w.curl("-v", "-x", "socks5h://127.0.0.1:1080", "http://nothing.example/")
		if m := socksReply.FindStringSubmatch(r.text); m == nil || m[1] != "4" {
			t.Errorf("a name that does not exist: reply %v, want 4\n%s", m, r.text)
		}
		if r := w.curl("-v", "-x", "http://127.0.0.1:1080", "http://nothing.example/"); !strings.Contains(r.text, "error=dns_error") {
			t.Errorf("a name that does not exist, by HTTP:\n%s", r.text)
		}
	})
	capture.Settle(t)
	if capture.DNS() != 0 || capture.Plain() != 0 || capture.Packets() < 50 {
		t.Errorf("%d packets, %d of DNS, %d with plain text left the host: %s", capture.Packets(), capture.DNS(), capture.Plain(), capture.First())
	}
}
