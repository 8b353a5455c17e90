package config

import (
	"cmp"
	"net/netip"
	"slices"

	"culvert.dev/culvert/internal/wgkey"
)

// finish fills in defaults, checks what no single line can tell, and returns the result.
func (l *loader) finish() (*Config, error) {
	l.applyDefaults()
	l.checkInterface()
	l.checkKeys()
	l.checkNames()
	l.checkAllowedIPs()
	l.checkAllow()
	l.checkResolvers()
	l.checkUpstream()
	l.checkRelays()
	l.checkSTUN()
	l.checkFilter()
	l.checkNetmap()
	l.checkProxies()
	l.checkForwards()
	l.checkPublishes()
	l.checkListeners()
	if err := l.conclude(); err != nil {
		return nil, err
	}
	for _, p := range l.peers {
		l.cfg.Peers = append(l.cfg.Peers, p.Peer)
	}
	l.warnFilter()
	l.sort(l.warnings)
	l.cfg.Warnings = l.warnings
	return &l.cfg, nil
}

// conclude returns the faults, if there are any.
func (l *loader) conclude() error {
	if len(l.faults) == 0 {
		l.warnings = append(l.warnings, l.misspelt...)
		return nil
	}
	l.faults = append(l.faults, l.misspelt...)
	l.sort(l.faults)
	return l.faults
}

// sort orders diagnostics by file as read, then by line.
func (l *loader) sort(list []Diagnostic) {
	slices.SortStableFunc(list, func(a, b Diagnostic) int {
		return cmp.Or(
			cmp.Compare(slices.Index(l.files, a.File), slices.Index(l.files, b.File)),
			cmp.Compare(a.Line, b.Line),
		)
	})
}

// faultAt reports a fault of a file that has been read already.
func (l *loader) faultAt(file string, line int, format string, args ...any) {
	l.file = file
	l.fault(line, format, args...)
}

func (l *loader) checkInterface() {
	if l.interfaceLine == 0 {
		missing := "the section [Interface] is missing"
		if l.cfg.File == "" && l.Text == "" {
			missing += ": set CULVERT_INTERFACE_PRIVATE_KEY and CULVERT_INTERFACE_ADDRESS"
		}
		l.faultAt(l.cfg.File, 0, "%s", missing)
		return
	}
	if _, given := l.interfaceKeys["PrivateKey"]; !given {
		l.faultAt(l.cfg.File, l.interfaceLine, "[Interface] needs a PrivateKey or PrivateKeyFile; culvert genkey makes one%s",
			l.toSet(l.interfaceLine, "PrivateKey"))
	}
	line, given := l.interfaceKeys["Address"]
	if !given || len(l.cfg.Interface.Addresses) == 0 && !l.hasFault(line) {
		l.faultAt(l.cfg.File, cmp.Or(line, l.interfaceLine), "[Interface] needs an Address, such as 100.64.7.1/24%s",
			l.toSet(l.interfaceLine, "Address"))
	}
}

// hasFault reports whether a line of the main file is known to be wrong, so that nothing more need be said about it.
func (l *loader) hasFault(line int) bool {
	file, line := l.place(l.cfg.File, line)
	return slices.ContainsFunc(l.faults, func(d Diagnostic) bool { return d.File == file && d.Line == line })
}

func (l *loader) checkKeys() {
	var own wgkey.Public
	if !l.cfg.Interface.PrivateKey.IsZero() {
		own = l.cfg.Interface.PrivateKey.Public()
	}
	first := map[wgkey.Public]*peerDraft{}
	for _, p := range l.peers {
		line, given := p.keys["PublicKey"]
		switch before := first[p.PublicKey]; {
		case !given:
			l.faultAt(p.File, p.line, "[Peer] needs a PublicKey%s", l.toSet(p.line, "PublicKey"))
		case p.PublicKey.IsZero(): // the key's own line was faulted
		case p.PublicKey == own:
			l.faultAt(p.File, line, "PublicKey: this is the node's own key; a peer has the key of the other end")
		case before != nil:
			l.faultAt(p.File, line, "PublicKey: the peer at %s has the same key", before.position())
		default:
			first[p.PublicKey] = p
		}
	}
}

func (l *loader) checkNames() {
	first := map[string]*peerDraft{}
	for _, p := range l.peers {
		if p.Name == "" {
			continue
		}
		line := cmp.Or(p.keys["Name"], p.line)
		if before := first[p.Name]; before != nil {
			l.faultAt(p.File, line, "Name: the peer at %s is named %s too", before.position(), p.Name)
		} else if first[p.Name] = p; p.Name == l.cfg.Interface.Name {
			l.faultAt(p.File, line, "Name: this node is named %s too; give one of them another Name", p.Name)
		}
	}
	for _, p := range l.peers {
		for _, name := range p.AllowPeers {
			if first[name] == nil {
				l.faultAt(p.File, p.keys["AllowPeers"], "AllowPeers: there is no peer named %s%s",
					name, didYouMean("", Nearest(name, l.peerNames()), ""))
			}
		}
	}
}

func (l *loader) peerNames() []string {
	names := make([]string, len(l.peers))
	for i, p := range l.peers {
		names[i] = p.Name
	}
	return names
}

// checkAllowedIPs refuses what WireGuard would silently resolve in favour of the last peer. Nested prefixes are fine: the
// longest wins. A peer may cover this node's address by a wider prefix, as every client of a hub does.
func (l *loader) checkAllowedIPs() {
	type place struct {
		p    *peerDraft
		line int
	}
	first := map[netip.Prefix]place{}
	for _, p := range l.peers {
		for i, prefix := range p.AllowedIPs {
			if before, taken := first[prefix]; taken {
				l.faultAt(p.File, p.lines[i], "AllowedIPs: %s already belongs to peer %s (%s)", prefix, before.p.Name,
					Position(l.place(before.p.File, before.line)))
				continue
			}
			first[prefix] = place{p, p.lines[i]}
			if prefix.IsSingleIP() && l.isOwn(prefix.Addr()) {
				l.faultAt(p.File, p.lines[i], "AllowedIPs: %s is this node's own Address", prefix.Addr())
			}
		}
	}
}

func (l *loader) checkAllow() {
	for _, p := range l.peers {
		if p.Allow.LAN && !p.Allow.Routing {
			l.file = p.File
			l.warn(p.keys["AllowLAN"], "AllowLAN of peer %s has no effect without AllowRouting", p.Name)
		}
	}
}

func (l *loader) isOwn(a netip.Addr) bool {
	return slices.ContainsFunc(l.cfg.Interface.Addresses, func(p netip.Prefix) bool { return p.Addr() == a })
}

// position is the place of the section in a message.
func (p *peerDraft) position() string { return Position(p.File, max(p.line, 0)) }
