package derp

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"strings"
	"testing"
	"time"
)

func TestMetaCertificate(t *testing.T) {
	key, now := newKey(t), time.Date(2026, 11, 22, 10, 0, 0, 0, time.UTC)
	der, err := MetaCertificate(key, now)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	if want := "derpkey" + key.Public().Hex(); cert.Subject.CommonName != want || cert.Issuer.CommonName != want {
		t.Errorf("names %q and %q, want %q", cert.Subject.CommonName, cert.Issuer.CommonName, want)
	}
	if cert.SerialNumber.Int64() != Version || cert.PublicKeyAlgorithm != x509.Ed25519 {
		t.Errorf("serial number %v, %v", cert.SerialNumber, cert.PublicKeyAlgorithm)
	}
	if !cert.NotBefore.Equal(now.AddDate(0, 0, -30)) || !cert.NotAfter.Equal(now.AddDate(0, 0, 30)) {
		t.Errorf("valid from %v to %v", cert.NotBefore, cert.NotAfter)
	}
	if err := cert.CheckSignature(cert.SignatureAlgorithm, cert.RawTBSCertificate, cert.Signature); err != nil {
		t.Error(err)
	}
	got, version, ok := MetaKey([]*x509.Certificate{{}, cert})
	if got != key.Public() || version != Version || !ok {
		t.Errorf("read again: %v %d %v", got, version, ok)
	}
	if _, _, ok := MetaKey([]*x509.Certificate{cert, {SerialNumber: big.NewInt(2)}}); ok {
		t.Error("found although it is not the last one")
	}
}

func TestMetaKeyRefuses(t *testing.T) {
	digits := newKey(t).Public().Hex()
	for name, c := range map[string]*x509.Certificate{
		"no certificate":     nil,
		"another name":       named("relay.example", big.NewInt(2)),
		"short key":          named("derpkey"+digits[2:], big.NewInt(2)),
		"long key":           named("derpkey"+digits+"00", big.NewInt(2)),
		"no digits":          named("derpkey"+strings.Repeat("x", 64), big.NewInt(2)),
		"zero key":           named("derpkey"+strings.Repeat("0", 64), big.NewInt(2)),
		"capital prefix":     named("DERPKEY"+digits, big.NewInt(2)),
		"no serial":          named("derpkey"+digits, nil),
		"serial zero":        named("derpkey"+digits, big.NewInt(0)),
		"serial is negative": named("derpkey"+digits, big.NewInt(-2)),
		"serial is huge":     named("derpkey"+digits, new(big.Int).Lsh(big.NewInt(1), 100)),
	} {
		var chain []*x509.Certificate
		if c != nil {
			chain = append(chain, c)
		}
		if key, _, ok := MetaKey(chain); ok || !key.IsZero() {
			t.Errorf("%s: taken as %v", name, key)
		}
	}
	if _, v, ok := MetaKey([]*x509.Certificate{named("derpkey"+digits, big.NewInt(3))}); !ok || v != 3 {
		t.Errorf("version 3: got %d %v", v, ok)
	}
}

func named(cn string, serial *big.Int) *x509.Certificate {
	return &x509.Certificate{Subject: pkix.Name{CommonName: cn}, SerialNumber: serial}
}

func FuzzMetaKey(f *testing.F) {
	der, err := MetaCertificate(newKey(f), time.Now())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(der, "derpkey")
	_, priv, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, der []byte, name string) {
		if cert, err := x509.ParseCertificate(der); err == nil {
			check(t, cert)
		}
		template := named(name, big.NewInt(2))
		der, err := x509.CreateCertificate(rand.Reader, template, template, priv.Public(), priv)
		if err != nil {
			return
		}
		if cert, err := x509.ParseCertificate(der); err == nil {
			check(t, cert)
		}
	})
}

func check(t *testing.T, cert *x509.Certificate) {
	key, version, ok := MetaKey([]*x509.Certificate{cert})
	if ok && (!strings.EqualFold(cert.Subject.CommonName, "derpkey"+key.Hex()) || version < 1) {
		t.Fatalf("%q became %s version %d", cert.Subject.CommonName, key.Hex(), version)
	}
	if !ok && !key.IsZero() {
		t.Fatal("refused, but with a key")
	}
}
