package exchange

import (
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"fmt"

	"golang.org/x/crypto/chacha20poly1305"
	"golang.org/x/crypto/curve25519"

	"culvert.dev/culvert/internal/wgkey"
)

const (
	magic           = "TS\xf0\x9f\x92\xac" // TS💬
	envelopeVersion = 1
	keyInfo         = "culvert exchange 1"

	nonceLen = chacha20poly1305.NonceSizeX
	outerLen = len(magic) + wgkey.Size + nonceLen
	minLen   = outerLen + headLen + chacha20poly1305.Overhead

	// MaxLen is the length of the longest packet.
	MaxLen = 1200
)

// direction is what seals and opens all packets from one node to another.
type direction struct {
	aead cipher.AEAD
	data []byte // additional data
}

// directions derives both directions between self and another node. It fails for keys of low order, for which anyone knows the
// secret.
func directions(self wgkey.Private, own, other wgkey.Public) (to, from direction, err error) {
	private := self.RevealBytes()
	secret, err := curve25519.X25519(private[:], other[:])
	if err != nil {
		return to, from, fmt.Errorf("peer %s: unusable key: %w", other.Short(), err)
	}
	if to, err = newDirection(secret, own, other); err != nil {
		return to, from, err
	}
	from, err = newDirection(secret, other, own)
	return to, from, err
}

func newDirection(secret []byte, sender, receiver wgkey.Public) (d direction, err error) {
	info := keyInfo + string(sender[:]) + string(receiver[:])
	key, err := hkdf.Key(sha256.New, secret, nil, info, chacha20poly1305.KeySize)
	if err != nil {
		return d, fmt.Errorf("derive key: %w", err)
	}
	d.data = append([]byte(magic), envelopeVersion)
	d.data = append(append(d.data, sender[:]...), receiver[:]...)
	d.aead, err = chacha20poly1305.NewX(key)
	return d, err
}

// seal appends the whole packet.
func (d *direction) seal(dst []byte, nonce *[nonceLen]byte, plaintext []byte) []byte {
	dst = append(dst, magic...)
	dst = append(dst, d.data[len(magic)+1:][:wgkey.Size]...) // the sender
	dst = append(dst, nonce[:]...)
	return d.aead.Seal(dst, nonce[:], plaintext, d.data)
}
