//go:build linux

package lab

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"
	"time"

	"culvert.dev/culvert/internal/testnet"
)

// SiteConfig is one internet access and the local network behind it. Type alone makes an ordinary one.
//
// Where the simulator (internal/testnet) computes what a type of router does, here the kernel's netfilter does it:
//
//	prc       source NAT that keeps ports; connection tracking lets in who was written to
//	fc        the same, and what arrives at a mapped port is sent in, whoever sends it
//	arc       likewise, but only from addresses that were written to
//	fcr prcr  the port is a hash of the inner address and port
//	adm       the hash takes the remote address in
//	symkeep   the second and later destinations of a port get random ones
//	symseq    each new destination gets the next port
//	sym       each new destination gets a random port; inner ports below 1024 get outer ones below 1024
//	cgnE cgnS prc behind a carrier's fcr or sym
//	blocked   prc that forwards no UDP
//	pub pubfw no router: the host has the public address; pubfw keeps strangers out
type SiteConfig struct {
	Type  testnet.RouterType
	Hosts int    // default 1; without a router there is exactly one
	LAN   string // the local network's first three bytes; default 192.168.N, another for each site
	WAN   string // default an address of its own

	Hairpin   bool // from inside to an outer address: let through, with an outer source address
	OpenInput bool // the router answers strangers itself, which makes it remember them
	Isolate   bool // the hosts do not reach each other
	IPv6      bool // routed, behind a firewall that lets in who was written to; pub has none
	UPnP      bool // StartUPnP may be called; the outer address is one that miniupnpd takes for public

	Ports  [2]int        // what symkeep and sym draw random ports from, first and last; default: all
	Step   int           // of symseq; default 1
	Idle   time.Duration // after which a mapping that was never answered ends; default 30 s
	Stream time.Duration // after which one that was ends; default 120 s

	Delay  time.Duration // of the uplink, in each direction
	Behind *Site         // the carrier's NAT that this one is attached to; default: the internet itself
}

// noHosts is SiteConfig.Hosts of a carrier's NAT.
const noHosts = -1

// routerRules are what a router does to packets. Devices: "wan" is outside, "lan" inside.
type routerRules struct {
	SiteConfig
	wan netip.Addr
	lan netip.Prefix
}

// distinctPorts is how many outer ports the types with hashed or sequential ports have.
const distinctPorts = 4096

// script is the whole as nft reads it. Loaded again it replaces everything, with other random ports, as a restart does.
func (r routerRules) script() string {
	return r.filterTable() + r.natTable()
}

// filterTable is the firewall of a router, or of a host without one, for both families.
func (r routerRules) filterTable() string {
	input, refuse := "drop", ""
	if r.OpenInput {
		input = "accept"
	}
	if r.Type == testnet.Blocked {
		refuse = "meta l4proto udp drop"
	}
	return fmt.Sprintf(`
	table inet fw
	delete table inet fw
	table inet fw {
		chain input {
			type filter hook input priority 0; policy %s;
			ct state established,related accept
			iifname != "wan" accept
			meta l4proto { icmp, ipv6-icmp } accept
		}
		chain forward {
			type filter hook forward priority 0; policy drop;
			%s
			jump upnp
			ct state established,related accept
			iifname "lan" accept
			ct status dnat accept
		}
		chain upnp { }
	}`, input, refuse)
}

// natTable translates IPv4. The kernel's own NAT forgets a mapping's inner end as soon as it has made it, so that rules
// remember it: that is what lets strangers in, where they are let in, and hairpins.
func (r routerRules) natTable() string {
	in := map[testnet.RouterType]string{
		testnet.FC:  "",
		testnet.FCR: "",
		testnet.ARC: "ip saddr . udp dport @asked",
	}
	admit := ""
	if who, ok := in[r.Type]; ok {
		admit = fmt.Sprintf(`iifname "wan" ip daddr %s meta l4proto udp %s dnat ip to udp dport map @inner`, r.wan, who)
	}
	hairpin := ""
	if r.Hairpin {
		hairpin = fmt.Sprintf(`iifname "lan" ip daddr %s meta l4proto udp dnat ip to udp dport map @inner`, r.wan)
	}
	return fmt.Sprintf(`
	table ip nat
	delete table ip nat
	table ip nat {
		map inner { type inet_service : ipv4_addr . inet_service; flags dynamic,timeout; timeout %[2]ds; size 65535; }
		set asked { type ipv4_addr . inet_service; flags dynamic,timeout; timeout %[2]ds; size 65535; }
		set used { type ipv4_addr . inet_service; flags dynamic,timeout; timeout %[2]ds; size 65535; }
		chain pre {
			type nat hook prerouting priority dstnat;
			%[3]s
			%[4]s
		}
		chain translate {
			%[5]s
		}
		chain post {
			type nat hook postrouting priority srcnat;
			oifname "wan" meta l4proto udp jump translate
			oifname "wan" snat to %[1]s
			oifname "lan" ct status dnat ip saddr %[6]s meta l4proto udp jump translate
		}
		chain remember {
			type filter hook postrouting priority 110;
			ip saddr %[1]s meta l4proto udp jump learn
		}
		chain learn {
			update @asked { ip daddr . udp sport }
			ct direction original update @inner { udp sport : ct original ip saddr . ct original proto-src }
			ct direction reply update @inner { udp sport : ct reply ip saddr . ct reply proto-src }
		}
	}`, r.wan, int(r.idle().Seconds()), admit, hairpin, r.translation(), r.lan)
}

// translation chooses the outer port of a new flow, the first packet of which is seen before it is translated.
func (r routerRules) translation() string {
	snat := "meta l4proto udp snat to " + r.wan.String()
	random := snat + " fully-random"
	if r.Ports[1] != 0 {
		random = fmt.Sprintf("%s:%d-%d fully-random", snat, r.Ports[0], r.Ports[1])
	}
	hash := func(of string) string {
		return fmt.Sprintf("%s : jhash %s mod %d map { %s }", snat, of, distinctPorts, randomPorts())
	}
	switch r.Type {
	case testnet.FCR, testnet.PRCR:
		return hash("ip saddr . udp sport")
	case testnet.ADM:
		return hash("ip saddr . udp sport . ip daddr")
	case testnet.Sym:
		return random
	case testnet.SymSeq:
		return fmt.Sprintf("%s : numgen inc mod %d map { %s }", snat, distinctPorts, r.sequentialPorts())
	case testnet.SymKeep:
		return "ip saddr . udp sport @used " + random + "\n" +
			"update @used { ip saddr . udp sport }\n" + snat
	default:
		return snat
	}
}

// randomPorts are the values of a map by number. That a result becomes a port by a map, and not as a number, is because nft
// hands numbers on in the host's byte order.
func randomPorts() string {
	ports := rand.Perm(65536 - 1024)[:distinctPorts]
	return portMap(func(i int) int { return 1024 + ports[i] })
}

// sequentialPorts begin anywhere and are distinct for every step up to 8.
func (r routerRules) sequentialPorts() string {
	first := 20000 + rand.IntN(1000)
	return portMap(func(i int) int { return first + i*max(r.Step, 1) })
}

func portMap(port func(i int) int) string {
	var b strings.Builder
	for i := range distinctPorts {
		fmt.Fprintf(&b, "%d : %d, ", i, port(i))
	}
	return b.String()
}

func (c SiteConfig) idle() time.Duration { return cmp.Or(c.Idle, 30*time.Second) }

func (c SiteConfig) stream() time.Duration { return cmp.Or(c.Stream, 120*time.Second) }

// direct reports whether there is no router: the host itself is on the internet.
func (c SiteConfig) direct() bool { return c.Type == testnet.Pub || c.Type == testnet.PubFW }

// carrier is the type of the carrier's NAT that a type consists of, if it does.
func carrierOf(t testnet.RouterType) (testnet.RouterType, bool) {
	switch t {
	case testnet.CGNE:
		return testnet.FCR, true
	case testnet.CGNS:
		return testnet.Sym, true
	}
	return "", false
}
