// Package exchange is the sealed messages by which two nodes tell each other, over a relay, where they may be reached: their
// candidates, what is known of their NATs, when to begin with checks, which path to move to. It also has the candidates
// themselves, the filter for those received, and the limit on what they may make a node probe.
//
// It sends nothing, has no goroutine, and decides nothing about paths: the relay client carries packets, the path's state machine
// says what to answer.
//
// # Packet
//
//	offset  0  magic, 6 bytes: "TS💬" (54 53 f0 9f 92 ac). Relays of DERP treat such packets as part of the search for a path
//	        6  WireGuard public key of the sender, 32
//	       38  nonce, 24, random
//	       62  box: XChaCha20-Poly1305 of the plaintext, 16 bytes longer than that
//
// A packet is at most 1,200 bytes. Each direction has a key of its own, so that nothing sent can be handed back to its sender:
//
//	key = HKDF-SHA256(secret: X25519(own private key, public key of the peer), no salt,
//	                  info: "culvert exchange 1" ‖ sender ‖ receiver, 32 bytes)
//	additional data = magic ‖ version of the envelope, 1 byte: 1 ‖ sender ‖ receiver
//
// A relay can therefore drop, delay and repeat packets, and tell their lengths; no more. Keys of low order are refused. There is
// no forward secrecy: who learns a private key can open what he recorded.
//
// # Plaintext
//
// Numbers are big endian.
//
//	offset  0  send time, 8: nanoseconds since 1970. Grows with every message to the same peer
//	        8  version of the layout, 1: 1. Others are refused
//	        9  kind, 1: 1 candidates, 2 trickle, 3 start, 4 proposal, 5 answer, 6 goodbye
//	       10  life of the sender, 8: random, not zero
//	       18  life of the receiver, 8, as last heard from it; 0 before
//	       26  highest send time heard from the receiver, 8; 0 before
//	       34  hold, 4: microseconds since that was heard; ffffffff unknown or longer
//	       38  session, 8: not zero, but in a goodbye, where zero is all sessions
//	       46  fields, to the end
//
// A field is a type (1 byte), the length of its value (1), the value. Fields of unknown type, and those that the kind has no use
// for, are skipped, and so is what follows the known part of a value: there is room for additions. Fields other than candidates
// and expected ports appear once at most. (c) is allowed in candidates, (t) in trickle, and so on; capitals: required.
//
//	type 1  candidate (c, T), at most 32:
//	          0 kind, 1: 1 host, 2 reflexive, 3 mapped, 4 static, 5 own port, 6 peer-reflexive, 7 last pair. Others: the candidate
//	            is skipped
//	          1 flags, 1: bit 0 the address of WireGuard's endpoint is IPv6; bits 1 and 2 the check endpoint: 0 none, 1 on the same
//	            address, 2 on an IPv4 address of its own, 3 on an IPv6 one
//	          2 preference, 2: higher is better
//	          4 address of WireGuard's endpoint, 4 or 16, and its port, 2
//	          . check endpoint: its address, 4 or 16, unless it is the same, and its port, 2
//	     2, 3  hints for IPv4, for IPv6 (c):
//	          0 flags, 1: bit 0 there is a NAT
//	          1 mapping, 1: least dependence in bits 0 to 3, most in bits 4 to 7 (0 endpoint-independent, 1 address-dependent,
//	            2 address-and-port-dependent)
//	          2 filtering, 1: likewise
//	          3 sockets tried, 1; of these with the port kept, 1; with its parity kept, 1
//	          6 step between ports allocated one after the other, 2, signed; 0 none
//	          8 lowest port seen, 2; highest, 2
//	        4  start (c, S), 4: microseconds from receipt until the receiver begins; at most 10 s
//	        5  attempt, 4 (P, A): tells the proposals of a session apart
//	        6  endpoint of the proposer (P): 1 byte 4 or 6, address, port; where WireGuard of the acceptor is to send
//	        7  endpoint of the acceptor (P): likewise, for WireGuard of the proposer
//	        8  reason, 1 (A, G): 0 accepted; see Reason
//	        9  technique, 1 (s): how hard NATs are to be overcome; none or 0: by plain checks
//	       10  expected ports (s), at most 8, only with a technique that is not 0:
//	          0 4 or 6: the family
//	          1 address, 4 or 16
//	          . lowest port, 2, not 0; highest port, 2, not below it
//	          . step, 2, signed: 0 all ports of the range are alike; else every step-th, from the lowest on, or from the highest on
//	            if the step is negative, the likeliest first
//
// # Start
//
// A start without technique has both sides begin with plain checks. With one, three of them prepare an attempt at hard NATs; the
// controlling node (that of the lower public key) leads:
//
//	leader → follower  start{technique}                     prepare: open sockets, see what the NAT makes of them
//	follower → leader  start{technique, expected}           ready: this is where I will be seen
//	leader → follower  start{technique, expected, start in} so will I: go
//
// A follower that cannot do it answers start{technique} without ports, and a leader that cannot, or has not heard from the
// follower, sends a start without technique: then the attempt is over. Nodes that know fields 1 to 8 only take all of these for
// plain starts. Expected ports are the peer's word: who sends there asks Filter.CheckPorts first.
//
// # Time, replay, restart
//
// A message is opened if its send time is above all that were opened from this sender, and within 60 s of the receiver's clock.
// A sender uses max(its clock, last + 1 ns). What is refused for its time has been authenticated, so the difference of the clocks
// that the Rejection gives is the sender's word, or that of a recording.
//
// All state is in memory and ends with the process. What that would allow is bounded by lives: a node draws one for each peer,
// and a message must name the receiver's life, or be of a kind that only names addresses (candidates, trickle) and name none.
// A receiver that has restarted has a new life, so recordings of what was said to the one before are refused (FaultEarlier).
// What can be repeated to it are candidates and trickles that were sent before the sender knew any life of this node: each once,
// until something newer is heard, and until its send time is 60 s past by the receiver's clock (so 120 s after it was sent, if
// the sender's clock was 60 s ahead). These have Message.Fresh unset: they may be answered with candidates, and are best not
// acted on until an answer names our life.
//
// A sender that restarts with its clock behind would not be heard until the clock has passed its former send times. So every
// message carries the highest send time heard from its receiver, who goes on above it: Rejection.Hello says when one message of
// any kind to the sender would mend things. Answer it with candidates, rate-limited. A node whose clock is set back by more than
// 60 s takes new lives, as after a restart.
//
// # Use
//
//	s, err := exchange.NewSealer(key)
//	if err != nil {
//		return err
//	}
//	if err := s.SetPeers(peers); err != nil {
//		log.Warn("some keys cannot be used", "err", err)
//	}
//	packet, err := s.Seal(nil, peer, exchange.Message{Kind: exchange.KindCandidates, Session: session, Candidates: list}, time.Now())
//
//	// where packets arrive from a relay:
//	if exchange.Is(packet) {
//		m, err := s.Open(packet, from, time.Now())
//		…
//	}
//
// A Sealer may be used from several goroutines at once. A Filter is not changed by its use; Targets belong to one goroutine.
package exchange
