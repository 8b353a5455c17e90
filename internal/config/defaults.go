package config

import (
	"strings"

	"culvert.dev/culvert/nat"
)

// applyDefaults fills in everything a configuration may leave out, except ListenPort, which the tunnel derives.
func (l *loader) applyDefaults() {
	if l.cfg.Interface.MTU == 0 {
		l.cfg.Interface.MTU = DefaultMTU
	}
	if _, given := l.exitKeys["Filtering"]; !given {
		l.cfg.Exit.Filtering = nat.AddressDependent
	}
	if l.cfg.Interface.Name == "" {
		host, _ := l.Hostname() // a host without a name gets the general one
		l.cfg.Interface.Name = NameFromHost(host)
	}
	for _, p := range l.peers {
		if p.Name == "" && !p.PublicKey.IsZero() {
			p.Name = defaultPeerName(p.PublicKey.Short())
		}
	}
}

// NameFromHost makes a node's name of a host name: its first label, with what no label may contain replaced.
func NameFromHost(host string) string {
	label, _, _ := strings.Cut(strings.ToLower(host), ".")
	label = strings.Map(func(r rune) rune {
		if notLabel(r) {
			return '-'
		}
		return r
	}, label)
	label = strings.Trim(label[:min(len(label), 63)], "-")
	if label == "" {
		return "culvert"
	}
	return label
}

// defaultPeerName turns the start of a key, as wg and the logs show it, into a label.
func defaultPeerName(short string) string {
	return "peer-" + strings.NewReplacer("+", "0", "/", "0").Replace(strings.ToLower(short))
}
