//go:build linux

package lab_test

import (
	"crypto/sha256"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"testing"
	"time"

	"culvert.dev/culvert/internal/lab"
)

// marker is in requests and answers of every case, so that a capture knows plain text when it sees some.
const marker = "c0nf1dent1al-marker"

// proxied is a ProxyWorld that runs: c with proxies, fra and ams as its exits, the stock peer db, and a server on the internet with
// names.
type proxied struct {
	*lab.ProxyWorld
	client, fra, ams *lab.Exit
	db               *lab.Stock
	names            *nameserver

	conf  lab.NodeConfig // of c
	exits map[*lab.Node]lab.NodeConfig
}

// proxiedConfig is what tests choose.
type proxiedConfig struct {
	client    string   // sections of c
	options   string   // lines of c's [Interface]
	dbOptions string   // lines of c's [Peer] db
	args      []string // of culvert up in c
	files     int      // limit of c's open files
	exit      string   // sections of fra
	cOptions  string   // lines of fra's [Peer] client, beside AllowRouting
	noRouting bool     // fra does not let c route
	dbExit    string   // lines of fra's [Peer] db, beside AllowRouting
	vpn       bool     // c has the default route of vpn
	direct    bool     // vpn is a stock peer of db
	guest     bool     // vpn is a stock peer of c and fra without any permission
}

// newProxied starts everything and waits until the tunnels are up.
func newProxied(t *testing.T, c proxiedConfig) *proxied {
	t.Helper()
	productOnly(t, "a plain router has no proxies")
	lab.Need(t, "curl")
	w := &proxied{ProxyWorld: lab.NewProxyWorld(t), exits: make(map[*lab.Node]lab.NodeConfig)}
	w.names = newNameserver(t, w.S, lab.NameServer[:]...)
	for name, addrs := range map[string][]string{
		"www.example.": lab.Server[:], "v4.example.": lab.Server[:1], "v6.example.": lab.Server[1:], "two.example.": lab.Server2[:],
		"www.corp.example.": lab.Server[:], "ads.example.": lab.Server[:], "home.example.": lab.Server[:], "dead.example.": lab.Unreachable[:1],
	} {
		w.names.set(name, addrs...)
	}
	w.exits[w.Fra] = lab.NodeConfig{Text: w.exitText(c)}
	w.exits[w.Ams] = lab.NodeConfig{Text: w.Conf(w.Ams, "", lab.ProxyPeer{Node: w.C, Options: mayRoute})}
	w.fra = w.Fra.StartNode(t, w.exits[w.Fra])
	w.ams = w.Ams.StartNode(t, w.exits[w.Ams])
	knownToDB := []*lab.Node{w.C, w.Fra}
	if c.direct {
		knownToDB = append(knownToDB, w.VPN)
		w.StockPeer(t, w.VPN, w.DB)
	}
	w.db = w.StockPeer(t, w.DB, knownToDB...)
	peers := []lab.ProxyPeer{{Node: w.Fra}, {Node: w.Ams}, {Node: w.DB, Options: c.dbOptions}}
	if c.vpn {
		w.VPN.Masquerade("r")
		w.StockPeer(t, w.VPN, w.C)
		peers = append(peers, lab.ProxyPeer{Node: w.VPN, AllowedIPs: "0.0.0.0/0, ::/0"})
	}
	if c.guest {
		w.StockPeer(t, w.VPN, w.C, w.Fra)
		peers = append(peers, lab.ProxyPeer{Node: w.VPN})
	}
	w.conf = lab.NodeConfig{Text: w.Conf(w.C, c.options, peers...) + c.client, Args: c.args, Files: c.files, Dir: lab.UnprivilegedDir(t)}
	w.client = w.C.StartNode(t, w.conf)
	return w
}

const mayRoute = "AllowRouting = yes\n"

// exitText is the configuration of fra. The stock peer db may use it; vpn is its peer, and may do nothing.
func (w *proxied) exitText(c proxiedConfig) string {
	if !c.noRouting {
		c.cOptions = mayRoute + c.cOptions
	}
	return w.Conf(w.Fra, "", lab.ProxyPeer{Node: w.C, Options: c.cOptions}, lab.ProxyPeer{Node: w.DB, Options: mayRoute + c.dbExit}, lab.ProxyPeer{Node: w.VPN}) + c.exit
}

// reload replaces the configuration of a running node.
func reload(t *testing.T, e *lab.Exit, text string) {
	t.Helper()
	e.Write(t, text)
	if out, err := e.Client("reload"); err != nil {
		t.Fatalf("reload: %v: %s", err, out)
	}
}

// web serves HTTP in a node, on ports of its addresses, until the test ends.
func web(t testing.TB, node *lab.Node, h http.Handler, addrs ...string) {
	t.Helper()
	for _, a := range addrs {
		startWeb(t, node, h, a, (*httptest.Server).Start)
	}
}

// webTLS is web with a certificate that nobody trusts.
func webTLS(t testing.TB, node *lab.Node, h http.Handler, addrs ...string) {
	t.Helper()
	for _, a := range addrs {
		startWeb(t, node, h, a, (*httptest.Server).StartTLS)
	}
}

func startWeb(t testing.TB, node *lab.Node, h http.Handler, addr string, start func(*httptest.Server)) {
	t.Helper()
	s := httptest.NewUnstartedServer(h)
	s.Listener.Close()
	s.Listener = node.Listen(t, addr)
	s.Config.ErrorLog = log.New(io.Discard, "", 0) // clients that go away are what is tested
	s.TLS = &tls.Config{NextProtos: []string{"http/1.1"}}
	start(s)
	t.Cleanup(func() {
		s.CloseClientConnections()
		s.Close()
	})
}

// seenRequest is what a server saw of a request, as it tells the client.
type seenRequest struct {
	Method, Host, From, Sum string
	Length                  int64
	Chunked                 bool
	Header                  http.Header
	Marker                  string
}

// asking tells every client what it asked for; /big?n=… sends so many bytes.
var asking http.HandlerFunc = func(rw http.ResponseWriter, r *http.Request) {
	if n, err := strconv.Atoi(r.URL.Query().Get("n")); err == nil {
		rw.Header().Set("Content-Length", strconv.Itoa(n))
		io.CopyN(rw, zeros{}, int64(n))
		return
	}
	h := sha256.New()
	n, err := io.Copy(h, r.Body)
	if err != nil {
		return
	}
	from, _, _ := net.SplitHostPort(r.RemoteAddr)
	json.NewEncoder(rw).Encode(seenRequest{
		Method: r.Method, Host: r.Host, From: from, Sum: fmt.Sprintf("%x", h.Sum(nil)), Length: n,
		Chunked: len(r.TransferEncoding) > 0, Header: r.Header, Marker: marker,
	})
}

// zeros reads as zero bytes without end.
type zeros struct{}

func (zeros) Read(b []byte) (int, error) {
	clear(b)
	return len(b), nil
}

// webEverywhere serves asking on port 80 of the server's addresses, on port 443 with TLS, and on port 8080 of db.
func (w *proxied) webEverywhere(t testing.TB) {
	t.Helper()
	for _, f := range families {
		web(t, w.S, asking, lab.Port(lab.Server[f.i], 80), lab.Port(lab.Server2[f.i], 80))
		webTLS(t, w.S, asking, lab.Port(lab.Server[f.i], 443))
		web(t, w.DB, asking, lab.Port(lab.ProxyMesh["db"][f.i], 8080))
	}
}

// listening waits until c has a TCP listener at a port.
func (w *proxied) listening(t testing.TB, ports ...int) {
	t.Helper()
	for _, p := range ports {
		lab.WaitFor(t, 10*time.Second, "a listener on port "+strconv.Itoa(p), func() bool { return w.C.Bound("tcp", p) })
	}
}

// reply is what curl made of a request.
type reply struct {
	seenRequest
	status int    // of the last answer
	body   string // of it
	text   string // all that curl printed
	err    error  // its exit status
}

// curl asks in c, with a limit of time, and decodes what asking answers.
func (w *proxied) curl(args ...string) (r reply) {
	return curlIn(w.C, args...)
}

func curlIn(node *lab.Node, args ...string) (r reply) {
	out, err := node.Exec("", "curl", append([]string{"-sS", "-q", "--max-time", "20", "-w", "\n%{http_code} %{http_connect}"}, args...)...)
	r.text, r.err = out, err
	for i := len(out) - 1; i >= 0; i-- {
		if out[i] == '\n' {
			var connect int
			fmt.Sscanf(out[i+1:], "%d %d", &r.status, &connect)
			if r.status == 0 {
				r.status = connect
			}
			r.body = out[:i]
			break
		}
	}
	json.Unmarshal([]byte(r.body), &r.seenRequest)
	return r
}

// code is curl's exit status.
func (r reply) code() int {
	if r.err == nil {
		return 0
	}
	if e, ok := r.err.(interface{ ExitCode() int }); ok {
		return e.ExitCode()
	}
	return -1
}
