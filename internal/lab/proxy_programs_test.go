//go:build linux

package lab_test

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"net/http"
	"net/http/cgi"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"culvert.dev/culvert/internal/lab"
)

// programProxies are the proxies, and the exit, of the programs that people have.
const programProxies = `
[SOCKS5]
Listen = 127.0.0.1:1080
HTTP = yes
Exit = exit-fra
`

const sshPort = 2222

// sshServer runs sshd in a node and returns the options by which ssh logs in there.
func sshServer(t *testing.T, node *lab.Node, dir string) (options []string) {
	t.Helper()
	key, host, conf := filepath.Join(dir, "id"), filepath.Join(dir, "host"), filepath.Join(dir, "sshd_config")
	for _, file := range []string{key, host} {
		node.Run(t, "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", file)
	}
	text := fmt.Sprintf("Port %d\nHostKey %s\nAuthorizedKeysFile %s.pub\nStrictModes no\nUsePAM no\nPermitRootLogin yes\nPidFile none\nSubsystem sftp internal-sftp\nMaxStartups 100\n", sshPort, host, key)
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll("/run/sshd", 0o755); err != nil { // the laboratory's own /run
		t.Fatal(err)
	}
	node.Start(t, nil, "/usr/sbin/sshd", "-D", "-e", "-f", conf)
	lab.WaitFor(t, 10*time.Second, "sshd", func() bool { return node.Bound("tcp", sshPort) })
	return []string{"-F", "none", "-i", key, "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR", "-o", "ConnectTimeout=10"}
}

// TestProxySSH logs in, copies a file and clones a repository by ssh, through every kind of proxy that netcat speaks.
func TestProxySSH(t *testing.T) {
	t.Parallel()
	lab.Need(t, "ssh", "scp", "sshd", "ssh-keygen", "nc", "git")
	if !lab.ManyUsers() {
		t.Skip("sshd needs a user of its own, which a laboratory without real root does not have")
	}
	w := newProxied(t, proxiedConfig{client: programProxies})
	dir := t.TempDir()
	options := sshServer(t, w.DB, dir)
	internet := sshServer(t, w.S, t.TempDir())
	w.listening(t, 1080)
	by := func(options []string, nc string) []string {
		return append(options[:len(options):len(options)], "-o", "ProxyCommand="+nc)
	}
	const socks5, connect = "nc -X 5 -x 127.0.0.1:1080 %h %p", "nc -X connect -x 127.0.0.1:1080 %h %p"
	for _, c := range []struct {
		name, nc, host string
		options        []string
	}{
		{"SOCKS5 to a peer by name", socks5, "db.mesh", options}, {"SOCKS5 to a peer by address", socks5, lab.ProxyMesh["db"][0], options},
		{"SOCKS5 to the internet by name", socks5, "www.example", internet}, {"SOCKS4 to a peer", "nc -X 4 -x 127.0.0.1:1080 %h %p", lab.ProxyMesh["db"][0], options},
		{"CONNECT to a peer by name", connect, "db", options}, {"CONNECT to the internet by address", connect, lab.Server[0], internet},
	} {
		t.Run(c.name, func(t *testing.T) {
			args := append(by(c.options, c.nc), "-p", fmt.Sprint(sshPort), "root@"+c.host, "tr a-z A-Z")
			if out, err := w.C.Exec("question", "timeout", append([]string{"30", "ssh"}, args...)...); err != nil || out != "QUESTION" {
				t.Errorf("%v: %q", err, out)
			}
		})
	}
	t.Run("scp of 20 MB there and back", func(t *testing.T) {
		from, there, back := filepath.Join(dir, "from"), filepath.Join(dir, "there"), filepath.Join(dir, "back")
		data := random(t, 20<<20)
		if err := os.WriteFile(from, data, 0o600); err != nil {
			t.Fatal(err)
		}
		scp := append([]string{"scp"}, by(options, socks5)...)
		scp = append(scp, "-P", fmt.Sprint(sshPort))
		start := time.Now()
		w.C.Run(t, "timeout", append(append([]string{"60"}, scp...), from, "root@db.mesh:"+there)...)
		w.C.Run(t, "timeout", append(append([]string{"60"}, scp...), "root@db.mesh:"+there, back)...)
		t.Logf("40 MB in %v", time.Since(start).Round(time.Millisecond))
		if got, err := os.ReadFile(back); err != nil || !bytes.Equal(got, data) {
			t.Errorf("got %d bytes back, %v; they differ from the %d sent", len(got), err, len(data))
		}
	})
	t.Run("git over ssh", func(t *testing.T) {
		repository := gitRepository(t)
		command := "ssh " + strings.Join(options, " ") + " -p " + fmt.Sprint(sshPort) + " -o ProxyCommand='" + socks5 + "'"
		clone(t, w.C, "ssh://root@db.mesh"+repository, "-c", "core.sshCommand="+command)
	})
}

// gitRepository is a repository with a file of 1 MB.
func gitRepository(t *testing.T) (dir string) {
	t.Helper()
	dir = filepath.Join(t.TempDir(), "repository")
	git := func(args ...string) {
		t.Helper()
		cmd := exec.Command("git", append([]string{"-C", dir, "-c", "user.name=lab", "-c", "user.email=lab@example", "-c", "safe.directory=*"}, args...)...)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("git %v: %v\n%s", args, err, out)
		}
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "file"), random(t, 1<<20), 0o644); err != nil {
		t.Fatal(err)
	}
	git("init", "-q", "-b", "main")
	git("add", "file")
	git("commit", "-q", "-m", "one")
	git("config", "http.receivepack", "true")
	git("config", "receive.denyCurrentBranch", "ignore")
	return dir
}

// clone has git clone from a URL, and push a change back.
func clone(t *testing.T, node *lab.Node, url string, options ...string) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "clone")
	git := append([]string{"-c", "safe.directory=*", "-c", "user.name=lab", "-c", "user.email=lab@example"}, options...)
	with := func(args ...string) []string { return append(git[:len(git):len(git)], args...) }
	node.Run(t, "git", with("clone", "-q", url, dir)...)
	if info, err := os.Stat(filepath.Join(dir, "file")); err != nil || info.Size() != 1<<20 {
		t.Errorf("%s: the file is not there, or not whole: %v", url, err)
	}
	if err := os.WriteFile(filepath.Join(dir, "another"), random(t, 1<<20), 0o644); err != nil {
		t.Fatal(err)
	}
	node.Run(t, "git", with("-C", dir, "add", "another")...)
	node.Run(t, "git", with("-C", dir, "commit", "-q", "-m", "two")...)
	branch := fmt.Sprintf("%x", sha256.Sum256([]byte(t.Name())))
	node.Run(t, "git", with("-C", dir, "push", "-q", "origin", "HEAD:refs/heads/"+branch)...)
}

// TestProxyGit clones over HTTP, by both kinds of proxy.
func TestProxyGit(t *testing.T) {
	t.Parallel()
	lab.Need(t, "git")
	w := newProxied(t, proxiedConfig{client: programProxies})
	repository := gitRepository(t)
	core, err := exec.Command("git", "--exec-path").Output()
	if err != nil {
		t.Fatal(err)
	}
	backend := filepath.Join(strings.TrimSpace(string(core)), "git-http-backend")
	serve := &cgi.Handler{
		Path: backend, Stderr: new(bytes.Buffer),
		Env: []string{"GIT_PROJECT_ROOT=" + filepath.Dir(repository), "GIT_HTTP_EXPORT_ALL=1", "REMOTE_USER=lab", "GIT_CONFIG_COUNT=1", "GIT_CONFIG_KEY_0=safe.directory", "GIT_CONFIG_VALUE_0=*"},
	}
	whole := http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) { // a CGI program takes no chunks
		b, err := io.ReadAll(r.Body)
		if err != nil {
			return
		}
		r.Body, r.ContentLength, r.TransferEncoding = io.NopCloser(bytes.NewReader(b)), int64(len(b)), nil
		serve.ServeHTTP(rw, r)
	})
	web(t, w.S, whole, lab.Port(lab.Server[0], 80))
	web(t, w.DB, whole, lab.Port(lab.ProxyMesh["db"][0], 8080))
	w.listening(t, 1080)
	for _, c := range []struct {
		proxy, host string
		options     []string
	}{
		{"socks5h://127.0.0.1:1080", "v4.example", nil},
		{"http://127.0.0.1:1080", "db:8080", []string{"-c", "http.postBuffer=65536"}}, // bodies in chunks
	} {
		t.Run(c.proxy+" "+c.host, func(t *testing.T) {
			t.Parallel()
			clone(t, w.C, "http://"+c.host+"/repository", append(c.options, "-c", "http.proxy="+c.proxy)...)
		})
	}
}

// TestProxyDNS asks the resolver at an exit's mesh address with dig: from a stock peer, and by a forward.
func TestProxyDNS(t *testing.T) {
	t.Parallel()
	lab.Need(t, "dig")
	w := newProxied(t, proxiedConfig{
		client: "[Forward]\nListen = 127.0.0.1:5300/tcp,udp\nTo = exit-fra:53\n[Forward]\nListen = 127.0.0.1:5301/tcp,udp\nTo = " + lab.NameServer[0] + ":53\nExit = exit-fra\n",
		exit:   "[Exit]\nDNSRoute = corp.test to " + lab.Server2[0] + "\n",
	})
	corp := newNameserver(t, w.S, lab.Server2[0])
	corp.set("host.corp.test.", "198.51.100.99")
	w.names.texts["long.example."] = strings.Repeat("0123456789", 300)
	w.listening(t, 5300, 5301)
	fra, db := lab.ProxyMesh["fra"], lab.ProxyMesh["db"]
	lab.WaitFor(t, 10*time.Second, "the exit to answer its peer", func() bool {
		out, err := w.DB.Exec("", "ping", "-n", "-c", "1", "-W", "1", fra[0])
		return err == nil && strings.Contains(out, "1 received")
	})
	for _, via := range []struct {
		name string
		node *lab.Node
		args []string
	}{
		{"a stock peer, IPv4", w.DB, []string{"@" + fra[0]}}, {"a stock peer, IPv6", w.DB, []string{"@" + fra[1]}},
		{"a forward", w.C, []string{"@127.0.0.1", "-p", "5300"}},
	} {
		for _, transport := range []string{"+notcp", "+tcp"} {
			t.Run(via.name+" "+transport, func(t *testing.T) {
				for _, c := range []struct{ args, want string }{
					{"exit-fra.mesh A", fra[0]}, {"exit-fra.mesh AAAA", fra[1]}, {"EXIT-FRA A", fra[0]}, {"-x " + fra[0], "exit-fra.mesh."}, {"-x " + fra[1], "exit-fra.mesh."},
					{"www.example A", lab.Server[0]}, {"www.example AAAA", lab.Server[1]}, {"host.corp.test A", "198.51.100.99"}, {"exit-fra.mesh TXT", ""},
				} {
					args := append(append([]string{"+short", "+tries=2", "+time=3", transport}, via.args...), strings.Fields(c.args)...)
					if out, err := via.node.Exec("", "dig", args...); err != nil || strings.TrimSpace(out) != c.want {
						t.Errorf("dig %s: %v, got %q, want %q", c.args, err, out, c.want)
					}
				}
				for _, c := range []struct{ name, status string }{{"nobody.mesh", "NXDOMAIN"}, {"nothing.example", "NXDOMAIN"}, {"nothing.corp.test", "NXDOMAIN"}, {"exit-fra.mesh", "NOERROR"}} {
					out, _ := via.node.Exec("", "dig", append([]string{transport, c.name, "MX"}, via.args...)...)
					if !strings.Contains(out, "status: "+c.status) {
						t.Errorf("%s: want %s:\n%s", c.name, c.status, out)
					}
				}
				if out, _ := via.node.Exec("", "dig", append([]string{transport, "+short", "long.example", "TXT"}, via.args...)...); strings.Count(out, "0123456789") < 280 {
					t.Errorf("a long answer is not whole: %d bytes", len(out))
				}
			})
		}
	}
	t.Run("a resolver on the internet by a forward and an exit", func(t *testing.T) {
		for _, transport := range []string{"+notcp", "+tcp"} {
			out, err := w.C.Exec("", "dig", "+short", "+time=3", transport, "@127.0.0.1", "-p", "5301", "v4.example")
			if err != nil || strings.TrimSpace(out) != lab.Server[0] {
				t.Errorf("%s: %v, %q", transport, err, out)
			}
		}
	})
	t.Run("a peer learns only addresses that it may reach", func(t *testing.T) {
		out, _ := w.DB.Exec("", "dig", "+short", "@"+fra[0], "client.mesh", "A")
		if strings.Contains(out, lab.ProxyMesh["c"][0]) {
			t.Errorf("db may not reach c through fra, and is told %q", out)
		}
		if out, _ := w.DB.Exec("", "dig", "+short", "@"+fra[0], "db.mesh", "A"); strings.TrimSpace(out) != db[0] {
			t.Errorf("its own address: %q", out)
		}
	})
	t.Run("names of the mesh stay in it, and a domain goes to its own resolver only", func(t *testing.T) {
		for _, name := range []string{"exit-fra.mesh.", "nobody.mesh.", "exit-fra.", "host.corp.test.", "nothing.corp.test.", "11.0.64.100.in-addr.arpa."} {
			if n := w.names.asked(name); n != 0 {
				t.Errorf("the host's resolver was asked for %s %d times", name, n)
			}
		}
		if corp.asked("host.corp.test.") == 0 || corp.asked("www.example.") != 0 {
			t.Errorf("the resolver of corp.test was asked for its own names %d times, for others %d", corp.asked("host.corp.test."), corp.asked("www.example."))
		}
	})
}

// TestProxyEnvironment uses the proxies as scripts do, by the environment.
func TestProxyEnvironment(t *testing.T) {
	t.Parallel()
	lab.Need(t, "python3")
	w := newProxied(t, proxiedConfig{client: programProxies})
	w.webEverywhere(t)
	w.listening(t, 1080)
	script := "import json, urllib.request as u\nprint(json.load(u.urlopen('http://v4.example/', b'x'*100000, timeout=20))['Length'])\n"
	out, err := w.C.Exec(script, "env", "http_proxy=http://127.0.0.1:1080", "python3", "-")
	if err != nil || strings.TrimSpace(out) != "100000" {
		t.Errorf("python3: %v\n%s", err, out)
	}
}
