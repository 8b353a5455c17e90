package interop

import (
	"crypto/tls"
	"crypto/x509"
	"io"
	"log"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"sync"
	"testing"

	"culvert.dev/culvert/internal/wgkey"
	"culvert.dev/culvert/interop/stock"
	"culvert.dev/culvert/traversal/relay/relayserver"
)

// place is where a relay can be reached.
type place struct {
	url    string // https, http for a relay without TLS
	behind string // https, to the same relay behind a middlebox; "" if there is none
	roots  *x509.CertPool
	leaf   *x509.Certificate // of the relay itself
}

// middlebox notes that the relay can also be reached through one.
func (p *place) middlebox(m *middlebox) { p.behind, p.roots = m.url, m.roots }

// transport is for requests to the relay.
func (p place) transport() *http.Transport {
	return &http.Transport{TLSClientConfig: &tls.Config{RootCAs: p.roots}}
}

// relays are the servers that every kind of client is tried with.
var relays = []struct {
	name  string
	start func(*testing.T) place
}{
	{"culvert", func(t *testing.T) place { return startCulvert(t, relayserver.Config{}).place }},
	{"derpserver", func(t *testing.T) place { return startStock(t).place }},
	{"derper", startDerper},
}

// culvert is our relay behind net/http with TLS.
type culvert struct {
	place
	relay *relayserver.Server
}

// startCulvert runs our relay until the end of the test. Without Admit it takes everybody.
func startCulvert(t *testing.T, cfg relayserver.Config) *culvert {
	t.Helper()
	key, err := wgkey.NewPrivate()
	if err != nil {
		t.Fatal(err)
	}
	cfg.Key = key
	if cfg.Admit == nil {
		cfg.Admit = func(wgkey.Public, netip.Addr) error { return nil }
	}
	cfg.Logger = slog.New(slog.DiscardHandler)
	s, err := relayserver.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	cert, roots, err := stock.SelfSigned()
	if err != nil {
		t.Fatal(err)
	}
	config := &tls.Config{
		NextProtos: []string{"http/1.1"},
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			c := cert
			c.Certificate = append(slices.Clip(c.Certificate), s.MetaCertificate())
			return &c, nil
		},
	}
	c := &culvert{relay: s, place: place{roots: roots, leaf: cert.Leaf}}
	c.url = "https://" + listen(t, s.Handler(), config)
	t.Cleanup(func() { s.Close() }) // before its listeners
	return c
}

// listen serves HTTP on a loopback port until the end of the test, and returns the address.
func listen(t *testing.T, h http.Handler, config *tls.Config) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: h, TLSConfig: config, ErrorLog: log.New(io.Discard, "", 0)}
	var done sync.WaitGroup
	done.Go(func() {
		if config != nil {
			srv.ServeTLS(l, "", "")
			return
		}
		srv.Serve(l)
	})
	t.Cleanup(func() {
		srv.Close()
		done.Wait()
	})
	return l.Addr().String()
}

// stockServer is the stock relay within the test.
type stockServer struct {
	place
	*stock.Server
}

func startStock(t *testing.T) stockServer {
	t.Helper()
	s, err := stock.NewServer(true)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return stockServer{place: place{url: s.URL, roots: s.Roots, leaf: s.Leaf}, Server: s}
}

// derperBinary is built once, by the first test that needs it.
var derperBinary = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "culvert-derper")
	if err != nil {
		return "", err
	}
	derperDir = dir
	return stock.Build(dir)
})

var derperDir string

func TestMain(m *testing.M) {
	code := m.Run()
	if derperDir != "" {
		os.RemoveAll(derperDir)
	}
	os.Exit(code)
}

// startDerper runs the derper command until the end of the test.
func startDerper(t *testing.T) place {
	t.Helper()
	binary, err := derperBinary()
	if err != nil {
		t.Fatal(err)
	}
	d, err := stock.Start(stock.DerperConfig{Binary: binary, Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(d.Stop)
	return place{url: d.URL, roots: d.Roots, leaf: d.Leaf}
}
