package check

import (
	"crypto/hmac"
	"crypto/sha256"
)

// Verify reports whether a datagram that Parse has taken was made with a key, and is unchanged. It looks at nothing but the sum:
// the form is Parse's. It allocates nothing for datagrams up to a usual MTU.
func Verify(msg []byte, k *Key) bool {
	if len(msg) < headerLen+integritySize {
		return false
	}
	covered := len(msg) - integritySize
	sum := mac(msg[:covered], k)
	return hmac.Equal(sum[:], msg[covered+attrLen:])
}

// appendIntegrity appends MESSAGE-INTEGRITY-SHA256 for all of b from start on, which is whole but for that.
func appendIntegrity(b []byte, start int, k *Key) []byte {
	sum := mac(b[start:], k)
	b = appendAttr(b, attrIntegrity, len(sum))
	return append(b, sum[:]...)
}

// inPlace is how long a text may be that is put behind the inner key of HMAC on the stack.
const inPlace = 1500

// mac is HMAC-SHA256 (RFC 2104) with a key that is shorter than a block. The one of crypto/hmac allocates its state, so that it is
// for long texts only.
func mac(text []byte, k *Key) [sha256.Size]byte {
	if len(text) > inPlace {
		return longMAC(text, k)
	}
	var inner [sha256.BlockSize + inPlace]byte
	var outer [sha256.BlockSize + sha256.Size]byte
	for i := range sha256.BlockSize {
		inner[i], outer[i] = 0x36, 0x5c
	}
	for i, b := range k {
		inner[i] ^= b
		outer[i] ^= b
	}
	n := copy(inner[sha256.BlockSize:], text)
	sum := sha256.Sum256(inner[:sha256.BlockSize+n])
	copy(outer[sha256.BlockSize:], sum[:])
	return sha256.Sum256(outer[:])
}

func longMAC(text []byte, k *Key) (sum [sha256.Size]byte) {
	h := hmac.New(sha256.New, k[:])
	h.Write(text)
	h.Sum(sum[:0])
	return sum
}
