package relay

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
)

// Pin names a certificate by a hash, so that a relay needs no certificate authority. Two forms:
//
//	sha256//BASE64     SHA-256 of the certificate's SubjectPublicKeyInfo, as curl's --pinnedpubkey. Survives a renewal with the same key.
//	sha256-raw:HEX     SHA-256 of the whole certificate, as in DERP maps. Changes with each renewal.
//
// Pins are comparable. The zero Pin matches nothing.
type Pin struct {
	kind pinKind
	sum  [sha256.Size]byte
}

type pinKind uint8

const (
	noPin pinKind = iota
	keyPin
	leafPin
)

const (
	keyPinPrefix  = "sha256//"
	leafPinPrefix = "sha256-raw:"
)

// ParsePin reads either form.
func ParsePin(s string) (Pin, error) {
	if text, ok := strings.CutPrefix(s, keyPinPrefix); ok {
		sum, err := base64.StdEncoding.Strict().DecodeString(text)
		if err != nil || len(sum) != sha256.Size || strings.ContainsAny(text, "\r\n") {
			return Pin{}, fmt.Errorf("pin %q: want %s and 44 characters of base64", s, keyPinPrefix)
		}
		return Pin{keyPin, [sha256.Size]byte(sum)}, nil
	}
	if text, ok := strings.CutPrefix(s, leafPinPrefix); ok {
		sum, err := hex.DecodeString(text)
		if err != nil || len(sum) != sha256.Size {
			return Pin{}, fmt.Errorf("pin %q: want %s and 64 hexadecimal digits", s, leafPinPrefix)
		}
		return Pin{leafPin, [sha256.Size]byte(sum)}, nil
	}
	return Pin{}, fmt.Errorf("pin %q: want %sBASE64 or %sHEX", s, keyPinPrefix, leafPinPrefix)
}

// PinOf returns the pin of the certificate's key.
func PinOf(cert *x509.Certificate) Pin {
	return Pin{keyPin, sha256.Sum256(cert.RawSubjectPublicKeyInfo)}
}

// IsZero reports whether p is no pin.
func (p Pin) IsZero() bool { return p == Pin{} }

// String returns the form that ParsePin reads; "" for the zero Pin.
func (p Pin) String() string {
	switch p.kind {
	case keyPin:
		return keyPinPrefix + base64.StdEncoding.EncodeToString(p.sum[:])
	case leafPin:
		return leafPinPrefix + hex.EncodeToString(p.sum[:])
	}
	return ""
}

// Matches reports whether cert is the one that p names.
func (p Pin) Matches(cert *x509.Certificate) bool {
	var sum [sha256.Size]byte
	switch p.kind {
	case keyPin:
		sum = sha256.Sum256(cert.RawSubjectPublicKeyInfo)
	case leafPin:
		sum = sha256.Sum256(cert.Raw)
	default:
		return false
	}
	return bytes.Equal(sum[:], p.sum[:])
}

// checkPins looks for the leaf among pins. What else the chain holds does not matter: the handshake has proven that the relay
// holds the leaf's key.
func checkPins(pins []Pin, chain []*x509.Certificate) error {
	if len(chain) == 0 {
		return errors.New("no certificate")
	}
	for _, p := range pins {
		if p.Matches(chain[0]) {
			return nil
		}
	}
	return fmt.Errorf("the certificate's pin is %v, which is not configured", PinOf(chain[0]))
}
