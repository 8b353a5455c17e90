package egress

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"culvert.dev/culvert/internal/config"
	"culvert.dev/culvert/internal/proxy"
)

// rules parses lines such as "*.corp.example via office".
func rules(t testing.TB, exits string, lines ...string) Rules {
	t.Helper()
	r := Rules{Exits: strings.Fields(exits)}
	for i, line := range lines {
		f := strings.Fields(line)
		p := config.ProxyRoute{Line: i + 1}
		prefix, err := netip.ParsePrefix(f[0])
		switch {
		case f[0] == "*":
			p.All = true
		case err == nil:
			p.Prefix = prefix
		default:
			p.Domain, p.Sub = strings.CutPrefix(f[0], "*.")
		}
		switch f[1] {
		case "via":
			p.Action, p.Via = config.RouteVia, f[2]
		case "direct":
			p.Action = config.RouteDirect
		case "block":
			p.Action = config.RouteBlock
		case "mesh":
			p.Action = config.RouteMesh
		default:
			t.Fatalf("rule %q", line)
		}
		r.Routes = append(r.Routes, p)
	}
	return r
}

// decideWorld has the peers db, office with a LAN behind it, and fra; none has a default route.
func decideWorld(t testing.TB) *world {
	w := newWorld(t)
	addr := func(list ...string) (a []netip.Addr) {
		for _, s := range list {
			a = append(a, netip.MustParseAddr(s))
		}
		return a
	}
	w.peers["db"] = addr("100.64.0.2", "fd7a::2")
	w.peers["office"] = addr("100.64.0.3")
	w.peers["fra"] = addr("100.64.0.4")
	w.peers["bare"] = nil
	w.routes[netip.MustParsePrefix("10.1.0.0/16")] = "office"
	return w
}

func short(d Decision) string {
	switch d.Way {
	case Refused:
		return "refused: " + d.Kind.String()
	case Exit:
		return "exit " + strings.Join(d.Exits, ",")
	}
	return d.Way.String()
}

func TestDecide(t *testing.T) {
	const defaultV4, defaultV6 = "0.0.0.0/0", "::/0"
	for _, c := range []struct {
		what     string
		routes   []string // Route lines
		exits    string   // Exit list
		allowed  []string // further AllowedIPs, of peer fra
		chosen   string   // exit+NAME
		target   string
		want     string
		why      string // a part of the explanation
		wantAddr string
	}{
		// the order
		{what: "nothing says anything", target: "www.example:80", want: "refused: network unreachable", why: "set Exit"},
		{what: "an address nobody has", target: "192.0.2.7:80", want: "refused: network unreachable", why: "AllowedIPs"},
		{what: "a mesh name", target: "db:80", want: "mesh", why: "peer db"},
		{what: "with the suffix", target: "db.mesh:80", want: "mesh"},
		{what: "a mesh address", target: "[fd7a::2]:80", want: "mesh"},
		{what: "behind a peer", target: "10.1.2.3:80", want: "mesh", why: "peer office (/16)"},
		{what: "own name", target: "self:80", want: "self"},
		{what: "own address", target: "100.64.0.1:80", want: "self"},
		{what: "the list", exits: "fra office", target: "www.example:80", want: "exit fra,office", why: "Exit = fra, office"},
		{what: "mesh comes before the list", exits: "fra", target: "db:80", want: "mesh"},
		{what: "addresses behind peers come before the list", exits: "fra", target: "10.1.2.3:80", want: "mesh"},
		{what: "/0", allowed: []string{defaultV4}, target: "www.example:80", want: "default", why: "peer fra"},
		{what: "/0 of IPv6 alone", allowed: []string{defaultV6}, target: "www.example:80", want: "default"},
		{what: "/0 for an address", allowed: []string{defaultV4}, target: "192.0.2.7:80", want: "default"},
		{what: "/0 of the other family", allowed: []string{defaultV6}, target: "192.0.2.7:80", want: "refused: network unreachable"},
		{what: "the halves are a default route", allowed: []string{"0.0.0.0/1", "128.0.0.0/1"}, target: "www.example:80", want: "default"},
		{what: "the halves for an address", allowed: []string{"0.0.0.0/1", "128.0.0.0/1"}, exits: "office", target: "192.0.2.7:80", want: "exit office"},
		{what: "a list without private networks", allowed: []string{"1.0.0.0/8", "2000::/3"}, target: "www.example:80", want: "default"},
		{what: "one network is no default route", allowed: []string{"1.0.0.0/24"}, target: "www.example:80", want: "refused: network unreachable"},
		{what: "the list comes before /0", exits: "office", allowed: []string{defaultV4}, target: "www.example:80", want: "exit office"},
		{what: "a route for everything comes before the list", routes: []string{"* via office"}, exits: "fra", target: "www.example:80", want: "exit office", why: "line 1"},
		{what: "but not before the mesh", routes: []string{"* via office"}, target: "db:80", want: "mesh"},
		{what: "a prefix of everything is one, too", routes: []string{"0.0.0.0/0 via office"}, target: "10.1.2.3:80", want: "mesh"},
		{what: "and serves what is left", routes: []string{"0.0.0.0/0 via office"}, target: "192.0.2.7:80", want: "exit office"},
		{what: "but no other family", routes: []string{"0.0.0.0/0 via office"}, exits: "fra", target: "[2001:db8::1]:80", want: "exit fra"},
		{what: "a route that names comes before the mesh", routes: []string{"db via office"}, target: "db:80", want: "exit office"},
		{what: "a prefix as well", routes: []string{"10.1.2.0/24 via fra"}, target: "10.1.2.3:80", want: "exit fra"},
		{what: "the first that names decides", routes: []string{"*.corp.example block", "www.corp.example via office"}, target: "www.corp.example:80", want: "refused: not allowed"},
		{what: "wherever * stands", routes: []string{"* block", "www.corp.example via office"}, target: "www.corp.example:80", want: "exit office"},

		// exit+NAME
		{what: "the client's choice", chosen: "fra", exits: "office", target: "www.example:80", want: "exit fra", why: "exit+fra"},
		{what: "comes before routes", chosen: "fra", routes: []string{"*.example via office"}, target: "www.example:80", want: "exit fra"},
		{what: "not for the mesh", chosen: "fra", target: "db:80", want: "mesh"},
		{what: "nor what is behind peers", chosen: "fra", target: "10.1.2.3:80", want: "mesh"},
		{what: "a name of the mesh that nobody has stays", chosen: "fra", target: "nobody.mesh:80", want: "refused: name not found"},
		{what: "unknown", chosen: "ams", target: "www.example:80", want: "refused: not allowed", why: "there is no peer ams"},
		{what: "it lifts no block", chosen: "fra", routes: []string{"*.example block"}, target: "www.example:80", want: "refused: not allowed"},
		{what: "nor that of everything", chosen: "fra", routes: []string{"* block"}, target: "www.example:80", want: "refused: not allowed"},
		{what: "single labels are asked nowhere", chosen: "fra", target: "intranet:80", want: "refused: name not found"},

		// patterns
		{what: "exactly", routes: []string{"corp.example via office"}, target: "corp.example:80", want: "exit office"},
		{what: "not below", routes: []string{"corp.example via office"}, target: "www.corp.example:80", want: "refused: network unreachable"},
		{what: "below", routes: []string{"*.corp.example via office"}, target: "a.b.corp.example:80", want: "exit office"},
		{what: "and itself", routes: []string{"*.corp.example via office"}, target: "corp.example:80", want: "exit office"},
		{what: "no common end", routes: []string{"*.corp.example via office"}, target: "notcorp.example:80", want: "refused: network unreachable"},
		{what: "upper case and a dot at the end", routes: []string{"*.corp.example via office"}, target: "WWW.Corp.Example.:80", want: "exit office"},
		{what: "an IDN", routes: []string{"*.xn--bcher-kva.example via office"}, target: "www.BÜCHER.example:80", want: "exit office"},
		{what: "an IDN in the route", routes: []string{"*.bücher.example via office"}, target: "www.xn--bcher-kva.example:80", want: "exit office"},
		{what: "an ideographic full stop", routes: []string{"corp.example via office"}, target: "corp。example:80", want: "exit office"},
		{what: "a prefix names no name", routes: []string{"0.0.0.0/0 block", "::/0 block", "10.0.0.0/8 block"}, exits: "fra", target: "www.example:80", want: "exit fra"},
		{what: "a domain names no address", routes: []string{"*.1.2.3 block"}, target: "10.1.2.3:80", want: "mesh"},
		{what: "a mapped address is IPv4", routes: []string{"10.1.2.0/24 block"}, target: "[::ffff:10.1.2.3]:80", want: "refused: not allowed"},
		{what: "a mapped prefix, too", routes: []string{"::ffff:10.1.2.0/120 block"}, target: "10.1.2.3:80", want: "refused: not allowed"},
		{what: "a name that is an address", routes: []string{"10.1.2.0/24 block"}, target: "10.1.2.3.:80", want: "refused: not allowed"},
		{what: "fullwidth digits are one", target: "１０.１.２.３:80", want: "mesh", wantAddr: "10.1.2.3"},
		{what: "a single label that a route names", routes: []string{"intranet via office"}, target: "intranet:80", want: "exit office"},

		// actions
		{what: "direct", routes: []string{"*.lan direct"}, target: "printer.lan:80", want: "direct"},
		{what: "mesh for a name", routes: []string{"*.corp.example mesh"}, target: "www.corp.example:80", want: "default", why: "corp.example mesh"},
		{what: "mesh for an address", routes: []string{"192.0.2.0/24 mesh"}, allowed: []string{defaultV4}, target: "192.0.2.7:80", want: "default"},
		{what: "mesh for an address nobody has", routes: []string{"192.0.2.0/24 mesh"}, target: "192.0.2.7:80", want: "refused: network unreachable", why: "but no peer's"},
		{what: "mesh for everything", routes: []string{"* mesh"}, exits: "fra", allowed: []string{defaultV4}, target: "192.0.2.7:80", want: "default"},
		{what: "mesh for a mesh name", routes: []string{"db mesh"}, chosen: "", target: "db:80", want: "mesh", why: "Route = db mesh"},

		// what must not be reached
		{what: "localhost", exits: "fra", target: "localhost:80", want: "refused: not allowed", why: "loopback"},
		{what: "localhost with a dot", exits: "fra", target: "LocalHost.:80", want: "refused: not allowed"},
		{what: "below localhost", exits: "fra", target: "a.localhost:80", want: "refused: not allowed"},
		{what: "loopback", exits: "fra", target: "127.9.9.9:80", want: "refused: not allowed"},
		{what: "loopback, chosen", chosen: "fra", target: "127.0.0.1:80", want: "refused: not allowed"},
		{what: "loopback of IPv6", exits: "fra", target: "[::1]:80", want: "refused: not allowed"},
		{what: "loopback, mapped", exits: "fra", target: "[::ffff:127.0.0.1]:80", want: "refused: not allowed"},
		{what: "loopback, compatible", exits: "fra", target: "[::127.0.0.1]:80", want: "refused: not allowed"},
		{what: "loopback, translated", exits: "fra", target: "[64:ff9b::127.0.0.1]:80", want: "refused: not allowed"},
		{what: "unspecified", exits: "fra", target: "0.0.0.0:80", want: "refused: not allowed"},
		{what: "unspecified of IPv6", exits: "fra", target: "[::]:80", want: "refused: not allowed"},
		{what: "this network", exits: "fra", target: "0.1.2.3:80", want: "refused: not allowed"},
		{what: "multicast", exits: "fra", target: "224.0.0.251:5353", want: "refused: not allowed"},
		{what: "multicast of IPv6", exits: "fra", target: "[ff02::fb]:5353", want: "refused: not allowed"},
		{what: "broadcast", exits: "fra", target: "255.255.255.255:9", want: "refused: not allowed"},
		{what: "a zone", exits: "fra", target: "[fe80::1%eth0]:80", want: "refused: not allowed"},
		{what: "* does not name loopback", routes: []string{"* direct"}, target: "127.0.0.1:80", want: "refused: not allowed"},
		{what: "nor does a prefix beyond it", routes: []string{"0.0.0.0/1 direct"}, target: "127.0.0.1:80", want: "refused: not allowed"},
		{what: "nor one that ends like it", routes: []string{"126.0.0.0/7 direct"}, target: "127.0.0.1:80", want: "refused: not allowed"},
		{what: "a route that does", routes: []string{"127.0.0.1/32 direct"}, target: "127.0.0.1:80", want: "direct"},
		{what: "the whole of it", routes: []string{"127.0.0.0/8 direct"}, target: "127.1.1.1:80", want: "direct"},
		{what: "of IPv6", routes: []string{"::1/128 direct"}, target: "[::1]:80", want: "direct"},
		{what: "localhost by name", routes: []string{"localhost direct"}, target: "localhost:80", want: "direct"},
		{what: "via is not direct", routes: []string{"127.0.0.1/32 via office"}, target: "127.0.0.1:80", want: "refused: not allowed"},
		{what: "short", exits: "fra", target: "127.1:80", want: "refused: name not found", why: "short or foreign form"},
		{what: "one number", exits: "fra", target: "2130706433:80", want: "refused: name not found"},
		{what: "hexadecimal", exits: "fra", target: "0x7f.1:80", want: "refused: name not found"},
		{what: "hexadecimal at the end", exits: "fra", target: "1.0X7f:80", want: "refused: name not found"},
		{what: "0x alone", exits: "fra", target: "a.0x:80", want: "refused: name not found"},
		{what: "octal", exits: "fra", target: "0177.0.0.01:80", want: "refused: name not found"},
		{what: "five numbers", exits: "fra", target: "1.2.3.4.5:80", want: "refused: name not found"},
		{what: "fullwidth and short", exits: "fra", target: "１２７.１:80", want: "refused: name not found"},
		{what: "no peer's name", exits: "fra", target: "intranet:80", want: "refused: name not found", why: "without a dot"},
		{what: "below the mesh suffix", exits: "fra", target: "nobody.mesh:80", want: "refused: name not found", why: "no peer has this name"},
		{what: "a peer without address", exits: "fra", target: "bare:80", want: "refused: host unreachable"},
		{what: "a bad character", exits: "fra", target: "a b.example:80", want: "refused: name not found"},
		{what: "a NUL", exits: "fra", target: "www.example\x00.evil:80", want: "refused: name not found"},
		{what: "empty labels", exits: "fra", target: "www..example:80", want: "refused: name not found"},
		{what: "two dots at the end", exits: "fra", target: "www.example..:80", want: "refused: name not found"},
		{what: "a long label", exits: "fra", target: strings.Repeat("a", 64) + ".example:80", want: "refused: name not found"},
		{what: "an underscore is in use", exits: "fra", target: "_dmarc.www_1.example:80", want: "exit fra"},
		{what: "port 0", exits: "fra", target: "www.example:0", want: "refused: not allowed"},
	} {
		w := decideWorld(t)
		for _, p := range c.allowed {
			w.routes[netip.MustParsePrefix(p)] = "fra"
		}
		cfg := w.config()
		r := rules(t, c.exits, c.routes...)
		d := decide(&cfg, r, c.chosen, target(c.target))
		if got := short(d); got != c.want {
			t.Errorf("%s: %s: got %s (%s), want %s", c.what, c.target, got, d.Why, c.want)
		}
		if !strings.Contains(d.Why, c.why) || d.Why == "" {
			t.Errorf("%s: %s: explained by %q, want %q in it", c.what, c.target, d.Why, c.why)
		}
		if c.wantAddr != "" && fmt.Sprint(d.Addrs) != "["+c.wantAddr+"]" {
			t.Errorf("%s: %s: addresses %v, want %s", c.what, c.target, d.Addrs, c.wantAddr)
		}
		if (d.Err() != nil) != (d.Way == Refused) || d.Err() != nil && proxy.KindOf(d.Err()) != d.Kind {
			t.Errorf("%s: %s: error %v of %s", c.what, c.target, d.Err(), short(d))
		}
		if len(w.asked)+len(w.direct.asked)+w.dials("") > 0 {
			t.Errorf("%s: deciding asked %v %v", c.what, w.asked, w.direct.asked)
		}
	}
}

// A name that passes is one that no resolver or exit takes for anything else, and the decision does not depend on its spelling.
func FuzzSettle(f *testing.F) {
	for _, s := range []string{"www.example", "127.1", "0x7f000001", "WWW.Example.", "bücher.example", "::ffff:127.0.0.1", "a.localhost", "１.example", "1.2.3.4.", "xn--a", "a。", "fe80::1%1"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, name string) {
		d, err := settle(proxy.Target{Name: name, Port: 80})
		if err != nil || d.name == "" {
			if err == nil && (!d.addr.IsValid() || d.addr.Is4In6() || d.addr.Zone() != "") {
				t.Fatalf("%q: address %v", name, d.addr)
			}
			return
		}
		if len(d.name) > 253 || strings.Trim(d.name, "abcdefghijklmnopqrstuvwxyz0123456789-_.") != "" && strings.ContainsAny(d.name, " \x00/:@%[]") {
			t.Fatalf("%q: name %q", name, d.name)
		}
		for i := range len(d.name) {
			if c := d.name[i]; c >= 0x80 || 'A' <= c && c <= 'Z' || c <= ' ' {
				t.Fatalf("%q: name %q", name, d.name)
			}
		}
		last := d.name[strings.LastIndexByte(d.name, '.')+1:]
		if strings.Trim(last, "0123456789") == "" {
			t.Fatalf("%q: name %q ends in a number", name, d.name)
		}
		again, err := settle(proxy.Target{Name: strings.ToUpper(d.name) + ".", Port: 80})
		if err != nil || again != d {
			t.Fatalf("%q: %q settles to %q, %v", name, d.name, again.name, err)
		}
	})
}
