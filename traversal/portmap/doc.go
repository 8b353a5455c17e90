// Package portmap asks the gateways of a host for port mappings and firewall pinholes for UDP, by PCP (RFC 6887), NAT-PMP
// (RFC 6886) and UPnP IGD versions 1 and 2, and keeps them until they are not wanted any more.
//
// It does not decide what to map, and does not find out whether a mapping works: an answer is a gateway's claim, which only
// a datagram from outside proves. Nothing in it needs a privilege.
//
// PCP and NAT-PMP are datagrams to port 5351 of the gateway, in network byte order. A PCP request for a mapping:
//
//	0   version 2            1   opcode 1 (MAP)       2   reserved (2)
//	4   lifetime, s (4)      8   client address (16)
//	24  nonce (12)           36  protocol 17          37  reserved (3)
//	40  internal port (2)    42  external port (2)    44  external address (16)
//
// The response has 0x80 added to the opcode, the result code at 3, the gateway's epoch at 8, and 12 bytes of nothing after it.
// A request of 24 bytes with opcode 0 (ANNOUNCE) asks for nothing but a response. IPv4 addresses are written ::ffff:a.b.c.d.
// NAT-PMP, a request for the external address, one for a mapping, and their responses:
//
//	00 00
//	00 01  reserved (2)      internal port (2)  external port (2)  lifetime, s (4)
//	00 80  result (2)        epoch (4)          external address (4)
//	00 81  result (2)        epoch (4)          internal port (2)  external port (2)  lifetime, s (4)
//
// UPnP is three protocols: SSDP finds the gateway's description (HTTP over UDP to port 1900), the description (XML, by HTTP)
// names its services, and these are called by SOAP (XML, by HTTP POST).
//
// A gateway is believed little. Datagrams from elsewhere are ignored; whatever host an SSDP answer or a description names, all
// HTTP goes to the gateway's own address, without redirects and in limits of size and time; answers that cannot be right are
// counted and dropped. Where a gateway has none of the services, 18 datagrams ask for them, then again after 30 s,
// then ever more rarely down to once in 15 minutes.
//
//	m := portmap.New(portmap.Config{})
//	m.Map(51820)
//	go m.Run(ctx)
//	<-m.Gathered() // at most some seconds
//	for _, x := range m.Mappings() {
//		if !x.DoubleNAT {
//			offer(x.External)
//		}
//	}
//	defer m.Close(closing) // deletes the mappings
//
// Everything exported is safe for concurrent use.
package portmap
