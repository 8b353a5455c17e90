package wgstun

import (
	"crypto/hmac"
	"encoding/binary"
	"errors"
	"hash"
	"time"

	"golang.org/x/crypto/blake2s"
	"golang.org/x/crypto/chacha20poly1305"
	"golang.org/x/crypto/curve25519"

	"culvert.dev/culvert/internal/wgkey"
)

// lightClient is the calling side of WireGuard (section 5.4 of its paper) and no more than that: no timers, no goroutines, a few
// hundred bytes. Thousands of them fit into one process that measures the server.
type lightClient struct {
	key, server wgkey.Public
	secret      [32]byte
	index       uint32

	chain, hash [32]byte // of the handshake under way
	ephemeral   [32]byte
	remote      uint32 // the server's index of the session
	send, recv  [32]byte
	counter     uint64
}

func newLightClient(secret wgkey.Private, server wgkey.Public, index uint32) *lightClient {
	return &lightClient{key: secret.Public(), server: server, secret: secret.RevealBytes(), index: index}
}

func blake(parts ...[]byte) (sum [32]byte) {
	h, _ := blake2s.New256(nil)
	for _, p := range parts {
		h.Write(p)
	}
	h.Sum(sum[:0])
	return sum
}

// kdf is HKDF with n outputs.
func kdf(n int, key [32]byte, input []byte) (out [3][32]byte) {
	mac := func(key []byte, parts ...[]byte) (sum [32]byte) {
		h := hmac.New(func() hash.Hash { h, _ := blake2s.New256(nil); return h }, key)
		for _, p := range parts {
			h.Write(p)
		}
		h.Sum(sum[:0])
		return sum
	}
	secret := mac(key[:], input)
	var last []byte
	for i := range n {
		out[i] = mac(secret[:], last, []byte{byte(i + 1)})
		last = out[i][:]
	}
	return out
}

// seal is AEAD with a nonce that counts.
func seal(dst []byte, key [32]byte, counter uint64, plain, data []byte) []byte {
	a, _ := chacha20poly1305.New(key[:])
	var nonce [12]byte
	binary.LittleEndian.PutUint64(nonce[4:], counter)
	return a.Seal(dst, nonce[:], plain, data)
}

func (c *lightClient) dh(secret [32]byte, public []byte) []byte {
	shared, err := curve25519.X25519(secret[:], public)
	if err != nil {
		panic(err) // the test has made a bad key
	}
	return shared
}

// initiation begins a handshake. The ephemeral key need not be a secret here, but two handshakes of a client must not have one
// timestamp.
func (c *lightClient) initiation(ephemeral wgkey.Private, now time.Time) []byte {
	c.ephemeral = ephemeral.RevealBytes()
	public := ephemeral.Public()
	c.chain = blake([]byte("Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s"))
	c.hash = blake(c.chain[:], []byte("WireGuard v1 zx2c4 Jason@zx2c4.com"))
	c.hash = blake(c.hash[:], c.server[:])

	msg := binary.LittleEndian.AppendUint32([]byte{1, 0, 0, 0}, c.index)
	msg = append(msg, public[:]...)
	c.chain = kdf(1, c.chain, public[:])[0]
	c.hash = blake(c.hash[:], public[:])

	k := kdf(2, c.chain, c.dh(c.ephemeral, c.server[:]))
	c.chain = k[0]
	msg = seal(msg, k[1], 0, c.key[:], c.hash[:])
	c.hash = blake(c.hash[:], msg[40:88])

	k = kdf(2, c.chain, c.dh(c.secret, c.server[:]))
	c.chain = k[0]
	stamp := binary.BigEndian.AppendUint64(nil, 1<<62+uint64(now.Unix())) // TAI64N
	stamp = binary.BigEndian.AppendUint32(stamp, uint32(now.Nanosecond()))
	msg = seal(msg, k[1], 0, stamp, c.hash[:])
	c.hash = blake(c.hash[:], msg[88:116])

	macKey := blake([]byte("mac1----"), c.server[:])
	mac, _ := blake2s.New128(macKey[:])
	mac.Write(msg)
	return append(mac.Sum(msg), make([]byte, 16)...)
}

// response ends the handshake.
func (c *lightClient) response(msg []byte) error {
	if len(msg) != 92 || msg[0] != 2 {
		return errors.New("not a handshake response")
	}
	public := msg[12:44]
	c.hash = blake(c.hash[:], public)
	c.chain = kdf(1, c.chain, public)[0]
	c.chain = kdf(1, c.chain, c.dh(c.ephemeral, public))[0]
	c.chain = kdf(1, c.chain, c.dh(c.secret, public))[0]
	k := kdf(3, c.chain, make([]byte, 32)) // no preshared key
	c.chain = k[0]
	c.hash = blake(c.hash[:], k[1][:])
	a, _ := chacha20poly1305.New(k[2][:])
	if _, err := a.Open(nil, make([]byte, 12), msg[44:60], c.hash[:]); err != nil {
		return err
	}
	k = kdf(2, c.chain, nil)
	c.send, c.recv, c.counter = k[0], k[1], 0
	c.remote = binary.LittleEndian.Uint32(msg[4:])
	return nil
}

// data makes a transport message of a packet.
func (c *lightClient) data(pkt []byte) []byte {
	msg := binary.LittleEndian.AppendUint32([]byte{4, 0, 0, 0}, c.remote)
	msg = binary.LittleEndian.AppendUint64(msg, c.counter)
	padded := append(pkt[:len(pkt):len(pkt)], make([]byte, -len(pkt)&15)...)
	msg = seal(msg, c.send, c.counter, padded, nil)
	c.counter++
	return msg
}

// open returns the packet in a transport message, padded.
func (c *lightClient) open(msg []byte) ([]byte, error) {
	if len(msg) < 32 || msg[0] != 4 {
		return nil, errors.New("not a transport message")
	}
	a, _ := chacha20poly1305.New(c.recv[:])
	var nonce [12]byte
	copy(nonce[4:], msg[8:16])
	return a.Open(nil, nonce[:], msg[16:], nil)
}
