package config

import (
	"io/fs"
	"slices"
)

const (
	maxRoutes = 4096 // of one proxy: they are asked one after the other
	maxExits  = 64   // of one listener
)

// proxyDraft is one section [SOCKS5] or [HTTP].
type proxyDraft struct {
	Proxy
	section string // with brackets
	listen  []listenDraft
	mode    fs.FileMode // of those that are unix sockets
	line    int
	keys    map[string]int
	lines   []int           // of Routes, index for index
	names   map[string]bool // of Users
}

var socksKeys = slices.Concat(proxyKeys, []key[proxyDraft]{
	{name: "HTTP", doc: "yes: speak HTTP on the same listeners too; default no",
		set: func(_ *loader, t *proxyDraft, v value) (err error) {
			t.HTTP, err = parseBool(v.text)
			return err
		}},
	{name: "UDP", doc: "no: without UDP ASSOCIATE; default yes", set: func(_ *loader, t *proxyDraft, v value) (err error) {
		t.UDP, err = parseBool(v.text)
		return err
	}},
})

var httpKeys = slices.Concat(proxyKeys, []key[proxyDraft]{
	{name: "SOCKS", doc: "yes: speak SOCKS on the same listeners too; default no",
		set: func(_ *loader, t *proxyDraft, v value) (err error) {
			t.SOCKS, err = parseBool(v.text)
			t.UDP = t.SOCKS
			return err
		}},
})

var proxyKeys = []key[proxyDraft]{
	{name: "Listen", list: true, doc: "ADDRESS:PORT, :PORT for every address, PORT for loopback, or unix:PATH",
		set: func(l *loader, t *proxyDraft, v value) error {
			return l.addListeners(&t.listen, t.section, v, listenRules{})
		}},
	{name: "Mode", doc: "who may connect to its unix sockets: 0600 (default), 0660 for the group too, or 0666",
		set: func(_ *loader, t *proxyDraft, v value) (err error) {
			t.mode, err = parseSocketMode(v.text)
			return err
		}},
	{name: "User", list: true, lines: true, doc: "NAME:PASSWORD that clients have to give",
		set: func(l *loader, t *proxyDraft, v value) error {
			return l.addUser(t, v)
		}},
	{name: "UsersFile", doc: "file of such users, one a line", set: func(l *loader, t *proxyDraft, v value) error {
		return l.addUsersFile(t, v)
	}},
	{name: "AllowFrom", list: true, doc: "addresses and prefixes of clients; default all",
		set: func(_ *loader, t *proxyDraft, v value) error {
			list, err := parsePrefixes(v.text)
			t.AllowFrom = append(t.AllowFrom, list...)
			return err
		}},
	{name: "Exit", list: true, doc: "names of peers by which traffic to the internet leaves, the first that works; default: by AllowedIPs",
		set: func(_ *loader, t *proxyDraft, v value) error {
			return appendPeers(&t.Exits, v.text)
		}},
	{name: "Route", list: true, doc: "PATTERN via PEER, or PATTERN and direct, block or mesh",
		set: func(_ *loader, t *proxyDraft, v value) error {
			if len(t.Routes) == maxRoutes {
				return reject(v.text, "is one too many: there may be %d", maxRoutes)
			}
			route, err := ParseProxyRoute(v.text)
			if err == nil {
				t.Routes, t.lines = append(t.Routes, route), append(t.lines, v.line)
			}
			return err
		}},
	{name: "MaxConnections", doc: "how many clients may be connected to each listener; default 16384",
		set: func(_ *loader, t *proxyDraft, v value) (err error) {
			t.MaxConnections, err = parseRange(v.text, "a number of connections", 1, 1<<20)
			return err
		}},
}

// appendPeers reads names of peers, each once.
func appendPeers(list *[]string, s string) error {
	for _, element := range splitList(s) {
		name, err := ParseName(element)
		if err != nil {
			return err
		}
		if slices.Contains(*list, name) {
			continue
		}
		if len(*list) == maxExits {
			return reject(name, "is one too many: there may be %d", maxExits)
		}
		*list = append(*list, name)
	}
	return nil
}

func (l *loader) readSOCKS(s section) {
	l.readProxy(s, socksKeys, proxyDraft{Proxy: Proxy{SOCKS: true, UDP: true}, section: "[SOCKS5]"})
}

func (l *loader) readHTTP(s section) {
	l.readProxy(s, httpKeys, proxyDraft{Proxy: Proxy{HTTP: true}, section: "[HTTP]"})
}

func (l *loader) readProxy(s section, keys []key[proxyDraft], d proxyDraft) {
	d.line, d.keys, d.names = s.line, map[string]int{}, map[string]bool{}
	d.File, d.Line = l.standsAt(s.line)
	readSection(l, s, keys, &d, d.keys)
	for i := range d.Routes {
		d.Routes[i].File, d.Routes[i].Line = l.standsAt(d.lines[i])
	}
	l.proxies = append(l.proxies, &d)
}

// checkProxies finishes the sections.
func (l *loader) checkProxies() {
	for _, d := range l.proxies {
		l.file = l.cfg.File
		if line, given := d.keys["Listen"]; !given || len(d.listen) == 0 && !l.hasFault(line) {
			l.fault(d.line, "%s needs a Listen, such as 127.0.0.1:1080%s", d.section, l.toSet(d.line, "Listen"))
		}
		_, user := d.keys["User"]
		_, file := d.keys["UsersFile"]
		_, from := d.keys["AllowFrom"]
		if from && len(d.AllowFrom) == 0 && !l.hasFault(d.keys["AllowFrom"]) { // a variable that is empty must not open it
			l.fault(d.keys["AllowFrom"], "AllowFrom: no address is given; without the key all clients are allowed")
		}
		l.checkOpen(d.listen, user || file || from, "User, or AllowFrom with the clients' addresses")
		l.checkExits(d.Exits, d.keys["Exit"])
		l.checkRoutes(d)
		l.setMode(d.listen, d.keys, d.mode)
		for _, a := range d.listen {
			d.Listen = append(d.Listen, a.Listen)
		}
		l.cfg.Proxies = append(l.cfg.Proxies, d.Proxy)
	}
}

// checkExits finds names that are no peer's.
func (l *loader) checkExits(names []string, line int) {
	known := l.peerNames()
	for _, name := range names {
		if fault := noPeer(name, known); fault != "" {
			l.fault(line, "Exit: %s", fault)
		}
	}
}

// noPeer says that there is no peer of a name, "" if there is one.
func noPeer(name string, known []string) string {
	if slices.Contains(known, name) {
		return ""
	}
	return "there is no peer named " + name + didYouMean("", Nearest(name, known), "")
}

// checkRoutes finds names that are no peer's, and routes that are never asked.
func (l *loader) checkRoutes(d *proxyDraft) {
	known := l.peerNames()
	for i, r := range d.Routes {
		if r.Action == RouteVia {
			if fault := noPeer(r.Via, known); fault != "" {
				l.fault(d.lines[i], "Route: %s", fault)
			}
		}
		for j, before := range d.Routes[:i] {
			switch {
			case !before.covers(r):
				continue
			case before.catchesAll() && !r.catchesAll():
				l.warn(d.lines[i], "Route: stands behind the one %s for all the rest, and is asked before it all the same: write that last", l.at(d.lines[j]))
			default:
				l.warn(d.lines[i], "Route: is never asked: the one %s decides all that this one names", l.at(d.lines[j]))
			}
			break
		}
	}
}
