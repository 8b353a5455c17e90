package config

import (
	"fmt"
	"net/netip"
	"strings"

	"culvert.dev/culvert/internal/wgkey"
)

// Export is the other end of a peer: what stands in the wg-quick file of a device.
type Export struct {
	PrivateKey   wgkey.Private // zero: unknown here, the device has it
	Addresses    []netip.Addr
	DNS          []netip.Addr // none: the device keeps its own resolver
	MTU          int
	NodeName     string
	PublicKey    wgkey.Public // of the node
	PresharedKey wgkey.Preshared
	AllowedIPs   []netip.Prefix
	Endpoint     Endpoint
}

// Export describes the device behind peer p. A peer that may not route through the node is sent the mesh alone, and no
// resolver. The endpoint's port must be set.
func (c *Config) Export(p Peer, key wgkey.Private, at Endpoint) Export {
	e := Export{
		PrivateKey:   key,
		MTU:          c.Interface.MTU,
		NodeName:     c.Interface.Name,
		PublicKey:    c.Interface.PrivateKey.Public(),
		PresharedKey: p.PresharedKey,
		Endpoint:     at,
	}
	for _, prefix := range p.AllowedIPs {
		if prefix.IsSingleIP() {
			e.Addresses = append(e.Addresses, prefix.Addr())
		}
	}
	if !p.Allow.Routing {
		e.AllowedIPs = meshes(c.Interface)
		return e
	}
	e.AllowedIPs = []netip.Prefix{
		netip.PrefixFrom(netip.IPv4Unspecified(), 0),
		netip.PrefixFrom(netip.IPv6Unspecified(), 0), // without it IPv6 would go around the tunnel
	}
	if !c.Exit.DNS.Off {
		for _, own := range c.Interface.Addresses {
			e.DNS = append(e.DNS, own.Addr())
		}
	}
	return e
}

// Text returns the wg-quick file. It contains the private key.
func (e Export) Text() string {
	var b strings.Builder
	fmt.Fprintf(&b, "# WireGuard configuration for %s\n", e.NodeName)
	b.WriteString("[Interface]\n")
	if e.PrivateKey.IsZero() {
		b.WriteString("# PrivateKey = the private key of this device\n")
	} else {
		fmt.Fprintf(&b, "PrivateKey = %s\n", e.PrivateKey.Reveal())
	}
	addresses := make([]netip.Prefix, len(e.Addresses))
	for i, a := range e.Addresses {
		addresses[i] = netip.PrefixFrom(a, a.BitLen())
	}
	fmt.Fprintf(&b, "Address = %s\n", join(addresses))
	if len(e.DNS) > 0 {
		fmt.Fprintf(&b, "DNS = %s\n", join(e.DNS))
	}
	if e.MTU != DefaultMTU {
		fmt.Fprintf(&b, "MTU = %d\n", e.MTU)
	}
	fmt.Fprintf(&b, "\n[Peer]\nPublicKey = %s\n", e.PublicKey)
	if !e.PresharedKey.IsZero() {
		fmt.Fprintf(&b, "PresharedKey = %s\n", e.PresharedKey.Reveal())
	}
	fmt.Fprintf(&b, "AllowedIPs = %s\n", join(e.AllowedIPs))
	if e.Endpoint.Guessed {
		fmt.Fprintf(&b, "# An address of the node's host: this device must be able to reach it. Behind a NAT, forward UDP port %d\n"+
			"# to that host and put the NAT's public address here.\n", e.Endpoint.Port)
	}
	fmt.Fprintf(&b, "Endpoint = %s\nPersistentKeepalive = 25\n", e.Endpoint)
	return b.String()
}

// QRText returns the same without comments and blank lines, which makes a QR code smaller.
func (e Export) QRText() string {
	var b strings.Builder
	for line := range strings.Lines(e.Text()) {
		if line != "\n" && line[0] != '#' {
			b.WriteString(line)
		}
	}
	return b.String()
}

// join writes a list as wg-quick wants it.
func join[T fmt.Stringer](list []T) string {
	text := make([]string, len(list))
	for i, x := range list {
		text[i] = x.String()
	}
	return strings.Join(text, ", ")
}
