package config

import (
	"fmt"
	"os"
	"strings"
	"testing"
)

func TestRelayURLs(t *testing.T) {
	for _, tt := range []struct{ in, want string }{ // want "": refused
		{"https://relay.example", "https://relay.example"},
		{"https://relay.example/", "https://relay.example"},
		{"HTTPS://RELAY.example:443", "https://relay.example"},
		{"https://relay.example:0443", "https://relay.example"},
		{"https://relay.example:8443", "https://relay.example:8443"},
		{"http://relay.example:443", "http://relay.example:443"},
		{"http://relay.example:80/", "http://relay.example"},
		{"https://192.0.2.1", "https://192.0.2.1"},
		{"https://[2001:DB8::1]", "https://[2001:db8::1]"},
		{"https://[2001:db8::1]:8443", "https://[2001:db8::1]:8443"},
		{"", ""},
		{"relay.example", ""},
		{"relay.example:443", ""},
		{"//relay.example", ""},
		{"https:relay.example", ""},
		{"https://", ""},
		{"https://:443", ""},
		{"https://relay.example:", ""},
		{"https://relay.example:0", ""},
		{"https://relay.example:65536", ""},
		{"https://relay example", ""},
		{"https://relay.example/derp", ""},
		{"https://relay.example?a=b", ""},
		{"https://relay.example#a", ""},
		{"https://user@relay.example", ""},
		{"https://[fe80::1%25eth0]", ""},
		{"wss://relay.example", ""},
		{"ftp://relay.example", ""},
	} {
		got, err := parseRelayURL(tt.in)
		if got != tt.want || (err == nil) != (tt.want != "") {
			t.Errorf("%q: got %q, %v; want %q", tt.in, got, err, tt.want)
		}
		if again, err := parseRelayURL(got); tt.want != "" && (again != got || err != nil) {
			t.Errorf("%q: its spelling %q reads as %q, %v", tt.in, got, again, err)
		}
	}
}

func TestRelaysAreFew(t *testing.T) {
	text := func(n int) []byte {
		s := "[Interface]\nName=n\nPrivateKey=" + keyText + "\nAddress=10.0.0.1\n[Relay]\n"
		for i := range n {
			s += fmt.Sprintf("URL = https://relay-%d.example\n", i)
		}
		return []byte(s)
	}
	if cfg, err := loadText(text(maxRelays)); err != nil || len(cfg.Relays) != maxRelays {
		t.Errorf("got %v", err)
	}
	if _, err := loadText(text(maxRelays + 1)); err == nil || err.Error() != "fuzz.conf:22: URL: one relay too many: there may be 16" {
		t.Errorf("got %v", err)
	}
}

func TestProxies(t *testing.T) {
	env := func(name string) (string, bool) { return "p@$", name == "PASS" }
	for _, tt := range []struct {
		in, want string // want "": refused
		secret   bool
	}{
		{"none", "none", false},
		{"NONE", "none", false},
		{"http://proxy", "http://proxy", false},
		{"http://Proxy:80/", "http://proxy", false},
		{"http://proxy:3128", "http://proxy:3128", false},
		{"https://[2001:db8::1]:8080", "https://[2001:db8::1]:8080", false},
		{"http://user@proxy:3128", "http://user@proxy:3128", false},
		{"http://user:$PASS@proxy:3128", "http://user:p%40$@proxy:3128", false},
		{"http://user:${PASS}@proxy:3128", "http://user:p%40$@proxy:3128", false},
		{"http://user:secret@proxy:3128", "http://user:secret@proxy:3128", true},
		{"http://user:%24PASS@proxy:3128", "http://user:$PASS@proxy:3128", true},
		{"http://user:a$PASS@proxy:3128", "http://user:a$PASS@proxy:3128", true},
		{"http://us%40er:sec@ret@proxy:3128", "http://us%40er:sec%40ret@proxy:3128", true},
		{"", "", false},
		{"proxy:3128", "", false},
		{"http://", "", false},
		{"http://proxy:0", "", false},
		{"http://proxy/path", "", false},
		{"http://proxy?secret", "", false},
		{"http://:secret@proxy", "", true},
		{"http://user:$UNSET@proxy", "", false},
		{"http://user:%zz@proxy", "", true},
		{"socks5://proxy:1080", "", false},
	} {
		got, secret, err := parseProxy(tt.in, env)
		if got != tt.want || secret != tt.secret || (err == nil) != (tt.want != "") {
			t.Errorf("%q: got %q, secret %v, %v; want %q, secret %v", tt.in, got, secret, err, tt.want, tt.secret)
		}
		if err != nil && (strings.Contains(err.Error(), "secret") || strings.Contains(err.Error(), "zz")) {
			t.Errorf("%q: the error shows the password: %v", tt.in, err)
		}
	}
}

// The text of a variable or of a file is the proxy as it is: a $ in it stands for itself. Neither makes the configuration secret.
func TestProxyFromElsewhere(t *testing.T) {
	const base = "[Interface]\nName=n\nPrivateKeyFile=key\nAddress=10.0.0.1\n[Relay]\nURL=https://relay.example\n"
	const proxy = "http://user:$HOME@proxy:3128"
	dir := put(t, map[string]string{
		"variable.conf": base + "Proxy = $PROXY\n", "file.conf": base + "ProxyFile = proxy\n", "literal.conf": base + "Proxy = http://user:word@proxy:3128\n",
		"key": keyText, "proxy": proxy + "\n",
	})
	env := func(name string) (string, bool) {
		return map[string]string{"PROXY": proxy, "HOME": "/root"}[name], true
	}
	for file, want := range map[string]string{"variable.conf": proxy, "file.conf": proxy, "literal.conf": "http://user:word@proxy:3128"} {
		if err := os.Chmod(dir+"/"+file, 0o644); err != nil {
			t.Fatal(err)
		}
		cfg, err := Load(dir+"/"+file, Options{LookupEnv: env})
		if err != nil {
			t.Fatal(err)
		}
		if got := cfg.Relays[0].Proxy; got != want {
			t.Errorf("%s: got %q, want %q", file, got, want)
		}
		if warned := len(cfg.Warnings) > 0; warned != (file == "literal.conf") {
			t.Errorf("%s: got warnings %v", file, cfg.Warnings)
		}
	}
}
