// Package wgkey holds WireGuard's three kinds of keys as distinct types, so that a private key cannot be printed, or
// passed where a public one is meant, by mistake.
//
// All keys are 32 bytes and are written in base64 (44 characters), as wg(8) does. Values are immutable and safe for
// concurrent use. The zero value of each type means "absent".
package wgkey

import (
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"

	"golang.org/x/crypto/curve25519"
)

// Size is the length of every key in bytes.
const Size = 32

// Private is a Curve25519 private key. It never prints itself: fmt verbs, JSON and slog show "(private key)".
// Reveal is the one way to its text.
type Private struct{ b [Size]byte }

// Public is a Curve25519 public key; it identifies a peer.
type Public [Size]byte

// Preshared is WireGuard's optional symmetric key. It hides itself as Private does.
type Preshared struct{ b [Size]byte }

const hidden = "(private key)"

// NewPrivate draws a private key, clamped as Curve25519 requires.
func NewPrivate() (Private, error) {
	var k Private
	if _, err := rand.Read(k.b[:]); err != nil {
		return Private{}, fmt.Errorf("draw private key: %w", err)
	}
	k.b[0] &= 248
	k.b[31] = k.b[31]&127 | 64
	return k, nil
}

// NewPreshared draws a preshared key.
func NewPreshared() (Preshared, error) {
	var k Preshared
	if _, err := rand.Read(k.b[:]); err != nil {
		return Preshared{}, fmt.Errorf("draw preshared key: %w", err)
	}
	return k, nil
}

// ParsePrivate reads the base64 form. The error never contains the text.
func ParsePrivate(s string) (Private, error) {
	b, err := decode(s)
	return Private{b}, err
}

// ParsePublic reads the base64 form.
func ParsePublic(s string) (Public, error) {
	b, err := decode(s)
	return Public(b), err
}

// ParsePreshared reads the base64 form. The error never contains the text.
func ParsePreshared(s string) (Preshared, error) {
	b, err := decode(s)
	return Preshared{b}, err
}

func decode(s string) (k [Size]byte, err error) {
	b, err := base64.StdEncoding.Strict().DecodeString(s)
	if err != nil || len(b) != Size {
		return k, errors.New("not a WireGuard key: want 32 bytes in base64 (44 characters)")
	}
	return [Size]byte(b), nil
}

// Public derives the public key.
func (k Private) Public() Public {
	var p Public
	b, err := curve25519.X25519(k.b[:], curve25519.Basepoint)
	if err != nil { // only for a low-order point, which the base point is not
		return p
	}
	copy(p[:], b)
	return p
}

// IsZero reports whether the key is absent.
func (k Private) IsZero() bool { return k.b == [Size]byte{} }

// Reveal returns the base64 form, for a file or an export the user asked for.
func (k Private) Reveal() string { return base64.StdEncoding.EncodeToString(k.b[:]) }

// RevealHex returns the form wireguard-go's UAPI takes.
func (k Private) RevealHex() string { return hex.EncodeToString(k.b[:]) }

// RevealBytes returns a copy of the key itself, for the boxes that are sealed and opened with it.
func (k Private) RevealBytes() [Size]byte { return k.b }

// Format implements fmt.Formatter, so that no verb shows the key.
func (k Private) Format(f fmt.State, _ rune) { io.WriteString(f, hidden) }

// MarshalText implements encoding.TextMarshaler without the key.
func (k Private) MarshalText() ([]byte, error) { return []byte(hidden), nil }

// IsZero reports whether the key is absent.
func (k Preshared) IsZero() bool { return k.b == [Size]byte{} }

// Reveal returns the base64 form.
func (k Preshared) Reveal() string { return base64.StdEncoding.EncodeToString(k.b[:]) }

// RevealHex returns the form wireguard-go's UAPI takes.
func (k Preshared) RevealHex() string { return hex.EncodeToString(k.b[:]) }

// Format implements fmt.Formatter, so that no verb shows the key.
func (k Preshared) Format(f fmt.State, _ rune) { io.WriteString(f, hidden) }

// MarshalText implements encoding.TextMarshaler without the key.
func (k Preshared) MarshalText() ([]byte, error) { return []byte(hidden), nil }

// IsZero reports whether the key is absent.
func (k Public) IsZero() bool { return k == Public{} }

// String returns the base64 form.
func (k Public) String() string { return base64.StdEncoding.EncodeToString(k[:]) }

// Short returns the first eight characters of the base64 form, for logs.
func (k Public) Short() string { return k.String()[:8] }

// Hex returns the form wireguard-go's UAPI uses.
func (k Public) Hex() string { return hex.EncodeToString(k[:]) }

// MarshalText implements encoding.TextMarshaler with the base64 form.
func (k Public) MarshalText() ([]byte, error) { return []byte(k.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (k *Public) UnmarshalText(b []byte) (err error) {
	*k, err = ParsePublic(string(b))
	return err
}
