// Package gather finds out where this node may be reached: its candidates, and hints about the NATs and firewalls in front of it.
//
// It asks STUN servers by requests that leave by the very socket that is to be reached, a WG-STUN server inside its tunnel, and the
// gateways for port mappings; it reads the addresses of the host, and adds what is configured. It decides nothing about peers, sends
// them nothing, and opens no socket but for the discovery of what a NAT does (stun.Discover), on fresh ones.
//
// There are two kinds of use. Where this process has the WireGuard socket, that is socket 0, and a candidate has one endpoint. Where
// WireGuard is somebody else's (Config.WGPort), socket 0 is the one that checks go by, the WG-STUN server sees WireGuard's, and a
// candidate has two endpoints.
//
// # What it sends
//
// At the start and when the network has changed, every server is asked at its address of each family, and one server of each family
// at its other addresses and ports, by which the behaviour of a NAT shows: at most ten datagrams in the first 100 ms, retransmissions
// included, besides what package portmap sends to the gateways. After 300 ms at most there is something to tell the peers
// (Local.First); what is slower is added later.
//
// From then on every server is asked every 23 to 25 s, which also keeps the mapping: NATs forget an idle one after 30 s and more. While
// eager, one server is asked every 4 s besides, which notices a NAT that has restarted: 900 requests an hour, of 56 bytes with all
// headers. An answer that differs from the one before has all servers asked again at once. While eager and once per network and hour,
// 30 to 70 datagrams from fresh sockets, over some seconds, tell what the NAT does (Local.Hints4 and Hints6). Where the first answers
// show that mappings depend on the destination, this begins after 100 ms, eager or not, and what is known of the ports is told first.
//
//	g := gather.New(gather.Config{Send: send, Port: tunnel.ListenPort, Changed: changed})
//	g.SetServers([]string{"relay.example:3478"}, nil)
//	go g.Run(ctx)
//	// where STUN messages arrive:
//	if g.Handle(msg, socket, from) {
//		return
//	}
//	// when changed is called:
//	local := g.Local()
//
// Everything exported is safe for concurrent use.
package gather
