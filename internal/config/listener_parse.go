package config

import (
	"errors"
	"io/fs"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
)

const (
	maxRange      = 4096 // ports of one range: each is a socket
	maxListeners  = 1024 // of one configuration, a range counting as one
	maxSocketPath = 107  // sun_path of unix(7) less its final zero
)

// listenDraft is a listener with the line its checks need.
type listenDraft struct {
	Listen
	section string // as it is named in messages
	line    int
}

// listenRules is what listeners of a section may be.
type listenRules struct {
	dir    string // that names of sockets are relative to
	ranges bool
	udp    bool
}

// parseListeners reads a list of listeners: ADDRESS:PORT, :PORT or *:PORT for every address, PORT for both loopback addresses,
// unix:PATH; where the rules have it PORT-PORT, and behind it /tcp, /udp or /tcp,udp.
func parseListeners(s string, rules listenRules) ([]Listen, error) {
	var list []Listen
	elements := splitNetworks(s)
	if len(elements) == 0 {
		return nil, errors.New("no address is given")
	}
	for _, element := range elements {
		more, err := parseListener(element, rules)
		if err != nil {
			return nil, err
		}
		list = append(list, more...)
	}
	return list, nil
}

// splitNetworks is splitList, except that a comma between networks splits nothing.
func splitNetworks(s string) (list []string) {
	for _, element := range splitList(s) {
		last := len(list) - 1
		if isNetwork := strings.EqualFold(element, "tcp") || strings.EqualFold(element, "udp"); isNetwork && last >= 0 && strings.Contains(list[last], "/") {
			list[last] += "," + element
		} else {
			list = append(list, element)
		}
	}
	return list
}

func parseListener(s string, rules listenRules) ([]Listen, error) {
	if path, ok := strings.CutPrefix(s, "unix:"); ok {
		if strings.HasSuffix(path, "/udp") || strings.HasSuffix(path, ",udp") {
			return nil, reject(s, "is a unix socket, which carries no UDP here")
		}
		path, err := socketPath(path, rules.dir)
		return []Listen{{Network: "unix", Path: path}}, err
	}
	text, networks, err := cutNetworks(s)
	if err != nil {
		return nil, err
	}
	if !rules.udp && !slices.Equal(networks, []string{"tcp"}) {
		return nil, reject(s, "names UDP, which a proxy has no listener for: UDP ASSOCIATE opens its ports itself")
	}
	host, port := "localhost", text
	if i := strings.LastIndexByte(text, ':'); i >= 0 {
		host, port = text[:i], text[i+1:]
	}
	ports, err := parsePorts(port)
	switch {
	case err != nil && isPorts(port):
		return nil, err
	case err != nil:
		return nil, reject(s, "is no listener: want ADDRESS:PORT, :PORT for every address of this host, PORT for its loopback addresses, or unix:PATH")
	}
	switch {
	case !rules.ranges && ports.Len() > 1:
		return nil, reject(s, "is a range of ports: a proxy listens on one")
	case ports.Len() > maxRange:
		return nil, reject(s, "has more than %d ports", maxRange)
	}
	addrs, err := listenAddrs(host)
	if err != nil {
		return nil, err
	}
	var list []Listen
	for _, network := range networks {
		for _, a := range addrs {
			list = append(list, Listen{Network: network, Addr: netip.AddrPortFrom(a, ports.First), Ports: ports, Optional: len(addrs) > 1})
		}
	}
	return list, nil
}

// listenAddrs reads the address of a listener: an invalid one stands for every address of the host.
func listenAddrs(s string) ([]netip.Addr, error) {
	switch strings.ToLower(s) {
	case "", "*":
		return []netip.Addr{{}}, nil
	case "localhost":
		return []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1}), netip.IPv6Loopback()}, nil
	}
	text, bracketed := s, false
	if inner, ok := strings.CutPrefix(s, "["); ok {
		text, bracketed = strings.CutSuffix(inner, "]")
	}
	a, err := netip.ParseAddr(text)
	switch {
	case err == nil && a.Is6() && !bracketed:
		return nil, reject(s, "is an IPv6 address: it stands in brackets, as in [::1]:1080")
	case err != nil || a.Is4() && text != s || a.Is4In6() || a.IsMulticast():
		return nil, reject(s, "is no address of a listener: want one of this host's, or * for all")
	}
	return []netip.Addr{a}, nil
}

// cutNetworks cuts "/tcp", "/udp" or "/tcp,udp" off the end of a listener; without one it is TCP.
func cutNetworks(s string) (text string, networks []string, err error) {
	text, suffix, given := strings.Cut(s, "/")
	if !given {
		return s, []string{"tcp"}, nil
	}
	for network := range strings.SplitSeq(strings.ToLower(suffix), ",") {
		if network != "tcp" && network != "udp" || slices.Contains(networks, network) {
			return "", nil, reject(s, "does not end in /tcp, /udp or /tcp,udp")
		}
		networks = append(networks, network)
	}
	slices.Sort(networks)
	return text, networks, nil
}

// parsePorts reads "PORT" or "PORT-PORT".
func parsePorts(s string) (PortRange, error) {
	first, last, isRange := strings.Cut(s, "-")
	if !isRange {
		last = first
	}
	low, err := parseRange(first, "a port", 1, 65535)
	if err != nil {
		return PortRange{}, err
	}
	high, err := parseRange(last, "a port", 1, 65535)
	if err == nil && low > high {
		err = reject(s, "is a range of ports that ends before it begins")
	}
	return PortRange{uint16(low), uint16(high)}, err
}

// isPorts reports whether a text is meant to be parsed by parsePorts, so that the error from there is the one to show.
func isPorts(s string) bool { return s != "" && strings.Trim(s, "0123456789-") == "" }

// socketPath reads the path of a unix socket.
func socketPath(path, dir string) (string, error) {
	if path == "" {
		return "", errors.New("unix: names no socket")
	}
	if looksSecret(path) {
		return "", errors.New("this is a key, not the path of a socket")
	}
	if !filepath.IsAbs(path) {
		path = filepath.Join(dir, path)
	}
	if path = filepath.Clean(path); len(path) > maxSocketPath {
		return "", reject(path, "is too long for a socket: at most %d bytes", maxSocketPath)
	}
	return path, nil
}

// parseSocketMode reads the mode of a unix socket: who may connect. That takes the permission to write, and nothing else means
// anything.
func parseSocketMode(s string) (fs.FileMode, error) {
	switch strings.TrimPrefix(s, "0") {
	case "600":
		return 0o600, nil
	case "660":
		return 0o660, nil
	case "666":
		return 0o666, nil
	}
	return 0, reject(s, "is no mode of a socket: want 0600 for this node's user, 0660 for its group too, or 0666 for all users of this host")
}

// setMode gives the sockets among a section's listeners their mode.
func (l *loader) setMode(list []listenDraft, keys map[string]int, mode fs.FileMode) {
	line, given := keys["Mode"]
	if !given || l.hasFault(line) {
		return
	}
	sockets := 0
	for i := range list {
		if list[i].Path != "" {
			list[i].Mode = mode
			sockets++
		}
	}
	if sockets == 0 && len(list) > 0 {
		l.fault(line, "Mode: is for unix sockets, and no Listen of this section is one")
	}
}

// addListeners is the setter of Listen.
func (l *loader) addListeners(list *[]listenDraft, section string, v value, rules listenRules) error {
	rules.dir = filepath.Dir(l.file)
	listeners, err := parseListeners(v.text, rules)
	for _, a := range listeners {
		*list = append(*list, listenDraft{a, section, v.line})
	}
	return err
}

// checkOpen refuses listeners that everybody on the network may use.
func (l *loader) checkOpen(list []listenDraft, guarded bool, guard string) {
	for _, d := range list {
		switch {
		case guarded || d.local():
		case l.isOption(d.line):
			l.fault(d.line, "%s is open to whoever reaches this host: write a section %s instead that has %s (AllowFrom = 0.0.0.0/0, ::/0 to mean everyone)",
				d, d.section, guard)
		default:
			l.fault(d.line, "Listen: %s is open to whoever reaches this host: add %s (AllowFrom = 0.0.0.0/0, ::/0 to mean everyone)", d, guard)
		}
	}
}

// checkListeners finds two listeners at one place.
func (l *loader) checkListeners() {
	l.file = l.cfg.File
	list := l.fixedListeners()
	for _, p := range l.proxies {
		list = append(list, p.listen...)
	}
	for _, f := range l.forwards {
		list = append(list, f.listen...)
	}
	clash := make([]bool, len(list))
	for i, d := range list {
		if i == maxListeners {
			l.fault(d.line, "Listen: one listener too many: there may be %d", maxListeners)
			return
		}
		before := slices.IndexFunc(list[:i], func(o listenDraft) bool { return o.overlaps(d.Listen) })
		if clash[i] = before >= 0; clash[i] && !(d.twin() && clash[i-1]) {
			l.fault(d.line, "Listen: %s is taken by %s %s", d, list[before].section, l.at(list[before].line))
		}
	}
}

// twin reports whether a listener is the second of the two that one port stands for.
func (l Listen) twin() bool { return l.Optional && l.Addr.Addr().Is6() }

// fixedListeners are those of the node itself.
func (l *loader) fixedListeners() (list []listenDraft) {
	if a := l.cfg.Control.HTTP; a.IsValid() {
		port := PortRange{a.Port(), a.Port()}
		if a.Addr().IsUnspecified() { // of both families to the net package, which is not told a family there
			a = netip.AddrPortFrom(netip.Addr{}, a.Port())
		}
		list = append(list, listenDraft{Listen{Network: "tcp", Addr: a, Ports: port}, "HTTP of [Control]", l.controlKeys["HTTP"]})
	}
	if port := l.cfg.Interface.ListenPort; port != 0 {
		list = append(list, listenDraft{
			Listen{Network: "udp", Addr: netip.AddrPortFrom(netip.Addr{}, port), Ports: PortRange{port, port}}, "WireGuard", l.interfaceKeys["ListenPort"],
		})
	}
	return list
}
