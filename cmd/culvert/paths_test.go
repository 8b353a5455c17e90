package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"culvert.dev/culvert/internal/config"
)

// testPlaces is a host with the given environment, whose system folders lie below dir.
func testPlaces(dir string, root bool, env map[string]string) places {
	return places{
		getenv:   func(name string) string { return env[name] },
		etc:      filepath.Join(dir, "etc"),
		varLib:   filepath.Join(dir, "lib"),
		root:     root,
		writable: func(dir string) bool { _, err := os.Stat(dir); return err == nil },
	}
}

func TestWhereTheConfigurationIsLookedFor(t *testing.T) {
	for _, tt := range []struct {
		name string
		env  map[string]string
		want string
	}{
		{"home", map[string]string{"HOME": "/h"}, "/h/.config/culvert/culvert.conf /none/etc/culvert/culvert.conf"},
		{"XDG", map[string]string{"HOME": "/h", "XDG_CONFIG_HOME": "/x"}, "/x/culvert/culvert.conf /none/etc/culvert/culvert.conf"},
		{"relative XDG is ignored", map[string]string{"HOME": "/h", "XDG_CONFIG_HOME": "x"}, "/h/.config/culvert/culvert.conf /none/etc/culvert/culvert.conf"},
		{"no home, state folder", map[string]string{"STATE_DIRECTORY": "/s:/t"}, "/s/culvert.conf /none/etc/culvert/culvert.conf"},
		{"nothing", nil, "/none/etc/culvert/culvert.conf"},
	} {
		p := testPlaces("/none", false, tt.env)
		if got := strings.Join(p.configs(""), " "); got != tt.want {
			t.Errorf("%s: got %s, want %s", tt.name, got, tt.want)
		}
		_, err := p.config("", "")
		var none *noConfigError
		if !errors.As(err, &none) {
			t.Errorf("%s: got error %v", tt.name, err)
		}
		if got, err := p.config("named", ""); got != "named" || err != nil {
			t.Errorf("%s: named: got %s, %v", tt.name, got, err)
		}
		first, err := p.newConfig("", "")
		if want, _, found := strings.Cut(tt.want, " "); found && first != want || found != (err == nil) {
			t.Errorf("%s: new configuration at %s, %v", tt.name, first, err)
		}
	}
}

func TestWithoutAHomeTheConfigurationLiesInTheNamedState(t *testing.T) {
	p := testPlaces("/none", true, map[string]string{"STATE_DIRECTORY": "/s"})
	if got, err := p.newConfig("", "/named"); got != "/named/culvert.conf" || err != nil {
		t.Errorf("got %s, %v", got, err)
	}
}

func TestTheFirstConfigurationThatExistsIsRead(t *testing.T) {
	dir := t.TempDir()
	p := testPlaces(dir, false, map[string]string{"HOME": dir})
	for _, file := range []string{filepath.Join(dir, "etc/culvert/culvert.conf"), filepath.Join(dir, ".config/culvert/culvert.conf")} {
		if err := config.WriteSecret(file, ""); err != nil {
			t.Fatal(err)
		}
		if got, err := p.config("", ""); got != file || err != nil {
			t.Errorf("got %s, %v; want %s", got, err, file)
		}
	}
}

func TestWhereTheStateLies(t *testing.T) {
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "lib"), 0o700); err != nil {
		t.Fatal(err)
	}
	home := map[string]string{"HOME": "/h"}
	for _, tt := range []struct {
		name, dir string
		root      bool
		env       map[string]string
		want      string
	}{
		{"home", dir, false, home, "/h/.local/state/culvert"},
		{"XDG", dir, false, map[string]string{"HOME": "/h", "XDG_STATE_HOME": "/x"}, "/x/culvert"},
		{"systemd", dir, false, map[string]string{"HOME": "/h", "STATE_DIRECTORY": "/s:/t"}, "/s"},
		{"root", dir, true, home, dir + "/lib/culvert"},
		{"root with XDG", dir, true, map[string]string{"HOME": "/h", "XDG_STATE_HOME": "/x"}, "/x/culvert"},
		{"root of a user namespace", "/none", true, home, "/h/.local/state/culvert"},
		{"nothing", dir, false, nil, ""},
	} {
		got, err := testPlaces(tt.dir, tt.root, tt.env).state("")
		if got != tt.want || (err == nil) != (tt.want != "") {
			t.Errorf("%s: got %s, %v; want %s", tt.name, got, err, tt.want)
		}
	}
	if got, err := testPlaces(dir, false, nil).state("named"); got != "named" || err != nil {
		t.Errorf("named: got %s, %v", got, err)
	}
}

func TestWhereTheControlSocketLies(t *testing.T) {
	runtime := map[string]string{"XDG_RUNTIME_DIR": "/run/user/7"}
	node := &config.Config{Interface: config.Interface{Name: "n"}}
	other := &config.Config{Interface: config.Interface{Name: "n"}, Control: config.Control{Socket: "/c.sock"}}
	for _, tt := range []struct {
		named string
		cfg   *config.Config
		env   map[string]string
		want  string
	}{
		{"/named.sock", other, runtime, "/named.sock"},
		{"", other, runtime, "/c.sock"},
		{"", node, runtime, "/run/user/7/culvert/n.sock"},
		{"", node, nil, "/state/control.sock"},
	} {
		got, err := testPlaces("/none", false, tt.env).socket(tt.named, tt.cfg, "/state")
		if got != tt.want || err != nil {
			t.Errorf("got %s, %v; want %s", got, err, tt.want)
		}
	}
	p := testPlaces("/none", false, nil)
	if got, err := p.socket("/"+strings.Repeat("x", 106), node, ""); err != nil {
		t.Errorf("107 bytes: got %s, %v", got, err)
	}
	if got, err := p.socket("/"+strings.Repeat("x", 107), node, ""); err == nil {
		t.Errorf("108 bytes: got %s", got)
	}
	if _, err := net.Listen("unix", filepath.Join(t.TempDir(), strings.Repeat("x", 108))); err == nil {
		t.Error("the system takes longer paths than this test assumes")
	}
}

func TestRunningNodesAreFoundByTheirSockets(t *testing.T) {
	dir, err := os.MkdirTemp("", "culvert") // short, for the sockets' sake
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	p := testPlaces(dir, false, map[string]string{"XDG_RUNTIME_DIR": dir})
	if err := os.Mkdir(filepath.Join(dir, "culvert"), 0o700); err != nil {
		t.Fatal(err)
	}
	if got := p.running(dir); len(got) != 0 {
		t.Errorf("got %v", got)
	}
	want := []string{filepath.Join(dir, "culvert", "a.sock"), filepath.Join(dir, "control.sock")}
	for _, socket := range want {
		l, err := net.Listen("unix", socket)
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
	}
	if got := p.running(dir); fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("got %v, want %v", got, want)
	}
}
