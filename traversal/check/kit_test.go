package check

import (
	"encoding/base64"
	"encoding/hex"
	"net/netip"
	"os"
	"strings"
	"testing"

	"culvert.dev/culvert/internal/wgkey"
	"culvert.dev/culvert/traversal/exchange"
)

func ap(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }

// private returns the key whose bytes are n, n+1, and so on.
func private(t testing.TB, n byte) wgkey.Private {
	t.Helper()
	var b [wgkey.Size]byte
	for i := range b {
		b[i] = n + byte(i)
	}
	k, err := wgkey.ParsePrivate(base64.StdEncoding.EncodeToString(b[:]))
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func secret(t testing.TB, self wgkey.Private, peer wgkey.Public) Secret {
	t.Helper()
	s, err := NewSecret(self, peer)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

const (
	sessionA exchange.Session = 0x0102030405060708
	sessionB exchange.Session = 0xf1f2f3f4f5f6f7f8
)

// pairKeys are the keys that two nodes have for each other.
func pairKeys(t testing.TB) (a, b Keys) {
	keyA, keyB := private(t, 1), private(t, 101)
	sa, sb := secret(t, keyA, keyB.Public()), secret(t, keyB, keyA.Public())
	return sa.Keys(sessionA, sessionB), sb.Keys(sessionB, sessionA)
}

// messages are some of both kinds, from a to b.
func messages(k *Key) map[string][]byte {
	id := ID{0xe0, 0xe1, 0xe2, 0xe3, 0xe4, 0xe5, 0xe6, 0xe7, 0xe8, 0xe9, 0xea, 0xeb}
	r := Request{To: sessionB, From: sessionA, ID: id}
	padded := r
	padded.Size = 120
	large := r
	large.Size = 1404
	return map[string][]byte{
		"request":             AppendRequest(nil, k, r),
		"request of 120":      AppendRequest(nil, k, padded),
		"request of 1404":     AppendRequest(nil, k, large),
		"response":            AppendResponse(nil, k, id, ap("203.0.113.9:51820")),
		"response about IPv6": AppendResponse(nil, k, id, ap("[2001:db8::9]:51820")),
	}
}

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
