package derp

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"fmt"
	"math/big"
	"strings"
	"time"

	"culvert.dev/culvert/internal/wgkey"
)

// MetaValidity is for how long before and after the time of its making a metacert is valid.
const MetaValidity = 30 * 24 * time.Hour

const metaPrefix = "derpkey" // of the common name; the key follows in hexadecimal

// MetaCertificate returns a certificate (DER) that tells clients the server's key before it has said anything: its common name
// holds the key, its serial number is the protocol's version. A server appends it to the chain it presents. Nothing vouches for
// it; a client believes it only under TLS 1.3, where the chain is encrypted and signed for by the certificate in front of it,
// and compares it with the ServerKey frame.
func MetaCertificate(key wgkey.Private, now time.Time) ([]byte, error) {
	pub, priv, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make metacert: %w", err)
	}
	cert := &x509.Certificate{
		SerialNumber: big.NewInt(Version),
		Subject:      pkix.Name{CommonName: metaPrefix + key.Public().Hex()},
		NotBefore:    now.Add(-MetaValidity),
		NotAfter:     now.Add(MetaValidity),
	}
	der, err := x509.CreateCertificate(rand.Reader, cert, cert, pub, priv)
	if err != nil {
		return nil, fmt.Errorf("make metacert: %w", err)
	}
	return der, nil
}

// MetaKey looks for such a certificate at the end of the chain that a server presented. The caller must have made sure of
// TLS 1.3, and checks the key against the ServerKey frame.
func MetaKey(chain []*x509.Certificate) (key wgkey.Public, version int, ok bool) {
	if len(chain) == 0 {
		return key, 0, false
	}
	cert := chain[len(chain)-1]
	digits, ok := strings.CutPrefix(cert.Subject.CommonName, metaPrefix)
	if !ok || len(digits) != 2*KeyLen || cert.SerialNumber == nil || !cert.SerialNumber.IsInt64() {
		return key, 0, false
	}
	serial := cert.SerialNumber.Int64()
	if _, err := hex.Decode(key[:], []byte(digits)); err != nil || key.IsZero() || serial < 1 || serial > 1<<30 {
		return wgkey.Public{}, 0, false
	}
	return key, int(serial), true
}
