// Package netcheck finds out what the network between this host and the internet does, and says what that means for direct paths
// to other nodes: what the NAT does to UDP (package stun), what the gateway grants (package portmap), which relays can be
// reached (package relay), and on request how long an idle mapping lives.
//
// It uses sockets of its own and needs no running node, no privilege and no configuration, only servers to ask. It is no monitor:
// a Report is true for the moment it was made at, and RFC 5780 section 1 warns that NATs may do otherwise under load. A port
// mapping that it asks the gateway for is deleted before Run returns.
//
//	r, err := netcheck.Run(ctx, netcheck.Config{STUN: []string{"relay.example:3478"}})
//	if err != nil {
//		return err
//	}
//	os.Stdout.Write(r.AppendText(nil))
//
// Run keeps no state and may be called by several goroutines at once, though runs behind one NAT disturb each other's figures
// about ports.
package netcheck
