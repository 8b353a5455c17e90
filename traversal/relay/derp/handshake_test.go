package derp

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"golang.org/x/crypto/nacl/box"

	"culvert.dev/culvert/internal/wgkey"
)

func TestServerKey(t *testing.T) {
	key := newKey(t).Public()
	p := ServerKeyPayload(key)
	if want := "44455250f09f9491" + key.Hex(); hex.EncodeToString(p) != want {
		t.Errorf("got %x, want %s", p, want)
	}
	for name, good := range map[string][]byte{"as sent": p, "with more behind it": append(bytes.Clone(p), 1, 2, 3)} {
		if got, err := ParseServerKey(good); got != key || err != nil {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
	for n := range p {
		if _, err := ParseServerKey(p[:n]); err == nil {
			t.Errorf("the first %d bytes were taken", n)
		}
	}
	for i := range len(Magic) {
		bad := bytes.Clone(p)
		bad[i] ^= 1
		if _, err := ParseServerKey(bad); err == nil || !strings.Contains(err.Error(), "magic") {
			t.Errorf("byte %d of the magic wrong: %v", i, err)
		}
	}
	if _, err := ParseServerKey(append([]byte(Magic), make([]byte, KeyLen)...)); err == nil {
		t.Error("an all-zero key was taken")
	}
}

func TestClientInfoRoundTrip(t *testing.T) {
	server, client := newKey(t), newKey(t)
	want := ClientInfo{Version: Version, CanAckPings: true, AppName: "culvert", MeshKey: strings.Repeat("ab", 32), IsProber: true}
	p, err := SealClientInfo(client, server.Public(), want)
	if err != nil {
		t.Fatal(err)
	}
	key, got, err := OpenClientInfo(server, p)
	if err != nil || key != client.Public() || got != want {
		t.Errorf("got %v %+v %v", key, got, err)
	}
	again, _ := SealClientInfo(client, server.Public(), want)
	if bytes.Equal(p, again) {
		t.Error("the nonce was used twice")
	}
}

// The layout and the box, made and opened by x/crypto's own functions.
func TestBoxesAreNaCl(t *testing.T) {
	server, client := newKey(t), newKey(t)
	sPriv, cPub := server.RevealBytes(), [32]byte(client.Public())

	p, err := SealClientInfo(client, server.Public(), ClientInfo{Version: 2, CanAckPings: true})
	if err != nil {
		t.Fatal(err)
	}
	nonce := [24]byte(p[32:])
	plain, ok := box.Open(nil, p[56:], &nonce, &cPub, &sPriv)
	if want := `{"version":2,"CanAckPings":true}`; !ok || string(plain) != want || !bytes.Equal(p[:32], cPub[:]) {
		t.Errorf("got %q %v, want %s", plain, ok, want)
	}
	other := box.Seal(nonce[:], []byte(`{"version":2,"TokenBucketBytesPerSecond":1000,"TokenBucketBytesBurst":5,"New":{}}`), &nonce, &cPub, &sPriv)
	info, err := OpenServerInfo(client, server.Public(), other)
	if want := (ServerInfo{2, 1000, 5}); info != want || err != nil {
		t.Errorf("got %+v %v, want %+v", info, err, want)
	}
}

func TestServerInfoRoundTrip(t *testing.T) {
	server, client := newKey(t), newKey(t)
	for _, want := range []ServerInfo{{Version: 2}, {Version: 3, TokenBucketBytesPerSecond: 6_250_000, TokenBucketBytesBurst: 65_568}} {
		p, err := SealServerInfo(server, client.Public(), want)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := OpenServerInfo(client, server.Public(), p); got != want || err != nil {
			t.Errorf("got %+v %v, want %+v", got, err, want)
		}
	}
	p, _ := SealServerInfo(server, client.Public(), ServerInfo{2, -1, -5})
	if got, err := OpenServerInfo(client, server.Public(), p); got != (ServerInfo{Version: 2}) || err != nil {
		t.Errorf("negative limits: got %+v %v, want none", got, err)
	}
}

func TestAnyVersionIsTaken(t *testing.T) {
	server, client := newKey(t), newKey(t)
	for _, v := range []int{-1, 0, 1, 2, 3, 1 << 40} {
		p, _ := SealClientInfo(client, server.Public(), ClientInfo{Version: v})
		if _, got, err := OpenClientInfo(server, p); got.Version != v || err != nil {
			t.Errorf("version %d: got %d, %v", v, got.Version, err)
		}
	}
}

func TestBoxesThatDoNotOpen(t *testing.T) {
	server, client, other := newKey(t), newKey(t), newKey(t)
	good, err := SealClientInfo(client, server.Public(), ClientInfo{Version: 2})
	if err != nil {
		t.Fatal(err)
	}
	for n := range good {
		if key, _, err := OpenClientInfo(server, good[:n]); err == nil || !key.IsZero() {
			t.Fatalf("the first %d bytes were taken", n)
		}
	}
	for i := range good {
		bad := bytes.Clone(good)
		bad[i] ^= 0x10
		if key, _, err := OpenClientInfo(server, bad); err == nil || !key.IsZero() {
			t.Fatalf("byte %d changed, and it was taken", i)
		}
	}
	if _, _, err := OpenClientInfo(other, good); !errors.Is(err, ErrBox) {
		t.Errorf("for another server: %v", err)
	}
	forServer, _ := SealServerInfo(server, client.Public(), ServerInfo{Version: 2})
	if _, err := OpenServerInfo(other, server.Public(), forServer); !errors.Is(err, ErrBox) {
		t.Errorf("another client's ServerInfo: %v", err)
	}
	if _, err := OpenServerInfo(client, other.Public(), forServer); !errors.Is(err, ErrBox) {
		t.Errorf("a ServerInfo of another server: %v", err)
	}
}

func TestBoxWithoutJSON(t *testing.T) {
	server, client := newKey(t), newKey(t)
	for _, info := range []any{"text", []int{1}, map[string]any{"version": "two"}, json.RawMessage("null ")} {
		pub := client.Public()
		p, err := seal(FrameClientInfo, pub[:], client, server.Public(), info)
		if err != nil {
			t.Fatal(err)
		}
		_, got, err := OpenClientInfo(server, p)
		if _, isNull := info.(json.RawMessage); isNull {
			if err != nil || got != (ClientInfo{}) {
				t.Errorf("%s: %+v %v", info, got, err)
			}
		} else if err == nil {
			t.Errorf("%v was taken", info)
		}
	}
}

// With a point of low order the shared secret is zero, so that anyone could claim that key.
func TestLowOrderKeysAreRefused(t *testing.T) {
	server := newKey(t)
	for _, text := range []string{
		"0000000000000000000000000000000000000000000000000000000000000000",
		"0100000000000000000000000000000000000000000000000000000000000000",
		"e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800",
		"5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157",
		"ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
	} {
		b, _ := hex.DecodeString(text)
		var shared [32]byte
		var nonce [24]byte
		private := server.RevealBytes()
		box.Precompute(&shared, (*[32]byte)(b), &private) // what a server without the check would use
		p := box.SealAfterPrecomputation(append(bytes.Clone(b), nonce[:]...), []byte(`{"version":2}`), &nonce, &shared)
		if key, _, err := OpenClientInfo(server, p); err == nil {
			t.Errorf("%v was taken", key)
		}
	}
	if _, err := SealServerInfo(server, wgkey.Public{1}, ServerInfo{}); err == nil {
		t.Error("a box was sealed for a point of low order")
	}
}

func FuzzOpenClientInfo(f *testing.F) {
	server, client := wgkey.Private{}, newKey(f)
	p, err := SealClientInfo(client, server.Public(), ClientInfo{Version: 2})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(p, []byte(nil))
	f.Add([]byte{}, []byte(`{"version":2,"CanAckPings":true}`))
	f.Add(p[:72], []byte(`{"version":1e99}`))
	f.Fuzz(func(t *testing.T, payload, plain []byte) {
		OpenClientInfo(server, payload)
		// Boxes that open, with any text inside.
		pub := client.Public()
		key, err := sharedKey(client, server.Public())
		if err != nil {
			t.Fatal(err)
		}
		var nonce [nonceLen]byte
		sealed := box.SealAfterPrecomputation(append(pub[:], nonce[:]...), plain, &nonce, key)
		got, info, err := OpenClientInfo(server, sealed)
		var want ClientInfo
		if wantErr := json.Unmarshal(plain, &want); (err == nil) != (wantErr == nil) {
			t.Fatalf("%q: %v, but alone %v", plain, err, wantErr)
		} else if err == nil && (got != pub || info != want) {
			t.Fatalf("%q: got %v %+v", plain, got, info)
		}
	})
}

func FuzzOpenServerInfo(f *testing.F) {
	server, client := newKey(f), newKey(f)
	f.Add([]byte(nil), []byte(`{"version":2,"TokenBucketBytesPerSecond":-7}`))
	f.Fuzz(func(t *testing.T, payload, plain []byte) {
		if _, err := OpenServerInfo(client, server.Public(), payload); err == nil {
			t.Fatal("a box that nobody sealed was opened")
		}
		key, err := sharedKey(server, client.Public())
		if err != nil {
			t.Fatal(err)
		}
		var nonce [nonceLen]byte
		sealed := box.SealAfterPrecomputation(nonce[:], plain, &nonce, key)
		info, err := OpenServerInfo(client, server.Public(), sealed)
		if err == nil && (info.TokenBucketBytesPerSecond < 0 || info.TokenBucketBytesBurst < 0) {
			t.Fatalf("%q: got %+v", plain, info)
		}
		if err != nil && info != (ServerInfo{}) {
			t.Fatalf("%q: an error and %+v", plain, info)
		}
	})
}

func FuzzParsers(f *testing.F) {
	key := newKey(f).Public()
	f.Add(ServerKeyPayload(key))
	f.Add(key[:])
	f.Add(AppendRestarting(nil, 1, 2)[HeaderLen:])
	f.Fuzz(func(t *testing.T, p []byte) {
		if k, err := ParseServerKey(p); err == nil && !bytes.HasPrefix(p, ServerKeyPayload(k)) {
			t.Fatal("ServerKey differs")
		}
		if k, why, err := ParsePeerGone(p); err == nil && len(p) > KeyLen && !bytes.HasPrefix(p, AppendPeerGone(nil, k, why)[HeaderLen:]) {
			t.Fatal("PeerGone differs")
		}
		if in, try, err := ParseRestarting(p); err == nil && !bytes.HasPrefix(p, AppendRestarting(nil, in, try)[HeaderLen:]) {
			t.Fatal("Restarting differs")
		}
		ParsePing(p)
		if LooksLikeDisco(p) && LooksLikeHandshake(p) {
			t.Fatal("a packet looks like both")
		}
	})
}
