package agent

import (
	"net/netip"

	"culvert.dev/culvert/internal/wgkey"
	"culvert.dev/culvert/traversal/check"
	"culvert.dev/culvert/traversal/exchange"
	"culvert.dev/culvert/traversal/path"
)

// index is what receivers of datagrams need to know to tell what is worth the engine's attention. It is never changed: the engine
// replaces it as a whole, at most once per turn.
type index struct {
	sessions map[exchange.Session]*entry // by our session with the peer
	numbers  map[uint32]*entry           // by the number of the peer in transaction ids
	routes   map[way]*entry              // accepted routes
	keys     map[wgkey.Public]*entry     // of all peers
}

// way is where a datagram comes from.
type way struct {
	socket uint32
	remote netip.AddrPort
}

func wayOf(r path.Route) way { return way{r.Socket, plain(r.Check)} }

// plain returns an endpoint with IPv4 as such, so that equal ones compare as equal.
func plain(e netip.AddrPort) netip.AddrPort {
	if a := e.Addr(); a.Is4In6() {
		return netip.AddrPortFrom(a.Unmap(), e.Port())
	}
	return e
}

// entry is a peer as receivers know it.
type entry struct {
	number  uint32
	key     wgkey.Public
	theirs  exchange.Session
	receive check.Key
	inbox   *inbox
}

// lookup finds out which peer a well-formed check is of, as far as can be told without verifying it.
func (x *index) lookup(ids idents, m *check.Message) *entry {
	if m.Kind == check.KindResponse {
		return x.numbers[ids.peer(&m.ID)]
	}
	if e := x.sessions[m.To]; e != nil && e.theirs == m.From {
		return e
	}
	return nil
}

// newIndex makes the index of all peers.
func newIndex(peers map[wgkey.Public]*peer) *index {
	x := &index{
		sessions: make(map[exchange.Session]*entry, len(peers)),
		numbers:  make(map[uint32]*entry, len(peers)),
		routes:   make(map[way]*entry, len(peers)),
		keys:     make(map[wgkey.Public]*entry, len(peers)),
	}
	for key, p := range peers {
		e := &entry{number: p.number, key: key, theirs: p.theirs, receive: p.keys.Receive, inbox: &p.inbox}
		x.keys[key] = e
		if p.theirs != 0 {
			x.sessions[p.session] = e
			x.numbers[p.number] = e
		}
		for _, r := range p.accept {
			// A peer can pretend to be at another one's address, but for being used there it has to answer.
			if w := wayOf(r); x.routes[w] == nil || p.mode != path.ModeRelay && p.use == r {
				x.routes[w] = e
			}
		}
	}
	return x
}
