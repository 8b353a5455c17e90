package config

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// loadEnviron loads a configuration of one file, or of none if text is empty, with these variables.
func loadEnviron(t *testing.T, text string, environ ...string) (*Config, error) {
	t.Helper()
	file := ""
	if text != "" {
		file = filepath.Join(put(t, map[string]string{"culvert.conf": text}), "culvert.conf")
	}
	o := testOptions()
	o.Environ = environ
	cfg, err := Load(file, o)
	return cfg, trimDir(err, filepath.Dir(file))
}

func identityVariables(more ...string) []string {
	return append([]string{
		"CULVERT_INTERFACE_NAME=node", "CULVERT_INTERFACE_PRIVATE_KEY=" + keyText, "CULVERT_INTERFACE_ADDRESS=10.0.0.1/24; fd00::1/64",
	}, more...)
}

// A node needs no file: the environment says what a file would.
func TestAConfigurationFromTheEnvironmentAlone(t *testing.T) {
	dir := put(t, map[string]string{"psk": pskText + "\n", "users": "dave:four\n"})
	got, err := loadEnviron(t, "", identityVariables(
		"CULVERT_PEER_2_PUBLIC_KEY="+peerKey2, "CULVERT_PEER_2_NAME=second", "CULVERT_PEER_2_ALLOWEDIPS=10.0.0.3,10.0.0.4",
		"CULVERT_PEER_PUBLIC_KEY="+peerKey1, "CULVERT_PEER_NAME=first", "CULVERT_PEER_PRESHARED_KEY_FILE="+filepath.Join(dir, "psk"),
		"CULVERT_PEER_ALLOW_INBOUND=yes",
		"CULVERT_SOCKS5_LISTEN=1080", "CULVERT_SOCKS5_USER=alice:a;b\nbob:$PASSWORD", "CULVERT_SOCKS5_USERS_FILE="+filepath.Join(dir, "users"),
		"CULVERT_SOCKS5_ROUTE=*.corp.example via first; * block",
		"CULVERT_FORWARD_10_LISTEN=6000", "CULVERT_FORWARD_10_TO=ten", "CULVERT_FORWARD_9_LISTEN=6001", "CULVERT_FORWARD_9_TO=nine",
		"CULVERT_PUBLISH_LISTEN=80/tcp", "CULVERT_PUBLISH_TO=127.0.0.1:8000",
		"CULVERT_FILTER_RULE=reject from * to * tcp/25\nreject from * to * tcp/26\n",
		"CULVERT_EXIT_DNS=off", "CULVERT_EXIT_SOCKS5=no", "CULVERT_CONTROL_HTTP=127.0.0.1:9090",
		"CULVERT_RELAY_URL=https://relay.example", "CULVERT_RELAY_PROXY=http://me:$NO_VARIABLE@proxy:3128",
		"CULVERT_INTERFACE_MTU=", "CULVERT_INTERFACE_MTUU=", "PATH=/bin", "CULVERT_LAB=1",
	)...)
	if err != nil {
		t.Fatal(err)
	}
	want, err := loadEnviron(t, `[Interface]
Name = node
PrivateKey = `+keyText+`
Address = 10.0.0.1/24, fd00::1/64
[Peer]
Name = first
PublicKey = `+peerKey1+`
PresharedKey = `+pskText+`
AllowInbound = yes
[Peer]
Name = second
PublicKey = `+peerKey2+`
AllowedIPs = 10.0.0.3, 10.0.0.4
[SOCKS5]
Listen = 1080
UsersFile = `+filepath.Join(dir, "users")+`
Route = *.corp.example via first
Route = * block
[Forward]
Listen = 6001
To = nine
[Forward]
Listen = 6000
To = ten
[Publish]
Listen = 80
To = 8000
[Filter]
Rule = reject from * to * tcp/25
Rule = reject from * to * tcp/26
[Exit]
DNS = off
SOCKS5 = no
[Control]
HTTP = 127.0.0.1:9090
[Relay]
URL = https://relay.example
Proxy = http://me:%24NO_VARIABLE@proxy:3128
`)
	if err != nil {
		t.Fatal(err)
	}
	users := []ProxyUser{{"alice", "a;b"}, {"bob", "$PASSWORD"}, {"dave", "four"}}
	if !slices.Equal(got.Proxies[0].Users, users) {
		t.Errorf("got users %+v, want %+v: a semicolon is part of a password, and a variable is not looked up in another", got.Proxies[0].Users, users)
	}
	got.Proxies[0].Users = want.Proxies[0].Users
	if render(got) != render(want) {
		t.Errorf("got:\n%s\nwant:\n%s", render(got), render(want))
	}
	if got.File != "" || got.Peers[0].File != "CULVERT_PEER" || got.Filter.Rules[1].Place() != "CULVERT_FILTER_RULE:2" {
		t.Errorf("got file %q, peer of %s, rule at %s", got.File, got.Peers[0].File, got.Filter.Rules[1].Place())
	}
	if len(got.Warnings) != 0 || len(got.Environment) != 26 {
		t.Errorf("got warnings %v, variables %v", got.Warnings, got.Environment)
	}
	if _, err := got.RemovePeer("second"); err == nil || err.Error() != "remove peer second: it comes from the environment: take the variables CULVERT_PEER_2_… away" {
		t.Errorf("remove a peer of the environment: %v", err)
	}
}

// On top of a file, variables win over keys of sections that there are once, and add others.
func TestTheEnvironmentWinsOverTheFile(t *testing.T) {
	cfg, err := loadEnviron(t, `[Interface]
Name = from-file
PrivateKeyFile = absent
Address = 10.9.0.1/24
Address = 10.9.1.1/24
[Peer]
Name = first
PublicKey = `+peerKey1+`
[Filter]
Rule = reject from * to * tcp/25
[Interface]
MTU = 1300
ListenPort = nonsense
[STUN]
Server = one.example
`, "CULVERT_INTERFACE_PRIVATE_KEY="+keyText, "CULVERT_INTERFACE_ADDRESS=10.0.0.1/24", "CULVERT_INTERFACE_LISTEN_PORT=51821",
		"CULVERT_PEER_NAME=second", "CULVERT_PEER_PUBLIC_KEY="+peerKey2, "CULVERT_STUN_SERVER=two.example", "CULVERT_EXIT_DNS=off")
	if err != nil {
		t.Fatal(err)
	}
	i := cfg.Interface
	if i.Name != "from-file" || i.PrivateKey.Reveal() != keyText || join(i.Addresses) != "10.0.0.1/24" || i.MTU != 1300 || i.ListenPort != 51821 {
		t.Errorf("got %+v", i)
	}
	if len(cfg.Peers) != 2 || cfg.Peers[0].Name != "first" || cfg.Peers[1].Name != "second" || !cfg.Exit.DNS.Off || len(cfg.Filter.Rules) != 1 {
		t.Errorf("got %+v", cfg)
	}
	if fmt.Sprint(cfg.STUN) != "[two.example:3478]" {
		t.Errorf("got STUN %v", cfg.STUN)
	}
	var replaced []string
	for _, v := range cfg.Environment {
		if v.Replaces != "" {
			replaced = append(replaced, fmt.Sprintf("%s %s.%s %s", v.Name, v.Section, v.Key, strings.TrimPrefix(v.Replaces, filepath.Dir(cfg.File)+"/")))
		}
	}
	want := []string{
		"CULVERT_INTERFACE_ADDRESS Interface.Address culvert.conf:4",
		"CULVERT_INTERFACE_LISTEN_PORT Interface.ListenPort culvert.conf:13",
		"CULVERT_INTERFACE_PRIVATE_KEY Interface.PrivateKey culvert.conf:3",
		"CULVERT_STUN_SERVER STUN.Server culvert.conf:15",
	}
	if !slices.Equal(replaced, want) {
		t.Errorf("got %q, want %q", replaced, want)
	}
}

// Each fault names its variable; none shows a secret, or what a file holds.
func TestFaultsOfTheEnvironmentNameTheVariable(t *testing.T) {
	dir := put(t, map[string]string{"secret": "hunter2\n"})
	secret := filepath.Join(dir, "secret")
	for variables, want := range map[string]string{
		"CULVERT_INTERFACE_PRIVATE_KEY=hunter2":                              "CULVERT_INTERFACE_PRIVATE_KEY: PrivateKey: not a WireGuard key: want 32 bytes in base64 (44 characters)",
		"CULVERT_INTERFACE_LISTEN_PORT=x":                                    `CULVERT_INTERFACE_LISTEN_PORT: ListenPort: "x" is not a port (0 to 65535)`,
		"CULVERT_INTERFACE_LISTEN_PORT_FILE=" + secret:                       "CULVERT_INTERFACE_LISTEN_PORT_FILE: ListenPort: the value of $CULVERT_INTERFACE_LISTEN_PORT_FILE is not a port (0 to 65535)",
		"CULVERT_INTERFACE_MTU_FILE=" + dir + "/absent":                      "CULVERT_INTERFACE_MTU_FILE: read " + dir + "/absent: no such file or directory",
		"CULVERT_INTERFACE_MTU_FILE=" + dir:                                  "CULVERT_INTERFACE_MTU_FILE: read " + dir + ": is a directory",
		"CULVERT_INTERFACE_PRIVATE_KEY_FILE=" + keyText:                      "CULVERT_INTERFACE_PRIVATE_KEY_FILE: this is a key, not the name of a file that holds one",
		"CULVERT_INTERFACE_PRIVATKEY=" + keyText:                             "CULVERT_INTERFACE_PRIVATKEY: [Interface] has no such key; did you mean CULVERT_INTERFACE_PRIVATE_KEY?",
		"CULVERT_PEER_3_ALOWED_IPS=10.0.0.7":                                 "CULVERT_PEER_3_ALOWED_IPS: [Peer] has no such key; did you mean CULVERT_PEER_3_ALLOWED_IPS?",
		"CULVERT_PEER_3_QUUX=10.0.0.7":                                       "CULVERT_PEER_3_QUUX: [Peer] has no such key",
		"CULVERT_PUBLISH_1=8443":                                             "CULVERT_PUBLISH_1: names the section [Publish] and no key of it, such as CULVERT_PUBLISH_LISTEN",
		"CULVERT_HTTP=8443":                                                  "CULVERT_HTTP: names the section [HTTP] and no key of it, such as CULVERT_HTTP_LISTEN",
		"CULVERT_EXIT_1_DNS=off":                                             "CULVERT_EXIT_1_DNS: there is one [Exit] only: leave the number out",
		"CULVERT_PEER_3_NAME=x":                                              "CULVERT_PEER_3: [Peer] needs a PublicKey: set CULVERT_PEER_3_PUBLIC_KEY",
		"CULVERT_PEER_99999999999999999999_NAME=x":                           "CULVERT_PEER_99999999999999999999_NAME: [Peer] has no such key; did you mean CULVERT_PEER_NAME?",
		"CULVERT_SOCKS5_USER=alice=hunter2":                                  "CULVERT_SOCKS5: [SOCKS5] needs a Listen, such as 127.0.0.1:1080: set CULVERT_SOCKS5_LISTEN\nCULVERT_SOCKS5_USER: User: want NAME:PASSWORD, each of 1 to 255 bytes, and no + in the name, which picks an exit",
		"CULVERT_SOCKS5_1_LISTEN=1080;1081;[::]:1080":                        "CULVERT_SOCKS5_1_LISTEN:3: Listen: [::]:1080 is open to whoever reaches this host: add User, or AllowFrom with the clients' addresses (AllowFrom = 0.0.0.0/0, ::/0 to mean everyone)\nCULVERT_SOCKS5_1_LISTEN:3: Listen: [::]:1080 is taken by [SOCKS5] in CULVERT_SOCKS5_1_LISTEN:1",
		"CULVERT_FORWARD_LISTEN=5432":                                        "CULVERT_FORWARD: [Forward] needs a To, such as db:5432: set CULVERT_FORWARD_TO",
		"CULVERT_PUBLISH_7_TO=8000":                                          "CULVERT_PUBLISH_7: [Publish] needs a Listen, such as 8443: set CULVERT_PUBLISH_7_LISTEN",
		"CULVERT_SOCKS5_LISTEN=:1080\nCULVERT_SOCKS5_USERS_FILE_FILE=" + dir: "CULVERT_SOCKS5_USERS_FILE_FILE: read " + dir + ": is a directory",
		"CULVERT_SOCKS5_LISTEN= \nCULVERT_PEER_2_ENDPOINT= ":                 "CULVERT_PEER_2: [Peer] needs a PublicKey: set CULVERT_PEER_2_PUBLIC_KEY\nCULVERT_PEER_2_ENDPOINT: Endpoint: \"\" is not host:port\nCULVERT_SOCKS5_LISTEN: Listen: no address is given",
	} {
		environ := identityVariables(strings.Split(variables, "\n")...)
		name, _, _ := strings.Cut(variables, "=")
		if base := strings.TrimSuffix(name, "_FILE"); strings.HasPrefix(base, "CULVERT_INTERFACE_PRIVATE_KEY") {
			environ = slices.DeleteFunc(environ, func(v string) bool { return v == "CULVERT_INTERFACE_PRIVATE_KEY="+keyText })
		}
		_, err := loadEnviron(t, "", environ...)
		if got := fmt.Sprint(err); got != want {
			t.Errorf("%s: got\n%s\nwant\n%s", variables, got, want)
		}
		if err != nil && strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s: a secret is shown: %v", variables, err)
		}
	}
}

func TestAValueIsGivenByOneVariable(t *testing.T) {
	dir := put(t, map[string]string{"port": "51820\r\n"})
	_, err := loadEnviron(t, "", identityVariables("CULVERT_INTERFACE_LISTEN_PORT=1", "CULVERT_INTERFACE_LISTEN_PORT_FILE="+filepath.Join(dir, "port"))...)
	if want := "CULVERT_INTERFACE_LISTEN_PORT_FILE: ListenPort: ListenPort is already given in CULVERT_INTERFACE_LISTEN_PORT"; err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
	cfg, err := loadEnviron(t, "", identityVariables("CULVERT_INTERFACE_LISTEN_PORT_FILE="+filepath.Join(dir, "port"))...)
	if err != nil || cfg.Interface.ListenPort != 51820 {
		t.Errorf("got %v, %v", cfg, err)
	}
}

// Kubernetes gives a pod variables for each service of its namespace; those of a service culvert-relay look like a section's.
func TestVariablesOfKubernetesAreNoConfiguration(t *testing.T) {
	links := []string{
		"CULVERT_SERVICE_HOST=10.0.0.7", "CULVERT_PORT=tcp://10.0.0.7:1080", "CULVERT_PORT_1080_TCP=tcp://10.0.0.7:1080",
		"CULVERT_RELAY_SERVICE_HOST=10.0.0.7", "CULVERT_RELAY_SERVICE_PORT=443", "CULVERT_RELAY_SERVICE_PORT_HTTPS=443",
		"CULVERT_RELAY_PORT=tcp://10.0.0.7:443", "CULVERT_RELAY_PORT_443_TCP=tcp://10.0.0.7:443",
		"CULVERT_RELAY_PORT_443_TCP_PROTO=tcp", "CULVERT_RELAY_PORT_443_TCP_PORT=443", "CULVERT_RELAY_PORT_443_TCP_ADDR=10.0.0.7",
	}
	if HasEnvironment(links) {
		t.Error("they are taken for a configuration")
	}
	cfg, err := loadEnviron(t, "", identityVariables(links...)...)
	if err != nil || len(cfg.Environment) != 3 || len(cfg.Warnings) != 0 {
		t.Errorf("got %v, %v", cfg, err)
	}
	if _, err := loadEnviron(t, "", identityVariables("CULVERT_RELAY_PORT=443")...); err == nil {
		t.Error("a port of one's own is accepted")
	}
}

func TestMisspeltSectionsOfTheEnvironmentAreWarnedOf(t *testing.T) {
	cfg, err := loadEnviron(t, "", identityVariables("CULVERT_INTERFCE_MTU=1400", "CULVERT_SOCK5_LISTEN=1080", "CULVERT_PEERS=x", "CULVERT_BENCH_RATE=1",
		"CULVERT_PEER2_NAME=x")...)
	if err != nil {
		t.Fatal(err)
	}
	want := "[CULVERT_INTERFCE_MTU: is not used; did you mean CULVERT_INTERFACE_MTU? CULVERT_PEER2_NAME: is not used; did you mean CULVERT_PEER_2_NAME? CULVERT_SOCK5_LISTEN: is not used; did you mean CULVERT_SOCKS5_LISTEN?]"
	if got := fmt.Sprint(cfg.Warnings); got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

// Where the only variables are misspelt, that is what is wrong: nothing is made up in their place.
func TestMisspeltSectionsAreToldBesideFaults(t *testing.T) {
	environ := []string{"CULVERT_INTERFCE_PRIVATE_KEY=" + keyText, "CULVERT_INTERFCE_ADDRESS=10.0.0.1"}
	if !HasEnvironment(environ) {
		t.Error("they are taken for nothing")
	}
	_, err := loadEnviron(t, "", environ...)
	want := "CULVERT_INTERFCE_ADDRESS: is not used; did you mean CULVERT_INTERFACE_ADDRESS?\n" +
		"CULVERT_INTERFCE_PRIVATE_KEY: is not used; did you mean CULVERT_INTERFACE_PRIVATE_KEY?\n" +
		"environment: the section [Interface] is missing: set CULVERT_INTERFACE_PRIVATE_KEY and CULVERT_INTERFACE_ADDRESS"
	for line := range strings.SplitSeq(want, "\n") {
		if err == nil || !strings.Contains(err.Error(), line) {
			t.Errorf("got %v, want %s", err, line)
		}
	}
}

// Only what is missing from variables is to be set by one.
func TestWhatAFileLacksIsNotToBeSetByAVariable(t *testing.T) {
	_, err := loadEnviron(t, "[Interface]\nPrivateKey = "+keyText+"\n[Forward]\nListen = 5432\n", "CULVERT_INTERFACE_MTU=1400")
	want := "culvert.conf:1: [Interface] needs an Address, such as 100.64.7.1/24\nculvert.conf:3: [Forward] needs a To, such as db:5432"
	if err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
}

func TestWithoutAnIdentityTheEnvironmentSaysWhatIsMissing(t *testing.T) {
	_, err := loadEnviron(t, "", "CULVERT_SOCKS5_LISTEN=1080")
	if want := "environment: the section [Interface] is missing: set CULVERT_INTERFACE_PRIVATE_KEY and CULVERT_INTERFACE_ADDRESS"; err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
}

// Names of files in a variable are relative to the working directory, wherever the configuration lies.
func TestFilesNamedByVariablesLieInTheWorkingDirectory(t *testing.T) {
	dir := put(t, map[string]string{"key": keyText, "users": "a:b"})
	t.Chdir(dir)
	o := testOptions()
	o.Environ = []string{"CULVERT_CONTROL_SOCKET=run/c.sock", "CULVERT_SOCKS5_LISTEN=unix:s.sock", "CULVERT_SOCKS5_USERS_FILE=users", "CULVERT_INTERFACE_PRIVATE_KEY_FILE=key"}
	sub := put(t, map[string]string{"a.conf": "[Interface]\nAddress = 10.0.0.1\n[Control]\nFlowLog = flows\n"})
	cfg, err := Load(filepath.Join(sub, "a.conf"), o)
	if err != nil {
		t.Fatal(err)
	}
	if c := cfg.Control; c.Socket != filepath.Join("run", "c.sock") || c.FlowLog != filepath.Join(sub, "flows") || cfg.Proxies[0].Listen[0].Path != "s.sock" {
		t.Errorf("got %+v, %+v", c, cfg.Proxies)
	}
	if len(cfg.Warnings) != 0 {
		t.Errorf("got %v", cfg.Warnings)
	}
}

// The list of variables is that of the keys: each can be set, and is found under its own name.
func TestEveryListedVariableIsAKey(t *testing.T) {
	l := &loader{kinds: nodeSections(), names: envNames{prefix: EnvPrefix}}
	keys := 0
	for _, k := range l.kinds {
		for _, key := range k.keys {
			if keys++; key.doc == "" || strings.ContainsAny(key.doc, "\n\t") {
				t.Errorf("%s in [%s]: no line of documentation", key.name, k.name)
			}
		}
	}
	list := EnvironmentKeys()
	if len(list) != keys-3 { // PrivateKeyFile, PresharedKeyFile and ProxyFile are variables with _FILE
		t.Errorf("%d variables for %d keys", len(list), keys)
	}
	for _, e := range list {
		for _, suffix := range []string{"", "_FILE"} {
			name := strings.Replace(e.Name, "<N>", "7", 1) + suffix
			vars := l.variables([]string{name + "=x"})
			if len(vars) != 1 || len(l.faults) > 0 || vars[0].file != (suffix != "") {
				t.Errorf("%s: %v, %v", name, vars, l.faults)
			}
		}
	}
	for key, want := range map[string]string{
		"AllowedIPs": "ALLOWED_IPS", "PrivateKey": "PRIVATE_KEY", "HardNAT": "HARD_NAT", "URL": "URL", "MTU": "MTU", "DNSRoute": "DNS_ROUTE",
		"Peers": "PEERS", "UsersFile": "USERS_FILE", "SOCKS5": "SOCKS5", "SOCKS": "SOCKS", "DNS": "DNS",
	} {
		if got := envKey(key); got != want {
			t.Errorf("envKey(%s) = %s, want %s", key, got, want)
		}
	}
}

// No environment makes the parser panic or say nothing of what it does not understand.
func FuzzEnvironment(f *testing.F) {
	f.Add("CULVERT_INTERFACE_PRIVATE_KEY", keyText, "CULVERT_PEER_1_PUBLIC_KEY", peerKey1)
	f.Add("CULVERT_SOCKS5_LISTEN", "1080;:1081", "CULVERT_SOCKS5_1_USER", "a:b\nc:d")
	f.Add("CULVERT_EXIT_DNS_FILE", "/x", "CULVERT_FORWARD__TO", "db")
	f.Add("CULVERT_INTERFACE_MTU_FILE", "/x", "CULVERT_PEER2_NAME", "db")
	f.Add("CULVERT_FORWARD_LISTEN", "127.0.0.1:8000-8010/tcp,udp", "CULVERT_FORWARD_TO", "[fd00::1]:9000-9010")
	f.Add("CULVERT_PUBLISH_01_LISTEN", "53/udp", "CULVERT_PUBLISH_1_TO", "unix:s")
	f.Fuzz(func(t *testing.T, name1, value1, name2, value2 string) {
		o := testOptions()
		o.Environ = identityVariables(name1+"="+value1, name2+"="+value2)
		cfg, err := load("", o, func(string) (*content, error) { return nil, os.ErrNotExist })
		if err != nil {
			if err.Error() == "" {
				t.Error("an error without a message")
			}
			return
		}
		for _, v := range cfg.Environment {
			if sectionOf(nodeSections(), v.Section) == nil || !strings.HasPrefix(v.Name, EnvPrefix) {
				t.Errorf("got %+v", v)
			}
		}
	})
}
