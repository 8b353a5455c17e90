package config

import (
	"io/fs"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// forwardDraft is one section [Forward].
type forwardDraft struct {
	Forward
	listen []listenDraft
	mode   fs.FileMode // of those that are unix sockets
	line   int
	keys   map[string]int
}

var forwardKeys = []key[forwardDraft]{
	{name: "Listen", list: true, doc: "as in [SOCKS5]; PORT-PORT, and behind it /udp or /tcp,udp",
		set: func(l *loader, t *forwardDraft, v value) error {
			return l.addListeners(&t.listen, "[Forward]", v, listenRules{ranges: true, udp: true})
		}},
	{name: "Mode", doc: "as in [SOCKS5]", set: func(_ *loader, t *forwardDraft, v value) (err error) {
		t.mode, err = parseSocketMode(v.text)
		return err
	}},
	{name: "To", doc: "HOST:PORT[-PORT] in the mesh or behind an exit, or HOST for the same ports",
		set: func(_ *loader, t *forwardDraft, v value) (err error) {
			t.Host, t.Ports, err = parseForwardTo(v.text)
			return err
		}},
	{name: "Exit", list: true, doc: "as in [SOCKS5]", set: func(_ *loader, t *forwardDraft, v value) error {
		return appendPeers(&t.Exits, v.text)
	}},
	{name: "AllowFrom", list: true, doc: "as in [SOCKS5]", set: func(_ *loader, t *forwardDraft, v value) error {
		list, err := parsePrefixes(v.text)
		t.AllowFrom = append(t.AllowFrom, list...)
		return err
	}},
}

// parseForwardTo reads HOST:PORT[-PORT] or HOST, which leaves the ports zero.
func parseForwardTo(s string) (host string, ports PortRange, err error) {
	if host, ports, err = parseHostPorts(s, true); err != nil {
		return "", PortRange{}, err
	}
	if a, err := netip.ParseAddr(host); host == "localhost" || err == nil && (a.IsLoopback() || a.IsUnspecified() || a.IsMulticast()) {
		return "", PortRange{}, reject(host, "is not in the mesh: To names a service of a peer, or behind an exit")
	}
	return host, ports, nil
}

// parseHostPorts reads HOST:PORT[-PORT], and HOST alone where that will do.
func parseHostPorts(s string, alone bool) (host string, ports PortRange, err error) {
	want := "is not HOST:PORT or HOST:PORT-PORT"
	if inner, ok := strings.CutPrefix(s, "["); ok && alone && strings.HasSuffix(inner, "]") {
		return checkedHost(strings.TrimSuffix(inner, "]"))
	}
	if !strings.Contains(s, ":") {
		if _, isPort := parsePorts(s); !alone || isPort == nil {
			return "", ports, reject(s, "%s", want)
		}
		return checkedHost(s)
	}
	host, port, err := net.SplitHostPort(s)
	if err != nil {
		if strings.Count(s, ":") > 1 && !strings.Contains(s, "[") {
			want += ": an IPv6 address stands in brackets, as in [2001:db8::1]:443"
		}
		return "", ports, reject(s, "%s", want)
	}
	if ports, err = parsePorts(port); err != nil {
		return "", ports, err
	}
	host, _, err = checkedHost(host)
	return host, ports, err
}

// checkedHost accepts an address or a name, which is lowered.
func checkedHost(s string) (string, PortRange, error) {
	if a, err := netip.ParseAddr(s); err == nil {
		if a.Is4In6() {
			return "", PortRange{}, reject(s, "is an IPv4-mapped IPv6 address: write it as IPv4")
		}
		return a.String(), PortRange{}, nil
	}
	name, err := parseDomainName(s)
	if err != nil {
		err = reject(s, "is neither an IP address nor a name")
	}
	return name, PortRange{}, err
}

func (l *loader) readForward(s section) {
	d := &forwardDraft{line: s.line, keys: map[string]int{}}
	d.File, d.Line = l.standsAt(s.line)
	readSection(l, s, forwardKeys, d, d.keys)
	l.forwards = append(l.forwards, d)
}

// checkForwards finishes the sections.
func (l *loader) checkForwards() {
	for _, d := range l.forwards {
		l.file = l.cfg.File
		if line, given := d.keys["Listen"]; !given || len(d.listen) == 0 && !l.hasFault(line) {
			l.fault(d.line, "[Forward] needs a Listen, such as 127.0.0.1:5432%s", l.toSet(d.line, "Listen"))
		}
		if _, given := d.keys["To"]; !given {
			l.fault(d.line, "[Forward] needs a To, such as db:5432%s", l.toSet(d.line, "To"))
		}
		_, from := d.keys["AllowFrom"]
		if from && len(d.AllowFrom) == 0 && !l.hasFault(d.keys["AllowFrom"]) {
			l.fault(d.keys["AllowFrom"], "AllowFrom: no address is given; without the key all clients are allowed")
		}
		l.checkOpen(d.listen, from, "AllowFrom with the clients' addresses")
		l.checkExits(d.Exits, d.keys["Exit"])
		if d.Host != "" && len(d.listen) > 0 {
			l.matchPorts(d)
		}
		l.setMode(d.listen, d.keys, d.mode)
		for _, a := range d.listen {
			d.Listen = append(d.Listen, a.Listen)
		}
		l.cfg.Forwards = append(l.cfg.Forwards, d.Forward)
	}
}

// matchPorts takes the ports of To from Listen where it names none, and has both go together one by one.
func (l *loader) matchPorts(d *forwardDraft) {
	if first := d.listen[0]; d.Ports == (PortRange{}) {
		if slices.ContainsFunc(d.listen, func(a listenDraft) bool { return a.Path != "" || a.Ports != first.Ports }) {
			l.fault(d.keys["To"], "To: name the port of %s: the listeners do not have one and the same", d.Host)
			return
		}
		d.Ports = first.Ports
	}
	for _, a := range d.listen {
		n := 1
		if a.Path == "" {
			n = a.Ports.Len()
		}
		if n != d.Ports.Len() && !a.twin() {
			l.fault(a.line, "Listen: %s has %s, and To has %s", a, countPorts(n), countPorts(d.Ports.Len()))
		}
	}
}

func countPorts(n int) string {
	if n == 1 {
		return "1 port"
	}
	return strconv.Itoa(n) + " ports"
}
