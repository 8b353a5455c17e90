// Package testnet is a network in memory: hosts, links, routers, NATs and firewalls of one process, for tests of what has to
// work across networks. Real IP packets travel it, so that a NAT here is the product's own engine, package nat.
//
// It runs in real time, or, when made inside of a testing/synctest bubble, in virtual time, where minutes of protocol cost
// milliseconds. The order of everything that the network does follows from the topology and Config.Seed: equal programs see
// equal losses, delays and ports. What several goroutines of one host do at the same instant is in the order in which the
// scheduler runs them, here as elsewhere.
//
// A network is built from the outside in. A Router joins hosts and gateways; a Gateway is a Router behind a link to another
// one, which may translate addresses (NATConfig), keep strangers out (FirewallConfig) or refuse whole protocols. Gateways
// behind gateways are carrier-grade or double NAT. Every attachment is a Link with its own latency, loss and so on, which
// may change at any time, and may be cut.
//
//	n := testnet.New(testnet.Config{Seed: 1})
//	inet := n.Internet()
//	home := inet.Gateway("home", testnet.GatewayConfig{NAT: &testnet.NATConfig{Filtering: nat.AddressDependent}})
//	laptop := home.Host("laptop", testnet.HostConfig{})
//	c, err := laptop.ListenPacket(netip.AddrPort{})
//
// Multicast reaches whoever is on the same local network, behind one gateway.
//
// Hosts offer UDP sockets with a TTL of their own choice and ICMP errors (Socket), streams (Dial, Listen: a small TCP), and a
// conn.Bind for wireguard-go (NewBind).
//
// It is no model of Ethernet, ARP, routing protocols, or of TCP's finer points. Everything is safe for concurrent use. One
// lock guards a network; goroutines of the network exist only while packets are being moved, so there is nothing to close.
// Building something impossible (an address twice, no address left) panics: that is a mistake in the test.
package testnet
