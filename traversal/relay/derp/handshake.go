package derp

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"

	"golang.org/x/crypto/curve25519"
	"golang.org/x/crypto/nacl/box"
	"golang.org/x/crypto/salsa20/salsa"

	"culvert.dev/culvert/internal/wgkey"
)

const nonceLen = 24

// ErrBox is wrapped by the errors for a box that does not open: it was sealed for another key, by another, or changed.
var ErrBox = errors.New("box does not open")

// ClientInfo is what a client says of itself. Version numbers other than ours are no error: each side uses what it knows.
type ClientInfo struct {
	Version     int `json:"version"`
	CanAckPings bool
	MeshKey     string `json:"meshKey,omitempty"` // 64 hexadecimal digits; only servers of a mesh send it
	IsProber    bool   `json:",omitempty"`
	AppName     string `json:",omitempty"`
}

// ServerInfo is what a server answers. The limits say how fast the client may send; zero is no limit.
type ServerInfo struct {
	Version                   int `json:"version"`
	TokenBucketBytesPerSecond int `json:",omitempty"`
	TokenBucketBytesBurst     int `json:",omitempty"`
}

// ServerKeyPayload returns the payload of a ServerKey frame.
func ServerKeyPayload(key wgkey.Public) []byte { return append([]byte(Magic), key[:]...) }

// ParseServerKey reads the payload of a ServerKey frame. What follows the key is for later versions.
func ParseServerKey(payload []byte) (wgkey.Public, error) {
	const want = len(Magic) + KeyLen
	switch {
	case len(payload) < want:
		return wgkey.Public{}, short(FrameServerKey, payload, want)
	case string(payload[:len(Magic)]) != Magic:
		return wgkey.Public{}, errors.New("frame ServerKey: no magic, so this is not a DERP server")
	}
	key := wgkey.Public(payload[len(Magic):want])
	if key.IsZero() {
		return wgkey.Public{}, errors.New("frame ServerKey: the key is all zero")
	}
	return key, nil
}

// SealClientInfo returns the payload of a ClientInfo frame: the client's key, a nonce, the box.
func SealClientInfo(self wgkey.Private, server wgkey.Public, info ClientInfo) ([]byte, error) {
	pub := self.Public()
	return seal(FrameClientInfo, pub[:], self, server, info)
}

// OpenClientInfo reads the payload of a ClientInfo frame. The key it returns is proven: its owner sealed the box.
func OpenClientInfo(server wgkey.Private, payload []byte) (key wgkey.Public, info ClientInfo, err error) {
	if len(payload) < KeyLen {
		return key, info, short(FrameClientInfo, payload, KeyLen)
	}
	key = wgkey.Public(payload[:KeyLen])
	if key.IsZero() {
		return wgkey.Public{}, info, errors.New("frame ClientInfo: the key is all zero")
	}
	if err := open(FrameClientInfo, server, key, payload[KeyLen:], &info); err != nil {
		return wgkey.Public{}, ClientInfo{}, err
	}
	return key, info, nil
}

// SealServerInfo returns the payload of a ServerInfo frame: a nonce and the box.
func SealServerInfo(server wgkey.Private, client wgkey.Public, info ServerInfo) ([]byte, error) {
	return seal(FrameServerInfo, nil, server, client, info)
}

// OpenServerInfo reads the payload of a ServerInfo frame. Limits below zero become none.
func OpenServerInfo(self wgkey.Private, server wgkey.Public, payload []byte) (info ServerInfo, err error) {
	if err := open(FrameServerInfo, self, server, payload, &info); err != nil {
		return ServerInfo{}, err
	}
	info.TokenBucketBytesPerSecond = max(info.TokenBucketBytesPerSecond, 0)
	info.TokenBucketBytesBurst = max(info.TokenBucketBytesBurst, 0)
	return info, nil
}

// seal appends nonce and box of info in JSON to prefix.
func seal(t Type, prefix []byte, from wgkey.Private, to wgkey.Public, info any) ([]byte, error) {
	plain, err := json.Marshal(info)
	if err != nil {
		return nil, fmt.Errorf("frame %v: %w", t, err)
	}
	key, err := sharedKey(from, to)
	if err != nil {
		return nil, fmt.Errorf("frame %v: %w", t, err)
	}
	var nonce [nonceLen]byte
	if _, err := rand.Read(nonce[:]); err != nil {
		return nil, fmt.Errorf("frame %v: draw nonce: %w", t, err)
	}
	return box.SealAfterPrecomputation(append(prefix, nonce[:]...), plain, &nonce, key), nil
}

func open(t Type, self wgkey.Private, from wgkey.Public, sealed []byte, info any) error {
	if len(sealed) < nonceLen+box.Overhead {
		return short(t, sealed, nonceLen+box.Overhead)
	}
	key, err := sharedKey(self, from)
	if err != nil {
		return fmt.Errorf("frame %v: %w", t, err)
	}
	nonce := [nonceLen]byte(sealed)
	plain, ok := box.OpenAfterPrecomputation(nil, sealed[nonceLen:], &nonce, key)
	if !ok {
		return fmt.Errorf("frame %v: %w", t, ErrBox)
	}
	if err := json.Unmarshal(plain, info); err != nil {
		return fmt.Errorf("frame %v: %w", t, err)
	}
	return nil
}

// sharedKey is crypto_box_beforenm. Unlike box.Precompute it refuses points of low order, whose boxes anyone can seal.
func sharedKey(self wgkey.Private, other wgkey.Public) (*[32]byte, error) {
	private := self.RevealBytes()
	secret, err := curve25519.X25519(private[:], other[:])
	if err != nil {
		return nil, fmt.Errorf("key of the other side: %w", err)
	}
	var key [32]byte
	var zero [16]byte
	salsa.HSalsa20(&key, &zero, (*[32]byte)(secret), &salsa.Sigma)
	return &key, nil
}
