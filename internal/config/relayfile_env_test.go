package config

import (
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func loadRelayEnviron(t *testing.T, text string, environ ...string) (*RelayConfig, error) {
	t.Helper()
	file := ""
	if text != "" {
		file = filepath.Join(put(t, map[string]string{"relay.conf": text}), "relay.conf")
	}
	o := testOptions()
	o.Environ = environ
	cfg, err := LoadRelay(file, o)
	return cfg, trimDir(err, filepath.Dir(file))
}

// A relay needs no file: the environment says what a file would. A node's variables are not meant.
func TestARelayFromTheEnvironmentAlone(t *testing.T) {
	dir := put(t, map[string]string{"key": keyText + "\n", "allowed": "", "cert": ""})
	got, err := loadRelayEnviron(t, "",
		"CULVERT_RELAYD_NAME=relay", "CULVERT_RELAYD_URL=https://relay.example", "CULVERT_RELAYD_LISTEN=:443;:8443",
		"CULVERT_RELAYD_PRIVATE_KEY_FILE="+filepath.Join(dir, "key"), "CULVERT_RELAYD_ALLOW="+peerKey1+" laptop\n"+peerKey2+"\n",
		"CULVERT_RELAYD_ALLOW_FILE="+filepath.Join(dir, "allowed"), "CULVERT_RELAYD_MAX_PER_ADDRESS=7", "CULVERT_RELAYD_RATE=5Mbit",
		"CULVERT_RELAYD_STUN_LISTEN=off", "CULVERT_RELAYD_WGSTUN_LISTEN=:51820", "CULVERT_RELAYD_WGSTUN_PRIVATE_KEY="+pskText,
		"CULVERT_RELAYD_CONTROL_HTTP=127.0.0.1:9091",
		"CULVERT_RELAYD_OPEN=", "CULVERT_RELAYD_SERVICE_HOST=10.0.0.7", "CULVERT_RELAYD_PORT=tcp://10.0.0.7:443", "CULVERT_RELAYD_PORT_443_TCP_ADDR=10.0.0.7",
		"CULVERT_RELAY_URL=https://another.example", "CULVERT_RELAY_PORT=tcp://10.0.0.8:443", "CULVERT_STUN_SERVER=192.0.2.1:3478", "CULVERT_LISTEN=:1",
	)
	if err != nil {
		t.Fatal(err)
	}
	want, err := loadRelayEnviron(t, `[Relay]
Name = relay
URL = https://relay.example
Listen = :443, :8443
PrivateKey = `+keyText+`
Allow = `+peerKey1+` laptop
Allow = `+peerKey2+`
AllowFile = `+filepath.Join(dir, "allowed")+`
MaxPerAddress = 7
Rate = 5Mbit
[STUN]
Listen = off
[WGSTUN]
Listen = :51820
PrivateKey = `+pskText+`
[Control]
HTTP = 127.0.0.1:9091
`)
	if err != nil {
		t.Fatal(err)
	}
	if renderRelay(got) != renderRelay(want) {
		t.Errorf("got:\n%s\nwant:\n%s", renderRelay(got), renderRelay(want))
	}
	if a := got.Server.Allow; a[0].File != "CULVERT_RELAYD_ALLOW" || a[0].Line != 1 || a[1].Line != 2 {
		t.Errorf("got %+v", a)
	}
	if len(got.Environment) != 12 || got.Environment[0] != (Variable{Name: "CULVERT_RELAYD_ALLOW", Section: "Relay", Key: "Allow"}) {
		t.Errorf("got %+v", got.Environment)
	}
	if len(got.Warnings) != 0 {
		t.Errorf("got %v", got.Warnings)
	}
}

// Variables win over the file, key by key.
func TestVariablesOfARelayWinOverItsFile(t *testing.T) {
	got, err := loadRelayEnviron(t, "[Relay]\nName = a\nURL = https://a.example\nAllow = "+peerKey1+"\n", "CULVERT_RELAYD_URL=https://b.example", "CULVERT_RELAYD_ALLOW="+peerKey2)
	if err != nil {
		t.Fatal(err)
	}
	if s := got.Server; s.Name != "a" || s.URL != "https://b.example" || len(s.Allow) != 1 || s.Allow[0].Key != mustPublic(t, peerKey2) {
		t.Errorf("got %+v", s)
	}
	i := slices.IndexFunc(got.Environment, func(v Variable) bool { return v.Key == "URL" })
	if i < 0 || !strings.HasSuffix(got.Environment[i].Replaces, "relay.conf:3") {
		t.Errorf("got %+v", got.Environment)
	}
}

// Faults name the variable, and no secret.
func TestFaultsOfARelaysVariables(t *testing.T) {
	_, err := loadRelayEnviron(t, "[Relay]\nDomain = relay.example\n",
		"CULVERT_RELAYD_LISTN=:443", "CULVERT_RELAYD_1_URL=https://relay.example", "CULVERT_RELAYD_STUN_LISEN=off", "CULVERT_RELAYD_WGSTUN=1",
		"CULVERT_RELAYD_PRIVATE_KEY="+keyText[:40], "CULVERT_RELAYD_CERTIFICATE=a.pem", "CULVERT_RELAYD_RATE_FILE=/nowhere",
		"CULVERT_RELAYD_ALLOW="+peerKey1+";"+peerKey1)
	want := []string{
		"CULVERT_RELAYD_1_URL: there is one [Relay] only: leave the number out",
		"CULVERT_RELAYD_LISTN: [Relay] has no such key; did you mean CULVERT_RELAYD_LISTEN?",
		"CULVERT_RELAYD_STUN_LISEN: [STUN] has no such key; did you mean CULVERT_RELAYD_STUN_LISTEN?",
		"CULVERT_RELAYD_WGSTUN: names the section [WGSTUN] and no key of it, such as CULVERT_RELAYD_WGSTUN_LISTEN",
		"CULVERT_RELAYD_ALLOW:2: Allow: the same key stands in CULVERT_RELAYD_ALLOW:1",
		"CULVERT_RELAYD_CERTIFICATE: Certificate and CertificateKey go together",
		"CULVERT_RELAYD_PRIVATE_KEY: PrivateKey: not a WireGuard key: want 32 bytes in base64 (44 characters)",
		"CULVERT_RELAYD_RATE_FILE: read /nowhere: no such file or directory",
		"relay.conf:2: Domain: the certificate comes by ACME or from the files in CULVERT_RELAYD_CERTIFICATE, not both",
	}
	if err == nil {
		t.Fatal("no error")
	}
	got := strings.Split(err.Error(), "\n")
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("got:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// A node has no use for what a relay beside it in the same environment is made of.
func TestANodeLeavesTheVariablesOfARelayAlone(t *testing.T) {
	environ := []string{"CULVERT_RELAYD_URL=https://relay.example", "CULVERT_RELAYD_NONSENSE=1"}
	if HasEnvironment(environ) {
		t.Error("they count as the configuration of a node")
	}
	cfg, err := loadEnviron(t, "", identityVariables(environ...)...)
	if err != nil || len(cfg.Warnings) != 0 || len(cfg.Relays) != 0 || len(cfg.Environment) != 3 {
		t.Errorf("got %+v, %v", cfg, err)
	}
}

func TestEveryListedVariableOfARelayIsAKey(t *testing.T) {
	l := newRelayLoader(testOptions(), readFile)
	keys := 0
	for _, k := range l.kinds {
		for _, key := range k.keys {
			if keys++; key.doc == "" || strings.ContainsAny(key.doc, "\n\t") {
				t.Errorf("%s in [%s]: no line of documentation", key.name, k.name)
			}
		}
	}
	list := RelayEnvironmentKeys()
	if len(list) != keys-2 { // the two PrivateKeyFile are variables with _FILE
		t.Errorf("%d variables for %d keys", len(list), keys)
	}
	for _, e := range list {
		vars := l.variables([]string{e.Name + "=x"})
		if len(vars) != 1 || len(l.faults) > 0 || vars[0].file || envKey(vars[0].Key) != strings.TrimPrefix(e.Name, l.names.section(vars[0].Section, noNumber)+"_") {
			t.Errorf("%s: %+v, %v", e.Name, vars, l.faults)
		}
	}
}

// No environment of a relay makes the parser panic or say nothing of what it does not understand.
func FuzzRelayEnvironment(f *testing.F) {
	f.Add("CULVERT_RELAYD_PRIVATE_KEY", keyText, "CULVERT_RELAYD_ALLOW", peerKey1+" a;"+peerKey2)
	f.Add("CULVERT_RELAYD_STUN_LISTEN", "off", "CULVERT_RELAYD_WGSTUN_CLIENT", peerKey1+" 100.64.1.7")
	f.Add("CULVERT_RELAYD_ALLOW_FILE", "/x", "CULVERT_RELAYD_TLS", "off")
	f.Add("CULVERT_RELAYD_2_URL", "x", "CULVERT_RELAYD_", "y")
	f.Fuzz(func(t *testing.T, name1, value1, name2, value2 string) {
		o := testOptions()
		o.Environ = []string{name1 + "=" + value1, name2 + "=" + value2}
		absent := func(string) (*content, error) { return nil, os.ErrNotExist }
		cfg, err := loadRelay("", o, absent, func(string) ([]Allowed, error) { return nil, fs.ErrNotExist })
		if err != nil {
			if err.Error() == "" {
				t.Error("an error without a message")
			}
			return
		}
		for _, v := range cfg.Environment {
			if sectionOf(relaySections(), v.Section) == nil || !strings.HasPrefix(v.Name, RelayEnvPrefix) {
				t.Errorf("got %+v", v)
			}
		}
	})
}
