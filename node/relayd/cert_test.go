package relayd

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"culvert.dev/culvert/traversal/relay"
)

var someDay = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

func TestSelfSignedCertificateIsRenewedWithItsKey(t *testing.T) {
	dir := t.TempDir()
	names := []string{"192.0.2.1", "relay.example"}
	first, err := newSelfCert(dir, names, someDay)
	if err != nil {
		t.Fatal(err)
	}
	leaf, _ := first.leaf()
	if err := leaf.VerifyHostname("192.0.2.1"); err != nil {
		t.Error(err)
	}
	if err := leaf.VerifyHostname("relay.example"); err != nil {
		t.Error(err)
	}
	for _, file := range []string{selfCertFile, selfKeyFile} {
		if info, err := os.Stat(filepath.Join(dir, file)); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", file, info, err)
		}
	}
	for _, c := range []struct {
		what  string
		names []string
		after time.Duration
		same  bool
	}{
		{"at once", names, 0, true},
		{"while there is time", names, selfValidity - selfRenewal - time.Hour, true},
		{"when it is due", names, selfValidity - selfRenewal, false},
		{"when it has expired", names, 2 * selfValidity, false},
		{"for another name", []string{"198.51.100.7"}, 0, false},
		{"when the clock was wrong", names, -2 * clockSkew, false},
	} {
		next, err := newSelfCert(copyOf(t, dir), c.names, someDay.Add(c.after))
		if err != nil {
			t.Fatal(err)
		}
		got, _ := next.leaf()
		if got.Equal(leaf) != c.same {
			t.Errorf("%s: the same certificate is %v", c.what, got.Equal(leaf))
		}
		if relay.PinOf(got) != relay.PinOf(leaf) {
			t.Errorf("%s: another pin", c.what)
		}
	}

	// The running relay renews too.
	if err := first.refresh(someDay.Add(selfValidity - selfRenewal)); err != nil {
		t.Fatal(err)
	}
	if got, _ := first.leaf(); got.Equal(leaf) || relay.PinOf(got) != relay.PinOf(leaf) {
		t.Error("not renewed, or with another key")
	}
}

func copyOf(t *testing.T, dir string) string {
	t.Helper()
	to := filepath.Join(t.TempDir(), "copy")
	if err := os.CopyFS(to, os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	return to
}

func TestDamagedKeyOfTheCertificateIsNotReplaced(t *testing.T) {
	const secret = "c2VjcmV0"
	for what, text := range map[string]string{
		"not PEM": secret, "not a PKCS #8 key": "-----BEGIN PRIVATE KEY-----\n" + secret + "\n-----END PRIVATE KEY-----\n",
	} {
		dir := t.TempDir()
		file := filepath.Join(dir, selfKeyFile)
		write(t, file, text)
		_, err := newSelfCert(dir, nil, someDay)
		if err == nil || !strings.Contains(err.Error(), file+": "+what) || strings.Contains(err.Error(), secret) {
			t.Errorf("%s: %v", what, err)
		}
		if b, _ := os.ReadFile(file); string(b) != text {
			t.Errorf("%s: the file was written", what)
		}
	}
	dir := t.TempDir() // a damaged certificate is only made again
	write(t, filepath.Join(dir, selfCertFile), "nonsense")
	if _, err := newSelfCert(dir, nil, someDay); err != nil {
		t.Error(err)
	}
}

// pair is a certificate with its key, as PEM.
type pair struct{ cert, key []byte }

func makePair(t *testing.T) pair {
	t.Helper()
	dir := t.TempDir()
	if _, err := newSelfCert(dir, []string{"127.0.0.1"}, time.Now()); err != nil {
		t.Fatal(err)
	}
	cert, err := os.ReadFile(filepath.Join(dir, selfCertFile))
	if err != nil {
		t.Fatal(err)
	}
	key, err := os.ReadFile(filepath.Join(dir, selfKeyFile))
	if err != nil {
		t.Fatal(err)
	}
	return pair{cert, key}
}

// replace writes a file as careful programs do. Each write has another time, whatever the file system can tell apart.
func replace(t *testing.T, file string, text []byte, at time.Time) {
	t.Helper()
	write(t, file+".tmp", string(text))
	if err := os.Chtimes(file+".tmp", at, at); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(file+".tmp", file); err != nil {
		t.Fatal(err)
	}
}

func TestCertificateFilesAreTakenAsAPair(t *testing.T) {
	dir := t.TempDir()
	certFile, keyFile := filepath.Join(dir, "c.pem"), filepath.Join(dir, "k.pem")
	one, two := makePair(t), makePair(t)
	replace(t, certFile, one.cert, someDay)
	if _, err := newFileCert(certFile, keyFile); err == nil || !strings.Contains(err.Error(), keyFile) {
		t.Errorf("without the key: %v", err)
	}
	replace(t, keyFile, one.key, someDay)
	f, err := newFileCert(certFile, keyFile)
	if err != nil {
		t.Fatal(err)
	}
	shows := func(p pair) bool {
		c, _ := f.get(nil)
		block, _ := pem.Decode(p.cert)
		return bytes.Equal(c.Certificate[0], block.Bytes)
	}
	look := func() error { return f.refresh(someDay) }

	replace(t, certFile, two.cert, someDay.Add(time.Second))
	if err := look(); err != nil || !shows(one) {
		t.Errorf("at the first look: %v", err)
	}
	if err := look(); err == nil || !shows(one) {
		t.Errorf("a new certificate beside the old key: %v", err)
	}
	if err := look(); err == nil || !shows(one) {
		t.Errorf("it is still no pair: %v", err)
	}
	replace(t, keyFile, two.key, someDay.Add(2*time.Second))
	if err := look(); err != nil || !shows(one) {
		t.Errorf("at the first look: %v", err)
	}
	if err := look(); err != nil || !shows(two) {
		t.Errorf("both files new: %v", err)
	}

	// A reload does not wait for a second look, and takes what was found wrong before.
	replace(t, certFile, one.cert, someDay)
	if err := f.reload(); err == nil || !shows(two) {
		t.Errorf("reload of half a pair: %v", err)
	}
	replace(t, keyFile, one.key, someDay)
	if err := f.reload(); err != nil || !shows(one) {
		t.Errorf("reload: %v", err)
	}
}

func TestCertificateFilesAreReplacedWhileClientsGoOn(t *testing.T) {
	one, two := makePair(t), makePair(t)
	c := setUp(t, strings.Replace(quiet, "[STUN]", "Certificate = c.pem\nCertificateKey = k.pem\n[STUN]", 1))
	dir := filepath.Dir(c.File)
	certFile, keyFile := filepath.Join(dir, "c.pem"), filepath.Join(dir, "k.pem")
	replace(t, certFile, one.cert, someDay)
	replace(t, keyFile, one.key, someDay)
	key, other := newKey(t), newKey(t)
	allow(t, c, key, other)
	r := start(t, c)
	before := leafOf(t, r)
	if relay.PinOf(before).String() != r.Offer().Pin {
		t.Errorf("offer: %+v", r.Offer())
	}
	conn := dial(t, key, r)

	replace(t, keyFile, two.key, someDay.Add(time.Second))
	replace(t, certFile, two.cert, someDay.Add(time.Second))
	eventually(t, "a new certificate", func() bool { return !leafOf(t, r).Equal(before) })
	if _, err := conn.Ping(t.Context()); err != nil {
		t.Errorf("the old connection: %v", err)
	}
	if st := r.Status(); st.Certificate.Source != "files" || st.Certificate.Pin == relay.PinOf(before).String() || st.Certificate.Names[0] != "127.0.0.1" {
		t.Errorf("status: %+v", st.Certificate)
	}
	dial(t, other, r)
}

func TestMetacertLeavesTheChainAlone(t *testing.T) {
	chain := make([][]byte, 1, 8)
	chain[0] = []byte("leaf")
	cert := &tls.Certificate{Certificate: chain}
	a, b := withMeta(cert, []byte("one")), withMeta(cert, []byte("two"))
	if len(cert.Certificate) != 1 || string(a.Certificate[1]) != "one" || string(b.Certificate[1]) != "two" {
		t.Errorf("got %q, %q, %q", cert.Certificate, a.Certificate, b.Certificate)
	}
}

// scriptedCert does what a test tells it.
type scriptedCert struct {
	ends time.Time
	err  error
}

func (c *scriptedCert) kind() string                                       { return "scripted" }
func (c *scriptedCert) get(*tls.ClientHelloInfo) (*tls.Certificate, error) { return nil, errNoCert }
func (c *scriptedCert) refresh(time.Time) error                            { return c.err }
func (c *scriptedCert) leaf() (*x509.Certificate, error) {
	return &x509.Certificate{NotAfter: c.ends, Raw: []byte(c.ends.String())}, nil
}

func TestTroubleWithTheCertificateIsToldOnce(t *testing.T) {
	var log lines
	cert := &scriptedCert{ends: someDay.Add(30 * 24 * time.Hour)}
	r := &Relay{cert: cert, log: slog.New(slog.NewTextHandler(&log, nil))}
	var w certWatch
	for _, c := range []struct {
		what  string
		after time.Duration
		err   error
		told  int // lines so far
	}{
		{"all is well", 0, nil, 0},
		{"an error", time.Second, errors.New("no space left"), 1},
		{"the same error", 2 * time.Second, errors.New("no space left"), 1},
		{"another error", 3 * time.Second, errors.New("no such folder"), 2},
		{"the end is near", 24 * 24 * time.Hour, nil, 3},
		{"it is as near as before", 24*24*time.Hour + time.Hour, nil, 3},
		{"the next day", 25*24*time.Hour + time.Minute, nil, 4},
	} {
		cert.err = c.err
		r.refreshCert(someDay.Add(c.after), &w)
		if got := strings.Count(log.String(), "\n"); got != c.told {
			t.Errorf("%s: %d lines, want %d:\n%s", c.what, got, c.told, log.String())
		}
	}
}
