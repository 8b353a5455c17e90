// Package filter decides what a peer may reach: the built-in isolation between peers, this node, its host, the host's
// networks and the internet, and the operator's rules behind that. It denies unless something allows.
//
// A Policy is made once from the configuration and the host's addresses, is immutable, and is safe for concurrent use; a
// change of either makes a new one. It knows addresses and ports only: no flows, no packets, no names of hosts. A reply is none of
// its business, since it belongs to a flow that has been decided.
//
//	policy, err := filter.New(filter.Config{Self: self, Routes: routes, Peers: peers, Host: snapshot})
//	…
//	if d := policy.Decide(peer, &p.Key); d.Action != filter.Accept {
//		drops[d.Reason]++
//	}
//
// # Order
//
// The first row that holds decides. Rows 1 to 3 are about the sender, the others about the destination.
//
//	 #  the packet                                            is                                       reason
//	 1  from a peer that is not configured                    dropped                                  unknown-peer
//	 2  from an address that is not the peer's                dropped                                  spoofed-source
//	 3  from an address that can be no peer's: this node's,   dropped                                  bad-source
//	    the host's, loopback, unspecified, multicast,
//	    broadcast, reserved
//	 4  to this node's mesh address: echo                     accepted
//	    published port                                        accepted with AllowInbound               no-inbound
//	    DNS, in-mesh SOCKS5                                   accepted with AllowRouting               no-routing
//	    any other port or protocol                            rejected                                 self-port
//	 5  to 0.0.0.0, ::                                        rejected                                 unspecified
//	 6  to 127.0.0.0/8, ::1                                   rejected                                 loopback
//	 7  to 224.0.0.0/4, ff00::/8                              dropped                                  multicast
//	 8  to 255.255.255.255, last address of an on-link prefix dropped                                  broadcast
//	 9  to an address of the host                             rejected                                 host-address
//	10  to 0.0.0.0/8, 240.0.0.0/4                             rejected                                 reserved
//	11  to another peer's AllowedIPs, default routes aside    accepted with AllowPeers                 other-peer
//	    to the sender's own                                   rejected                                 same-peer
//	12  to the mesh's own prefixes, where no peer is          rejected                                 mesh-unassigned
//	13  to what [Exit] AllowTo names                          as row 18 or 19
//	14  to a cloud metadata service                           rejected                                 metadata
//	15  to 169.254.0.0/16, fe80::/10                          rejected                                 link-local
//	16  to what [Exit] DenyTo names                           rejected                                 denied-by-config
//	17  to an IPv6 address that embeds an IPv4 one            see below
//	18  to a local network: 10.0.0.0/8, 172.16.0.0/12,        accepted with AllowRouting and AllowLAN  no-routing, no-lan
//	    192.168.0.0/16, 100.64.0.0/10, fc00::/7, fec0::/10,
//	    any on-link prefix of the host
//	19  anywhere else                                         accepted with AllowRouting               no-routing
//	20  accepted so far, and a rule of [Filter] matches       as the first such rule says              rule
//
// AllowTo thus lifts rows 14 to 17 and nothing else: not the rows above, which protect the host and other peers, and not
// the need for AllowLAN in row 18. Rules withdraw: none of them lifts a row, and what none matches stays accepted. See
// ParseRule for their grammar.
//
// Row 11 leaves out prefixes that stand for the whole internet (lengths 0 and 1, for IPv6 up to 3, as 2000::/3): a peer that
// has such a route is an exit for this node, and the internet does not belong to it. The check of row 2 knows them all.
//
// Traffic to the internet (row 19) that is accepted leaves by the host's network or through the upstream tunnel: as the rule
// that accepted it says by "via", else as the peer is set, Peer.Upstream. Everything else leaves by the host, whatever a rule
// says: the upstream leads to none of this host's networks, and a peer is reached inside the mesh.
//
// # Embedded IPv4 addresses
//
// A gateway, or the host's own stack, turns some IPv6 destinations into IPv4 ones. Such an address is denied wherever the
// IPv4 address in it is denied (with that one's reason; this node's mesh address counts as the host's, and AllowPeers does
// not help), and is in the LAN if that one is.
//
//	::ffff:0:0/96    v4-mapped (RFC 4291)         in addition denied itself: v4-mapped
//	::/96            v4-compatible (RFC 4291)
//	64:ff9b::/96     NAT64 (RFC 6052)
//	64:ff9b:1::/48   local-use NAT64 (RFC 8215)   denied itself: nat64-local; where the IPv4 address is, nobody knows
//	2002::/16        6to4 (RFC 3056)
//	2001::/32        Teredo (RFC 4380)            both the server's address and the client's
package filter
