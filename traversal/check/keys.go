package check

import (
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"io"

	"golang.org/x/crypto/curve25519"

	"culvert.dev/culvert/internal/wgkey"
	"culvert.dev/culvert/traversal/exchange"
)

const keyInfo = "culvert check 1"

// Key authenticates the checks of one direction. It never prints itself.
type Key [sha256.Size]byte

// Format implements fmt.Formatter, so that no verb shows the key.
func (k Key) Format(f fmt.State, _ rune) { io.WriteString(f, "(check key)") }

// MarshalText implements encoding.TextMarshaler without the key.
func (k Key) MarshalText() ([]byte, error) { return []byte("(check key)"), nil }

// Keys are those of two nodes in two sessions.
type Keys struct {
	Send    Key // of what this node sends, requests and responses
	Receive Key // of what it receives
}

// Secret is what two nodes share; keys for any of their sessions follow from it. It never prints itself.
type Secret struct {
	own, peer wgkey.Public
	shared    [curve25519.PointSize]byte
}

// NewSecret computes the secret of this node and a peer. It fails for keys of low order, for which anyone knows it, and for the
// node's own key, for which both directions would be one.
func NewSecret(self wgkey.Private, peer wgkey.Public) (Secret, error) {
	s := Secret{own: self.Public(), peer: peer}
	if s.own == peer {
		return Secret{}, fmt.Errorf("peer %s: it is this node's own key", peer.Short())
	}
	private := self.RevealBytes()
	shared, err := curve25519.X25519(private[:], peer[:])
	if err != nil {
		return Secret{}, fmt.Errorf("peer %s: unusable key: %w", peer.Short(), err)
	}
	copy(s.shared[:], shared)
	return s, nil
}

// Format implements fmt.Formatter, so that no verb shows the secret.
func (s Secret) Format(f fmt.State, _ rune) { io.WriteString(f, "(check secret)") }

// Keys derives the keys for a session of this node's and one of the peer's.
func (s *Secret) Keys(own, peer exchange.Session) Keys {
	return Keys{
		Send:    s.derive(&s.own, &s.peer, own, peer),
		Receive: s.derive(&s.peer, &s.own, peer, own),
	}
}

func (s *Secret) derive(sender, receiver *wgkey.Public, senders, receivers exchange.Session) (k Key) {
	info := append([]byte(keyInfo), sender[:]...)
	info = append(info, receiver[:]...)
	info = binary.BigEndian.AppendUint64(info, uint64(senders))
	info = binary.BigEndian.AppendUint64(info, uint64(receivers))
	b, err := hkdf.Key(sha256.New, s.shared[:], nil, string(info), len(k))
	if err != nil { // only for more than 255 blocks, or a secret that FIPS mode finds too short
		panic("check: derive key: " + err.Error())
	}
	copy(k[:], b)
	return k
}
