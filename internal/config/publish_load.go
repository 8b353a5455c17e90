package config

import (
	"errors"
	"path/filepath"
	"slices"
	"strings"
)

// publishDraft is one section [Publish].
type publishDraft struct {
	Publish
	line int
	keys map[string]int
}

var publishKeys = []key[publishDraft]{
	{name: "Listen", doc: "PORT[-PORT] of the mesh addresses, and behind it /udp or /tcp,udp",
		set: func(_ *loader, t *publishDraft, v value) (err error) {
			elements := splitNetworks(v.text)
			if len(elements) != 1 {
				return reject(v.text, "is not one port or range of ports: each other one needs a [Publish] of its own")
			}
			text, networks, err := cutNetworks(elements[0])
			if err != nil {
				return err
			}
			t.Networks = networks
			if t.Ports, err = parsePorts(text); err != nil {
				if isPorts(text) {
					return err
				}
				return reject(v.text, "is no port of the mesh addresses: want PORT or PORT-PORT, and behind it /udp or /tcp,udp where it is not TCP")
			}
			if t.Ports.Len() > maxRange {
				return reject(v.text, "has more than %d ports", maxRange)
			}
			return nil
		}},
	{name: "To", doc: "HOST:PORT[-PORT], PORT of 127.0.0.1, or unix:PATH",
		set: func(l *loader, t *publishDraft, v value) (err error) {
			t.To, err = parsePublishTo(v.text, filepath.Dir(l.file))
			return err
		}},
	{name: "ProxyProtocol", doc: "v2: tell the service who connects; default no",
		set: func(_ *loader, t *publishDraft, v value) error {
			switch strings.ToLower(v.text) {
			case "v2":
				t.ProxyProtocol = true
			case "no":
			default:
				return reject(v.text, "is neither v2 nor no")
			}
			return nil
		}},
}

// parsePublishTo reads HOST:PORT[-PORT], PORT[-PORT] or unix:PATH.
func parsePublishTo(s, dir string) (t Target, err error) {
	if path, ok := strings.CutPrefix(s, "unix:"); ok {
		t.Path, err = socketPath(path, dir)
		return t, err
	}
	if isPorts(s) {
		ports, err := parsePorts(s)
		return Target{Host: "127.0.0.1", Ports: ports}, err
	}
	t.Host, t.Ports, err = parseHostPorts(s, false)
	return t, err
}

func (l *loader) readPublish(s section) {
	d := &publishDraft{line: s.line, keys: map[string]int{}}
	d.File, d.Line = l.standsAt(s.line)
	readSection(l, s, publishKeys, d, d.keys)
	l.publishes = append(l.publishes, d)
}

// checkPublishes finishes the sections.
func (l *loader) checkPublishes() {
	l.file = l.cfg.File
	for i, d := range l.publishes {
		if i == maxListeners {
			l.fault(d.line, "[Publish]: one too many: there may be %d", maxListeners)
			return
		}
		if _, given := d.keys["Listen"]; !given {
			l.fault(d.line, "[Publish] needs a Listen, such as 8443%s", l.toSet(d.line, "Listen"))
		}
		if _, given := d.keys["To"]; !given {
			l.fault(d.line, "[Publish] needs a To, such as 127.0.0.1:443%s", l.toSet(d.line, "To"))
		}
		if len(d.Networks) == 0 || d.Ports == (PortRange{}) || d.To == (Target{}) {
			continue // said already
		}
		n := d.To.Ports.Len()
		if d.To.Path != "" {
			n = 1
		}
		if d.Ports.Len() != n {
			l.fault(d.keys["To"], "To: Listen has %s, and this has %s", countPorts(d.Ports.Len()), countPorts(n))
		}
		if taken := l.takenPorts(d, l.publishes[:i]); taken != nil {
			l.fault(d.keys["Listen"], "Listen: %v", taken)
		}
		l.cfg.Publishes = append(l.cfg.Publishes, d.Publish)
	}
}

// takenPorts says what else is served at a port of d.
func (l *loader) takenPorts(d *publishDraft, before []*publishDraft) error {
	has := func(port uint16) bool { return d.Ports.First <= port && port <= d.Ports.Last }
	switch {
	case has(dnsPort) && !l.cfg.Exit.DNS.Off:
		return errors.New("port 53 of the mesh addresses is this node's DNS: take another, or set DNS = off in [Exit]")
	case has(socksPort) && l.cfg.Exit.SOCKS5:
		return errors.New("port 1080 of the mesh addresses is this node's SOCKS5: take another, or set SOCKS5 = no in [Exit]")
	}
	for _, o := range before {
		shared := slices.ContainsFunc(o.Networks, func(n string) bool { return slices.Contains(d.Networks, n) })
		if shared && o.Ports != (PortRange{}) && o.Ports.overlaps(d.Ports) {
			return errors.New(d.Ports.String() + " is published already " + l.at(o.keys["Listen"]))
		}
	}
	return nil
}
