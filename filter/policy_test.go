package filter

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"culvert.dev/culvert/internal/packet"
)

func TestNewNamesWhatDoesNotFit(t *testing.T) {
	for want, change := range map[string]func(*Config){
		"peer nobody: the ID 0":                     func(c *Config) { c.Peers = append(c.Peers, Peer{Name: "nobody"}) },
		"peer twin: the ID 3 belongs to roamer":     func(c *Config) { c.Peers = append(c.Peers, Peer{ID: roamer, Name: "twin"}) },
		"peer fan: AllowPeers names the unknown ID": func(c *Config) { c.Peers = append(c.Peers, Peer{ID: 50, Name: "fan", AllowPeers: []uint16{51}}) },
		"route 10.9.0.0/16: not a prefix, or its peer 77 is unknown": func(c *Config) {
			c.Routes = append(c.Routes, Route{netip.MustParsePrefix("10.9.0.0/16"), 77})
		},
		"its peer 3 is unknown": func(c *Config) { c.Peers = slices.DeleteFunc(c.Peers, func(p Peer) bool { return p.ID == roamer }) },
		"route invalid Prefix":  func(c *Config) { c.Routes = append(c.Routes, Route{Peer: plain}) },
		"route fd77::/64: listed by the peers office and plain": func(c *Config) {
			c.Routes = append(c.Routes, Route{netip.MustParsePrefix("fd77::1/64"), plain})
		},
		"own address 127.0.0.1":   func(c *Config) { c.Self = addrs("127.0.0.1") },
		"own address ::":          func(c *Config) { c.Self = addrs("::") },
		"own address ff02::1":     func(c *Config) { c.Self = addrs("ff02::1") },
		"own address invalid IP":  func(c *Config) { c.Self = make([]netip.Addr, 1) },
		"mesh network 0.0.0.0/0":  func(c *Config) { c.Mesh = parsePrefixes([]string{"0.0.0.0/0"}) },
		"mesh network invalid":    func(c *Config) { c.Mesh = make([]netip.Prefix, 1) },
		"DenyTo: not a prefix":    func(c *Config) { c.Deny = make([]netip.Prefix, 1) },
		"AllowTo: not a prefix":   func(c *Config) { c.Allow = make([]netip.Prefix, 1) },
		"on-link network: not":    func(c *Config) { c.Host.OnLink = make([]netip.Prefix, 1) },
		"host network: not":       func(c *Config) { c.Host.Local = make([]netip.Prefix, 1) },
		"host address: not":       func(c *Config) { c.Host.Addrs = make([]netip.Addr, 1) },
		"self port 7: protocol 1": func(c *Config) { c.SelfPorts = []SelfPort{{Proto: packet.ProtoICMPv4, Port: 7}} },
	} {
		cfg := fixture()
		change(&cfg)
		if _, err := New(cfg); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v, want %q", err, want)
		}
	}
}

func TestEmptyPolicyDeniesAll(t *testing.T) {
	p := mustNew(t, Config{})
	for _, s := range []string{"8.8.8.8", "10.0.0.1", "::1", "2606:4700::1"} {
		dst := netip.MustParseAddr(s)
		if got := p.Decide(1, key(from(plain, dst), dst, packet.ProtoTCP, 443)); got != dropped(ReasonUnknownPeer) {
			t.Errorf("%s: %v", s, got)
		}
	}
	if p.PeerOf(netip.MustParseAddr("10.0.0.1")) != 0 || p.PeerOf(netip.Addr{}) != 0 || p.Peer(0) != nil || p.Peer(1) != nil {
		t.Error("somebody is known to an empty policy")
	}
}

func TestPolicyKeepsNothingOfItsConfig(t *testing.T) {
	cfg := fixture()
	p := mustNew(t, cfg)
	dst := netip.MustParseAddr("100.64.0.11")
	k := key(from(friend, dst), dst, packet.ProtoTCP, 443)
	before := p.Decide(friend, k)
	for i := range cfg.Peers {
		cfg.Peers[i].AllowRouting = true
		for j := range cfg.Peers[i].AllowPeers {
			cfg.Peers[i].AllowPeers[j] = exit
		}
	}
	if got := p.Decide(friend, k); got != before || got.Action != Accept {
		t.Errorf("%v after a change of the configuration, %v before", got, before)
	}
	if p.Peer(plain).AllowRouting {
		t.Error("a peer is shared with the configuration")
	}
}

func TestPeerOf(t *testing.T) {
	p := mustNew(t, fixture())
	for s, want := range map[string]uint16{
		"100.64.0.13": roamer, "fd7a::13": roamer, "192.168.7.200": office, "fd77::200": office, "100.99.255.255": office,
		"8.8.8.8": exit, "200.1.1.1": exit, "2606:4700::1": exit, "fe80::1": exit, "::ffff:100.64.0.13": exit,
	} {
		if got := p.PeerOf(netip.MustParseAddr(s)); got != want {
			t.Errorf("%s belongs to %d, want %d", s, got, want)
		}
	}
	if got := p.PeerOf(netip.MustParseAddr("fd7a::13%wg0")); got != roamer {
		t.Errorf("with a zone: %d", got)
	}
}

func TestIsDefault(t *testing.T) {
	for _, p := range parsePrefixes([]string{"0.0.0.0/0", "0.0.0.0/1", "128.0.0.0/1", "::/0", "8000::/1", "2000::/3"}) {
		if !isDefault(p) {
			t.Errorf("%s stands for the internet", p)
		}
	}
	for _, p := range parsePrefixes([]string{"64.0.0.0/2", "10.0.0.0/8", "2000::/4", "fc00::/7", "::ffff:0:0/96"}) {
		if isDefault(p) {
			t.Errorf("%s is somebody's", p)
		}
	}
}

// large is a mesh of 5,000 routes.
func large() Config {
	cfg := fixture()
	r := rand.New(rand.NewPCG(5, 6))
	taken := map[netip.Prefix]bool{}
	for id := uint16(100); len(taken) < 5000; id++ {
		cfg.Peers = append(cfg.Peers, Peer{ID: id, Name: fmt.Sprint(id), AllowRouting: true})
		for _, p := range []netip.Prefix{
			netip.PrefixFrom(netip.AddrFrom4([4]byte{100, 64 + byte(r.IntN(30)), byte(r.Uint32()), byte(r.Uint32())}), 20+r.IntN(13)).Masked(),
			netip.PrefixFrom(netip.AddrFrom16([16]byte{0xfd, 0x7a, byte(r.Uint32()), byte(r.Uint32()), 15: byte(id)}), 32+r.IntN(97)).Masked(),
		} {
			if !taken[p] {
				taken[p] = true
				cfg.Routes = append(cfg.Routes, Route{p, id})
			}
		}
	}
	return cfg
}

func TestFiveThousandRoutes(t *testing.T) {
	cfg := large()
	p := mustNew(t, cfg)
	for i, r := range cfg.Routes {
		if i%50 > 0 {
			continue
		}
		if got, want := p.PeerOf(r.Prefix.Addr()), modelOwner(&cfg, r.Prefix.Addr(), true); got != want {
			t.Errorf("%s belongs to %d, want %d", r.Prefix.Addr(), got, want)
		}
	}
}

func TestDecideDoesNotAllocate(t *testing.T) {
	p := mustNew(t, fixture())
	for _, s := range []string{"8.8.8.8", "10.0.0.1", "100.64.0.1", "100.64.0.11", "224.0.0.1", "2606:4700::1", "2002:a00:1::", "2001:0:808:808::f7f7:f7f7", "64:ff9b::127.0.0.1"} {
		dst := netip.MustParseAddr(s)
		for _, peer := range []uint16{friend, inmate, 99} {
			src := netip.MustParseAddr("100.64.0.14")
			if peer != 99 {
				src = from(peer, dst)
			}
			k := key(src, dst, packet.ProtoTCP, 443)
			if n := testing.AllocsPerRun(100, func() {
				p.Decide(peer, k)
				p.PeerOf(dst)
				p.PeerOfKey(k.Src, k.V)
			}); n != 0 {
				t.Errorf("%d to %s: %v allocations", peer, s, n)
			}
		}
	}
}

func BenchmarkPeerOf(b *testing.B) {
	for name, cfg := range map[string]Config{"small": fixture(), "5000": large()} {
		p := mustNew(b, cfg)
		var keys [][16]byte
		var vs []uint8
		for i, r := range cfg.Routes { // walked with a stride, so that branch prediction does not learn the table
			r = cfg.Routes[i*2654435761%len(cfg.Routes)]
			keys = append(keys, r.Prefix.Addr().As16())
			vs = append(vs, map[bool]uint8{true: 4, false: 6}[r.Prefix.Addr().Is4()])
		}
		b.Run(name, func(b *testing.B) {
			i := 0
			for b.Loop() {
				if p.PeerOfKey(keys[i], vs[i]) == 0 {
					b.Fatal("nobody")
				}
				if i++; i == len(keys) {
					i = 0
				}
			}
		})
	}
}

func BenchmarkDecide(b *testing.B) {
	for name, cfg := range map[string]Config{"small": fixture(), "5000": large()} {
		p := mustNew(b, cfg)
		for _, s := range []string{"8.8.8.8", "2606:4700::1", "64:ff9b::8.8.8.8"} {
			dst := netip.MustParseAddr(s)
			k := key(from(inmate, dst), dst, packet.ProtoTCP, 443)
			b.Run(name+"/"+s, func(b *testing.B) {
				for b.Loop() {
					if p.Decide(inmate, k).Action != Accept {
						b.Fatal(s)
					}
				}
			})
		}
	}
}

func BenchmarkNew(b *testing.B) {
	cfg := large()
	for b.Loop() {
		mustNew(b, cfg)
	}
}
