package testnet

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"time"

	"culvert.dev/culvert/internal/packet"
)

// HostConfig configures a Host's attachment to a router.
type HostConfig struct {
	Addrs []netip.Addr // by default one of each family that the router hands out
	Link  LinkConfig
}

// Host is an end of communication: it has addresses, sockets and streams, and forwards nothing. It answers pings, and
// packets to ports that nobody listens on with ICMP errors and resets.
type Host struct {
	net    *Network
	name   string
	actor  actor
	rng    *rand.Rand
	router *Router // of which this is the own end; nil for a real host
	links  []*attachment
	addrs  []hostAddr // in order of preference

	sockets   map[netip.AddrPort]*Socket
	listeners map[netip.AddrPort]*Listener
	streams   map[streamKey]*Stream
	frags     *packet.Reassembler
	pathMTU   map[netip.Addr]pathMTU
	ipID      uint16
	silent    bool
}

type hostAddr struct {
	addr  netip.Addr
	port  *port // where it is attached; nil for a router's
	outer bool  // of a gateway's outer end
}

// pathMTU has been learned from ICMP (RFC 1191, RFC 8201).
type pathMTU struct {
	mtu   int
	until int64
}

const pathMTULife = 10 * time.Minute

// attachment is a host's link to a router.
type attachment struct {
	link   *Link
	router *Router
}

func (n *Network) newHost(name string) *Host {
	h := &Host{
		net: n, name: name, actor: n.newActor(),
		sockets:   map[netip.AddrPort]*Socket{},
		listeners: map[netip.AddrPort]*Listener{},
		streams:   map[streamKey]*Stream{},
		pathMTU:   map[netip.Addr]pathMTU{},
	}
	h.rng = n.rng(fmt.Sprint("host ", h.actor.id))
	h.frags = packet.NewReassembler(packet.ReassemblerConfig{})
	return h
}

// Host attaches a new host to r.
func (r *Router) Host(name string, cfg HostConfig) *Host {
	r.net.mu.Lock()
	defer r.net.mu.Unlock()
	h := r.net.newHost(name)
	h.attach(r, cfg)
	return h
}

// Attach connects the host to one more router. What binds to no address leaves by the attachment that the destination is
// local to, or else by the first.
func (h *Host) Attach(r *Router, cfg HostConfig) *Link {
	h.net.mu.Lock()
	defer h.net.mu.Unlock()
	return h.attach(r, cfg)
}

func (h *Host) attach(r *Router, cfg HostConfig) *Link {
	l := h.net.connect(h, r, h.name, cfg.Link)
	addrs := cfg.Addrs
	if len(addrs) == 0 {
		addrs = r.pool.both()
		if len(addrs) == 0 {
			panic(fmt.Sprintf("testnet: %s has no address left for %s", r.name, h.name))
		}
		for _, a := range addrs {
			r.pool.release(a)
		}
	}
	r.attach(l.ports[1], addrs)
	for _, a := range addrs {
		h.addrs = append(h.addrs, hostAddr{addr: a, port: l.ports[0]})
	}
	h.links = append(h.links, &attachment{l, r})
	return l
}

// Move takes the host off all its networks and attaches it to another one, as a laptop that changes from one Wi-Fi to
// another. Sockets stay: those bound to no address use the new one.
func (h *Host) Move(r *Router, cfg HostConfig) *Link {
	h.net.mu.Lock()
	defer h.net.mu.Unlock()
	for _, a := range h.links {
		a.router.detach(a.link.ports[1])
		a.link.down = true
		a.link.lose()
	}
	h.links, h.addrs = nil, nil
	clear(h.pathMTU)
	return h.attach(r, cfg)
}

// SetAddrs gives the first attachment other addresses. A router's Self has none.
func (h *Host) SetAddrs(addrs ...netip.Addr) {
	h.net.mu.Lock()
	defer h.net.mu.Unlock()
	first := h.links[0]
	first.router.detach(first.link.ports[1])
	first.router.attach(first.link.ports[1], addrs)
	list := make([]hostAddr, 0, len(addrs))
	for _, a := range addrs {
		list = append(list, hostAddr{addr: a, port: first.link.ports[0]})
	}
	for _, a := range h.addrs {
		if a.port != first.link.ports[0] {
			list = append(list, a)
		}
	}
	h.addrs = list
}

// Link is the host's first attachment; nil for a router's Self.
func (h *Host) Link() *Link {
	h.net.mu.Lock()
	defer h.net.mu.Unlock()
	if len(h.links) == 0 {
		return nil
	}
	return h.links[0].link
}

// Name is the name the host was made with.
func (h *Host) Name() string { return h.name }

// Addrs returns the host's addresses.
func (h *Host) Addrs() (list []netip.Addr) {
	h.net.mu.Lock()
	defer h.net.mu.Unlock()
	for _, a := range h.addrs {
		list = append(list, a.addr)
	}
	return list
}

// Addr is the host's first IPv4 address, or its first address if it has none.
func (h *Host) Addr() netip.Addr {
	h.net.mu.Lock()
	defer h.net.mu.Unlock()
	if a := h.firstAddr(false); a.IsValid() {
		return a
	}
	return h.firstAddr(true)
}

// Addr6 is the host's first IPv6 address, the zero Addr if it has none.
func (h *Host) Addr6() netip.Addr {
	h.net.mu.Lock()
	defer h.net.mu.Unlock()
	return h.firstAddr(true)
}

// SetSilent says whether the host keeps quiet about packets that nobody wants, as one behind a firewall of its own.
func (h *Host) SetSilent(silent bool) {
	h.net.mu.Lock()
	defer h.net.mu.Unlock()
	h.silent = silent
}

func (h *Host) firstAddr(v6 bool) netip.Addr {
	for _, a := range h.addrs {
		if a.addr.Is6() == v6 && !a.outer {
			return a.addr
		}
	}
	return netip.Addr{}
}

// outerAddr is the address of a gateway on its outside.
func (h *Host) outerAddr(v6 bool) netip.Addr {
	for _, a := range h.addrs {
		if a.addr.Is6() == v6 && a.outer {
			return a.addr
		}
	}
	return netip.Addr{}
}

func (h *Host) has(addr netip.Addr) bool      { i := h.find(addr); return i >= 0 && !h.addrs[i].outer }
func (h *Host) hasOuter(addr netip.Addr) bool { i := h.find(addr); return i >= 0 && h.addrs[i].outer }

func (h *Host) find(addr netip.Addr) int {
	for i := range h.addrs {
		if h.addrs[i].addr == addr {
			return i
		}
	}
	return -1
}

// source chooses the address that packets to dst come from.
func (h *Host) source(dst netip.Addr) netip.Addr {
	if h.has(dst) {
		return dst
	}
	if h.router != nil {
		if out := h.router.lookup(dst); out != nil && out == h.router.up {
			return h.outerAddr(dst.Is6())
		}
	}
	src, longest := h.firstAddr(dst.Is6()), -1
	for _, l := range h.links {
		bits := l.router.pool.onLink(dst)
		for _, a := range h.addrs {
			if a.port == l.link.ports[0] && a.addr.Is6() == dst.Is6() && bits > longest {
				src, longest = a.addr, bits
			}
		}
	}
	return src
}

// wayOut is the port that packets from src to dst leave by; nil if there is none, or none is needed.
func (h *Host) wayOut(src, dst netip.Addr) *port {
	i := h.find(src)
	switch {
	case i < 0 || h.find(dst) >= 0:
		return nil
	case h.router != nil:
		return h.router.lookup(dst)
	default:
		return h.addrs[i].port
	}
}

// loopback is how long a packet of a host to itself takes.
const loopback = time.Microsecond

// output sends a packet of the host's own, whole and with a source that is its own. It is cut if it does not fit the way
// and may be cut.
func (h *Host) output(b []byte) {
	var p packet.Packet
	if packet.Decode(&p, b) != packet.FaultNone {
		return
	}
	src, dst := p.SrcAddr(), p.DstAddr()
	out := h.wayOut(src, dst)
	switch {
	case h.find(src) < 0:
		h.net.trace(h.name, "source address gone", b)
	case h.find(dst) >= 0:
		h.actor.after(loopback, func() { h.receive(nil, b) })
	case out == nil:
		h.net.trace(h.name, "no route", b)
	default:
		h.ipID++
		mtu := out.mtu()
		if p.V == 6 { // IPv6 is cut by its sender only (RFC 8200 section 5)
			mtu = h.mtuTo(src, dst)
		}
		out.sendFitting(b, mtu, uint32(h.ipID))
	}
}

// mtuTo is the largest packet that is known to reach dst whole.
func (h *Host) mtuTo(src, dst netip.Addr) int {
	out := h.wayOut(src, dst)
	if out == nil {
		return maxPacket
	}
	if m, ok := h.pathMTU[dst]; ok && m.until > h.net.now() {
		return min(m.mtu, out.mtu())
	}
	return out.mtu()
}

const maxPacket = 65535
