package relayd

import (
	"log/slog"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"culvert.dev/culvert/internal/config"
)

func TestCheckReadsTheCertificate(t *testing.T) {
	dir := t.TempDir()
	pair := makePair(t)
	cert, key, wrong := filepath.Join(dir, "c.pem"), filepath.Join(dir, "k.pem"), filepath.Join(dir, "wrong.pem")
	write(t, cert, string(pair.cert))
	write(t, key, string(pair.key))
	write(t, wrong, string(makePair(t).key))
	roots := filepath.Join(dir, "roots.pem")
	write(t, roots, "nonsense")
	leaf := func() time.Time {
		f, err := newFileCert(cert, key)
		if err != nil {
			t.Fatal(err)
		}
		l, _ := f.leaf()
		return l.NotAfter
	}()
	files := func(key, url string) config.RelayServer {
		return config.RelayServer{TLS: config.TLSFiles, Certificate: cert, CertificateKey: key, URL: url}
	}
	good := leaf.Add(-time.Minute)
	for _, c := range []struct {
		what      string
		server    config.RelayServer
		now       time.Time
		err, warn string // "": none
	}{
		{"no files", config.RelayServer{}, good, "", ""},
		{"all is well", files(key, "https://127.0.0.1"), good, "", ""},
		{"no URL to compare with", files(key, ""), good, "", ""},
		{"another key", files(wrong, ""), good, "private key does not match public key", ""},
		{"no file", files(filepath.Join(dir, "none"), ""), good, "none: no such file", ""},
		{"over", files(key, ""), leaf.Add(time.Hour), "", "the certificate has ended on "},
		{"to come", files(key, ""), leaf.Add(-50 * 365 * 24 * time.Hour), "", "only, or the clock of this host is wrong"},
		{"another name", files(key, "https://relay.example"), good, "", "not for relay.example, which URL names"},
		{"no roots", config.RelayServer{TLS: config.TLSACME, ACMERootCA: roots}, good, "roots.pem: no certificate in PEM form", ""},
		{"the host's roots", config.RelayServer{TLS: config.TLSACME}, good, "", ""},
	} {
		errs, warnings := Check(&config.RelayConfig{File: "relay.conf", Server: c.server}, c.now)
		for _, got := range []struct {
			list []config.Diagnostic
			want string
		}{{errs, c.err}, {warnings, c.warn}} {
			if (len(got.list) > 0) != (got.want != "") || got.want != "" && !strings.Contains(got.list[0].String(), got.want) {
				t.Errorf("%s: got %v, want %q", c.what, got.list, got.want)
			}
		}
	}
}

// Nodes that pin the key of a certificate lose the relay with the key. That is worth a warning; a new certificate of the key is not.
func TestNewKeyOfTheCertificateIsToldWithItsPin(t *testing.T) {
	dir := t.TempDir()
	cert, key := filepath.Join(dir, "c.pem"), filepath.Join(dir, "k.pem")
	put := func(p pair) {
		write(t, cert, string(p.cert))
		write(t, key, string(p.key))
	}
	put(makePair(t))
	f, err := newFileCert(cert, key)
	if err != nil {
		t.Fatal(err)
	}
	var log lines
	r := &Relay{cert: f, log: slog.New(slog.NewTextHandler(&log, nil)), offer: Offer{URL: "https://127.0.0.1"}}
	w := certWatch{leaf: r.leaf()}
	put(makePair(t))
	if err := f.reload(); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		r.refreshCert(time.Now(), &w)
	}
	if s := log.String(); strings.Count(s, "new certificate in use") != 1 || strings.Count(s, r.pinToTell()) != 1 {
		t.Errorf("log:\n%s", s)
	}
}
