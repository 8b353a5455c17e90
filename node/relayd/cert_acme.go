package relayd

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/crypto/acme"
	"golang.org/x/crypto/acme/autocert"
)

const (
	acmeFirstRetry = 70 * time.Second // autocert itself gives up on a name for a minute
	acmeLastRetry  = time.Hour        // doubling until here; authorities count failures per hour
)

// acmeConfig says how to get certificates.
type acmeConfig struct {
	domains   []string // lower case; at least one
	directory string   // of the server; "": Let's Encrypt
	email     string
	rootCA    string // file with the authorities that the server itself is verified by; "": the host's
	cache     string // folder
}

// acmeCert has certificates by ACME (RFC 8555). They are asked for when the relay starts and not in the middle of a handshake, so
// that nobody waits and a failure is in the log at once; autocert renews them.
type acmeCert struct {
	manager *autocert.Manager
	domains []string
	log     *slog.Logger

	mu    sync.Mutex      // guards the following
	ready map[string]bool // by domain: a certificate was got, and is kept up by autocert from there on
}

// newACMECert does nothing yet. Once ctx has ended it asks for no certificate any more.
func newACMECert(ctx context.Context, cfg acmeConfig, log *slog.Logger) (*acmeCert, error) {
	transport := http.DefaultTransport.(*http.Transport).Clone()
	if cfg.rootCA != "" {
		roots, err := readRoots(cfg.rootCA)
		if err != nil {
			return nil, err
		}
		transport.TLSClientConfig = &tls.Config{RootCAs: roots}
	}
	context.AfterFunc(ctx, transport.CloseIdleConnections)
	client := &acme.Client{
		DirectoryURL: cfg.directory, UserAgent: "culvert",
		HTTPClient: &http.Client{Transport: &boundTransport{transport, ctx}, Timeout: time.Minute},
	}
	return &acmeCert{
		domains: cfg.domains, log: log, ready: map[string]bool{},
		manager: &autocert.Manager{
			Prompt: autocert.AcceptTOS, Cache: autocert.DirCache(cfg.cache), HostPolicy: autocert.HostWhitelist(cfg.domains...),
			Email: cfg.email, Client: client,
		},
	}, nil
}

func readRoots(file string) (*x509.CertPool, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("ACMERootCA: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(text) {
		return nil, fmt.Errorf("ACMERootCA %s: no certificate in PEM form is in it", file)
	}
	return pool, nil
}

func (a *acmeCert) kind() string { return certACME }

// get answers a validation, or with the certificate for the name asked for; of an unknown name or none, with the first.
func (a *acmeCert) get(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	if isChallenge(hello) {
		return a.manager.GetCertificate(hello)
	}
	domain := strings.ToLower(strings.TrimSuffix(hello.ServerName, "."))
	if !slices.Contains(a.domains, domain) {
		domain = a.domains[0]
	}
	a.mu.Lock()
	ready := a.ready[domain]
	a.mu.Unlock()
	if !ready {
		return nil, errNoCert
	}
	return a.manager.GetCertificate(helloFor(domain))
}

// helloFor is what autocert is asked with. It says ECDSA whatever the client does, since every client of TLS 1.2 has that, and a
// scanner that claims otherwise would have a second certificate issued.
func helloFor(domain string) *tls.ClientHelloInfo {
	return &tls.ClientHelloInfo{
		ServerName: domain, SupportedVersions: []uint16{tls.VersionTLS13}, SignatureSchemes: []tls.SignatureScheme{tls.ECDSAWithP256AndSHA256},
		SupportedCurves: []tls.CurveID{tls.CurveP256}, CipherSuites: []uint16{tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256},
	}
}

func (a *acmeCert) leaf() (*x509.Certificate, error) {
	c, err := a.get(&tls.ClientHelloInfo{})
	if err != nil {
		return nil, err
	}
	if c.Leaf != nil {
		return c.Leaf, nil
	}
	return x509.ParseCertificate(c.Certificate[0])
}

func (a *acmeCert) refresh(time.Time) error { return nil } // autocert has timers of its own

// obtain gets a certificate for every domain, and returns when all are there or ctx ends. The listeners must be open: the
// authority calls them.
func (a *acmeCert) obtain(ctx context.Context) {
	var all sync.WaitGroup
	for _, domain := range a.domains {
		all.Go(func() { a.obtainOne(ctx, domain) })
	}
	all.Wait()
}

func (a *acmeCert) obtainOne(ctx context.Context, domain string) {
	for wait := acmeFirstRetry; ; wait = min(2*wait, acmeLastRetry) {
		cert, err := a.ask(ctx, domain)
		if ctx.Err() != nil {
			return
		}
		if err == nil {
			a.mu.Lock()
			a.ready[domain] = true
			a.mu.Unlock()
			a.log.Info("certificate is there", "name", domain, "until", cert.Leaf.NotAfter)
			return
		}
		a.log.Error("no certificate by ACME; clients are refused for this name until there is one", "name", domain, "retry_in", wait, "err", err)
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-timer.C:
		}
	}
}

// ask has autocert look in its cache, or order a certificate. It may take minutes, in which ctx is heeded; autocert knows nothing of
// ctx, but its requests end with it.
func (a *acmeCert) ask(ctx context.Context, domain string) (*tls.Certificate, error) {
	type answer struct {
		cert *tls.Certificate
		err  error
	}
	got := make(chan answer, 1)
	go func() {
		cert, err := a.manager.GetCertificate(helloFor(domain))
		got <- answer{cert, err}
	}()
	select {
	case <-ctx.Done():
		return nil, ctx.Err()
	case r := <-got:
		if r.err == nil && r.cert.Leaf == nil {
			return nil, errors.New("a certificate without a leaf")
		}
		return r.cert, r.err
	}
}

// acmeCache is where account and certificates are kept, in the state folder.
func acmeCache(state string) string { return filepath.Join(state, "acme") }
