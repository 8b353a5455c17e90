package config

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"culvert.dev/culvert/internal/wgkey"
)

const (
	keyText  = "oKG9IQtfYC3oNVupIktlAn+GCYSgWAw8oipzQumt/X8="
	peerKey1 = "tenWwkouosPtk7skeC+IFv/HSdO5gc4QYkELrvQgqDw="
	peerKey2 = "EEDXQdE1BY8pmNsEqgnieXcZmciKihl88la6Z7zrPh8="
	pskText  = "k4T7VvySEAHJzLGe1lA492rsSdIhvtedbbIDgw/Ksh8="
)

// put writes files below a new folder and returns it. Names may have folders; the mode is 0600.
func put(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		file := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestSecretsFromFilesBesideTheConfiguration(t *testing.T) {
	dir := put(t, map[string]string{
		"a.conf": "[Interface]\nName=n\nPrivateKeyFile = keys/private\nAddress=10.0.0.1\n" +
			"[Peer]\nPublicKey=" + peerKey1 + "\nPresharedKeyFile=keys/psk\n",
		"keys/private": keyText + "\r\n",
		"keys/psk":     "\n  " + pskText,
	})
	cfg, err := Load(filepath.Join(dir, "a.conf"), Options{})
	if err != nil {
		t.Fatal(err)
	}
	if got := cfg.Interface.PrivateKey.Reveal(); got != keyText {
		t.Errorf("got private key %s", got)
	}
	if got := cfg.Peers[0].PresharedKey.Reveal(); got != pskText {
		t.Errorf("got preshared key %s", got)
	}
	if len(cfg.Warnings) != 0 {
		t.Errorf("got warnings %v", cfg.Warnings)
	}
}

func TestSecretsFromTheEnvironment(t *testing.T) {
	dir := put(t, map[string]string{
		"a.conf": "[Interface]\nName=n\nPrivateKey = ${KEY}\nAddress=$ADDR\n[Peer]\nPublicKey=" + peerKey1 + "\nPresharedKey=$PSK\n",
	})
	env := map[string]string{"KEY": keyText, "ADDR": "10.0.0.1, fd00::1", "PSK": "not a key"}
	lookup := func(name string) (string, bool) { v, ok := env[name]; return v, ok }
	_, err := Load(filepath.Join(dir, "a.conf"), Options{LookupEnv: lookup})
	if err == nil || !strings.HasSuffix(err.Error(), "a.conf:7: PresharedKey: not a WireGuard key: want 32 bytes in base64 (44 characters)") {
		t.Errorf("got error %v", err)
	}
	env["PSK"] = pskText
	cfg, err := Load(filepath.Join(dir, "a.conf"), Options{LookupEnv: lookup})
	if err != nil {
		t.Fatal(err)
	}
	if cfg.Interface.PrivateKey.Reveal() != keyText || len(cfg.Interface.Addresses) != 2 || cfg.Peers[0].PresharedKey.Reveal() != pskText {
		t.Errorf("got %+v", cfg)
	}
}

// What an orchestrator mounts belongs to root, and is readable to the group of the process.
func TestASecretOfAnotherUserMayBeReadableToOurGroup(t *testing.T) {
	for mode, warned := range map[fs.FileMode]bool{0o440: false, 0o640: false, 0o400: false, 0o444: true, 0o660: true, 0o604: true} {
		cfg, err := load("n.conf", testOptions(), func(name string) (*content, error) {
			if name == "n.conf" {
				return &content{bytes: []byte("[Interface]\nPrivateKeyFile=key\nAddress=10.0.0.1\n"), mode: 0o600}, nil
			}
			return &content{bytes: []byte(keyText), mode: mode, foreign: true}, nil
		})
		if err != nil {
			t.Fatal(err)
		}
		want := "[]"
		if warned {
			want = "[key: holds a secret, and its mode lets other users at it: it belongs to another user, who should make that 640 or less]"
		}
		if got := fmt.Sprint(cfg.Warnings); got != want {
			t.Errorf("mode %o: got %s, want %s", mode, got, want)
		}
	}
}

// What is ours is told from what is not.
func TestTheOwnerOfAFileIsSeen(t *testing.T) {
	file := filepath.Join(put(t, map[string]string{"key": keyText}), "key")
	text, err := readFile(file)
	if err != nil || text.foreign {
		t.Errorf("a file of our own: got %v, %v", text, err)
	}
	if os.Geteuid() != 0 {
		t.Skip("only root can give a file away")
	}
	if err := os.Chown(file, 12345, -1); err != nil {
		t.Skipf("this root may not give a file away: %v", err)
	}
	if text, err = readFile(file); err != nil || !text.foreign {
		t.Errorf("a file of somebody else: got %v, %v", text, err)
	}
}

func TestFilesWithSecretsThatOthersMayReadAreWarnedOf(t *testing.T) {
	dir := put(t, map[string]string{
		"literal.conf":  "[Interface]\nName=n\nPrivateKey=" + keyText + "\nAddress=10.0.0.1\n",
		"indirect.conf": "[Interface]\nName=n\nPrivateKeyFile=key\nAddress=10.0.0.1\n",
		"variable.conf": "[Interface]\nName=n\nPrivateKey=$KEY\nAddress=10.0.0.1\n",
		"key":           keyText,
	})
	lookup := func(string) (string, bool) { return keyText, true }
	for _, tt := range []struct {
		file, open string
		mode       fs.FileMode
		warned     bool
	}{
		{"literal.conf", "literal.conf", 0o600, false},
		{"literal.conf", "literal.conf", 0o400, false},
		{"literal.conf", "literal.conf", 0o640, true},
		{"literal.conf", "literal.conf", 0o604, true},
		{"indirect.conf", "indirect.conf", 0o644, false},
		{"indirect.conf", "key", 0o644, true},
		{"variable.conf", "variable.conf", 0o644, false},
	} {
		open := filepath.Join(dir, tt.open)
		if err := os.Chmod(open, tt.mode); err != nil {
			t.Fatal(err)
		}
		cfg, err := Load(filepath.Join(dir, tt.file), Options{LookupEnv: lookup})
		if err != nil {
			t.Fatal(err)
		}
		var want []Diagnostic
		if tt.warned {
			want = []Diagnostic{{open, 0, "holds a secret, and its mode lets other users at it: chmod 600 " + open}}
		}
		if len(cfg.Warnings) != len(want) || len(want) == 1 && cfg.Warnings[0] != want[0] {
			t.Errorf("%s with %s %o: got warnings %v, want %v", tt.file, tt.open, tt.mode, cfg.Warnings, want)
		}
		if err := os.Chmod(open, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

func TestPeersFromTheStateFolder(t *testing.T) {
	const base = "[Interface]\nName=n\nPrivateKey=" + keyText + "\nAddress=10.0.0.1\n"
	dir := put(t, map[string]string{
		"a.conf":                      base + "[Peer]\nName=main\nPublicKey=" + peerKey1 + "\nAllowPeers=apart\n",
		"good/peers.d/apart.conf":     "[Peer]\nName=apart\nPublicKey=" + peerKey2 + "\n",
		"good/peers.d/.hidden.conf":   "nonsense",
		"good/peers.d/README":         "nonsense",
		"bad/peers.d/1.conf":          "[Peer]\nName=main\nPublicKey=" + peerKey1 + "\nAllowPeers=main\n",
		"bad/peers.d/2.conf":          "[Peer]\nPubliKey=x\n[Exit]\n",
		"bad/peers.d/3.conf/not-file": "",
	})
	file := filepath.Join(dir, "a.conf")
	cfg, err := Load(file, Options{State: filepath.Join(dir, "good")})
	if err != nil {
		t.Fatal(err)
	}
	if len(cfg.Peers) != 2 || cfg.Peers[1].Name != "apart" || cfg.Peers[1].Line != 1 ||
		cfg.Peers[1].File != filepath.Join(dir, "good/peers.d/apart.conf") {
		t.Errorf("got peers %+v", cfg.Peers)
	}
	_, err = Load(file, Options{State: filepath.Join(dir, "absent")})
	if want := file + ":8: AllowPeers: there is no peer named apart"; err == nil || err.Error() != want {
		t.Errorf("without the folder: got %v, want %s", err, want)
	}
	_, err = Load(file, Options{State: filepath.Join(dir, "bad")})
	bad := filepath.Join(dir, "bad/peers.d")
	want := strings.Join([]string{
		bad + "/3.conf: read peer: is a directory",
		file + ":8: AllowPeers: there is no peer named apart",
		bad + "/1.conf:2: Name: the peer at " + file + ":5 is named main too",
		bad + "/1.conf:3: PublicKey: the peer at " + file + ":5 has the same key",
		bad + "/2.conf:1: [Peer] needs a PublicKey",
		bad + "/2.conf:2: unknown key PubliKey in [Peer]; did you mean PublicKey?",
		bad + "/2.conf:3: only [Peer] may stand in a file of peers.d",
	}, "\n")
	if err == nil || err.Error() != want {
		t.Errorf("got:\n%v\nwant:\n%s", err, want)
	}
}

func TestUnreadableConfiguration(t *testing.T) {
	dir := put(t, map[string]string{
		"utf16.conf":  "\xff\xfe[\x00I\x00",
		"zero.conf":   "[Interface]\nName=\x00\n",
		"folder/file": "",
		"huge.conf":   strings.Repeat("# comment\n", longestFile/10+1),
	})
	for file, want := range map[string]string{
		"absent.conf": "no such file or directory",
		"folder":      "is a directory",
		"utf16.conf":  ":1: the file is UTF-16: save it as UTF-8",
		"zero.conf":   ":2: not a text file: it contains a zero byte",
		"huge.conf":   "larger than 1 MiB",
	} {
		_, err := Load(filepath.Join(dir, file), Options{})
		if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), file) {
			t.Errorf("%s: got error %v, want %q", file, err, want)
		}
	}
	if _, err := Load(filepath.Join(dir, "absent.conf"), Options{}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("absent file: %v does not wrap fs.ErrNotExist", err)
	}
}

func TestNames(t *testing.T) {
	for _, tt := range []struct {
		in, want string
		ok       bool
	}{
		{"laptop", "laptop", true},
		{"Laptop-7", "laptop-7", true},
		{"7", "7", true},
		{strings.Repeat("a", 63), strings.Repeat("a", 63), true},
		{strings.Repeat("a", 64), "", false},
		{"", "", false},
		{"-a", "", false},
		{"a-", "", false},
		{"a.b", "", false},
		{"a_b", "", false},
		{"a b", "", false},
		{"../a", "", false},
		{"ä", "", false},
	} {
		got, err := ParseName(tt.in)
		if got != tt.want || (err == nil) != tt.ok {
			t.Errorf("ParseName(%q) = %q, %v; want %q, ok %v", tt.in, got, err, tt.want, tt.ok)
		}
	}
	for in, want := range map[string]string{
		"web-1.example.org":      "web-1",
		"Alice_s MacBook":        "alice-s-macbook",
		"":                       "culvert",
		"...":                    "culvert",
		"--":                     "culvert",
		"ünder":                  "nder",
		strings.Repeat("a", 80):  strings.Repeat("a", 63),
		strings.Repeat("a.", 80): "a",
	} {
		if got := NameFromHost(in); got != want {
			t.Errorf("NameFromHost(%q) = %q, want %q", in, got, want)
		}
	}
	for short, want := range map[string]string{"tenWwkou": "peer-tenwwkou", "A+/+/zz/": "peer-a0000zz0"} {
		got := defaultPeerName(short)
		if _, err := ParseName(got); got != want || err != nil {
			t.Errorf("defaultPeerName(%q) = %q (%v), want %q", short, got, err, want)
		}
	}
}

// An error must not repeat what may be a key, wherever it landed, whole or with a few characters lost.
func TestErrorsHideKeys(t *testing.T) {
	for cut := range 6 {
		secret := keyText[:len(keyText)-cut]
		for _, text := range []string{
			"[Interface]\nPrivateKey = " + secret + " extra\n",
			"[Interface]\nPrivateKey = " + secret + secret + "\n",
			"[Interface]\nPrivateKeyFile = " + secret + "\n",
			"[Interface]\nAddress = " + secret + "\n",
			"[Interface]\n" + secret + "\n",
			"[Interface]\n" + secret + " = x\n",
			"[" + secret + "]\n",
			secret + "\n",
			"[Peer]\nEndpoint = " + secret + "\nName = " + secret + "\nAllowRouting = " + secret + "\nPublicKey = " + secret + "x\n",
			"[Exit]\nDNS = " + secret + "\nDenyTo = " + secret + "\n",
			"[Relay]\nURL = " + secret + "\nPin = " + secret + "\nProxy = " + secret + "\nWebSocket = " + secret + "\n",
			"[Relay]\nURL = https://x:" + secret + "@relay\nProxy = http://x:" + secret + "@a b\nProxyFile = " + secret + "\n",
			"[SOCKS5]\nListen = " + secret + "\nUser = " + secret + "\nUsersFile = " + secret + "\nRoute = " + secret + " " + secret + "\nExit = " + secret + "\n",
			"[SOCKS5]\nListen = unix:" + secret + "\nUser = x+:" + secret + "\nRoute = * via " + secret + "\nRoute = " + secret + " direct\nHTTP = " + secret + "\n",
			"[Forward]\nListen = " + secret + ":1\nTo = " + secret + "\nAllowFrom = " + secret + "\n[Publish]\nListen = " + secret + "\nTo = unix:" + secret + "\n",
			"[Publish]\nListen = 80/" + secret + "\nTo = " + secret + ":80\nProxyProtocol = " + secret + "\n[Exit]\nDNSRoute = " + secret + " to " + secret + "\n",
			"[STUN]\nServer = " + secret + "\n[WGSTUN]\nPublicKey = " + secret + "x\nEndpoint = " + secret + "\nAddress = " + secret + "\n",
		} {
			_, err := loadText([]byte(text))
			if err == nil {
				t.Errorf("no error for %q", text)
			} else if strings.Contains(err.Error(), secret[:20]) || strings.Contains(err.Error(), strings.ToLower(secret[:20])) {
				t.Errorf("%q: the error shows the key: %v", text, err)
			}
		}
	}
}

// Nor must one about a relay's configuration.
func TestErrorsOfRelayConfigurationsHideKeys(t *testing.T) {
	for cut := range 6 {
		secret := keyText[:len(keyText)-cut]
		for _, text := range []string{
			"[Relay]\nPrivateKey = " + secret + " extra\nName = " + secret + "\nListen = " + secret + "\nURL = " + secret + "\n",
			"[Relay]\nCertificate = " + secret + "\nCertificateKey = " + secret + "\nACMERootCA = " + secret + "\nAllowFile = " + secret + "\n",
			"[Relay]\nDomain = " + secret + "\nACMEDirectory = " + secret + "\nACMEEmail = " + secret + "\nTLS = " + secret + "\n",
			"[Relay]\nTrustProxy = " + secret + "\nAllow = " + secret + " " + secret + "\nRate = " + secret + "\nOpen = " + secret + "\n",
			"[WGSTUN]\nListen = " + secret + "\nPrivateKeyFile = " + secret + "\nAddress = " + secret + "\nClient = x " + secret + "\n",
			"[Control]\nSocket = " + secret + "\nHTTP = " + secret + "\n",
			"[Relay]\n" + secret + " = x\n" + secret + "\n[" + secret + "]\n",
		} {
			_, err := loadRelayText([]byte(text))
			if err == nil {
				t.Errorf("no error for %q", text)
			} else if strings.Contains(strings.ToLower(err.Error()), strings.ToLower(secret[:20])) {
				t.Errorf("%q: the error shows the key: %v", text, err)
			}
		}
	}
}

func TestNearest(t *testing.T) {
	words := []string{"Address", "AllowedIPs", "MTU", "DNS"}
	for in, want := range map[string]string{
		"Adress":    "Address",
		"adderss":   "Address",
		"AllowedIP": "AllowedIPs",
		"MTUU":      "MTU",
		"MUT":       "MTU",
		"DSN":       "DNS",
		"Endpoint":  "",
		"":          "",
	} {
		if got := Nearest(in, words); got != want {
			t.Errorf("Nearest(%q) = %q, want %q", in, got, want)
		}
	}
}

func mustKey(t *testing.T) wgkey.Private {
	t.Helper()
	k, err := wgkey.NewPrivate()
	if err != nil {
		t.Fatal(err)
	}
	return k
}
