// Package punch plans how two nodes get through NATs that plain checks do not get through: which technique may help two NATs, what
// each side has to open for it, where it will be seen, and which check is sent when. It sends nothing, opens nothing, and has no
// clock: one side's plan and the peer's expectation go in, a sequence of shots comes out.
//
// # What is hard
//
// Plain checks connect two nodes if each knows where the other will be seen, or if one takes packets from anybody. A NAT with
// address-dependent mapping (RFC 4787 section 4.1) gives a socket another port towards the peer than towards a STUN server. If then
// both sides filter by address and port, somebody has to find the port. What can be known about it, in the order of preference:
//
//	steady     it is the one that STUN sees (endpoint-independent mapping)
//	keeping    it is the socket's own, if the peer is the first that the socket sends to
//	counting   it follows the one that was given last
//	ranged     it is one of a block of at most 4,096
//	low        it is one of 424 or 512, if the socket's own is in 600 to 1023: Linux and Cisco, and RFC 4787 REQ-3 a
//	wild       it is any
//
// The first three and ranged follow from exchange.Hints. Whether low ports stay low shows only when they are tried.
//
// # How an attempt goes
//
// Both sides take the same technique by Choose, or the follower the leader's. Each opens the sockets of its Plan, asks STUN servers
// about the first of them, and tells the peer by Expect where it will be seen, in a message of exchange.KindStart (see there).
// Expect fails if the NAT turns out not to do what is needed; that ends the attempt before a shot is fired. Otherwise both start at
// one instant, and send one check for each Shot of their Sequence, from the socket that it names. The first that is answered wins,
// and its socket carries the path from then on; the others are closed.
//
//	technique := punch.Choose(own, peer, lowPorts, tried)
//	plan := punch.Prepare(technique, own, peer, lead)
//	// open plan.Sockets sockets, on plan.Locals(seed) if that is not nil; ask about the first plan.Ask of them
//	expect, err := plan.Expect(seen, own)
//	// exchange expectations
//	shots := plan.Shots(theirs, len(seen), seed)
//	for shot, ok := shots.Next(); ok; shot, ok = shots.Next() {
//		// at start+shot.At, unless a check was answered: send one from socket shot.Socket to shot.To
//	}
//
// Shots come in passes. The first of a hard side have a low TTL: they open its own NAT, and end before they come to the peer's. A
// Linux router that takes unsolicited packets for its own would remember one that comes too early, and then give the node behind it
// another port than the one that was to be met. For the same reason the side with a steady port begins a little later.
//
// # Techniques
//
// Packets are those of one side, with all passes; successes those of the simulation in this package's tests (200 pairs each, 20 ms
// one way, ports 120 ms old, filtering by address and port on both sides).
//
//	                                        sockets  packets      a second  success
//	prediction  counting x steady             4 x 1   16 x 192    2,100/500  100 %, with 100 foreign mappings a second too
//	            counting x counting         32 x 32  256 x 256        2,100  100 %, 99.5 % with 100 a second on both sides
//	            keeping x steady              3 x 1     8 x 6     2,100/500  100 %
//	            keeping x keeping             3 x 3     8 x 8         2,100  100 %
//	            keeping x counting           3 x 32    8 x 256        2,100  100 %
//	low ports   low x steady                  8 x 1   32 x 424  3,000/1,000  100 %, after 52 probes in the median
//	            low x low                     3 x 3  2,544 each       3,000  99.99 %: 1-e^-9; 63 % with one socket, 98 % with two
//	            low x counting                3 x 2  2,736 x 1,696    3,000  99.5 to 100 %
//	            low x ranged, 1,024           3 x 3  up to 3,072      3,000  100 %
//	sweep       ranged x steady               8 x 1   32 x width 3,000/1,000  100 %; 98 % and more of 4,096
//	            ranged x ranged, 1,024        3 x 3  3,072 each       3,000  99.99 %; 2,048: 87 %
//	            ranged x counting, 1,024      3 x 2  3,072 x 2,048    3,000  97 %
//	            keeping x low, or ranged   256 x 12  765 x 3,060      3,000  98 % and more
//	birthday    wild x steady               256 x 1  768 x 2,048    510/200  50 % after 175 probes, 99 % after 1,148, 99.97 % in all
//	            counting x steady            64 x 1  256 x 2,048    510/200  where prediction has failed
//
// Where a NAT gives no port to two destinations at once, as some carriers' do, a sweep of two blocks uses up both, and meets with
// 1-1/e: 63 %. Neither side can open anything else there for the half minute until mappings end. That, and looks of a port scan,
// are why techniques are tried rarely and can be switched off.
//
// Out of reach are wild x wild where low ports do not stay low (pf, address-dependent mapping with random ports on both sides), and
// whatever has not two nodes' packets pass at all.
//
// Everything is a pure function of its arguments, safe for concurrent use; a Sequence belongs to one goroutine. Memory is bounded
// by MaxPackets, whatever the peer says it expects.
package punch
