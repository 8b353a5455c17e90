package config

import (
	"cmp"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"culvert.dev/culvert/internal/wgkey"
)

const (
	stunPort   = 3478 // RFC 8489 section 18.6
	wgstunPort = 3479
)

// WGSTUN is the WireGuard peer that tells, inside its tunnel, at which outer endpoint it sees this node.
type WGSTUN struct {
	PublicKey wgkey.Public
	Endpoint  string       // as Peer.Endpoint
	Addresses []netip.Addr // where it answers in the tunnel: at least one, at most one of each family
}

// wgstunAddresses are where a WG-STUN server answers inside its tunnels unless the configuration says otherwise.
func wgstunAddresses() []netip.Addr {
	return []netip.Addr{netip.AddrFrom4([4]byte{100, 64, 0, 4}), netip.MustParseAddr("fd74:656c:696f::4")}
}

// stunDraft is what the [STUN] sections say together.
type stunDraft struct {
	servers []string
	line    int // of the first; 0: there is none
	keys    map[string]int
}

// wgstunDraft is the section as it is read.
type wgstunDraft struct {
	WGSTUN
	line int // 0: there is none
	keys map[string]int
}

var stunKeys = []key[stunDraft]{
	{name: "Server", doc: "HOST[:PORT] of servers that tell where this node is seen", list: true,
		set: func(_ *loader, t *stunDraft, v value) error {
			for _, element := range splitList(v.text) {
				server, err := parseServer(element, stunPort)
				if err != nil {
					return err
				}
				if !slices.Contains(t.servers, server) {
					t.servers = append(t.servers, server)
				}
			}
			return nil
		}},
}

var wgstunKeys = []key[wgstunDraft]{
	{name: "PublicKey", doc: "of a server that tells the same inside WireGuard",
		set: func(_ *loader, t *wgstunDraft, v value) (err error) {
			if t.PublicKey, err = wgkey.ParsePublic(v.text); err == nil && t.PublicKey.IsZero() {
				err = errZeroKey
			}
			return err
		}},
	{name: "Endpoint", doc: "HOST[:PORT] of that server", set: func(_ *loader, t *wgstunDraft, v value) (err error) {
		t.Endpoint, err = parseServer(v.text, wgstunPort)
		return err
	}},
	{name: "Address", doc: "of that server inside the tunnel; default 100.64.0.4 and fd74:656c:696f::4", list: true,
		set: func(_ *loader, t *wgstunDraft, v value) (err error) {
			t.Addresses, err = parseResponders(t.Addresses, v.text)
			return err
		}},
}

// parseServer reads HOST or HOST:PORT and returns it as parseEndpoint does.
func parseServer(s string, port uint16) (string, error) {
	e, err := ParseEndpoint(s)
	if err != nil {
		return "", err
	}
	return net.JoinHostPort(e.Host, strconv.Itoa(int(cmp.Or(e.Port, port)))), nil
}

// parseResponders adds to list the addresses at which a WG-STUN server answers, one of each family.
func parseResponders(list []netip.Addr, s string) ([]netip.Addr, error) {
	for _, element := range splitList(s) {
		p, err := parseOwnAddress(element)
		switch {
		case err != nil:
			return list, err
		case !p.IsSingleIP():
			return list, reject(element, "is a network: want one address")
		case slices.ContainsFunc(list, func(a netip.Addr) bool { return a.Is4() == p.Addr().Is4() }):
			return list, reject(element, "is one too many: there is one of each family at most")
		}
		list = append(list, p.Addr())
	}
	return list, nil
}

func (l *loader) readSTUN(s section) {
	if d := &l.stun; d.line == 0 {
		d.line, d.keys = s.line, map[string]int{}
	}
	readSection(l, s, stunKeys, &l.stun, l.stun.keys)
	if !slices.ContainsFunc(s.entries, func(e entry) bool { return strings.EqualFold(e.key, "Server") }) {
		l.fault(s.line, "[STUN] needs a Server, such as relay.example:3478%s", l.toSet(s.line, "Server"))
	}
}

// readWGSTUN reads the section; what it must agree on with others is checked when those have been read.
func (l *loader) readWGSTUN(s section) {
	d := &l.wgstun
	if d.line != 0 {
		l.fault(s.line, "[WGSTUN] is already given %s", l.at(d.line))
		return
	}
	d.line, d.keys = s.line, map[string]int{}
	readSection(l, s, wgstunKeys, d, d.keys)
}

// checkSTUN finishes both sections.
func (l *loader) checkSTUN() {
	l.cfg.STUN = l.stun.servers
	d := &l.wgstun
	if d.line == 0 {
		return
	}
	l.file = l.cfg.File
	for _, name := range []string{"PublicKey", "Endpoint"} {
		if _, given := d.keys[name]; !given {
			l.fault(d.line, "[WGSTUN] needs a %s; culvert relay config prints the section%s", name, l.toSet(d.line, name))
		}
	}
	if _, given := d.keys["Address"]; !given {
		d.Addresses = wgstunAddresses()
	} else if line := d.keys["Address"]; len(d.Addresses) == 0 && !l.hasFault(line) {
		l.fault(line, "Address: no address is given; without the key the well-known ones are taken")
	}
	l.checkWGSTUNKey(d)
	l.checkWGSTUNAddresses(d)
	l.cfg.WGSTUN = &d.WGSTUN
}

// checkWGSTUNKey keeps the server apart from the peers: to WireGuard it is one.
func (l *loader) checkWGSTUNKey(d *wgstunDraft) {
	line := d.keys["PublicKey"]
	if d.PublicKey.IsZero() {
		return
	}
	if !l.cfg.Interface.PrivateKey.IsZero() && d.PublicKey == l.cfg.Interface.PrivateKey.Public() {
		l.fault(line, "PublicKey: this is the node's own key; the server has one of its own")
	}
	for _, p := range l.peers {
		if p.PublicKey == d.PublicKey {
			l.fault(line, "PublicKey: the peer at %s has the same key", p.position())
		}
	}
}

// checkWGSTUNAddresses refuses addresses that lead elsewhere already. A wider prefix of a peer is fine.
func (l *loader) checkWGSTUNAddresses(d *wgstunDraft) {
	line := cmp.Or(d.keys["Address"], d.line)
	for _, a := range d.Addresses {
		if l.isOwn(a) {
			l.fault(line, "Address: %s is this node's own Address; set Address in [WGSTUN] as the server has it", a)
		}
		for _, p := range l.peers {
			if slices.Contains(p.AllowedIPs, netip.PrefixFrom(a, a.BitLen())) {
				l.fault(line, "Address: %s belongs to peer %s (%s)", a, p.Name, p.position())
			}
		}
	}
}
