package relayd

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"culvert.dev/culvert/internal/config"
)

const (
	selfCertFile = "relay-cert.pem" // in the state folder
	selfKeyFile  = "relay-cert.key"

	selfValidity = 365 * 24 * time.Hour
	selfRenewal  = 120 * 24 * time.Hour // before the end
	clockSkew    = 24 * time.Hour       // that a client's clock may be behind
)

// selfCert is a certificate that the relay signs itself. Clients know it by its pin, the hash of its key; so the key is kept for
// good, and a new certificate has the same pin.
type selfCert struct {
	file    string
	key     *ecdsa.PrivateKey
	names   []string // DNS names and addresses
	current atomic.Pointer[tls.Certificate]

	mu sync.Mutex // held while a certificate is made
}

// newSelfCert takes key and certificate from the folder, or makes them there. A certificate for other names is made anew.
func newSelfCert(dir string, names []string, now time.Time) (*selfCert, error) {
	key, err := ensureSelfKey(filepath.Join(dir, selfKeyFile))
	if err != nil {
		return nil, err
	}
	s := &selfCert{file: filepath.Join(dir, selfCertFile), key: key, names: names}
	if cert, err := s.read(); err == nil {
		s.current.Store(cert)
	}
	return s, s.refresh(now)
}

func (s *selfCert) kind() string { return certSelfSigned }

func (s *selfCert) get(*tls.ClientHelloInfo) (*tls.Certificate, error) { return s.current.Load(), nil }

func (s *selfCert) leaf() (*x509.Certificate, error) { return s.current.Load().Leaf, nil }

// refresh makes a certificate where there is none, or none for these names, and when the old one is about to end.
func (s *selfCert) refresh(now time.Time) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.good(s.current.Load(), now) {
		return nil
	}
	der, err := s.sign(now)
	if err != nil {
		return fmt.Errorf("make a certificate: %w", err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return fmt.Errorf("make a certificate: %w", err)
	}
	text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	if err := replaceSecret(s.file, string(text)); err != nil {
		return err
	}
	s.current.Store(&tls.Certificate{Certificate: [][]byte{der}, PrivateKey: s.key, Leaf: leaf})
	return nil
}

// good reports whether a certificate need not be made anew.
func (s *selfCert) good(c *tls.Certificate, now time.Time) bool {
	return c != nil && now.After(c.Leaf.NotBefore) && now.Before(c.Leaf.NotAfter.Add(-selfRenewal)) &&
		slices.Equal(certNames(c.Leaf), certNames(template(s.names, now)))
}

// read returns the certificate in the folder if it is for the key.
func (s *selfCert) read() (*tls.Certificate, error) {
	text, err := os.ReadFile(s.file)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(text)
	if block == nil {
		return nil, fmt.Errorf("%s: not PEM", s.file)
	}
	leaf, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", s.file, err)
	}
	if !s.key.PublicKey.Equal(leaf.PublicKey) {
		return nil, fmt.Errorf("%s: made with another key", s.file)
	}
	return &tls.Certificate{Certificate: [][]byte{block.Bytes}, PrivateKey: s.key, Leaf: leaf}, nil
}

func (s *selfCert) sign(now time.Time) ([]byte, error) {
	t := template(s.names, now)
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127)) // RFC 5280 section 4.1.2.2: at most 20 octets
	if err != nil {
		return nil, err
	}
	t.SerialNumber = serial
	return x509.CreateCertificate(rand.Reader, t, t, &s.key.PublicKey, s.key)
}

// template has all of a certificate but its serial number.
func template(names []string, now time.Time) *x509.Certificate {
	t := &x509.Certificate{
		Subject:               pkix.Name{CommonName: "culvert relay"},
		NotBefore:             now.Add(-clockSkew),
		NotAfter:              now.Add(selfValidity),
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		BasicConstraintsValid: true,
	}
	for _, name := range names {
		if a, err := netip.ParseAddr(name); err == nil {
			t.IPAddresses = append(t.IPAddresses, a.AsSlice())
		} else {
			t.DNSNames = append(t.DNSNames, name)
		}
	}
	return t
}

// ensureSelfKey reads the key of the certificate, or makes it.
func ensureSelfKey(file string) (*ecdsa.PrivateKey, error) {
	text, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return makeSelfKey(file)
	}
	if err != nil {
		return nil, fmt.Errorf("key of the certificate: %w", err)
	}
	const whatToDo = "remove it and a new one is made, with another pin for the clients"
	block, _ := pem.Decode(text)
	if block == nil {
		return nil, fmt.Errorf("key of the certificate %s: not PEM; %s", file, whatToDo)
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("key of the certificate %s: not a PKCS #8 key; %s", file, whatToDo) // the cause might quote it
	}
	key, ok := parsed.(*ecdsa.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("key of the certificate %s: not an ECDSA key; %s", file, whatToDo)
	}
	return key, nil
}

func makeSelfKey(file string) (*ecdsa.PrivateKey, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("key of the certificate: %w", err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("key of the certificate: %w", err)
	}
	return key, config.WriteSecret(file, string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})))
}

// replaceSecret writes a file for its owner alone in the place of another, if there is one. It appears whole or not at all.
func replaceSecret(file, text string) error {
	next := file + ".new"
	if err := os.Remove(next); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("write %s: %w", file, err)
	}
	if err := config.WriteSecret(next, text); err != nil {
		return err
	}
	if err := os.Rename(next, file); err != nil {
		return fmt.Errorf("write %s: %w", file, err)
	}
	return nil
}
