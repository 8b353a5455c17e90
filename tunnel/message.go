package tunnel

import (
	"crypto/hmac"
	"encoding/binary"

	"golang.org/x/crypto/blake2s"

	"culvert.dev/culvert/internal/wgkey"
)

// The WireGuard messages, as far as this package looks at them (whitepaper section 5.4). The first byte tells the type;
// the three behind it are zero.
//
//	initiation  type 1, sender index [4:8], ..., mac1 [116:132], mac2 [132:148]
//	response    type 2, sender index [4:8], receiver index [8:12], ..., mac1 [60:76], mac2 [76:92]
//	cookie      type 3, receiver index [4:8], ...
//	transport   type 4, receiver index [4:8], ...
const (
	typeInitiation = 1
	typeResponse   = 2
	typeCookie     = 3
	typeTransport  = 4

	initiationLen   = 148
	responseLen     = 92
	cookieLen       = 64
	transportMinLen = 32

	macsLen = 32 // mac1 and mac2 end both handshake messages
)

// senderIndex is the session index that the sender of an initiation or response chose.
func senderIndex(msg []byte) uint32 { return binary.LittleEndian.Uint32(msg[4:8]) }

// receiverIndex is the session index that a response, cookie reply or transport message answers.
func receiverIndex(msg []byte) uint32 {
	if msg[0] == typeResponse {
		return binary.LittleEndian.Uint32(msg[8:12])
	}
	return binary.LittleEndian.Uint32(msg[4:8])
}

// initiationID tells initiations apart.
type initiationID struct {
	index uint32
	mac1  [blake2s.Size128]byte
}

func initiationOf(msg []byte) initiationID {
	return initiationID{senderIndex(msg), [blake2s.Size128]byte(msg[initiationLen-macsLen:])}
}

// macKey verifies the mac1 of handshake messages addressed to one public key: HASH("mac1----" || key).
type macKey [blake2s.Size]byte

func macKeyOf(to wgkey.Public) macKey {
	return blake2s.Sum256(append([]byte("mac1----"), to[:]...))
}

// addressed reports whether an initiation or response was made for the holder of the key. Anyone who knows the public key
// can make such a message: it tells noise from WireGuard, and one peer from another, but not friend from foe.
func (k *macKey) addressed(msg []byte) bool {
	mac1 := len(msg) - macsLen
	h, err := blake2s.New128(k[:])
	if err != nil { // only for a key longer than 32 bytes
		return false
	}
	h.Write(msg[:mac1])
	return hmac.Equal(h.Sum(nil), msg[mac1:mac1+blake2s.Size128])
}
