package config

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"culvert.dev/culvert/internal/wgkey"
)

const nodeText = "[Interface]\nName = node\nPrivateKey = " + keyText + "\nAddress = 10.0.0.1/24\n"

func loadDir(t *testing.T, dir string) *Config {
	t.Helper()
	cfg, err := Load(filepath.Join(dir, "a.conf"), Options{State: dir})
	if err != nil {
		t.Fatal(err)
	}
	return cfg
}

func TestAddedPeersAreLoadedAgain(t *testing.T) {
	dir := put(t, map[string]string{"a.conf": nodeText})
	given, _ := wgkey.ParsePublic(peerKey1)
	for i, n := range []NewPeer{
		{Name: "Phone", Allow: Allow{Routing: true}},
		{Name: "db", PublicKey: given, Allow: Allow{Inbound: true, Routing: true, LAN: true}},
	} {
		plan, err := loadDir(t, dir).PlanPeer(n)
		if err != nil {
			t.Fatal(err)
		}
		file, err := plan.Save(dir)
		if err != nil {
			t.Fatal(err)
		}
		checkMode(t, file, 0o600)
		checkMode(t, filepath.Dir(file), fs.ModeDir|0o700)
		cfg := loadDir(t, dir)
		got := cfg.Peers[len(cfg.Peers)-1-i] // db comes before phone
		if n.Name == "db" {
			got = cfg.Peers[0]
		}
		if got.Name != strings.ToLower(n.Name) || got.Allow != n.Allow || got.File != file || len(cfg.Warnings) != 0 {
			t.Errorf("got %+v, warnings %v", got, cfg.Warnings)
		}
		drawn := n.PublicKey.IsZero()
		if drawn != !plan.PrivateKey.IsZero() || drawn != !got.PresharedKey.IsZero() {
			t.Errorf("%s: keys drawn although one is given, or not drawn", n.Name)
		}
		if want := []string{"10.0.0.2/32", "10.0.0.3/32"}[i]; len(got.AllowedIPs) != 1 || got.AllowedIPs[0].String() != want {
			t.Errorf("%s: got addresses %v, want %s", n.Name, got.AllowedIPs, want)
		}
	}
}

func TestAPeerThatCollidesIsNotAdded(t *testing.T) {
	dir := put(t, map[string]string{"a.conf": nodeText + "[Peer]\nName = one\nPublicKey = " + peerKey1 + "\n"})
	cfg := loadDir(t, dir)
	taken, _ := wgkey.ParsePublic(peerKey1)
	for _, tt := range []struct {
		n    NewPeer
		want string
	}{
		{NewPeer{Name: "ONE"}, "add peer one: that name is taken at " + dir + "/a.conf:5"},
		{NewPeer{Name: "node"}, "add peer node: this node itself has that name"},
		{NewPeer{Name: "two", PublicKey: taken}, "add peer two: peer one at " + dir + "/a.conf:5 has that key already"},
		{NewPeer{Name: "two", PublicKey: cfg.Interface.PrivateKey.Public()}, "add peer two: that is this node's own public key"},
		{NewPeer{Name: "../two"}, `add peer: "../two" is not a name: want 1 to 63 of a-z, 0-9 and -, with no - at either end`},
	} {
		if _, err := cfg.PlanPeer(tt.n); err == nil || err.Error() != tt.want {
			t.Errorf("got error %v, want %s", err, tt.want)
		}
	}
	plan, err := cfg.PlanPeer(NewPeer{Name: "two"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := plan.Save(dir); err != nil {
		t.Fatal(err)
	}
	if _, err := plan.Save(dir); !errors.Is(err, fs.ErrExist) {
		t.Errorf("saved over an existing file: %v", err)
	}
}

func TestRemovingAPeerKeepsEveryOtherLine(t *testing.T) {
	peer := func(name, key string) string {
		return "[Peer]\n# inside\nName = " + name + "\n\nPublicKey = " + key + " # its key\n"
	}
	for _, tt := range []struct{ name, before, after string }{
		{
			"between others",
			nodeText + "\n# above\n" + peer("x", peerKey1) + "# below\n\n[Exit]\nDNS = off\n",
			nodeText + "\n# above\n# below\n\n[Exit]\nDNS = off\n",
		},
		{
			"one run of blank lines stays",
			nodeText + "\n" + peer("x", peerKey1) + "\n\n# next\n" + peer("y", peerKey2),
			nodeText + "\n# next\n" + peer("y", peerKey2),
		},
		{"at the end, without a final newline", nodeText + "\n" + strings.TrimSuffix(peer("x", peerKey1), "\n"), nodeText + "\n"},
		{"first in the file", peer("x", peerKey1) + "\n" + nodeText, nodeText},
		{
			"CRLF",
			strings.ReplaceAll(nodeText+peer("x", peerKey1)+"\n"+peer("y", peerKey2), "\n", "\r\n"),
			strings.ReplaceAll(nodeText+"\n"+peer("y", peerKey2), "\n", "\r\n"),
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := put(t, map[string]string{"real.conf": tt.before})
			if err := os.Symlink("real.conf", filepath.Join(dir, "a.conf")); err != nil {
				t.Fatal(err)
			}
			if err := os.Chmod(filepath.Join(dir, "real.conf"), 0o640); err != nil {
				t.Fatal(err)
			}
			file, err := loadDir(t, dir).RemovePeer("X")
			if err != nil || file != filepath.Join(dir, "a.conf") {
				t.Fatalf("got %s, %v", file, err)
			}
			got, err := os.ReadFile(filepath.Join(dir, "real.conf"))
			if err != nil || string(got) != tt.after {
				t.Errorf("got %q\nwant %q (%v)", got, tt.after, err)
			}
			checkMode(t, filepath.Join(dir, "real.conf"), 0o640)
			if info, err := os.Lstat(file); err != nil || info.Mode()&fs.ModeSymlink == 0 {
				t.Errorf("the symbolic link is gone: %v, %v", info, err)
			}
			if names, _ := os.ReadDir(dir); len(names) != 2 {
				t.Errorf("left behind: %v", names)
			}
		})
	}
}

func TestRemovingAPeerOfTheStateFolder(t *testing.T) {
	one, two := "[Peer]\nName = one\nPublicKey = "+peerKey1+"\n", "[Peer]\nName = two\nPublicKey = "+peerKey2+"\n"
	dir := put(t, map[string]string{"a.conf": nodeText, "peers.d/both.conf": one + two})
	both := filepath.Join(dir, "peers.d/both.conf")
	if _, err := loadDir(t, dir).RemovePeer("one"); err != nil {
		t.Fatal(err)
	}
	if got, _ := os.ReadFile(both); string(got) != two {
		t.Errorf("got %q", got)
	}
	if _, err := loadDir(t, dir).RemovePeer("two"); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(both); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the empty file is still there: %v", err)
	}
}

func TestAPeerThatCannotBeRemoved(t *testing.T) {
	dir := put(t, map[string]string{"a.conf": nodeText + "[Peer]\nName=alpha\nPublicKey=" + peerKey1 + "\n[Peer]\nName=beta\nPublicKey=" + peerKey2 + "\nAllowPeers=alpha\n"})
	cfg := loadDir(t, dir)
	for name, want := range map[string]string{
		"alpa":  `remove peer: there is no peer named "alpa"; did you mean alpha?`,
		"alpha": "remove peer alpha: AllowPeers of peer beta at " + dir + "/a.conf:8 names it; change that first",
	} {
		if _, err := cfg.RemovePeer(name); err == nil || err.Error() != want {
			t.Errorf("got error %v, want %s", err, want)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "a.conf"), []byte("# new first line\n"+nodeText), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := cfg.RemovePeer("beta"); err == nil || !strings.Contains(err.Error(), "changed by someone else meanwhile") {
		t.Errorf("got error %v", err)
	}
}
