package relay

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"math/big"
	"net"
	"net/http"
	"net/url"
	"sync"
	"testing"
	"time"

	"culvert.dev/culvert/internal/wgkey"
	"culvert.dev/culvert/traversal/relay/derp"
)

// newCertificate makes a self-signed certificate for a name or address.
func newCertificate(t testing.TB, host string) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: host},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		BasicConstraintsValid: true, IsCA: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
	}
	if ip := net.ParseIP(host); ip != nil {
		c.IPAddresses = []net.IP{ip}
	} else {
		c.DNSNames = []string{host}
	}
	der, err := x509.CreateCertificate(rand.Reader, c, c, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
}

func rootsOf(certs ...tls.Certificate) *x509.CertPool {
	p := x509.NewCertPool()
	for _, c := range certs {
		p.AddCert(c.Leaf)
	}
	return p
}

// withMeta appends the certificate that carries a relay's key.
func withMeta(t testing.TB, c tls.Certificate, key wgkey.Private) tls.Certificate {
	t.Helper()
	meta, err := derp.MetaCertificate(key, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	c.Certificate = append(c.Certificate[:len(c.Certificate):len(c.Certificate)], meta)
	return c
}

// listen serves connections on loopback until the test ends, and returns the address.
func listen(t testing.TB, config *tls.Config, serve func(net.Conn)) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	conns := map[net.Conn]bool{}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			conns[c] = true
			mu.Unlock()
			wg.Go(func() {
				defer c.Close()
				if config == nil {
					serve(c)
					return
				}
				s := tls.Server(c, config)
				if s.Handshake() == nil {
					serve(s)
				}
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		mu.Lock()
		for c := range conns {
			c.Close()
		}
		mu.Unlock()
		wg.Wait()
	})
	return l.Addr().String()
}

// listenTLS is listen with a certificate.
func listenTLS(t testing.TB, cert tls.Certificate, serve func(net.Conn)) string {
	return listen(t, &tls.Config{Certificates: []tls.Certificate{cert}, NextProtos: []string{"http/1.1"}}, serve)
}

// newDialer dials without the environment's proxies.
func newDialer(t testing.TB) *Dialer {
	return &Dialer{Key: newKey(t), environment: func(*http.Request) (*url.URL, error) { return nil, nil }}
}

// checkEcho sends a packet to ourselves by c and takes it in again.
func checkEcho(t testing.TB, c *Conn, self wgkey.Public) {
	t.Helper()
	if err := c.Send(self, [][]byte{[]byte("hello")}); err != nil {
		t.Fatal(err)
	}
	m, err := c.Recv()
	if err != nil || m.Kind != MessagePacket || m.Peer != self || string(m.Packet) != "hello" {
		t.Fatalf("received %+v %v", m, err)
	}
	if n := c.Counters(); n.PacketsIn != 1 || n.PacketsOut != 1 || n.BytesIn != 5 || n.BytesOut != 5 || n.Dropped != 0 {
		t.Errorf("counters %+v", n)
	}
	c.Close()
	if _, err := c.Recv(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Recv after Close: %v", err)
	}
	if err := c.Send(self, [][]byte{[]byte("hello")}); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Send after Close: %v", err)
	}
}
