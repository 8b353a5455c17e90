//go:build linux

package lab_test

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"culvert.dev/culvert/internal/lab"
	"culvert.dev/culvert/internal/testnet"
	"culvert.dev/culvert/nat"
	"culvert.dev/culvert/traversal/stun"
)

// natBehaviour is what a type of router does, as STUN measures it.
type natBehaviour struct {
	mapping, filtering nat.Dependence
	kept               bool // fresh sockets have their own ports outside
	step               int  // between the ports of fresh sockets
	hairpin            stun.Hairpin
	nat                bool
}

const (
	eiDep = nat.EndpointIndependent
	adDep = nat.AddressDependent
	apDep = nat.AddressAndPortDependent
)

// behaviours is what the types of the matrix promise (RFC 4787 sections 4.1, 5 and 6).
var behaviours = map[testnet.RouterType]natBehaviour{
	testnet.Pub:     {eiDep, eiDep, true, 0, stun.HairpinNone, false},
	testnet.PubFW:   {eiDep, apDep, true, 0, stun.HairpinNone, false},
	testnet.FC:      {eiDep, eiDep, true, 0, stun.HairpinNone, true},
	testnet.FCR:     {eiDep, eiDep, false, 0, stun.HairpinNone, true},
	testnet.ARC:     {eiDep, adDep, true, 0, stun.HairpinNone, true},
	testnet.PRC:     {eiDep, apDep, true, 0, stun.HairpinNone, true},
	testnet.PRCR:    {eiDep, apDep, false, 0, stun.HairpinNone, true},
	testnet.ADM:     {adDep, apDep, false, 0, stun.HairpinNone, true},
	testnet.SymKeep: {apDep, apDep, true, 0, stun.HairpinNone, true},
	testnet.SymSeq:  {apDep, apDep, false, 1, stun.HairpinNone, true},
	testnet.Sym:     {apDep, apDep, false, 0, stun.HairpinNone, true},
	testnet.CGNE:    {eiDep, apDep, false, 0, stun.HairpinNone, true},
	testnet.CGNS:    {apDep, apDep, false, 0, stun.HairpinNone, true},
}

// discover measures what lies between a host and the server, whose second address is told by the first.
func discover(x *lab.Node) (stun.Report, error) {
	var local []netip.Addr
	err := x.Do(func() error {
		addrs, err := net.InterfaceAddrs()
		for _, a := range addrs {
			if p, err := netip.ParsePrefix(a.String()); err == nil {
				local = append(local, p.Addr())
			}
		}
		return err
	})
	if err != nil {
		return stun.Report{}, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	return stun.Discover(ctx, stun.DiscoverConfig{
		Server: netip.MustParseAddrPort(lab.Port(lab.ServerAddrs[0], 3478)),
		Local:  local,
		Listen: func() (c net.PacketConn, err error) {
			err = x.Do(func() (err error) {
				c, err = net.ListenUDP("udp4", nil)
				return err
			})
			return c, err
		},
	})
}

// TestNATTypes measures every type of router, so that what is measured through them counts.
func TestNATTypes(t *testing.T) {
	t.Parallel()
	productOnly(t, "stock WireGuard has no STUN server")
	w := lab.NewNATWorld(t)
	w.StartRelay(t)
	type site struct {
		*lab.Site
		want     natBehaviour
		options  string
		report   stun.Report
		err      error
		duration time.Duration
	}
	var sites []*site
	add := func(options string, c lab.SiteConfig, change func(b *natBehaviour)) *site {
		s := &site{options: options, want: behaviours[c.Type]}
		s.Site = w.Site(fmt.Sprintf("s%c", 'a'+len(sites)), c)
		change(&s.want)
		sites = append(sites, s)
		return s
	}
	asType := func(*natBehaviour) {}
	hairpins := func(b *natBehaviour) { b.hairpin = stun.HairpinExternal }
	for _, typ := range testnet.RouterTypes() {
		add("", lab.SiteConfig{Type: typ}, asType)
	}
	for _, typ := range []testnet.RouterType{testnet.FC, testnet.FCR, testnet.ARC, testnet.PRC, testnet.PRCR} {
		add("hairpin", lab.SiteConfig{Type: typ, Hairpin: true}, hairpins)
	}
	add("open input", lab.SiteConfig{Type: testnet.PRC, OpenInput: true}, asType)
	add("delay 10 ms", lab.SiteConfig{Type: testnet.PRC, Delay: 10 * time.Millisecond}, asType)
	add("steps of 2", lab.SiteConfig{Type: testnet.SymSeq, Step: 2}, func(b *natBehaviour) { b.step = 2 })
	block := add("ports of a block", lab.SiteConfig{Type: testnet.Sym, Ports: [2]int{40960, 41983}}, asType)

	var group sync.WaitGroup
	for _, s := range sites {
		group.Go(func() {
			start := time.Now()
			s.report, s.err = discover(s.Hosts[0])
			s.duration = time.Since(start)
		})
	}
	group.Wait()

	var table strings.Builder
	fmt.Fprintf(&table, "\n%-8s %-17s %-27s %-27s %-5s %-6s %-8s %s\n", "type", "", "mapping", "filtering", "kept", "step", "hairpin", "ports seen")
	for _, s := range sites {
		name := strings.TrimSpace(string(s.Config.Type) + " " + s.options)
		if s.Config.Type == testnet.Blocked {
			fmt.Fprintf(&table, "%-8s %-17s %v\n", s.Config.Type, s.options, s.err)
			if s.err == nil {
				t.Errorf("%s: STUN answers", name)
			}
			continue
		}
		if s.err != nil {
			t.Errorf("%s: %v", name, s.err)
			continue
		}
		r := s.report
		var ports []uint16
		for _, o := range r.Seen {
			ports = append(ports, o.Mapped.Port())
		}
		fmt.Fprintf(&table, "%-8s %-17s %-27s %-27s %-5s %-6d %-8s %v\n", s.Config.Type, s.options, r.Mapping, r.Filtering,
			fmt.Sprintf("%d/%d", r.Ports.Preserved, r.Ports.Sockets), r.Ports.Step, r.Hairpin, ports)
		if r.Mapping != (stun.Range{Least: s.want.mapping, Most: s.want.mapping}) || r.Filtering != (stun.Range{Least: s.want.filtering, Most: s.want.filtering}) {
			t.Errorf("%s: mapping %v, filtering %v", name, r.Mapping, r.Filtering)
		}
		if r.NAT != s.want.nat || r.Mapped.Addr() != s.Public() {
			t.Errorf("%s: seen as %v, NAT %v", name, r.Mapped, r.NAT)
		}
		if r.Ports.Kept() != s.want.kept || !s.want.kept && r.Ports.Preserved > 1 {
			t.Errorf("%s: %d of %d ports kept", name, r.Ports.Preserved, r.Ports.Sockets)
		}
		if r.Ports.Step != s.want.step && s != block { // random ports of a small range look now and then as if they were counted
			t.Errorf("%s: steps of %d", name, r.Ports.Step)
		}
		if r.NAT && r.Hairpin != s.want.hairpin {
			t.Errorf("%s: hairpinning: %v", name, r.Hairpin)
		}
	}
	t.Log(table.String())
	if p := block.report.Ports; p.Min < 40960 || p.Max > 41983 {
		t.Errorf("ports of a block: %d to %d", p.Min, p.Max)
	}
	if rtt := sites[len(sites)-3].report.RTT; rtt < 20*time.Millisecond || rtt > 60*time.Millisecond {
		t.Errorf("round trip through a delay of 10 ms each way: %v", rtt)
	}
}
