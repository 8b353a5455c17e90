// Package check is the connectivity checks that two nodes send each other to find out which ways between them work: STUN Binding
// requests and responses (RFC 8489) that are authenticated by a key of the two nodes, their sessions and the direction.
//
// It sends nothing, keeps nothing, and has no schedule: who checks what and when is for the path's state machine. It does not
// talk to STUN servers either: its Parse takes these two messages and no other form, byte for byte.
//
// # Request
//
//	offset  0  header, 20: type 0x0001, length of what follows it, cookie 0x2112A442, ID 12
//	       20  USERNAME 0x0006, length 33: session of the receiver and of the sender, each as 16 digits of lower-case hexadecimal,
//	           with a colon between them; 3 zero bytes fill it up
//	       60  PADDING 0x0026 (RFC 5780 section 7.6), zeros, only if the datagram is to have a certain size
//	        .  MESSAGE-INTEGRITY-SHA256 0x001C (RFC 8489 section 14.6), length 32, the last attribute
//
// # Response
//
//	offset  0  header, 20: type 0x0101, length, cookie, ID of the request
//	       20  XOR-MAPPED-ADDRESS 0x0020, length 8 or 20: where the request came from
//	        .  MESSAGE-INTEGRITY-SHA256, length 32
//
// A request has 96 bytes or more, a response 68 (IPv4) or 80 (IPv6): a request with a forged source makes nobody send more than
// was spent on it.
//
// # Keys
//
//	key = HKDF-SHA256(secret: X25519(own private key, public key of the peer), no salt,
//	                  info: "culvert check 1" ‖ sender ‖ receiver ‖ session of the sender ‖ session of the receiver, 32 bytes)
//
// Sender and receiver are those of the datagram, whether request or response, so that nothing verifies where it came from.
// The value of the integrity attribute is HMAC-SHA256 with that key of all before the attribute. Since it is the last one, the
// length in the header is the one that RFC 8489 has it computed with.
//
// A check proves that the peer has sent it in these sessions, not when, nor from where: who sees it can repeat it from an address
// of his own. A response therefore counts only for an ID that is waiting for one, once, and a request moves nothing but makes a
// check go back to where it came from.
//
// # Use
//
//	secret, err := check.NewSecret(private, peer)     // once for each peer
//	keys := secret.Keys(own, theirs)                  // once for each pair of sessions
//	b = check.AppendRequest(b[:0], &keys.Send, check.Request{To: theirs, From: own, ID: check.NewID()})
//
//	m, ok := check.Parse(datagram)                    // finds keys by m.To and m.From, or by the ID that waits for a response
//	if ok && check.Verify(datagram, &keys.Receive) && m.Kind == check.KindRequest {
//		b = check.AppendResponse(b[:0], &keys.Send, m.ID, from)
//	}
//
// All functions may be called from several goroutines at once; a Secret and Keys do not change.
package check
