package relayd

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"culvert.dev/culvert/traversal/relay"
)

const acmeDomain = "relay.test" // RFC 6761 section 6.2: never a real one

// authority is pebble, a certificate authority for tests, with a name server that has 127.0.0.1 for every name. It validates in
// earnest: it connects to the ports of the relay.
type authority struct {
	directory string // URL
	rootCA    string // file, of its own certificate
	manage    string // URL
	stop      func()
}

// startAuthority runs pebble, which looks for the relay at the two ports. Where it is not installed the test is skipped, unless the
// environment asks for everything.
func startAuthority(t *testing.T, httpPort, tlsPort int) *authority {
	t.Helper()
	for _, program := range []string{"pebble", "pebble-challtestsrv"} {
		if _, err := exec.LookPath(program); err != nil {
			if os.Getenv("CULVERT_LAB") == "require" {
				t.Fatalf("%v: apt-get install pebble", err)
			}
			t.Skipf("SKIP ACME: %v: apt-get install pebble", err)
		}
	}
	dir := t.TempDir()
	own := makePair(t)
	a := &authority{rootCA: filepath.Join(dir, "own.pem")}
	write(t, a.rootCA, string(own.cert))
	write(t, filepath.Join(dir, "own.key"), string(own.key))
	api, management, dns := "127.0.0.1:"+freePort(t), "127.0.0.1:"+freePort(t), "127.0.0.1:"+freePort(t)
	a.directory, a.manage = "https://"+api+"/dir", "https://"+management
	conf, err := json.Marshal(map[string]any{"pebble": map[string]any{
		"listenAddress": api, "managementListenAddress": management, "certificate": a.rootCA, "privateKey": filepath.Join(dir, "own.key"),
		"httpPort": httpPort, "tlsPort": tlsPort,
	}})
	if err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "pebble.json"), string(conf))
	stopDNS := run(t, "pebble-challtestsrv", "-defaultIPv6", "", "-dns01", dns, "-http01", "", "-https01", "", "-tlsalpn01", "",
		"-management", "127.0.0.1:"+freePort(t))
	stopCA := run(t, "pebble", "-config", filepath.Join(dir, "pebble.json"), "-dnsserver", dns, "-strict")
	a.stop = func() { stopCA(); stopDNS() }
	eventually(t, "the authority", func() bool {
		for _, addr := range []string{api, management, dns} {
			c, err := net.Dial("tcp", addr)
			if err != nil {
				return false
			}
			c.Close()
		}
		return true
	})
	return a
}

// run starts a program until stop, or until the test ends.
func run(t *testing.T, program string, args ...string) (stop func()) {
	t.Helper()
	cmd := exec.Command(program, args...)
	cmd.Env = append(os.Environ(), "PEBBLE_VA_NOSLEEP=1", "PEBBLE_AUTHZREUSE=0")
	var out lines
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	stopped := false
	stop = func() {
		if !stopped {
			stopped = true
			cmd.Process.Kill()
			cmd.Wait()
		}
	}
	t.Cleanup(func() {
		stop()
		if t.Failed() {
			t.Logf("%s:\n%s", program, out.String())
		}
	})
	return stop
}

// roots are what the authority signs certificates with, made anew each time it starts.
func (a *authority) roots(t *testing.T) *x509.CertPool {
	t.Helper()
	own, err := readRoots(a.rootCA)
	if err != nil {
		t.Fatal(err)
	}
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{RootCAs: own}}}
	resp, err := client.Get(a.manage + "/roots/0")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	pool := x509.NewCertPool()
	if err != nil || !pool.AppendCertsFromPEM(text) {
		t.Fatalf("roots: %v\n%s", err, text)
	}
	return pool
}

func atoi(t *testing.T, port string) int {
	t.Helper()
	n, err := net.LookupPort("tcp", port)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// acmeConf is a relay that has to get its certificate.
func acmeConf(a *authority, listen, more string) string {
	return strings.Replace(quiet, "Listen = 127.0.0.1:0", "Listen = 127.0.0.1:"+listen+"\nURL = https://"+acmeDomain+"\nDomain = "+acmeDomain+
		"\nACMEDirectory = "+a.directory+"\nACMEEmail = ops@relay.test\nACMERootCA = "+a.rootCA+"\n"+more, 1)
}

func TestCertificateByTLSALPN(t *testing.T) {
	port := freePort(t)
	a := startAuthority(t, atoi(t, freePort(t)), atoi(t, port))
	c := setUp(t, acmeConf(a, port, ""))
	key := newKey(t)
	allow(t, c, key)
	r := start(t, c)
	eventually(t, "a certificate", func() bool { return r.Health() == nil })

	roots := a.roots(t)
	conn, err := tls.Dial("tcp", "127.0.0.1:"+port, &tls.Config{RootCAs: roots, ServerName: acmeDomain})
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()
	// One who calls the relay by its address is shown the certificate too, and may pin it.
	got := leafOf(t, r)
	if err := got.VerifyHostname(acmeDomain); err != nil {
		t.Error(err)
	}
	if pin := r.Offer().Pin; pin != relay.PinOf(got).String() {
		t.Errorf("pin of a private authority's certificate: %q", pin)
	}
	if st := r.Status().Certificate; st.Source != "acme" || len(st.Names) != 1 || st.Names[0] != acmeDomain || st.Problem != "" {
		t.Errorf("status: %+v", st)
	}
	dialed, err := (&relay.Dialer{Key: key, Roots: roots, DialTCP: toLoopback(port)}).Dial(t.Context(), relay.Server{URL: "https://" + acmeDomain, Proxy: "none"})
	if err != nil {
		t.Fatal(err)
	}
	dialed.Close()

	// What was got is kept: the next start needs no authority.
	r.Close()
	a.stop()
	r = start(t, c)
	eventually(t, "the certificate that was kept", func() bool { return r.Health() == nil })
	if !leafOf(t, r).Equal(got) {
		t.Error("another certificate")
	}
}

func TestCertificateByHTTP(t *testing.T) {
	port, plain := freePort(t), freePort(t)
	a := startAuthority(t, atoi(t, plain), atoi(t, freePort(t))) // which finds no TLS where it looks for it
	r := start(t, setUp(t, acmeConf(a, port, "ListenHTTP = 127.0.0.1:"+plain+"\n")))
	eventually(t, "a certificate", func() bool { return r.Health() == nil })
	if err := leafOf(t, r).VerifyHostname(acmeDomain); err != nil {
		t.Error(err)
	}
}

func TestWithoutACertificateClientsAreRefusedAtOnce(t *testing.T) {
	own := makePair(t)
	dir := t.TempDir()
	a := &authority{directory: "https://127.0.0.1:" + freePort(t) + "/dir", rootCA: filepath.Join(dir, "own.pem")}
	write(t, a.rootCA, string(own.cert))
	r := start(t, setUp(t, acmeConf(a, freePort(t), "")))
	if err := r.Health(); err == nil || !strings.Contains(err.Error(), "no certificate yet") {
		t.Errorf("health: %v", err)
	}
	began := time.Now()
	if _, err := tls.Dial("tcp", r.addresses()[0].String(), &tls.Config{InsecureSkipVerify: true, ServerName: acmeDomain}); err == nil {
		t.Error("a handshake without a certificate")
	}
	if d := time.Since(began); d > patience/2 {
		t.Errorf("refused after %v", d)
	}
	if st := r.Status(); st.Certificate.Problem == "" || st.Offer.Pin != "" {
		t.Errorf("status: %+v", st.Certificate)
	}
	write(t, a.rootCA, "nonsense")
	if _, err := newACMECert(t.Context(), acmeConfig{rootCA: a.rootCA}, testLog(t)); err == nil || !strings.Contains(err.Error(), a.rootCA) {
		t.Errorf("a file without roots: %v", err)
	}
}
