package config

import "net/netip"

// Forward is one section [Forward]: listeners of this host that lead to a service in the mesh or behind an exit.
type Forward struct {
	Listen    []Listen       // at least one; each has as many ports as Ports, or is a unix socket where that is one
	Host      string         // an address, or a name in lower case: of a peer, else of the world
	Ports     PortRange      // of Host; the first port of a listener leads to the first of these
	Exits     []string       // as Proxy.Exits
	AllowFrom []netip.Prefix // as Proxy.AllowFrom

	// Where its section starts, for Position.
	File string
	Line int
}

// Publish is one section [Publish]: ports of this node's mesh addresses that lead to a service of this host or its networks.
type Publish struct {
	Networks      []string // "tcp", "udp" or both
	Ports         PortRange
	To            Target
	ProxyProtocol bool // version 2 in front of what the service reads

	// Where its section starts, for Position.
	File string
	Line int
}

// Target is where published connections end: at Host, or at the unix socket Path.
type Target struct {
	Host  string    // an address, or a name in lower case
	Ports PortRange // as many as are published
	Path  string    // "": not a unix socket
}
