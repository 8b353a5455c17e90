// Package agent is the engine that looks for direct paths to all peers of a node, moves WireGuard to them, and back to the relay when
// they die. The machines of package path decide; the agent executes: it seals and opens messages, sends and answers checks at a
// bounded pace, samples traffic, sends echoes, and runs the techniques of package punch.
//
// It has no socket, no relay and no WireGuard of its own, but small interfaces to them: Transport, Relay, Gatherer. It decides
// nothing about paths.
//
// # Who does what
//
//	receivers ──HandleSide──▶ parse, look up, verify ──▶ queue ─┐
//	relay ──HandleSealed──▶ look up ──▶ queue ──────────────────┤
//	Changed, Network, RelayChanged, SetPeers ──▶ flags ─────────┼──▶ Run ──▶ path.Machine of the peer ──▶ actions
//	echoes, questions to STUN servers ──▶ outcomes ─────────────┤
//	one timer: the earliest of all peers ───────────────────────┘
//
// One goroutine, that of Run, has all state, so that there are no locks around it. HandleSide and HandleSealed may be called by any
// number of goroutines and never block: a queue that is full drops, and counts. Echoes (16 at a time) and questions about helper
// sockets have goroutines of their own, which end with Run. Status and Stats read what was published, and wait for nobody.
//
// # What it sends at most
//
// Check requests: Config.Rate in any second, over all peers, in turns; those of paths in use first, then of peers with traffic.
// Only if paths in use alone need more, up to four times that. Messages that name addresses: Rate per second as well. Responses: 100
// per second and peer, none longer than its request. Endpoints that a peer has probed: see exchange.Targets. Techniques for hard
// NATs: one attempt at a time, each at most once in ten minutes for a peer and network, at most 256 sockets and 3,100 packets. At
// most 8 peers begin to look for a path at the same time.
//
// # What it takes from strangers
//
// A datagram that belongs to no session costs a parse and a lookup, without a copy. Who has seen a session on the wire can make
// it cost one HMAC, 16 times a second for each source, or 1,024 times with the address of a path. A recorded request that is repeated
// is answered, and makes one check go to its source, within the limit on endpoints: large datagrams go only where the peer has
// answered. Sealed messages are taken by UDP from accepted routes only, and never at the cost of those that come by relay.
//
// # What one peer can do to others
//
// A peer has a share of each queue, of the log (20 lines, then one in 10 s), and a seat for 30 s. One whose attempts at hard NATs come
// to nothing before packets are sent, again and again, has to wait for ever longer, as there is one attempt at a time.
//
// # Time
//
// Machines live by the monotonic clock, sealed messages by the wall clock. If the two drift apart by 5 s the host has slept, or its
// clock was set, and all paths are checked anew.
//
// # Use
//
//	a, err := agent.New(agent.Config{Key: key, Transport: tunnel, Relay: pool, Gather: gatherer, Echo: echo, Filter: filter})
//	if err != nil {
//		return err
//	}
//	if err := a.SetPeers(peers); err != nil {
//		log.Warn("some peers stay without direct paths", "err", err)
//	}
//	go a.Run(ctx)
//	// where STUN and sealed messages arrive by UDP, if they are not for the gatherer:
//	a.HandleSide(msg, socket, from)
//	// where sealed messages arrive by relay:
//	a.HandleSealed(packet, from)
//	// at the end:
//	a.Close(ctx)
package agent
