package config

import (
	"fmt"
	"strings"
	"testing"
)

// loadExtras loads a configuration with two peers and these sections on top.
func loadExtras(t *testing.T, extras ...Extra) (*Config, error) {
	t.Helper()
	o := testOptions()
	o.Extra = extras
	o.Environ = identityVariables("CULVERT_PEER_1_NAME=db", "CULVERT_PEER_1_PUBLIC_KEY="+peerKey1, "CULVERT_PEER_2_NAME=fra", "CULVERT_PEER_2_PUBLIC_KEY="+peerKey2)
	return Load("", o)
}

func TestShorthandsAreSections(t *testing.T) {
	for _, tt := range []struct {
		option, text, want string // want: what the section would be in a file
	}{
		{"-L", "5432:db:5432", "[Forward]\nListen = localhost:5432\nTo = db:5432"},
		{"-L", "127.0.0.2:5432:DB:80", "[Forward]\nListen = 127.0.0.2:5432\nTo = db:80"},
		{"-L", "localhost:53:10.0.0.7:53/udp", "[Forward]\nListen = localhost:53/udp\nTo = 10.0.0.7:53"},
		{"-L", "[::1]:8000-8010:[2001:db8::7]:9000-9010/tcp", "[Forward]\nListen = [::1]:8000-8010\nTo = [2001:db8::7]:9000-9010"},
		{"-L", "/run/db.sock:db:5432", "[Forward]\nListen = unix:/run/db.sock\nTo = db:5432"},
		{"-L", "unix:/run/db:db:5432", "[Forward]\nListen = unix:/run/db\nTo = db:5432"},
		{"-L", "db.sock:db:5432", "[Forward]\nListen = unix:db.sock\nTo = db:5432"},
		{"-R", "8443:127.0.0.1:443", "[Publish]\nListen = 8443/tcp\nTo = 127.0.0.1:443"},
		{"-R", "5353:[::1]:53/udp", "[Publish]\nListen = 5353/udp\nTo = [::1]:53"},
		{"-R", "80:/run/web", "[Publish]\nListen = 80/tcp\nTo = unix:/run/web"},
		{"-R", "80:./web.sock", "[Publish]\nListen = 80/tcp\nTo = unix:web.sock"},
		{"-R", "80-82:web.example:180-182", "[Publish]\nListen = 80-82/tcp\nTo = web.example:180-182"},
		{"-D", "1080", "[SOCKS5]\nHTTP = yes\nUDP = yes\nListen = localhost:1080"},
		{"-D", "[::1]:1080", "[SOCKS5]\nHTTP = yes\nUDP = yes\nListen = [::1]:1080"},
		{"-D", "/run/proxy.sock", "[SOCKS5]\nHTTP = yes\nUDP = yes\nListen = unix:/run/proxy.sock"},
		{"-L", "db:5432", "-: want [BIND:]PORT:HOST:HOSTPORT, such as 5432:db:5432, or SOCKET:HOST:HOSTPORT; IPv6 addresses stand in brackets"},
		{"-L", "::1:5432:db:5432", "-: want [BIND:]PORT:HOST:HOSTPORT, such as 5432:db:5432, or SOCKET:HOST:HOSTPORT; IPv6 addresses stand in brackets"},
		{"-L", "[::1:5432:db:5432", "-: the brackets do not match"},
		{"-L", "5432:db:5432,6000:db:6000", "-: a character in it belongs to no address or path; lists are given by repeating the option"},
		{"-L", "x:db:5432", `Listen: "x" is no listener: want ADDRESS:PORT, :PORT for every address of this host, PORT for its loopback addresses, or unix:PATH`},
		{"-L", "5432-5433:db:5432", "Listen: 127.0.0.1:5432-5433 has 2 ports, and To has 1 port"},
		{"-L", "5432:db:x", `To: "x" is not a port (1 to 65535)`},
		{"-L", "5432:127.0.0.1:80", `To: "127.0.0.1" is not in the mesh: To names a service of a peer, or behind an exit`},
		{"-L", "*:5432:db:5432", ":5432 is open to whoever reaches this host: write a section [Forward] instead that has AllowFrom with the clients' addresses (AllowFrom = 0.0.0.0/0, ::/0 to mean everyone)"},
		{"-L", ":5432:db:5432", ":5432 is open to whoever reaches this host: write a section [Forward] instead that has AllowFrom with the clients' addresses (AllowFrom = 0.0.0.0/0, ::/0 to mean everyone)"},
		{"-R", "10.0.0.1:80:127.0.0.1:80", "-: want PORT:HOST:HOSTPORT without an address in front: the ports are those of the mesh addresses"},
		{"-R", "8443:443", "[Publish]\nListen = 8443/tcp\nTo = 127.0.0.1:443"},
		{"-R", "8443:443/udp", "[Publish]\nListen = 8443/udp\nTo = 127.0.0.1:443"},
		{"-R", "80-82:8000-8002", "[Publish]\nListen = 80-82/tcp\nTo = 127.0.0.1:8000-8002"},
		{"-R", "80:0", `To: "0" is not a port (1 to 65535)`},
		{"-R", "80-81:8000", "To: Listen has 2 ports, and this has 1 port"},
		{"-R", "web:8000", `Listen: "web" is no port of the mesh addresses: want PORT or PORT-PORT, and behind it /udp or /tcp,udp where it is not TCP`},
		{"-R", "80:web", "-: what follows PORT is neither a port of this host, as in 8443:443, nor a socket, as in 8443:/run/web.sock; a host goes with its port: 8443:db:443"},
		{"-R", "8443", "-: want PORT:HOST:HOSTPORT, such as 8443:127.0.0.1:443, PORT:HOSTPORT for this host, or PORT:SOCKET; IPv6 addresses stand in brackets"},
		{"-R", "53:127.0.0.1:53/udp", "Listen: port 53 of the mesh addresses is this node's DNS: take another, or set DNS = off in [Exit]"},
		{"-D", "1080/udp", "-: want [BIND:]PORT alone: UDP ASSOCIATE needs no listener of its own"},
		{"-D", "a:b:c", "-: want [BIND:]PORT, such as 1080, or SOCKET; IPv6 addresses stand in brackets"},
		{"-D", "192.0.2.1:1080", "192.0.2.1:1080 is open to whoever reaches this host: write a section [SOCKS5] instead that has User, or AllowFrom with the clients' addresses (AllowFrom = 0.0.0.0/0, ::/0 to mean everyone)"},
	} {
		parse := map[string]func(string, string) (Extra, error){"-L": ForwardOption, "-R": PublishOption, "-D": ProxyOption}[tt.option]
		x, err := parse(tt.option, tt.text)
		if err != nil {
			if got := "-: " + err.Error(); got != tt.want {
				t.Errorf("%s %s: got %s, want %s", tt.option, tt.text, got, tt.want)
			}
			continue
		}
		cfg, err := loadExtras(t, x)
		if err != nil {
			if got := err.Error(); got != tt.option+" "+tt.text+": "+tt.want {
				t.Errorf("%s %s: got %s, want %s", tt.option, tt.text, got, tt.want)
			}
			continue
		}
		var b strings.Builder
		renderServices(&b, cfg)
		if got := strings.TrimSpace(b.String()); got != tt.want {
			t.Errorf("%s %s: got %s, want %s", tt.option, tt.text, got, tt.want)
		}
	}
}

// Options clash with each other and with the rest as lines of a file do, and say where.
func TestFaultsOfOptionsNameTheOption(t *testing.T) {
	proxy := func(text string, more ...ExtraKey) Extra {
		x, err := ProxyOption("-D", text)
		if err != nil {
			t.Fatal(err)
		}
		x.Keys = append(x.Keys, more...)
		return x
	}
	_, err := loadExtras(t, proxy("1080", ExtraKey{"Exit", "frb", "--exit frb"}), proxy("127.0.0.1:1080"))
	want := "--exit frb: Exit: there is no peer named frb; did you mean fra?\n" +
		"-D 127.0.0.1:1080: Listen: 127.0.0.1:1080 is taken by [SOCKS5] in -D 1080"
	if fmt.Sprint(err) != want {
		t.Errorf("got\n%v\nwant\n%s", err, want)
	}
	cfg, err := loadExtras(t, proxy("1080", ExtraKey{"Exit", "fra,db", "--exit fra,db"}))
	if err != nil || fmt.Sprint(cfg.Proxies[0].Exits) != "[fra db]" || cfg.Proxies[0].File != "-D 1080" {
		t.Errorf("got %+v, %v", cfg, err)
	}
}

// No option makes the parser panic, and what it accepts means one section.
func FuzzShorthand(f *testing.F) {
	for _, s := range []string{"5432:db:5432", "[::1]:8000-8010:[2001:db8::7]:9000-9010/udp", "/run/a.sock:db:1", "80:./web.sock", "*:1080", "unix:x"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		for _, parse := range []func(string, string) (Extra, error){ForwardOption, PublishOption, ProxyOption} {
			x, err := parse("-X", s)
			if err != nil {
				continue
			}
			cfg, err := loadExtras(t, x)
			if err != nil {
				continue
			}
			if len(cfg.Forwards)+len(cfg.Publishes)+len(cfg.Proxies) != 1 {
				t.Errorf("%q: got %+v, %+v, %+v", s, cfg.Forwards, cfg.Publishes, cfg.Proxies)
			}
		}
	})
}

// What a route says survives being written and read again.
func FuzzProxyRoute(f *testing.F) {
	for _, s := range []string{"*.corp.example via office", "* block", "10.0.0.0/8 mesh", "bücher.example DIRECT", "::ffff:1.2.3.4 direct", "2001:db8::/32 via a"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		r, err := ParseProxyRoute(s)
		if err != nil {
			return
		}
		again, err := ParseProxyRoute(r.String())
		if err != nil || again != r || !r.covers(r) {
			t.Errorf("%q: got %+v, %v; want %+v", r.String(), again, err, r)
		}
	})
}
