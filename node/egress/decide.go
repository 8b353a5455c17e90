package egress

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"culvert.dev/culvert/internal/config"
	"culvert.dev/culvert/internal/proxy"
)

// Way is how a connection leaves.
type Way uint8

// The ways.
const (
	Refused Way = iota // not at all
	Self               // to a service of this node
	Peer               // to a peer, or what its AllowedIPs say is behind it
	Exit               // by the SOCKS5 server of a peer
	Default            // by the peer that has the default route; names are resolved there
	Direct             // by the host's own network
	ways
)

// String returns the way's word in status and log.
func (w Way) String() string {
	return [...]string{"refused", "self", "mesh", "exit", "default", "direct"}[w]
}

// Decision is where a connection goes, and why.
type Decision struct {
	Way   Way
	Why   string       // in words, "Route *.corp.example via office (line 12)"
	Kind  proxy.Kind   // of Refused
	Exits []string     // of Exit: names of peers, the first that works is taken
	Addrs []netip.Addr // of Self, Peer, and Default for an address; empty where a name is to be resolved

	to    destination
	named bool // a route with a prefix has named the address: it may be the host's own
}

// Err is what a client is told of a refusal, nil if there is a way.
func (d Decision) Err() error {
	if d.Way != Refused {
		return nil
	}
	return proxy.Fail(d.Kind, "%s", d.Why)
}

// decide finds the way of a target. The first of these that applies decides: a Route that blocks; the exit that the client chose, but
// not for what is in the mesh; a Route that names the target; mesh names, and addresses in AllowedIPs longer than /0; a Route for
// everything; the listener's exits; AllowedIPs of /0. A prefix of /0 in a Route is one for everything of
// its family. It is a pure function of its arguments and what the functions of c answer.
func decide(c *Config, r Rules, exit string, t proxy.Target) Decision {
	d, err := settle(t)
	if err != nil {
		return Decision{Kind: proxy.KindOf(err), Why: err.Error(), to: d}
	}
	v := verdict{c: c, to: d}
	named, rest := r.named(d), r.rest(d)
	if named != nil && named.Action == config.RouteBlock {
		return v.byRoute(named)
	}
	if d.kind != ordinary {
		return v.special(named)
	}
	mesh, inMesh := v.mesh()
	switch {
	case exit != "" && !inMesh && rest != nil && rest.Action == config.RouteBlock && named == nil:
		return v.byRoute(rest) // a client's choice does not lift what the operator forbids
	case exit != "" && !inMesh:
		return v.chosen(exit, named)
	case named != nil:
		return v.byRoute(named)
	case inMesh:
		return mesh
	case d.name != "" && !strings.Contains(d.name, "."):
		return v.single()
	case rest != nil:
		return v.byRoute(rest)
	case len(r.Exits) > 0:
		return v.exits(r.Exits, "Exit = "+strings.Join(r.Exits, ", "))
	}
	return v.byDefault("")
}

// verdict builds decisions about one destination.
type verdict struct {
	c  *Config
	to destination
}

func (v verdict) refuse(k proxy.Kind, format string, args ...any) Decision {
	return Decision{Kind: k, Why: fmt.Sprintf("connect to %s: ", v.to) + fmt.Sprintf(format, args...), to: v.to}
}

// special decides about loopback and the like: only a direct route that names it leads there.
func (v verdict) special(named *config.ProxyRoute) Decision {
	if named != nil && named.Action == config.RouteDirect {
		return v.byRoute(named)
	}
	return v.refuse(proxy.NotAllowed, "it is %s, which only a Route with direct that names it leads to", v.to.kind)
}

// mesh decides about what is in the mesh; ok is false for anything else.
func (v verdict) mesh() (d Decision, ok bool) {
	if v.to.name == "" {
		if v.c.Self(v.to.addr) {
			return Decision{Way: Self, Why: "own address", Addrs: []netip.Addr{v.to.addr}, to: v.to}, true
		}
		peer, length, ok := v.c.Routes(v.to.addr)
		if !ok || wide(length) {
			return Decision{}, false
		}
		return Decision{Way: Peer, Why: fmt.Sprintf("AllowedIPs of peer %s (/%d)", peer, length), Addrs: []netip.Addr{v.to.addr}, to: v.to}, true
	}
	addrs, peer, known := v.c.Names(v.to.name)
	switch {
	case !known:
		return Decision{}, false
	case len(addrs) == 0 && peer != "":
		return v.refuse(proxy.HostUnreachable, "peer %s has no address in the mesh", peer), true
	case len(addrs) == 0:
		return v.refuse(proxy.NameNotFound, "no peer has this name"), true
	case slices.ContainsFunc(addrs, v.c.Self):
		return Decision{Way: Self, Why: "own name", Addrs: addrs, to: v.to}, true
	}
	return Decision{Way: Peer, Why: "name of peer " + peer, Addrs: addrs, to: v.to}, true
}

// wide reports whether a prefix is a default route: /0, or one of the two halves that stand for it in many files.
func wide(length int) bool { return length <= 1 }

// single refuses a name without a dot that no peer has. Resolvers would complete it by search domains, or send it to the root.
func (v verdict) single() Decision {
	return v.refuse(proxy.NameNotFound, "no peer has this name, and names without a dot are asked nowhere else; a Route may name it")
}

// chosen decides for a client that has picked an exit.
func (v verdict) chosen(exit string, named *config.ProxyRoute) Decision {
	if _, ok := v.c.Exit(exit); !ok {
		return v.refuse(proxy.NotAllowed, "exit+%s: there is no peer %s", exit, exit)
	}
	if v.to.name != "" && !strings.Contains(v.to.name, ".") && named == nil {
		return v.single()
	}
	return v.exits([]string{exit}, "the client chose exit+"+exit)
}

func (v verdict) exits(names []string, why string) Decision {
	return Decision{Way: Exit, Why: why, Exits: names, to: v.to}
}

// byRoute does what a route says.
func (v verdict) byRoute(r *config.ProxyRoute) Decision {
	why := "Route = " + r.String()
	if r.Line > 0 {
		why += fmt.Sprintf(" (line %d)", r.Line)
	}
	switch r.Action {
	case config.RouteVia:
		return v.exits([]string{r.Via}, why)
	case config.RouteDirect:
		return Decision{Way: Direct, Why: why, to: v.to, named: r.Prefix.IsValid() && !catchesAll(r)}
	case config.RouteMesh:
		if d, ok := v.mesh(); ok {
			if d.Way != Refused {
				d.Why = why + ", " + d.Why
			}
			return d
		}
		return v.byDefault(why)
	}
	return v.refuse(proxy.NotAllowed, "%s", why)
}

// byDefault sends what is left by AllowedIPs. Without a route there must be a default route; a route that says mesh is reason enough to
// ask for a name behind the tunnel.
func (v verdict) byDefault(route string) Decision {
	if v.to.name != "" {
		v4, v6 := v.gateway(someV4, longestV4), v.gateway(someV6, longestV6)
		peer := v4
		if peer == "" {
			peer = v6
		}
		switch {
		case route != "":
			return Decision{Way: Default, Why: route, to: v.to}
		case peer != "":
			return Decision{Way: Default, Why: "default route of peer " + peer, to: v.to}
		}
	} else if peer, length, ok := v.c.Routes(v.to.addr); ok {
		why := fmt.Sprintf("AllowedIPs of peer %s (/%d)", peer, length)
		if route != "" {
			why = route + ", " + why
		}
		return Decision{Way: Default, Why: why, Addrs: []netip.Addr{v.to.addr}, to: v.to}
	}
	if route != "" {
		return v.refuse(proxy.NetworkUnreachable, "%s, but no peer's AllowedIPs hold it", route)
	}
	return v.refuse(proxy.NetworkUnreachable, "there is no way out of the mesh; set Exit = PEER or a Route for this listener, or AllowedIPs = 0.0.0.0/0, ::/0 for a peer")
}

// A peer has the default route of a family if its AllowedIPs hold these addresses by a short prefix: files that leave private networks
// out list a /5 and the like instead of /0, and 2000::/3.
var (
	someV4 = netip.AddrFrom4([4]byte{1, 0, 0, 0})
	someV6 = netip.AddrFrom16([16]byte{0x20})
)

const longestV4, longestV6 = 8, 3

// gateway returns the peer with the default route of a family, "" without one.
func (v verdict) gateway(probe netip.Addr, longest int) string {
	if peer, length, ok := v.c.Routes(probe); ok && length <= longest {
		return peer
	}
	return ""
}
