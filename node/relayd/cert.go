package relayd

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"net/http"
	"time"

	"golang.org/x/crypto/acme"
)

// Where the certificate comes from, as status tells it.
const (
	certFiles      = "files"
	certACME       = "acme"
	certSelfSigned = "self-signed"
	certNone       = "off" // TLS is, and a proxy has it
)

// certSource has the relay's own certificate. Its methods are safe for concurrent use.
type certSource interface {
	// get returns the chain for a handshake. It does not wait for anything.
	get(hello *tls.ClientHelloInfo) (*tls.Certificate, error)

	// leaf is what get returns to a client that names no server; an error if there is none yet.
	leaf() (*x509.Certificate, error)

	// refresh looks whether a newer certificate is due or there. It is called every few seconds and upon a reload.
	refresh(now time.Time) error

	kind() string
}

// serverTLS makes the TLS configuration of the listeners: certificates come from source, and each chain ends in meta, the
// relay's own certificate about its key, which lets clients begin without waiting for the relay's first frame.
func serverTLS(source certSource, meta func() []byte) *tls.Config {
	c := &tls.Config{
		MinVersion: tls.VersionTLS12,
		NextProtos: []string{"http/1.1"},
		// Connections last for days, so that resuming saves nothing; without tickets a client always sees the certificate in use.
		SessionTicketsDisabled: true,
		// Datagrams go out as whole records; small ones at the start of a connection would only cost more.
		DynamicRecordSizingDisabled: true,
		GetCertificate: func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
			cert, err := source.get(hello)
			if err != nil || isChallenge(hello) {
				return cert, err
			}
			return withMeta(cert, meta()), nil
		},
	}
	if source.kind() == certACME {
		c.NextProtos = append(c.NextProtos, acme.ALPNProto)
	}
	return c
}

// withMeta returns the certificate with one more at the end of its chain. The original is left as it is.
func withMeta(cert *tls.Certificate, meta []byte) *tls.Certificate {
	more := *cert
	more.Certificate = append(cert.Certificate[:len(cert.Certificate):len(cert.Certificate)], meta)
	return &more
}

// isChallenge reports whether an ACME server validates by TLS-ALPN-01 (RFC 8737), which wants its own certificate alone.
func isChallenge(hello *tls.ClientHelloInfo) bool {
	return len(hello.SupportedProtos) == 1 && hello.SupportedProtos[0] == acme.ALPNProto
}

// trusted reports whether a client that trusts the same authorities as this host accepts the chain for name.
func trusted(chain *tls.Certificate, name string, now time.Time) bool {
	if chain == nil || len(chain.Certificate) == 0 {
		return false
	}
	leaf, err := x509.ParseCertificate(chain.Certificate[0])
	if err != nil {
		return false
	}
	between := x509.NewCertPool()
	for _, der := range chain.Certificate[1:] {
		if c, err := x509.ParseCertificate(der); err == nil {
			between.AddCert(c)
		}
	}
	_, err = leaf.Verify(x509.VerifyOptions{DNSName: name, Intermediates: between, CurrentTime: now})
	return err == nil
}

// errNoCert is the answer to handshakes until there is a certificate.
var errNoCert = errors.New("there is no certificate yet")

// certNames lists what a certificate is for.
func certNames(c *x509.Certificate) []string {
	list := append([]string{}, c.DNSNames...)
	for _, ip := range c.IPAddresses {
		list = append(list, ip.String())
	}
	return list
}

// challengeHandler answers ACME's http-01 in front of next, if the source takes part in that. An authority may come by another
// port than 80, a private one or through a forwarded port; it then names the port too, which autocert would not expect.
func challengeHandler(source certSource, next http.Handler) http.Handler {
	a, ok := source.(*acmeCert)
	if !ok {
		return next
	}
	challenges := a.manager.HTTPHandler(next)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if host, _, err := net.SplitHostPort(r.Host); err == nil {
			r = r.WithContext(r.Context()) // a copy
			r.Host = host
		}
		challenges.ServeHTTP(w, r)
	})
}
