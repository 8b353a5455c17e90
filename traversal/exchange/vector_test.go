package exchange

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"os"
	"reflect"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/chacha20"
	"golang.org/x/crypto/chacha20poly1305"
	"golang.org/x/crypto/curve25519"

	"culvert.dev/culvert/internal/wgkey"
	"culvert.dev/culvert/nat"
	"culvert.dev/culvert/traversal/stun"
)

// vector reads a file of testdata: lines of a name, a colon and hexadecimal digits, which go on in lines without a name; # begins a
// comment.
func vector(t testing.TB, file string) map[string][]byte {
	t.Helper()
	text, err := os.ReadFile("testdata/" + file)
	if err != nil {
		t.Fatal(err)
	}
	v, name := map[string][]byte{}, ""
	for line := range strings.Lines(string(text)) {
		line, _, _ = strings.Cut(line, "#")
		if before, after, named := strings.Cut(line, ":"); named {
			name, line = before, after
		}
		b, err := hex.DecodeString(strings.Join(strings.Fields(line), ""))
		if err != nil {
			t.Fatalf("%s: %s: %v", file, name, err)
		}
		v[name] = append(v[name], b...)
	}
	return v
}

// vectors are the files with what is in them. Lives and times are in the files only.
var vectors = map[string]Message{
	"candidates.txt": {
		Kind: KindCandidates, Session: 0x0102030405060708, StartIn: 75 * time.Millisecond,
		Candidates: []Candidate{
			{Kind: Host, Preference: 400, WG: ap("192.168.1.7:51820")},
			{Kind: Host, Preference: 300, WG: ap("[2001:db8::7]:51820")},
			{Kind: Mapped, Preference: 200, WG: ap("203.0.113.9:40000"), Check: ap("203.0.113.9:40001")},
			{Kind: Reflexive, Preference: 100, WG: ap("203.0.113.9:1024"), Check: ap("203.0.113.10:1025")},
			{Kind: LastPair, WG: ap("[2001:db8::7]:51820"), Check: ap("203.0.113.9:2")},
		},
		Hints4: Hints{Known: true, NAT: true, Mapping: stun.Range{Least: nat.AddressDependent, Most: nat.AddressAndPortDependent},
			Filtering: stun.Range{Least: nat.AddressAndPortDependent, Most: nat.AddressAndPortDependent},
			Sockets:   12, Preserved: 1, Parity: 7, Step: -2, Min: 1024, Max: 2047},
	},
	"start.txt": {
		Kind: KindStart, Session: 0x0102030405060708, StartIn: 75 * time.Millisecond, Technique: 2,
		Expect: []Ports{
			{Addr: ap("203.0.113.9:1").Addr(), From: 600, To: 1023},
			{Addr: ap("203.0.113.9:1").Addr(), From: 40000, To: 40062, Step: -2},
			{Addr: ap("[2001:db8::9]:1").Addr(), From: 51820, To: 51820},
		},
	},
	"proposal.txt": {
		Kind: KindProposal, Session: 0x0102030405060708, Attempt: 3,
		Proposer: ap("203.0.113.9:1024"), Acceptor: ap("[2001:db8::9]:51820"),
	},
}

// TestKnownAnswers goes through the files step by step with nothing but primitives, and then with a Sealer.
func TestKnownAnswers(t *testing.T) {
	for file, want := range vectors {
		v := vector(t, file)
		equal := func(name string, got []byte) {
			t.Helper()
			if !bytes.Equal(got, v[name]) {
				t.Errorf("%s: %s is\n%x, want\n%x", file, name, got, v[name])
			}
		}
		public := func(name string) []byte {
			b, err := curve25519.X25519(v[name], curve25519.Basepoint)
			if err != nil {
				t.Fatal(err)
			}
			return b
		}
		equal("sender public", public("sender private"))
		equal("receiver public", public("receiver private"))
		secret, err := curve25519.X25519(v["sender private"], v["receiver public"])
		if err != nil {
			t.Fatal(err)
		}
		equal("secret", secret)
		equal("key", hkdfByHand(secret, slicesOf([]byte("culvert exchange 1"), v["sender public"], v["receiver public"])))
		equal("additional data", slicesOf([]byte("TS💬\x01"), v["sender public"], v["receiver public"]))
		box := xchachaByHand(t, v["key"], v["nonce"], v["plaintext"], v["additional data"])
		equal("packet", slicesOf([]byte("TS💬"), v["sender public"], v["nonce"], box))

		checkSealer(t, file, v, want)
	}
}

func checkSealer(t *testing.T, file string, v map[string][]byte, want Message) {
	sender, receiver := wgkey.Public(v["sender public"]), wgkey.Public(v["receiver public"])
	h := parseHead(v["plaintext"])
	s := vectorSealer(t, v["receiver private"], sender)
	if h.echo != 0 {
		s.peers[sender].life = h.echo
	}
	at := time.Unix(0, int64(h.time))
	got, err := s.Open(v["packet"], sender, at.Add(time.Second))
	if err != nil {
		t.Fatalf("%s: %v", file, err)
	}
	want.Sent, want.Fresh = at, h.echo != 0
	got.RTT = 0
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%s:\ngot  %+v\nwant %+v", file, got, want)
	}

	s = vectorSealer(t, v["sender private"], receiver)
	p := s.peers[receiver]
	p.life, p.theirs, p.heard, p.heardAt = h.sender, h.echo, int64(h.heard), at.Add(-time.Duration(h.hold)*time.Microsecond)
	h = p.nextHead(&want, at)
	plaintext := appendFields(appendHead(nil, &h), &want)
	if !bytes.Equal(plaintext, v["plaintext"]) {
		t.Errorf("%s: plaintext\n%x, want\n%x", file, plaintext, v["plaintext"])
	}
	if packet := p.to.seal(nil, (*[nonceLen]byte)(v["nonce"]), plaintext); !bytes.Equal(packet, v["packet"]) {
		t.Errorf("%s: packet\n%x, want\n%x", file, packet, v["packet"])
	}
}

func vectorSealer(t *testing.T, private []byte, peer wgkey.Public) *Sealer {
	t.Helper()
	key, err := wgkey.ParsePrivate(base64.StdEncoding.EncodeToString(private))
	if err != nil {
		t.Fatal(err)
	}
	s, err := NewSealer(key)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.SetPeers([]wgkey.Public{peer}); err != nil {
		t.Fatal(err)
	}
	return s
}

func slicesOf(parts ...[]byte) []byte { return bytes.Join(parts, nil) }

// hkdfByHand is RFC 5869 without salt, for 32 bytes: one block.
func hkdfByHand(secret, info []byte) []byte {
	mac := func(key, text []byte) []byte {
		h := hmac.New(sha256.New, key)
		h.Write(text)
		return h.Sum(nil)
	}
	return mac(mac(make([]byte, sha256.Size), secret), append(info, 1))
}

// xchachaByHand is XChaCha20-Poly1305 by its definition: HChaCha20 of the first 16 bytes of the nonce, then ChaCha20-Poly1305 of
// RFC 8439 with the last 8.
func xchachaByHand(t *testing.T, key, nonce, plaintext, data []byte) []byte {
	t.Helper()
	sub, err := chacha20.HChaCha20(key, nonce[:16])
	if err != nil {
		t.Fatal(err)
	}
	aead, err := chacha20poly1305.New(sub)
	if err != nil {
		t.Fatal(err)
	}
	return aead.Seal(nil, binary.BigEndian.AppendUint64(make([]byte, 4), binary.BigEndian.Uint64(nonce[16:])), plaintext, data)
}
