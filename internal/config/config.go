// Package config reads, checks and writes Culvert's configuration: a wg-quick file plus sections of its own.
//
// A stock wg-quick file works unmodified. Everything else is strict: unknown keys and sections are errors, and all
// errors of a configuration are reported at once, each with its file and line. Secrets appear neither in errors nor in
// warnings. The package also writes: a first configuration (Init), peers (AddPeer, RemovePeer) and the wg-quick file of
// a device (Export).
//
// All of it may come from the environment instead, or be put on top of a file by variables and by options of the command line (Sources).
// Such places have names in diagnostics where others have a file and a line.
//
// A relay has a file of its own in the same form (LoadRelay), and another with the keys that it admits, one a line (ParseAllowed,
// AddAllowed, RemoveAllowed).
//
// It opens no sockets (but see GuessHost, which asks the kernel for a source address), resolves no names and knows
// nothing of a running node. Functions may be called from several goroutines; the values they return are the caller's.
//
//	cfg, err := config.Load("culvert.conf", config.Options{State: "/var/lib/culvert"})
//	var faults config.Errors
//	if errors.As(err, &faults) {
//		for _, d := range faults {
//			fmt.Println(d) // culvert.conf:7: ListenPort: "x" is not a port (0 to 65535)
//		}
//	}
package config

import (
	"net/netip"
	"time"

	"culvert.dev/culvert/internal/wgkey"
	"culvert.dev/culvert/nat"
)

// DefaultMTU is the tunnel's MTU where the configuration names none; it is wg-quick's for an outer MTU of 1500.
const DefaultMTU = 1420

// Config is a valid configuration with its defaults filled in.
type Config struct {
	File      string // as given to Load; "": there is none
	Interface Interface
	Peers     []Peer // the main file's in order, then those of peers.d by file name
	Filter    Filter
	Exit      Exit
	Netmap    []nat.NetmapPrefix // masked; each From of one family and length with its To, none overlaps another
	Upstream  *Upstream          // nil: none
	Relays    []Relay            // in the file's order; no two have one URL
	STUN      []string           // servers as "host:port"; none twice
	WGSTUN    *WGSTUN            // nil: none
	Traversal Traversal          // how direct paths are sought; nothing without Relays
	Proxies   []Proxy            // in the file's order, as the following
	Forwards  []Forward
	Publishes []Publish
	Control   Control
	Warnings  []Diagnostic

	Environment []Variable // what of it comes from the environment
}

// Interface is this node.
type Interface struct {
	Name       string // a DNS label; default: made from the host name
	PrivateKey wgkey.Private
	Addresses  []netip.Prefix   // at least one; the node's own address with the length of its mesh prefix, host bits kept
	ListenPort uint16           // 0: derive it from the public key
	Endpoint   Endpoint         // where devices find this node, for their files; no Host: guess it, Port 0: ListenPort
	MTU        int              // 1280 to 65535
	DNS        []netip.AddrPort // resolvers for names that leave by a peer's default route
	Search     []string         // domains that wg-quick would have the host's resolver append; unused
}

// Peer is a WireGuard peer and what it may reach.
type Peer struct {
	Name                string // a DNS label, unique; default: "peer-" and the start of the key
	PublicKey           wgkey.Public
	PresharedKey        wgkey.Preshared
	AllowedIPs          []netip.Prefix // masked, without duplicates; may be empty
	Endpoint            string         // "host:port", "[v6]:port" or ""; the host may be a DNS name
	PersistentKeepalive time.Duration  // whole seconds; 0 is off
	Allow               Allow
	AllowPeers          []string // names of the peers it may reach through this node
	Rate                Rate     // of what it is sent, and separately of what it sends; 0: no limit
	MaxFlows            int      // how many flows it may have open; 0: the node's own limit

	// Where its section starts, for Position.
	File string
	Line int
}

// Allow is what a peer may reach through this node; the zero value is nothing.
type Allow struct {
	Inbound bool `json:"inbound"` // services published on this node's mesh addresses
	Routing bool `json:"routing"` // the internet, and this node's DNS
	LAN     bool `json:"lan"`     // this host's local networks, together with Routing
}

// Exit adjusts what peers with Allow.Routing reach.
type Exit struct {
	DenyTo  []netip.Prefix // masked; denied in addition to what is built in
	AllowTo []netip.Prefix // masked; exceptions to the built-in denials

	// Behaviour of UDP mappings; by default mapping is endpoint-independent, filtering address-dependent.
	Mapping, Filtering nat.Dependence

	DNS DNS

	SOCKS5 bool // serve SOCKS5 at port 1080 of the mesh addresses, for peers that choose this node by name; default yes
}

// DNS is the resolver behind this node's mesh address. The zero value is the host's own.
type DNS struct {
	Off     bool
	Servers []netip.AddrPort // when not empty, these instead of the host's
	Domains []DNSDomain      // whose names are asked elsewhere; no two of one domain
}

// DNSDomain is a domain with all below it that has resolvers of its own.
type DNSDomain struct {
	Domain  string           // lower case, no dot at either end
	Servers []netip.AddrPort // at least one
}

// FlowLogStderr as Control.FlowLog is standard error.
const FlowLogStderr = "-"

// Control is how commands and monitoring reach a running node.
type Control struct {
	Socket  string         // absolute, or relative to the working directory as Config.File is; "": the default place
	HTTP    netip.AddrPort // listener for metrics and health checks; the zero value: none
	FlowLog string         // file, as Socket; FlowLogStderr for standard error; "": no flow log
}
