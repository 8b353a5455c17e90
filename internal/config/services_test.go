package config

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"culvert.dev/culvert/filter"
	"culvert.dev/culvert/internal/packet"
)

const servicesBase = "[Interface]\nName=n\nPrivateKey=" + keyText + "\nAddress=10.0.0.1/24\n"

func loadServices(t *testing.T, files map[string]string) (*Config, error) {
	t.Helper()
	files["a.conf"] = servicesBase + files["a.conf"]
	dir := put(t, files)
	cfg, err := Load(filepath.Join(dir, "a.conf"), testOptions())
	return cfg, trimDir(err, dir)
}

// What is served at the mesh addresses is let in: published ports for AllowInbound, DNS and SOCKS5 for AllowRouting.
func TestServedPortsAreLetIn(t *testing.T) {
	const publish = "[Publish]\nListen = 8000-8001/tcp,udp\nTo = 9000-9001\n[Publish]\nListen = 65535\nTo = 80\n"
	published := []filter.SelfPort{
		{Proto: packet.ProtoTCP, Port: 8000, Need: filter.NeedInbound}, {Proto: packet.ProtoTCP, Port: 8001, Need: filter.NeedInbound},
		{Proto: packet.ProtoUDP, Port: 8000, Need: filter.NeedInbound}, {Proto: packet.ProtoUDP, Port: 8001, Need: filter.NeedInbound},
		{Proto: packet.ProtoTCP, Port: 65535, Need: filter.NeedInbound},
	}
	both := func(port uint16) []filter.SelfPort {
		return []filter.SelfPort{{Proto: packet.ProtoUDP, Port: port, Need: filter.NeedRouting}, {Proto: packet.ProtoTCP, Port: port, Need: filter.NeedRouting}}
	}
	for text, want := range map[string][]filter.SelfPort{
		"":                                 slices.Concat(both(53), both(1080)),
		"[Exit]\nDNS = off\n":              both(1080),
		"[Exit]\nSOCKS5 = no\n":            both(53),
		"[Exit]\nDNS=off\nSOCKS5 = off\n":  nil,
		"[Exit]\nDNS=off\nSOCKS5 = yes\n":  both(1080),
		publish:                            slices.Concat(both(53), both(1080), published),
		publish + "[Exit]\nSOCKS5 = off\n": slices.Concat(both(53), published),
	} {
		cfg, err := loadServices(t, map[string]string{"a.conf": text})
		if err != nil {
			t.Fatal(err)
		}
		got := cfg.FilterConfig(func(*Peer) uint16 { return 1 }).SelfPorts
		order := func(a, b filter.SelfPort) int { return strings.Compare(fmt.Sprint(a), fmt.Sprint(b)) }
		slices.SortFunc(got, order)
		slices.SortFunc(want, order)
		if !slices.Equal(got, want) {
			t.Errorf("%s: got %v, want %v", text, got, want)
		}
	}
}

// Two listeners cannot have one place; a wildcard has all of its family's.
func TestListenersThatExcludeEachOther(t *testing.T) {
	for pair, clash := range map[[2]string]bool{
		{"127.0.0.1:1080", "127.0.0.1:1080"}:           true,
		{"127.0.0.1:1080", "127.0.0.1:1081"}:           false,
		{"127.0.0.1:1080", "127.0.0.2:1080"}:           false,
		{"127.0.0.1:1080", "[::1]:1080"}:               false,
		{"1080", "[::1]:1080"}:                         true,
		{"0.0.0.0:1080", "127.0.0.1:1080"}:             true,
		{"0.0.0.0:1080", "[::1]:1080"}:                 false,
		{"[::]:1080", "[::1]:1080"}:                    true,
		{":1080", "[::1]:1080"}:                        true,
		{"*:1080", "0.0.0.0:1080"}:                     true,
		{"127.0.0.1:1000-2000", "127.0.0.1:2000-3000"}: true,
		{"127.0.0.1:1000-1999", "127.0.0.1:2000-2999"}: false,
		{"127.0.0.1:1080/udp", "127.0.0.1:1080"}:       false,
		{"127.0.0.1:1080/udp,tcp", "127.0.0.1:1080"}:   true,
		{"unix:/run/a", "unix:/run/b"}:                 false,
		{"unix:/run/a", "unix:/run//x/../a"}:           true,
		{"unix:/run/a", "1080"}:                        false,
	} {
		for _, p := range [][2]string{pair, {pair[1], pair[0]}} {
			rules := listenRules{ranges: true, udp: true}
			a, err := parseListeners(p[0], rules)
			b, err2 := parseListeners(p[1], rules)
			if err != nil || err2 != nil {
				t.Fatal(err, err2)
			}
			got := slices.ContainsFunc(a, func(a Listen) bool { return slices.ContainsFunc(b, a.overlaps) })
			if got != clash {
				t.Errorf("%v: got %v, want %v", p, got, clash)
			}
		}
	}
}

// At says what the net package takes, and each family apart.
func TestListenersOfTheNetPackage(t *testing.T) {
	for text, want := range map[string]string{
		"127.0.0.1:1080":     "tcp4 127.0.0.1:1080",
		"[2001:db8::1]:1080": "tcp6 [2001:db8::1]:1080",
		":1080":              "tcp :1080",
		"1080":               "tcp4 127.0.0.1:1080, tcp6 [::1]:1080",
		"0.0.0.0:53/udp":     "udp4 0.0.0.0:53",
		"unix:/run/a":        "unix /run/a",
	} {
		list, err := parseListeners(text, listenRules{udp: true})
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, l := range list {
			network, address := l.At(l.Ports.First)
			got = append(got, network+" "+address)
			if strings.HasPrefix(network, "tcp") {
				if _, err := net.ResolveTCPAddr(network, address); err != nil {
					t.Errorf("%s: %v", text, err)
				}
			}
		}
		if strings.Join(got, ", ") != want {
			t.Errorf("%s: got %q, want %s", text, got, want)
		}
	}
}

func TestFaultsOfAUsersFileHaveItsNameAndHideIt(t *testing.T) {
	_, err := loadServices(t, map[string]string{
		"a.conf": "[SOCKS5]\nListen = 1080\nUser = anna:hunter1\nUsersFile = users\n[HTTP]\nListen = 8080\nUsersFile = empty\n[HTTP]\nListen = 8081\nUsersFile = " + keyText + "\n",
		"users":  "# comment\nanna:hunter2\nhunter3\n:hunter4\nx+exit:hunter5\n\nben:\nben:hunter6\n",
		"empty":  "# nobody\n\n",
	})
	empty := ""
	var faults Errors
	if errors.As(err, &faults) {
		for i := range faults {
			if strings.HasSuffix(faults[i].Message, "asked for a password") {
				empty, faults[i].Message = faults[i].Message, "UsersFile: (empty)"
			}
		}
	}
	const want = `a.conf:11: UsersFile: (empty)
a.conf:14: UsersFile: this is a key, not the name of a file
users:2: there is a user of that name already
users:3: want NAME:PASSWORD, each of 1 to 255 bytes, and no + in the name, which picks an exit
users:4: want NAME:PASSWORD, each of 1 to 255 bytes, and no + in the name, which picks an exit
users:5: want NAME:PASSWORD, each of 1 to 255 bytes, and no + in the name, which picks an exit
users:7: want NAME:PASSWORD, each of 1 to 255 bytes, and no + in the name, which picks an exit`
	if got := fmt.Sprint(err); got != want || !strings.HasSuffix(empty, "/empty has no users in it; without the key nobody is asked for a password") {
		t.Errorf("got\n%s\n%s\nwant\n%s", got, empty, want)
	}
}

// Passwords make a file secret, those that come from elsewhere do not.
func TestFilesWithPasswordsAreSecret(t *testing.T) {
	for user, want := range map[string]bool{"User = a:b": true, "User = a:$SECRET": false, "UsersFile = users": true} {
		text := strings.Replace(servicesBase, "PrivateKey="+keyText, "PrivateKey=$KEY", 1) + "[SOCKS5]\nListen = 1080\n" + user + "\n"
		l := newLoader(Options{LookupEnv: func(name string) (string, bool) { return keyText, true }}, func(name string) (*content, error) {
			return &content{[]byte("a:b"), 0o644, false}, nil
		})
		l.readMain("a.conf", l.open("a.conf", &content{[]byte(text), 0o644, false}))
		l.close(&content{nil, 0o644, false})
		if len(l.faults) > 0 || (len(l.warnings) == 1) != want {
			t.Errorf("%s: got %v, %v", user, l.faults, l.warnings)
		}
	}
}

// A route names what an earlier one names already.
func TestRoutesThatCoverOthers(t *testing.T) {
	for pair, want := range map[[2]string]bool{
		{"*", "a.example"}:                     true,
		{"*", "10.0.0.0/8"}:                    true,
		{"a.example", "*"}:                     false,
		{"a.example", "a.example"}:             true,
		{"a.example", "*.a.example"}:           false,
		{"*.a.example", "a.example"}:           true,
		{"*.a.example", "x.a.example"}:         true,
		{"*.a.example", "*.x.a.example"}:       true,
		{"*.a.example", "xa.example"}:          false,
		{"*.x.a.example", "*.a.example"}:       false,
		{"10.0.0.0/8", "10.1.0.0/16"}:          true,
		{"10.1.0.0/16", "10.0.0.0/8"}:          false,
		{"0.0.0.0/0", "2001:db8::/32"}:         false,
		{"0.0.0.0/0", "a.example"}:             false,
		{"2001:db8::/32", "2001:db8::7"}:       true,
		{"a.example", "10.0.0.0/8"}:            false,
		{"*.a.example.", "X.A.example"}:        true,
		{"*.bücher.example", "BÜCHER.example"}: true,
	} {
		a, err := ParseProxyRoute(pair[0] + " block")
		b, err2 := ParseProxyRoute(pair[1] + " direct")
		if err != nil || err2 != nil {
			t.Fatal(err, err2)
		}
		if got := a.covers(b); got != want {
			t.Errorf("%v: got %v, want %v", pair, got, want)
		}
	}
}

// Limits keep a configuration from being larger than a node can be, and its checks short.
func TestLimitsOfServices(t *testing.T) {
	many := func(n int, format string) string {
		var b strings.Builder
		for i := range n {
			fmt.Fprintf(&b, format, i)
		}
		return b.String()
	}
	for text, want := range map[string]string{
		"[SOCKS5]\nListen = 1080\n" + many(4097, "Route = h%d.example block\n"):                            `Route: "h4096.example block" is one too many: there may be 4096`,
		"[Exit]\n" + many(1025, "DNSRoute = d%d.example to 10.0.0.1\n"):                                    `DNSRoute: "d1024.example" is one too many: there may be 1024`,
		"[SOCKS5]\nListen = " + many(1025, "unix:/run/%d ") + "\n":                                         "Listen: one listener too many: there may be 1024",
		"[SOCKS5]\nListen = 1080\nExit = " + many(65, "p%d ") + "\n":                                       `Exit: "p64" is one too many: there may be 64`,
		"[SOCKS5]\nListen = 1080\nUser = " + strings.Repeat("a", 256) + ":b\nUser = b:" + many(100, "abc"): "User: want NAME:PASSWORD",
		"[Publish]\nListen = 1-4097\nTo = 1-4097\n":                                                        `Listen: "1-4097" has more than 4096 ports`,
		"[Publish]\nListen = 10-9\nTo = 10-9\n":                                                            `Listen: "10-9" is a range of ports that ends before it begins`,
		"[Forward]\nListen = 10-9\nTo = db\n":                                                              `Listen: "10-9" is a range of ports that ends before it begins`,
		"[Forward]\nListen = [::1]:65536\nTo = db\n":                                                       `Listen: "65536" is not a port (1 to 65535)`,
		"[Forward]\nListen = unix:/" + strings.Repeat("a", 107) + "\nTo = db:1\n":                          "is too long for a socket: at most 107 bytes",
	} {
		_, err := loadServices(t, map[string]string{"a.conf": text})
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.60s…: got %.300v, want %s", text, err, want)
		}
	}
}

// culvert attach takes a node's file, and passes over what is not for it.
func TestAttachPassesOverServices(t *testing.T) {
	dir := put(t, map[string]string{"a.conf": "[SOCKS5]\nListen = x\n[publish]\nTo = y\n[Relay]\nURL = https://relay.example\n"})
	cfg, err := LoadAttach(filepath.Join(dir, "a.conf"), testOptions())
	if err != nil || len(cfg.Relays) != 1 || len(cfg.Warnings) != 2 {
		t.Errorf("got %+v, %v", cfg, err)
	}
}

// A program may have the configuration at hand.
func TestAConfigurationThatIsNoFile(t *testing.T) {
	o := testOptions()
	o.Text = servicesBase + "[Control]\nSocket = c.sock\nHTTP = :9090\n"
	for file, socket := range map[string]string{"": "c.sock", "/no/such/folder/a.conf": "/no/such/folder/c.sock"} {
		cfg, err := Load(file, o)
		if err != nil || cfg.File != file || cfg.Control.Socket != socket || cfg.Control.HTTP.String() != "0.0.0.0:9090" {
			t.Errorf("%q: got %+v, %v", file, cfg, err)
		}
	}
	o.Text += "[SOCKS5]\nListen = [::1]:9090\n"
	for file, name := range map[string]string{"": "configuration", "a.conf": "a.conf"} {
		_, err := Load(file, o)
		if want := name + ":9: Listen: [::1]:9090 is taken by HTTP of [Control] on line 7"; err == nil || err.Error() != want {
			t.Errorf("%q: got %v, want %s", file, err, want)
		}
	}
}

// What a section lacks is told even where more is missing.
func TestSectionsThatLackAKey(t *testing.T) {
	_, err := loadText([]byte("[SOCKS5]\n[Forward]\n[Publish]\n"))
	const want = `fuzz.conf: the section [Interface] is missing
fuzz.conf:1: [SOCKS5] needs a Listen, such as 127.0.0.1:1080
fuzz.conf:2: [Forward] needs a Listen, such as 127.0.0.1:5432
fuzz.conf:2: [Forward] needs a To, such as db:5432
fuzz.conf:3: [Publish] needs a Listen, such as 8443
fuzz.conf:3: [Publish] needs a To, such as 127.0.0.1:443`
	if fmt.Sprint(err) != want {
		t.Errorf("got\n%v\nwant\n%s", err, want)
	}
}

// The resolvers of wg-quick's DNS are addresses; search domains stand beside them.
func TestResolversOfTheInterface(t *testing.T) {
	cfg, err := loadServices(t, map[string]string{"a.conf": "DNS = 10.0.0.53, corp.example # home\nDNS = [fd00::1]:5353 Lan.\n"})
	if err != nil {
		t.Fatal(err)
	}
	want := []netip.AddrPort{netip.MustParseAddrPort("10.0.0.53:53"), netip.MustParseAddrPort("[fd00::1]:5353")}
	if i := cfg.Interface; !slices.Equal(i.DNS, want) || !slices.Equal(i.Search, []string{"corp.example", "lan"}) {
		t.Errorf("got %v and %q", i.DNS, i.Search)
	}
	for _, bad := range []string{"10.0.0.300", "fe80::1::2", "a..b", "x y_/", "10.0.0.1:0", keyText} {
		if _, err := loadServices(t, map[string]string{"a.conf": "DNS = " + bad}); err == nil || strings.Contains(err.Error(), keyText) {
			t.Errorf("%s: got %v", bad, err)
		}
	}
}
