package config

import (
	"errors"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const upstreamNode = `[Interface]
Name = node
PrivateKey = oKG9IQtfYC3oNVupIktlAn+GCYSgWAw8oipzQumt/X8=
Address = 10.0.0.1/24
[Peer]
Name = laptop
PublicKey = tenWwkouosPtk7skeC+IFv/HSdO5gc4QYkELrvQgqDw=
AllowedIPs = 10.0.0.2/32
AllowRouting = yes
[Peer]
Name = phone
PublicKey = qb5xlpl+eB/rzKG9gP2c1Sr/K9gBlA7a0s8mTyxZeWQ=
AllowedIPs = 10.0.0.3/32
`

const mullvad = `[Interface]
# Device: Some Name
PrivateKey = 0ABD5dI6yFVoOuJIfJ4xWL3iU3oiNkW4Ra+I7fYV8k0=
Address = 10.64.3.2/32,fc00:bbbb::3:301/128
DNS = 10.64.0.1, search.example
PostUp = iptables -I OUTPUT ! -o %i -j REJECT

[Peer]
PublicKey = xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=
AllowedIPs = 0.0.0.0/0,::0/0
Endpoint = 193.32.249.66:51820
`

// loadUpstream loads a configuration that consists of upstreamNode and more, beside a file mullvad.conf.
func loadUpstream(t *testing.T, more, file string) (*Config, error) {
	t.Helper()
	dir := t.TempDir()
	for name, text := range map[string]string{"culvert.conf": upstreamNode + more, "mullvad.conf": file} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	c, err := Load(filepath.Join(dir, "culvert.conf"), testOptions())
	if err != nil {
		err = errors.New(strings.ReplaceAll(err.Error(), dir+"/", ""))
	}
	return c, err
}

// A provider's file is used as it is; peers that may route use it, and ask its resolver.
func TestUpstreamOfAProvider(t *testing.T) {
	c, err := loadUpstream(t, "[Upstream]\nFile = mullvad.conf\n", mullvad)
	if err != nil {
		t.Fatal(err)
	}
	u := c.Upstream
	if len(u.Ends) != 1 || u.Ends[0].Endpoint != "193.32.249.66:51820" || u.Own.MTU != DefaultMTU || u.Own.ListenPort != 0 || len(u.Own.Addresses) != 2 {
		t.Errorf("got %+v", u)
	}
	if !slices.Equal(u.Users, []string{"laptop"}) || !slices.Equal(u.DNS, []netip.AddrPort{netip.MustParseAddrPort("10.64.0.1:53")}) {
		t.Errorf("users %v, DNS %v", u.Users, u.DNS)
	}
	if len(c.Warnings) != 1 || filepath.Base(c.Warnings[0].File) != "mullvad.conf" || c.Warnings[0].Line != 6 {
		t.Errorf("warnings %v", c.Warnings)
	}
	f := c.FilterConfig(func(p *Peer) uint16 { return uint16(len(p.Name)) })
	if !f.HasUpstream || !f.Peers[0].Upstream || f.Peers[1].Upstream {
		t.Errorf("filter: %v %+v", f.HasUpstream, f.Peers)
	}
}

func TestUpstreamDNSAndPeers(t *testing.T) {
	noDNS := strings.Replace(mullvad, "DNS =", "# DNS =", 1)
	for _, c := range []struct{ what, more, file, users, dns string }{
		{"the section's resolver", "[Upstream]\nFile = mullvad.conf\nDNS = 9.9.9.9, 10.1.1.1:5353", mullvad, "laptop", "9.9.9.9:53 10.1.1.1:5353"},
		{"that of [Exit], through the upstream", "[Upstream]\nFile = mullvad.conf\n[Exit]\nDNS = 1.1.1.1", noDNS, "laptop", "1.1.1.1:53"},
		{"none", "[Upstream]\nFile = mullvad.conf\n[Exit]\nDNS = off", noDNS, "laptop", ""},
		{"nobody by default", "[Upstream]\nFile = mullvad.conf\nPeers =\n", noDNS, "", ""},
		{"a peer that may not route", "[Upstream]\nFile = mullvad.conf\nPeers = phone\n", noDNS, "", ""},
		{"named peers", "[Upstream]\nFile = mullvad.conf\nPeers = phone, laptop\n", mullvad, "laptop", "10.64.0.1:53"},
		{"a rule may mean it", "[Filter]\nRule = accept from phone to * via upstream\n[Upstream]\nFile = mullvad.conf\n", mullvad, "laptop", "10.64.0.1:53"},
	} {
		t.Run(c.what, func(t *testing.T) {
			got, err := loadUpstream(t, c.more, c.file)
			if err != nil {
				t.Fatal(err)
			}
			var dns []string
			for _, s := range got.Upstream.DNS {
				dns = append(dns, s.String())
			}
			if u := strings.Join(got.Upstream.Users, " "); u != c.users || strings.Join(dns, " ") != c.dns {
				t.Errorf("users %q, DNS %q", u, dns)
			}
		})
	}
}

// Faults name the file that they are in.
func TestUpstreamFaults(t *testing.T) {
	noDNS := strings.Replace(mullvad, "DNS =", "# DNS =", 1)
	const section = "[Upstream]\nFile = mullvad.conf\n" // lines 14 and 15
	for _, c := range []struct{ what, more, file, want string }{
		{"no file", "[Upstream]\nPeers = laptop\n", mullvad, "culvert.conf:14: [Upstream] needs a File"},
		{"file is missing", "[Upstream]\nFile = other.conf\n", mullvad, "culvert.conf:15: File: read other.conf: no such file"},
		{"twice", section + section, mullvad, "culvert.conf:16: [Upstream] is already given on line 14"},
		{"unknown key", section + "Peer = laptop\n", mullvad, "culvert.conf:16: unknown key Peer in [Upstream]; did you mean Peers?"},
		{"unknown peer", section + "Peers = laptob\n", mullvad, "culvert.conf:16: Peers: there is no peer named laptob; did you mean laptop?"},
		{"no resolver", section, noDNS, "culvert.conf:14: the names that laptop ask for need a resolver behind the upstream"},
		{"resolver is elsewhere", section + "DNS = 9.9.9.9\n", strings.Replace(mullvad, "0.0.0.0/0", "10.0.0.0/8", 1), "culvert.conf:16: DNS: mullvad.conf does not lead to 9.9.9.9"},
		{"a section of its own", section, mullvad + "[Exit]\nDNS = off\n", "mullvad.conf:12: only [Interface] and [Peer] may stand"},
		{"a key in the file", section, mullvad + "PersistentKeepaliv = 25\n", "mullvad.conf:12: unknown key PersistentKeepaliv in [Peer]; did you mean PersistentKeepalive?"},
		{"no endpoint", section, strings.Replace(mullvad, "Endpoint", "# Endpoint", 1), "mullvad.conf:8: a peer of an upstream needs an Endpoint"},
		{"no peer", section, mullvad[:strings.Index(mullvad, "[Peer]")], "mullvad.conf: an upstream needs a [Peer]"},
		{"no address", section, strings.Replace(mullvad, "Address", "# Address", 1), "mullvad.conf:1: [Interface] needs an Address"},
		{"the node's address", section, strings.Replace(mullvad, "10.64.3.2", "10.0.0.1", 1), "mullvad.conf:4: Address: 10.0.0.1 is this node's own in the mesh"},
		{"another protocol", section, mullvad + "Jc = 4\n", "mullvad.conf:12: Jc: this file is for AmneziaWG"},
	} {
		t.Run(c.what, func(t *testing.T) {
			_, err := loadUpstream(t, c.more, c.file)
			if err == nil || !strings.Contains(err.Error(), c.want) || strings.Count(err.Error(), "\n") > 0 {
				t.Errorf("got %v, want %s", err, c.want)
			}
		})
	}
	if _, err := loadUpstream(t, "[Filter]\nRule = accept from phone to * via upstream\n", mullvad); err == nil {
		t.Error("a rule means an upstream that is not there")
	}
}

// A file that others may read is warned of, as the configuration itself is.
func TestUpstreamFileMode(t *testing.T) {
	c, err := loadUpstream(t, "[Upstream]\nFile = mullvad.conf\n", mullvad)
	if err != nil {
		t.Fatal(err)
	}
	os.Chmod(c.Upstream.File, 0o644)
	if c, err = Load(c.File, testOptions()); err != nil {
		t.Fatal(err)
	}
	if !slices.ContainsFunc(c.Warnings, func(d Diagnostic) bool { return d.File == c.Upstream.File && strings.Contains(d.Message, "chmod 600") }) {
		t.Errorf("warnings %v", c.Warnings)
	}
}

// Whatever the tunnel's file holds, it is read to a usable tunnel or refused with a reason in its own name.
func FuzzUpstreamFile(f *testing.F) {
	f.Add([]byte(mullvad))
	f.Add([]byte(upstreamNode))
	f.Fuzz(func(t *testing.T, text []byte) {
		c, err := load("culvert.conf", testOptions(), func(name string) (*content, error) {
			switch name {
			case "culvert.conf":
				return &content{[]byte(upstreamNode + "[Upstream]\nFile = hub.conf\n"), 0o600, false}, nil
			case "hub.conf":
				return &content{text, 0o600, false}, nil
			}
			return nil, fs.ErrNotExist
		})
		if err != nil {
			if err.Error() == "" {
				t.Error("an error without a message")
			}
			return
		}
		u := c.Upstream
		if u == nil || len(u.Ends) == 0 || len(u.Own.Addresses) == 0 || u.Own.PrivateKey.IsZero() || len(u.DNS) == 0 {
			t.Errorf("accepted: %+v", u)
		}
	})
}
