package tunnel

import (
	"strings"
	"testing"

	"culvert.dev/culvert/internal/wgkey"
)

// TestDiff compares the commands, with keys written as one letter.
func TestDiff(t *testing.T) {
	key := func(b byte) (k wgkey.Public) {
		for i := range k {
			k[i] = b
		}
		return k
	}
	a := Peer{PublicKey: key(0xaa), AllowedIPs: prefixes("10.0.0.1/32"), Endpoint: "192.0.2.1:5", Keepalive: 5}
	b := Peer{PublicKey: key(0xbb), AllowedIPs: prefixes("10.0.0.2/32", "fd00::/64")}
	with := func(p Peer, f func(*Peer)) Peer { f(&p); return p }
	for _, c := range []struct {
		name     string
		old, new []Peer
		want     string
	}{
		{"nothing", []Peer{a, b}, []Peer{b, a}, ""},
		{"a name is no business of the device", []Peer{a}, []Peer{with(a, func(p *Peer) { p.Name = "x" })}, ""},
		{"a new peer", []Peer{a}, []Peer{a, b},
			"public_key=B persistent_keepalive_interval=0 allowed_ip=10.0.0.2/32 allowed_ip=fd00::/64"},
		{"a new peer with all", nil, []Peer{a},
			"public_key=A endpoint=192.0.2.1:5 persistent_keepalive_interval=5 allowed_ip=10.0.0.1/32"},
		{"a name is not for the device", nil, []Peer{with(a, func(p *Peer) { p.Endpoint = "example.com:5" })},
			"public_key=A persistent_keepalive_interval=5 allowed_ip=10.0.0.1/32"},
		{"a peer goes", []Peer{a, b}, []Peer{a}, "public_key=B remove=true"},
		{"a keepalive", []Peer{b}, []Peer{with(b, func(p *Peer) { p.Keepalive = 9 })},
			"public_key=B update_only=true persistent_keepalive_interval=9"},
		{"an endpoint", []Peer{a}, []Peer{with(a, func(p *Peer) { p.Endpoint = "[2001:db8::1]:7" })},
			"public_key=A update_only=true endpoint=[2001:db8::1]:7"},
		{"an endpoint that goes away stays in use", []Peer{a}, []Peer{with(a, func(p *Peer) { p.Endpoint = "" })}, ""},
		{"an endpoint by name is resolved first", []Peer{a}, []Peer{with(a, func(p *Peer) { p.Endpoint = "example.com:5" })}, ""},
		{"a prefix comes and one goes", []Peer{a}, []Peer{with(a, func(p *Peer) { p.AllowedIPs = prefixes("10.0.0.9/32") })},
			"public_key=A update_only=true allowed_ip=10.0.0.9/32 public_key=A update_only=true allowed_ip=-10.0.0.1/32"},
		{"a prefix moves: it is given before it is taken", []Peer{a, b},
			[]Peer{with(a, func(p *Peer) { p.AllowedIPs = nil }), with(b, func(p *Peer) { p.AllowedIPs = prefixes("10.0.0.2/32", "fd00::/64", "10.0.0.1/32") })},
			"public_key=B update_only=true allowed_ip=10.0.0.1/32 public_key=A update_only=true allowed_ip=-10.0.0.1/32"},
		{"a prefix moves to a new peer while its owner goes", []Peer{a}, []Peer{with(b, func(p *Peer) { p.AllowedIPs = a.AllowedIPs })},
			"public_key=B persistent_keepalive_interval=0 allowed_ip=10.0.0.1/32 public_key=A remove=true"},
	} {
		got := strings.Join(strings.Fields(updateText(diffPeers(setOf(t, c.old...), setOf(t, c.new...), false))), " ")
		got = strings.NewReplacer(key(0xaa).Hex(), "A", key(0xbb).Hex(), "B").Replace(got)
		if got != c.want {
			t.Errorf("%s:\n got %s\nwant %s", c.name, got, c.want)
		}
	}
}

func TestDiffWithRelay(t *testing.T) {
	key := wgkey.Public{0xaa}
	with := func(endpoint string) Peer { return Peer{PublicKey: key, Endpoint: endpoint} }
	const name, addr = "example.com:5", "192.0.2.1:5"
	for _, c := range []struct {
		title    string
		old, new []Peer
		want     string // the endpoint that is set
	}{
		{"a new peer without Endpoint", nil, []Peer{with("")}, "relay"},
		{"a new peer with a name: by the relay until it is resolved", nil, []Peer{with(name)}, "relay"},
		{"a new peer with an address", nil, []Peer{with(addr)}, addr},
		{"an Endpoint goes away", []Peer{with(addr)}, []Peer{with("")}, "relay"},
		{"a name goes away", []Peer{with(name)}, []Peer{with("")}, "relay"},
		{"an address comes", []Peer{with("")}, []Peer{with(addr)}, addr},
		{"a name comes: it is tried when it is resolved", []Peer{with("")}, []Peer{with(name)}, ""},
		{"nothing changes", []Peer{with("")}, []Peer{with("")}, ""},
	} {
		got := ""
		for _, line := range strings.Fields(updateText(diffPeers(setOf(t, c.old...), setOf(t, c.new...), true))) {
			if e, ok := strings.CutPrefix(line, "endpoint="); ok {
				got += strings.Replace(e, relayText(key), "relay", 1)
			}
		}
		if got != c.want {
			t.Errorf("%s: endpoint %q, want %q", c.title, got, c.want)
		}
	}
}

func TestDiffOfPresharedKey(t *testing.T) {
	psk, err := wgkey.NewPreshared()
	if err != nil {
		t.Fatal(err)
	}
	p := Peer{PublicKey: newKey(t).Public()}
	q := p
	q.Preshared = psk
	if got := updateText(diffPeers(setOf(t, p), setOf(t, q), false)); !strings.Contains(got, "preshared_key="+psk.RevealHex()+"\n") {
		t.Error("a preshared key that is added is not set")
	}
	if got := updateText(diffPeers(setOf(t, q), setOf(t, p), false)); !strings.Contains(got, "preshared_key="+strings.Repeat("0", 64)+"\n") {
		t.Error("a preshared key that goes away is not cleared")
	}
}
