package config

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"culvert.dev/culvert/internal/wgkey"
)

// renderRelay writes a relay's configuration in full, defaults included.
func renderRelay(c *RelayConfig) string {
	var b strings.Builder
	line := func(key, value string) {
		if value != "" {
			fmt.Fprintf(&b, "%s =%s\n", key, value)
		}
	}
	key := func(k RelayKey) string {
		if k.Private.IsZero() {
			return ""
		}
		return k.Private.Reveal()
	}
	s := c.Server
	b.WriteString("[Relay]\n")
	line("Name", s.Name)
	line("Listen", join(s.Listen))
	line("PrivateKey", key(s.Key))
	line("URL", s.URL)
	line("Certificate", s.Certificate)
	line("CertificateKey", s.CertificateKey)
	if s.TLS == TLSACME {
		line("Domain", strings.Join(s.Domains, ", "))
		line("ACMEDirectory", s.ACMEDirectory)
		line("ACMEEmail", s.ACMEEmail)
		line("ACMERootCA", s.ACMERootCA)
	}
	line("ListenHTTP", join(s.ListenHTTP))
	line("TLS", map[bool]string{true: "off", false: "on"}[s.TLS == TLSOff])
	line("TrustProxy", join(s.TrustProxy))
	for _, a := range s.Allow {
		line("Allow", a.String())
	}
	line("AllowFile", s.AllowFile)
	line("Open", map[bool]string{true: "yes", false: "no"}[s.Open])
	if s.Rate != 0 {
		line("Rate", s.Rate.String())
	}
	line("MaxClients", fmt.Sprint(s.MaxClients))
	line("MaxPerAddress", fmt.Sprint(s.MaxPerAddress))
	off := func(list []ListenAddr) string {
		if len(list) == 0 {
			return "off"
		}
		return join(list)
	}
	b.WriteString("[STUN]\n")
	line("Listen", off(c.STUN.Listen))
	b.WriteString("[WGSTUN]\n")
	line("Listen", off(c.WGSTUN.Listen))
	line("PrivateKey", key(c.WGSTUN.Key))
	line("Address", join(c.WGSTUN.Addresses))
	for _, w := range c.WGSTUN.Clients {
		value := w.Key.String()
		if w.Address.IsValid() {
			value += " " + w.Address.String()
		}
		line("Client", value)
	}
	b.WriteString("[Control]\n")
	line("Socket", c.Control.Socket)
	if c.Control.HTTP.IsValid() {
		line("HTTP", c.Control.HTTP.String())
	}
	return b.String()
}

// Configurations of a relay load, and mean what their .want says.
func TestRelayConfigurationsAreAccepted(t *testing.T) {
	files, _ := filepath.Glob("testdata/relay-good/*.conf")
	if len(files) == 0 {
		t.Fatal("no corpus")
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			cfg, err := LoadRelay(file, testOptions())
			if err != nil {
				t.Fatal(err)
			}
			got := "# TLS: " + cfg.Server.TLS.String() + "\n" + renderRelay(cfg)
			for _, w := range cfg.Warnings {
				if !strings.Contains(w.Message, "chmod 600") {
					got += fmt.Sprintf("# warning %d: %s\n", w.Line, w.Message)
				}
			}
			golden := strings.TrimSuffix(file, ".conf") + ".want"
			if *update {
				if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if got != string(want) {
				t.Errorf("got:\n%s\nwant:\n%s", got, want)
			}
		})
	}
}

// Without a file the defaults hold, keys lie in the state folder, and nobody is admitted.
func TestRelayWithoutConfiguration(t *testing.T) {
	state := t.TempDir()
	cfg, err := LoadRelay("", Options{State: state, Hostname: func() (string, error) { return "vm-3.example", nil }})
	if err != nil {
		t.Fatal(err)
	}
	s := cfg.Server
	if s.Name != "vm-3" || s.TLS != TLSSelfSigned || s.Open || s.Rate != 0 || len(s.Allow) != 0 || len(s.Listen) != 0 {
		t.Errorf("got %+v", s)
	}
	if s.Key != (RelayKey{File: filepath.Join(state, "relay.key")}) || cfg.WGSTUN.Key != (RelayKey{File: filepath.Join(state, "wgstun.key")}) {
		t.Errorf("got keys %+v and %+v", s.Key, cfg.WGSTUN.Key)
	}
	if s.AllowFile != filepath.Join(state, "allowed.keys") {
		t.Errorf("got allow file %s", s.AllowFile)
	}
	if fmt.Sprint(cfg.STUN.Listen, cfg.WGSTUN.Listen, cfg.WGSTUN.Addresses) != "[:3478] [:3479] [100.64.0.4 fd74:656c:696f::4]" {
		t.Errorf("got %+v and %+v", cfg.STUN, cfg.WGSTUN)
	}
	if len(cfg.Warnings) != 0 {
		t.Errorf("got warnings %v", cfg.Warnings)
	}

	again, err := LoadRelay("", Options{State: writeRelayKeys(t, state, keyText+"\n", pskText)})
	if err != nil {
		t.Fatal(err)
	}
	if again.Server.Key.Private.Reveal() != keyText || again.WGSTUN.Key.Private.Reveal() != pskText {
		t.Error("the keys of the state folder were not read")
	}
}

func writeRelayKeys(t *testing.T, state, relay, wgstun string) string {
	t.Helper()
	for name, text := range map[string]string{"relay.key": relay, "wgstun.key": wgstun} {
		if err := os.WriteFile(filepath.Join(state, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return state
}

// A key in the state folder that cannot be read is an error: drawing another would make the relay a stranger.
func TestRelayKeysThatAreNone(t *testing.T) {
	state := writeRelayKeys(t, t.TempDir(), "", keyText[:30])
	_, err := LoadRelay("", Options{State: state})
	var faults Errors
	if !errors.As(err, &faults) || len(faults) != 2 {
		t.Fatalf("got %v", err)
	}
	for i, file := range []string{"relay.key", "wgstun.key"} {
		want := filepath.Join(state, file) + ": read the relay's key: not a WireGuard key: want 32 bytes in base64 (44 characters)"
		if faults[i].String() != want {
			t.Errorf("got %s\nwant %s", faults[i], want)
		}
	}
}

// What is wrong with the allow file is reported together with the rest, and nobody is admitted meanwhile.
func TestAllowFileIsCheckedWithTheConfiguration(t *testing.T) {
	dir := put(t, map[string]string{
		"relay.conf":   "[Relay]\nName = r\nAllowFile = allowed.keys\nRate = fast\n",
		"allowed.keys": peerKey1 + " laptop\nnonsense\n",
	})
	_, err := LoadRelay(filepath.Join(dir, "relay.conf"), Options{})
	want := filepath.Join(dir, "relay.conf") + ":4: Rate: \"fast\" is not a rate such as 500kbit, 50Mbit or 1Gbit\n" +
		filepath.Join(dir, "allowed.keys") + ":2: not a WireGuard key: want 32 bytes in base64 (44 characters)"
	if err == nil || err.Error() != want {
		t.Errorf("got:\n%v\nwant:\n%s", err, want)
	}
	if err := os.Remove(filepath.Join(dir, "allowed.keys")); err != nil {
		t.Fatal(err)
	}
	cfg, err := LoadRelay(filepath.Join(put(t, map[string]string{"relay.conf": "[Relay]\nAllowFile = allowed.keys\n"}), "relay.conf"), Options{})
	if err != nil || len(cfg.Warnings) != 1 || !strings.Contains(cfg.Warnings[0].Message, "culvert relay allow makes it") {
		t.Errorf("got %+v, %v", cfg, err)
	}
	if _, err := LoadRelay(filepath.Join(dir, "absent.conf"), Options{}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("absent file: got %v", err)
	}
}

func TestSecretsOfARelayFromFilesAndTheEnvironment(t *testing.T) {
	dir := put(t, map[string]string{
		"relay.conf": "[Relay]\nPrivateKeyFile = r.key\nAllow = $WHO\n[WGSTUN]\nPrivateKey = ${KEY}\n",
		"r.key":      keyText,
	})
	env := map[string]string{"KEY": pskText, "WHO": peerKey1 + " laptop"}
	cfg, err := LoadRelay(filepath.Join(dir, "relay.conf"), Options{LookupEnv: func(n string) (string, bool) { v, ok := env[n]; return v, ok }, State: dir})
	if err != nil {
		t.Fatal(err)
	}
	if cfg.Server.Key.Private.Reveal() != keyText || cfg.Server.Key.File != "" || cfg.WGSTUN.Key.Private.Reveal() != pskText {
		t.Error("the keys are not those of the files")
	}
	want := Allowed{mustPublic(t, peerKey1), "laptop", filepath.Join(dir, "relay.conf"), 3}
	if !slices.Equal(cfg.Server.Allow, []Allowed{want}) {
		t.Errorf("got %+v", cfg.Server.Allow)
	}
}

func mustPublic(t *testing.T, s string) wgkey.Public {
	t.Helper()
	k, err := wgkey.ParsePublic(s)
	if err != nil {
		t.Fatal(err)
	}
	return k
}
