package config

import (
	"net/netip"
	"strings"
)

// Proxy is one section [SOCKS5] or [HTTP]: listeners by which programs of this host and its networks use the mesh and the exits.
type Proxy struct {
	SOCKS, HTTP bool // what the listeners speak; with both, a connection's first byte tells
	UDP         bool // UDP ASSOCIATE; only with SOCKS

	Listen    []Listen       // tcp and unix, one port each; at least one
	Users     []ProxyUser    // no two of one name; empty: nobody is asked for a password
	AllowFrom []netip.Prefix // masked; clients by address, which those of a unix socket do not have. Empty: all

	Exits          []string     // names of peers, the first that works is taken; empty: by AllowedIPs
	Routes         []ProxyRoute // in the order in which they are asked
	MaxConnections int          // 0: the node's own limit

	// Where its section starts, for Position.
	File string
	Line int
}

// ProxyUser may use a proxy.
type ProxyUser struct {
	Name     string // 1 to 255 bytes, without ':' and '+'
	Password string // 1 to 255 bytes
}

// RouteAction is what becomes of a connection that a ProxyRoute names.
type RouteAction uint8

// The actions.
const (
	RouteVia    RouteAction = iota // by the exit of a peer
	RouteDirect                    // by the network of this host
	RouteBlock                     // not at all
	RouteMesh                      // through the tunnel by AllowedIPs
)

// String returns the action's word in a configuration.
func (a RouteAction) String() string { return [...]string{"via", "direct", "block", "mesh"}[a] }

// ProxyRoute says where connections to some destinations go. It names them in one of three ways.
type ProxyRoute struct {
	All    bool         // "*"
	Domain string       // lower case, no dot at the end
	Sub    bool         // "*.corp.example": what is below Domain too
	Prefix netip.Prefix // masked

	Action RouteAction
	Via    string // name of the peer; only of RouteVia

	// Where it stands.
	File string
	Line int
}

// String returns the route as it is written in a configuration.
func (r ProxyRoute) String() string {
	pattern := r.Domain
	switch {
	case r.All:
		pattern = "*"
	case r.Sub:
		pattern = "*." + r.Domain
	case r.Prefix.IsSingleIP():
		pattern = r.Prefix.Addr().String()
	case r.Prefix.IsValid():
		pattern = r.Prefix.String()
	}
	return strings.TrimSpace(pattern + " " + r.Action.String() + " " + r.Via)
}

// catchesAll reports whether a route is for what has no other way, so that all that name something are asked before it.
func (r ProxyRoute) catchesAll() bool { return r.All || r.Prefix.IsValid() && r.Prefix.Bits() == 0 }

// covers reports whether everything that s names is named by r too. A name and an address have nothing in common.
func (r ProxyRoute) covers(s ProxyRoute) bool {
	switch {
	case r.All || s.All:
		return r.All
	case r.Prefix.IsValid():
		return s.Prefix.IsValid() && r.Prefix.Bits() <= s.Prefix.Bits() && r.Prefix.Contains(s.Prefix.Addr())
	case s.Prefix.IsValid():
		return false
	case r.Domain == s.Domain:
		return r.Sub || !s.Sub
	}
	above, ok := strings.CutSuffix(s.Domain, r.Domain)
	return ok && r.Sub && strings.HasSuffix(above, ".")
}
