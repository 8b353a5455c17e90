package config

import (
	"cmp"
	"net/netip"

	"culvert.dev/culvert/nat"
)

// netmapDraft is one [Netmap] section: peers know the network To as From.
type netmapDraft struct {
	nat.NetmapPrefix
	file string
	line int
	keys map[string]int
}

var netmapKeys = []key[netmapDraft]{
	{name: "From", doc: "prefix as peers know it", set: func(_ *loader, t *netmapDraft, v value) (err error) {
		t.From, err = parseNetmapPrefix(v.text)
		return err
	}},
	{name: "To", doc: "prefix that it is translated to, one to one", set: func(_ *loader, t *netmapDraft, v value) (err error) {
		t.To, err = parseNetmapPrefix(v.text)
		return err
	}},
}

func parseNetmapPrefix(s string) (netip.Prefix, error) {
	p, err := parsePrefix(s)
	switch {
	case err != nil:
		return netip.Prefix{}, err
	case p.Bits() == 0:
		return netip.Prefix{}, reject(s, "is the whole address space, which cannot be translated one to one")
	}
	return p.Masked(), nil
}

func (l *loader) readNetmap(s section) {
	d := &netmapDraft{file: l.file, line: s.line, keys: map[string]int{}}
	readSection(l, s, netmapKeys, d, d.keys)
	l.netmaps = append(l.netmaps, d)
}

// checkNetmap finishes the sections: two prefixes each that can be swapped, and that take nothing away from the mesh.
func (l *loader) checkNetmap() {
	for i, d := range l.netmaps {
		_, from := d.keys["From"]
		_, to := d.keys["To"]
		switch {
		case !from || !to:
			l.faultAt(d.file, d.line, "[Netmap] needs From and To, such as From = 10.1.0.0/24 and To = 192.168.1.0/24")
			continue
		case !d.From.IsValid() || !d.To.IsValid(): // the key's own line was faulted
			continue
		}
		if _, err := nat.NewNetmap([]nat.NetmapPrefix{d.NetmapPrefix}); err != nil {
			l.faultAt(d.file, d.line, "[Netmap]: %v", err)
			continue
		}
		for _, o := range l.netmaps[:i] {
			if o.From.IsValid() && o.From.Overlaps(d.From) {
				l.faultAt(d.file, d.keys["From"], "From: %s overlaps %s %s", d.From, o.From, l.at(o.keys["From"]))
			}
		}
		l.checkNetmapMesh(d)
		l.cfg.Netmap = append(l.cfg.Netmap, d.NetmapPrefix)
	}
}

// checkNetmapMesh refuses to take addresses away from this node or a peer, and to lead to this node.
func (l *loader) checkNetmapMesh(d *netmapDraft) {
	for _, a := range l.cfg.Interface.Addresses {
		if d.From.Contains(a.Addr()) {
			l.faultAt(d.file, d.keys["From"], "From: %s holds this node's own address %s", d.From, a.Addr())
		}
		if d.To.Contains(a.Addr()) {
			l.faultAt(d.file, d.keys["To"], "To: %s holds this node's own address %s", d.To, a.Addr())
		}
	}
	for _, p := range l.peers {
		for _, r := range p.AllowedIPs {
			if r.Bits() > 1 && r.Overlaps(d.From) {
				l.faultAt(d.file, d.keys["From"], "From: %s overlaps %s of peer %s (%s)", d.From, r, cmp.Or(p.Name, "without a name"), p.position())
			}
		}
	}
}
