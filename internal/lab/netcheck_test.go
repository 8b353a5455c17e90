//go:build linux

package lab_test

import (
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"culvert.dev/culvert/internal/lab"
	"culvert.dev/culvert/internal/testnet"
	"culvert.dev/culvert/traversal/netcheck"
	"culvert.dev/culvert/traversal/stun"
)

// netcheckKinds is what netcheck is to say of each type of router.
var netcheckKinds = map[testnet.RouterType]netcheck.Kind{
	testnet.Pub: netcheck.KindPublic, testnet.PubFW: netcheck.KindFirewall, testnet.FC: netcheck.KindFullCone, testnet.FCR: netcheck.KindFullCone,
	testnet.ARC: netcheck.KindAddress, testnet.PRC: netcheck.KindPort, testnet.PRCR: netcheck.KindPort, testnet.ADM: netcheck.KindRandom,
	testnet.SymKeep: netcheck.KindKeeping, testnet.SymSeq: netcheck.KindSequential, testnet.Sym: netcheck.KindRandom,
	testnet.CGNE: netcheck.KindPort, testnet.CGNS: netcheck.KindRandom, testnet.Blocked: netcheck.KindBlocked,
}

// netcheckRun is the command on its way.
type netcheckRun struct{ *lab.Process }

// startNetcheck runs the command on a host as an ordinary user, without a configuration, against the world's server.
func startNetcheck(t *testing.T, w *lab.NATWorld, host *lab.Node, args ...string) netcheckRun {
	t.Helper()
	pin := regexp.MustCompile(`sha256//\S+`).FindString(w.Relay.MustCommand(t, "config"))
	args = append([]string{
		"netcheck", "--json", "--stun", lab.Port(lab.ServerAddrs[0], 3478), "--stun", lab.Port(lab.ServerAddrs6[0], 3478),
		"--relay", "https://" + lab.ServerAddrs[0], "--pin", pin,
	}, args...)
	return netcheckRun{host.StartUnprivileged(t, nil, lab.Culvert.Path(), args...)}
}

// report waits for the end and reads what was printed.
func (r netcheckRun) report(limit time.Duration) (*netcheck.Report, error) {
	if !lab.Poll(limit, func() bool { return !r.Alive() }) {
		return nil, fmt.Errorf("takes longer than %v: %s", limit, r.Log())
	}
	rep := new(netcheck.Report)
	if err := json.Unmarshal([]byte(r.Log()), rep); err != nil {
		return nil, fmt.Errorf("%w: %s", err, r.Log())
	}
	return rep, nil
}

// TestNetcheck has the command tell every type of router for what it is, which is what stun.Discover measures of it.
func TestNetcheck(t *testing.T) {
	t.Parallel()
	productOnly(t, "stock WireGuard has no netcheck")
	w := lab.NewNATWorld(t)
	w.StartRelay(t)
	type site struct {
		*lab.Site
		run netcheckRun
	}
	var sites []*site
	add := func(c lab.SiteConfig) {
		sites = append(sites, &site{Site: w.Site(fmt.Sprintf("n%c", 'a'+len(sites)), c)})
	}
	for _, typ := range testnet.RouterTypes() {
		add(lab.SiteConfig{Type: typ})
	}
	add(lab.SiteConfig{Type: testnet.PRC, Hairpin: true})
	add(lab.SiteConfig{Type: testnet.PRC, IPv6: true})

	for _, s := range sites {
		s.run = startNetcheck(t, w, s.Hosts[0])
	}

	var table strings.Builder
	for _, s := range sites {
		rep, err := s.run.report(30 * time.Second)
		if err != nil {
			t.Errorf("%s: %v", s.Config.Type, err)
			continue
		}
		f := rep.IPv4
		fmt.Fprintf(&table, "\n%-8s %-22s %-8s %5d ms  ", s.Config.Type, string(f.Kind), f.Hairpin, rep.TookMS)
		for _, o := range f.Outlook {
			fmt.Fprintf(&table, " %s", strings.TrimPrefix(string(o.Result), "direct with "))
		}
		checkNetcheck(t, s.Site, rep)
	}
	t.Log(table.String())
}

// checkNetcheck compares a report with what the type of router promises.
func checkNetcheck(t *testing.T, s *lab.Site, rep *netcheck.Report) {
	t.Helper()
	typ, f := s.Config.Type, rep.IPv4
	if f.Kind != netcheckKinds[typ] {
		t.Errorf("%s: %q", typ, string(f.Kind))
	}
	// The relay is reached by TCP whatever the router does to UDP.
	if len(rep.Relays) != 1 || !rep.Relays[0].Connected || rep.Relays[0].RTT <= 0 {
		t.Errorf("%s: relays %+v", typ, rep.Relays)
	}
	if typ == testnet.Blocked {
		if f.UDP != netcheck.No || !slices.ContainsFunc(rep.Notes, func(n string) bool { return strings.Contains(n, "lets no UDP out") }) {
			t.Errorf("%s: UDP %q, notes %q", typ, f.UDP, rep.Notes)
		}
		return
	}
	want := behaviours[typ]
	hairpin := want.hairpin
	if s.Config.Hairpin {
		hairpin = stun.HairpinExternal
	}
	if f.Mapping != want.mapping.String() || f.Filtering != want.filtering.String() || (f.NAT == netcheck.Yes) != want.nat {
		t.Errorf("%s: mapping %q, filtering %q, NAT %q", typ, f.Mapping, f.Filtering, f.NAT)
	}
	if kept := f.Ports.Kept == f.Ports.Sockets; f.Ports.Sockets == 0 || kept != want.kept || f.Ports.Step != want.step {
		t.Errorf("%s: ports %+v", typ, f.Ports)
	}
	if want.nat && f.Hairpin != hairpin.String() {
		t.Errorf("%s: hairpin %q", typ, f.Hairpin)
	}
	if f.Endpoint.Addr() != s.Public() {
		t.Errorf("%s: seen as %v", typ, f.Endpoint)
	}
	switch v6 := rep.IPv6; {
	case s.Config.IPv6 && (v6.Kind != netcheck.KindFirewall || v6.NAT != netcheck.No):
		t.Errorf("%s: IPv6 %q, NAT %q", typ, string(v6.Kind), v6.NAT)
	case !s.Config.IPv6 && typ != testnet.Pub && v6.UDP == netcheck.Yes:
		t.Errorf("%s: IPv6 where there is none: %+v", typ, v6)
	}
	if rep.TookMS > 8000 {
		t.Errorf("%s: took %d ms", typ, rep.TookMS)
	}
}

// TestNetcheckLifetime has the kernel's own connection tracking forget mappings.
func TestNetcheckLifetime(t *testing.T) {
	t.Parallel()
	productOnly(t, "stock WireGuard has no netcheck")
	w := lab.NewNATWorld(t)
	w.StartRelay(t)
	s := w.Site("a", lab.SiteConfig{Type: testnet.PRC, Idle: 6 * time.Second, Stream: 13 * time.Second})
	rep, err := startNetcheck(t, w, s.Hosts[0], "--lifetime", "--no-port-mapping").report(time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	if l := rep.IPv4.Live; l == nil || l.Least != 10 || l.Most != 15 || l.Err != "" {
		t.Errorf("lifetime %+v, want from 10 to 15 s for one of 13 s", l)
	}
}

// TestNetcheckGrants has a program of others on the router grant a port mapping, which must be gone afterwards.
func TestNetcheckGrants(t *testing.T) {
	t.Parallel()
	productOnly(t, "stock WireGuard has no netcheck")
	w := lab.NewNATWorld(t)
	w.StartRelay(t)
	s := w.Site("g", lab.SiteConfig{Type: testnet.PRC, UPnP: true})
	s.StartUPnP(t)
	rep, err := startNetcheck(t, w, s.Hosts[0]).report(time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	if len(rep.Gateways) != 1 || rep.Gateways[0].Grant == nil {
		t.Fatalf("gateways %+v", rep.Gateways)
	}
	g := rep.Gateways[0]
	if g.Grant.External.Addr() != s.WAN() || !g.Grant.Usable || !g.Services[0].Found {
		t.Errorf("%+v, grant %+v", g, g.Grant)
	}
	if f := rep.IPv4; f.DoubleNAT != netcheck.No || f.Kind != netcheck.KindPort {
		t.Errorf("double NAT %q (%s), kind %q", f.DoubleNAT, f.DoubleNATWhy, string(f.Kind))
	}
	if rules := s.Router.Run(t, "nft", "list", "table", "inet", "upnp"); strings.Contains(rules, "dnat") {
		t.Errorf("the mapping is still there:\n%s", rules)
	}
}

// TestNetcheckBesideANode has a node run meanwhile, whose connections must not be touched.
func TestNetcheckBesideANode(t *testing.T) {
	t.Parallel()
	productOnly(t, "stock WireGuard has no netcheck")
	w := lab.NewNATWorld(t)
	w.StartRelay(t)
	s := w.Site("b", lab.SiteConfig{Type: testnet.PRC})
	m := w.MeshNode(s.Hosts[0])
	m.Start(t)
	type relays struct {
		Relays []struct {
			Connected  bool    `json:"connected"`
			RTT        float64 `json:"rtt_ms"`
			Reconnects int     `json:"reconnects"`
		} `json:"relays"`
	}
	lab.WaitFor(t, 20*time.Second, "the relay", func() bool {
		var now relays
		return m.Status(&now) == nil && len(now.Relays) == 1 && now.Relays[0].Connected && now.Relays[0].RTT > 0
	})
	out, err := m.Client("netcheck", "--json")
	rep := new(netcheck.Report)
	if err == nil {
		err = json.Unmarshal([]byte(out), rep)
	}
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if len(rep.Relays) != 1 || !rep.Relays[0].FromNode || !rep.Relays[0].Connected || rep.Relays[0].RTT <= 0 {
		t.Errorf("relays %+v", rep.Relays)
	}
	if rep.IPv4.Kind != netcheck.KindPort || !slices.ContainsFunc(rep.Notes, func(n string) bool { return strings.Contains(n, "a node runs here on UDP port") }) {
		t.Errorf("kind %q, notes %q", string(rep.IPv4.Kind), rep.Notes)
	}
	clients := w.Relay.MustCommand(t, "status")
	if !strings.Contains(clients, "clients: 1") {
		t.Errorf("the relay had more than one connection:\n%s", clients)
	}
	var after relays
	if err := m.Status(&after); err != nil || after.Relays[0].Reconnects != 0 {
		t.Errorf("%+v, %v", after, err)
	}
}
