package config

import (
	"cmp"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
)

// Upstream is a second WireGuard tunnel by which peers' traffic to the internet leaves, from the tunnel's own address.
type Upstream struct {
	File  string           // the wg-quick file that describes it, beside the configuration unless absolute
	Own   Interface        // its [Interface]; ListenPort 0 is any port, Name is empty
	Ends  []Peer           // its [Peer]s, at least one, each with an Endpoint
	Users []string         // names of the peers whose traffic leaves by it, in the order of Config.Peers
	DNS   []netip.AddrPort // resolvers for these peers, asked through the tunnel; none only if Exit.DNS.Off or nobody uses it
}

// upstreamDraft is the section as it is read.
type upstreamDraft struct {
	file  string
	users []string
	dns   []netip.AddrPort
	line  int // of the section; 0: there is none
	keys  map[string]int
}

var upstreamKeys = []key[upstreamDraft]{
	{name: "File", doc: "wg-quick file of a second tunnel by which peers' traffic leaves",
		set: func(l *loader, t *upstreamDraft, v value) error {
			if t.file = v.text; t.file != "" && !filepath.IsAbs(t.file) {
				t.file = filepath.Join(filepath.Dir(l.file), t.file)
			}
			return nil
		}},
	{name: "Peers", doc: "names of the peers whose traffic leaves by it; default: all with AllowRouting", list: true,
		set: func(_ *loader, t *upstreamDraft, v value) error {
			for _, element := range splitList(v.text) {
				name, err := ParseName(element)
				if err != nil {
					return err
				}
				t.users = append(t.users, name)
			}
			return nil
		}},
	{name: "DNS", doc: "resolvers behind the tunnel; default: those of its file", list: true,
		set: func(_ *loader, t *upstreamDraft, v value) error {
			for _, element := range splitList(v.text) {
				server, err := parseResolver(element)
				if err != nil {
					return err
				}
				t.dns = append(t.dns, server)
			}
			return nil
		}},
}

// readUpstream reads the section; the file that it names is read when everything else has been.
func (l *loader) readUpstream(s section) {
	if d := &l.upstream; d.line == 0 {
		d.line, d.keys = s.line, map[string]int{}
	} else {
		l.fault(s.line, "[Upstream] is already given %s", l.at(d.line))
		return
	}
	readSection(l, s, upstreamKeys, &l.upstream, l.upstream.keys)
}

// checkUpstream reads the tunnel's file and works out who uses it and whom it asks for names.
func (l *loader) checkUpstream() {
	d := &l.upstream
	if d.line == 0 {
		return
	}
	u := &Upstream{File: d.file}
	l.cfg.Upstream = u // with faults too: rules may mean it
	faults := len(l.faults)
	switch line, given := d.keys["File"]; {
	case !given || d.file == "":
		l.faultAt(l.cfg.File, cmp.Or(line, d.line), "[Upstream] needs a File: the wg-quick file of the tunnel%s", l.toSet(d.line, "File"))
	default:
		l.readUpstreamFile(u, line)
	}
	l.file = l.cfg.File
	l.checkUpstreamUsers(u)
	if len(l.faults) == faults {
		l.checkUpstreamDNS(u)
	}
}

// readUpstreamFile reads the tunnel's file by the rules of any other. Its faults and warnings carry its own name.
func (l *loader) readUpstreamFile(u *Upstream, line int) {
	text, err := l.readFile(u.File)
	if err != nil {
		l.faultAt(l.cfg.File, line, "File: read %s: %v", u.File, cause(err))
		return
	}
	sub := newLoader(l.Options, l.readFile)
	sub.cfg.File = u.File
	for _, s := range sub.open(u.File, text) {
		switch strings.ToLower(s.name) {
		case "interface":
			if sub.interfaceLine == 0 {
				sub.interfaceLine = s.line
			}
			readSection(sub, s, interfaceKeys, &sub.cfg.Interface, sub.interfaceKeys)
		case "peer":
			sub.readPeer(s)
		case "": // scan has reported it
		default:
			sub.fault(s.line, "only [Interface] and [Peer] may stand in the file of an upstream")
		}
	}
	sub.close(text)
	sub.applyDefaults()
	sub.cfg.Interface.Name = ""
	sub.checkInterface()
	sub.checkKeys()
	sub.checkAllowedIPs()
	l.checkUpstreamEnds(sub)
	l.files = append(l.files, sub.files...)
	l.faults = append(l.faults, sub.faults...)
	l.warnings = append(l.warnings, sub.warnings...)
	u.Own = sub.cfg.Interface
	for _, p := range sub.peers {
		u.Ends = append(u.Ends, p.Peer)
	}
}

// checkUpstreamEnds finds what is fine in a configuration of its own, but not in an upstream's.
func (l *loader) checkUpstreamEnds(sub *loader) {
	if len(sub.peers) == 0 {
		sub.faultAt(sub.cfg.File, 0, "an upstream needs a [Peer]")
	}
	for _, p := range sub.peers {
		if p.Endpoint == "" && p.keys["Endpoint"] == 0 {
			sub.faultAt(p.File, p.line, "a peer of an upstream needs an Endpoint")
		}
		for _, name := range []string{"AllowInbound", "AllowRouting", "AllowLAN", "AllowPeers", "Rate", "MaxFlows"} {
			if line, given := p.keys[name]; given {
				sub.file = p.File
				sub.warn(line, "%s has no effect in the file of an upstream: nothing behind it reaches anything here", name)
			}
		}
	}
	for _, a := range sub.cfg.Interface.Addresses {
		if l.isOwn(a.Addr()) {
			sub.faultAt(sub.cfg.File, sub.interfaceKeys["Address"], "Address: %s is this node's own in the mesh (%s)", a.Addr(), l.cfg.File)
		}
	}
}

// checkUpstreamUsers resolves Peers, by default every peer that may route.
func (l *loader) checkUpstreamUsers(u *Upstream) {
	line, given := l.upstream.keys["Peers"]
	for _, name := range l.upstream.users {
		i := slices.IndexFunc(l.peers, func(p *peerDraft) bool { return p.Name == name })
		switch {
		case i < 0:
			l.fault(line, "Peers: there is no peer named %s%s", name, didYouMean("", Nearest(name, l.peerNames()), ""))
		case !l.peers[i].Allow.Routing:
			l.warn(line, "Peers: peer %s has no AllowRouting, so that nothing of it leaves", name)
		}
	}
	for _, p := range l.peers {
		if p.Name != "" && p.Allow.Routing && (!given || slices.Contains(l.upstream.users, p.Name)) {
			u.Users = append(u.Users, p.Name)
		}
	}
}

// checkUpstreamDNS finds the resolvers: those of the section, else of the tunnel's file, else of [Exit]. The host's are none of
// them, since a question to those would tell the host's network what the peer does.
func (l *loader) checkUpstreamDNS(u *Upstream) {
	line, given := l.upstream.keys["DNS"]
	list := l.upstream.dns
	if !given {
		line = l.upstream.line
		if list = u.Own.DNS; len(list) == 0 {
			list = l.cfg.Exit.DNS.Servers
		}
	}
	for _, server := range list {
		if u.leadsTo(server.Addr()) {
			u.DNS = append(u.DNS, server)
		} else if given {
			l.fault(line, "DNS: %s does not lead to %s: its Address or its AllowedIPs do not cover that", u.File, server.Addr())
		}
	}
	if len(u.DNS) > 0 || l.cfg.Exit.DNS.Off || len(u.Users) == 0 || given && len(list) > 0 {
		return
	}
	l.fault(line, "the names that %s ask for need a resolver behind the upstream, as the host's would give them away: "+
		"set DNS in [Upstream] or in %s, or DNS = off in [Exit]", strings.Join(u.Users, ", "), u.File)
}

// leadsTo reports whether packets to a can go through the tunnel.
func (u *Upstream) leadsTo(a netip.Addr) bool {
	family := func(p netip.Prefix) bool { return p.Addr().Is4() == a.Is4() }
	return slices.ContainsFunc(u.Own.Addresses, family) && slices.ContainsFunc(u.Routes(), func(p netip.Prefix) bool { return p.Contains(a) })
}

// Routes are the prefixes behind the tunnel: all AllowedIPs.
func (u *Upstream) Routes() (list []netip.Prefix) {
	for _, p := range u.Ends {
		list = append(list, p.AllowedIPs...)
	}
	return list
}

// uses reports whether the traffic of the peer named name leaves through the upstream; u may be nil.
func (u *Upstream) uses(name string) bool { return u != nil && slices.Contains(u.Users, name) }
