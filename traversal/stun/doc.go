// Package stun is a STUN server (RFC 8489 Binding over UDP, RFC 5780 behaviour discovery, RFC 3489 for old clients), a client
// that works over any socket, and the discovery of what the NATs on the way do.
//
// A message, in network byte order:
//
//	0       2       4               8                              20
//	| type  | length| magic cookie  | transaction id (12 bytes)    | attributes, length bytes, a multiple of 4 |
//
// type is 0x0001 for a Binding request, 0x0101 for its success and 0x0111 for its error response. An attribute is a type (2
// bytes; from 0x8000 on it may be ignored by who does not know it), the length of its value (2), and the value, filled up to a
// multiple of 4. Messages of RFC 3489 have no cookie: bytes 4 to 19 are the transaction id.
//
// The server never answers what is not a request, so that no two servers can be made to talk to each other, and a response is
// never more than 2.1 times as long as its request, IP and UDP headers counted on both sides. Servers are asked for nothing but
// addresses: there is no authentication, no TURN, no TCP.
//
//	s, err := stun.Listen(stun.ServerConfig{Addrs: []netip.AddrPort{netip.MustParseAddrPort("192.0.2.1:3478")}})
//	if err != nil {
//		return err
//	}
//	go s.Serve()
//
// The client brings its messages to the server by a function, and is given what arrives, so that it can share a socket with
// something else; Is tells STUN from other datagrams:
//
//	c := stun.NewClient(send)
//	// where datagrams arrive:
//	if stun.Is(b) && c.Handle(b, from) {
//		continue
//	}
//	// anywhere:
//	answer, err := c.Bind(ctx, server)
//
// Everything exported is safe for concurrent use.
package stun
