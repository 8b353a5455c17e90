package testnet

import (
	"fmt"
	"net/netip"

	"culvert.dev/culvert/nat"
)

// RouterType is a kind of internet access as they are met in the field, by a short name.
type RouterType string

// The router types that traversal is measured with. EIM, ADM and APDM are endpoint-independent, address-dependent and
// address-and-port-dependent mapping; EIF, ADF and APDF the filtering behaviours.
const (
	Pub     RouterType = "pub"     // public addresses, no NAT, no firewall
	PubFW   RouterType = "pubfw"   // public addresses behind a stateful firewall
	FC      RouterType = "fc"      // "full cone": EIM, EIF, ports kept
	FCR     RouterType = "fcr"     // the same with random ports: a good carrier-grade NAT
	ARC     RouterType = "arc"     // "address-restricted cone": EIM, ADF, ports kept
	PRC     RouterType = "prc"     // "port-restricted cone": EIM, APDF, ports kept: the usual home router
	PRCR    RouterType = "prcr"    // the same with random ports
	ADM     RouterType = "adm"     // ADM, APDF, random ports
	SymKeep RouterType = "symkeep" // APDM, APDF, the own port for the first destination only
	SymSeq  RouterType = "symseq"  // APDM, APDF, sequential ports
	Sym     RouterType = "sym"     // "symmetric": APDM, APDF, random ports, as Linux's masquerade --random-fully
	CGNE    RouterType = "cgnE"    // prc behind a carrier's EIM, EIF with random ports
	CGNS    RouterType = "cgnS"    // prc behind a carrier's sym
	Blocked RouterType = "blocked" // prc that lets no UDP pass

	// Beyond those of the matrix:
	Linux     RouterType = "linux"     // plain masquerade: EIM until two hosts use one port, APDF
	LinuxOpen RouterType = "linuxopen" // the same, but the router answers unsolicited packets: early ones poison mappings
	SymBlock  RouterType = "symblock"  // APDM, APDF, random ports in a block of 1024 per inside address
	SymPF     RouterType = "sympf"     // APDM, APDF, random ports from 50001 up, as pf has it
)

// RouterTypes are the 14 types of the traversal matrix, from the easiest on.
func RouterTypes() []RouterType {
	return []RouterType{Pub, PubFW, FC, FCR, ARC, PRC, PRCR, ADM, SymKeep, SymSeq, Sym, CGNE, CGNS, Blocked}
}

// Site is an internet access with its local network. Its Gateway is the one that hosts are attached to.
type Site struct {
	*Gateway
	Carrier *Gateway // the second NAT, for the types that have one; else nil
}

// SiteConfig has what sites of one type may differ in. The zero value is an ordinary one.
type SiteConfig struct {
	Link     LinkConfig   // to the internet
	IPv6     bool         // with a firewall that filters by address and port, as home routers have it
	Hairpin  bool         // of every NAT there is
	Isolate  bool         // hosts of the site do not reach each other directly
	Timeouts nat.Timeouts // of every NAT there is
}

// Site attaches an internet access of the given type to r.
func (r *Router) Site(name string, typ RouterType, cfg SiteConfig) *Site {
	g := GatewayConfig{Link: cfg.Link, IPv6: cfg.IPv6, Isolate: cfg.Isolate}
	if cfg.IPv6 && typ != Pub {
		g.Firewall = &FirewallConfig{Filtering: nat.AddressAndPortDependent}
	}
	translate := func(typ RouterType) *NATConfig {
		c := natOf(typ)
		c.Hairpin, c.Timeouts = cfg.Hairpin, cfg.Timeouts
		return c
	}
	switch typ {
	case Pub:
	case PubFW:
		g.Firewall = &FirewallConfig{Filtering: nat.AddressAndPortDependent}
	case Blocked:
		g.NAT, g.Refuse = translate(PRC), BlockUDP
	case CGNE, CGNS:
		outer := FCR
		if typ == CGNS {
			outer = Sym
		}
		carrier := r.Gateway(name+" carrier", GatewayConfig{
			Link: cfg.Link, NAT: translate(outer), IPv6: cfg.IPv6,
			LAN: carrierLAN(r, cfg.IPv6),
		})
		g.Link, g.NAT = LinkConfig{}, translate(PRC)
		return &Site{Gateway: carrier.Gateway(name, g), Carrier: carrier}
	default:
		g.NAT = translate(typ)
	}
	return &Site{Gateway: r.Gateway(name, g)}
}

// carrierLAN is what a carrier has inside: shared address space (RFC 6598), and a /56 of the internet's IPv6.
func carrierLAN(r *Router, v6 bool) []netip.Prefix {
	lan := []netip.Prefix{netip.MustParsePrefix("100.64.0.0/10")}
	if v6 {
		r.net.mu.Lock()
		defer r.net.mu.Unlock()
		lan = append(lan, r.carve(true, 56))
	}
	return lan
}

// natOf is the NAT of the types that have one.
func natOf(typ RouterType) *NATConfig {
	const adf, apd = nat.AddressDependent, nat.AddressAndPortDependent
	switch typ {
	case FC:
		return &NATConfig{}
	case FCR:
		return &NATConfig{Ports: nat.PortRandom}
	case ARC:
		return &NATConfig{Filtering: adf}
	case PRC:
		return &NATConfig{Filtering: apd}
	case PRCR:
		return &NATConfig{Filtering: apd, Ports: nat.PortRandom}
	case ADM:
		return &NATConfig{Mapping: nat.AddressDependent, Filtering: apd, Ports: nat.PortRandom}
	case SymKeep: // a port belongs to one mapping at a time, so that the second destination's cannot have it too
		return &NATConfig{Mapping: apd, Filtering: apd}
	case SymSeq:
		return &NATConfig{Mapping: apd, Filtering: apd, Ports: nat.PortSequential}
	case SymBlock:
		return &NATConfig{Mapping: apd, Filtering: apd, Ports: nat.PortRandom, PortBlock: 1024}
	case SymPF:
		return &NATConfig{Mapping: apd, Filtering: apd, Ports: nat.PortRandom, PortMin: 50001}
	case Sym:
		return &NATConfig{Netfilter: &NetfilterConfig{Random: true}}
	case Linux:
		return &NATConfig{Netfilter: &NetfilterConfig{}}
	case LinuxOpen:
		return &NATConfig{Netfilter: &NetfilterConfig{OpenInput: true}}
	}
	panic(fmt.Sprintf("testnet: unknown router type %q", typ))
}
