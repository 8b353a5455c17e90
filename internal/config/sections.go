package config

import "slices"

// A sectionKind is what is known of a section of culvert.conf.
type sectionKind struct {
	name   string
	single bool // several sections of a file are one
	attach bool // culvert attach has a use for it
	keys   []keyInfo
	read   func(l *loader, s section)
}

// keyInfo is a key without its setter.
type keyInfo struct {
	name, slot, doc string
	list, lines     bool
}

func keyInfos[T any](keys []key[T]) []keyInfo {
	list := make([]keyInfo, len(keys))
	for i, k := range keys {
		list[i] = keyInfo{k.name, k.slotName(), k.doc, k.list, k.lines}
	}
	return list
}

// nodeSections lists the sections of culvert.conf.
func nodeSections() []sectionKind {
	return []sectionKind{
		{"Interface", true, false, keyInfos(interfaceKeys), func(l *loader, s section) {
			if l.interfaceLine == 0 {
				l.interfaceLine = s.line
			}
			readSection(l, s, interfaceKeys, &l.cfg.Interface, l.interfaceKeys)
		}},
		{"Peer", false, false, keyInfos(peerKeys), (*loader).readPeer},
		{"SOCKS5", false, false, keyInfos(socksKeys), (*loader).readSOCKS},
		{"HTTP", false, false, keyInfos(httpKeys), (*loader).readHTTP},
		{"Forward", false, false, keyInfos(forwardKeys), (*loader).readForward},
		{"Publish", false, false, keyInfos(publishKeys), (*loader).readPublish},
		{"Filter", true, false, keyInfos(filterKeys), func(l *loader, s section) {
			readSection(l, s, filterKeys, &l.cfg.Filter, l.filterKeys)
		}},
		{"Exit", true, false, keyInfos(exitKeys), func(l *loader, s section) {
			readSection(l, s, exitKeys, &l.cfg.Exit, l.exitKeys)
		}},
		{"Netmap", false, false, keyInfos(netmapKeys), (*loader).readNetmap},
		{"Upstream", true, false, keyInfos(upstreamKeys), (*loader).readUpstream},
		{"Relay", false, true, keyInfos(relayKeys), (*loader).readRelay},
		{"STUN", true, true, keyInfos(stunKeys), (*loader).readSTUN},
		{"WGSTUN", true, true, keyInfos(wgstunKeys), (*loader).readWGSTUN},
		{"Traversal", true, true, keyInfos(traversalKeys), func(l *loader, s section) {
			readSection(l, s, traversalKeys, &l.cfg.Traversal, l.traversalKeys)
		}},
		{"Control", true, true, keyInfos(controlKeys), func(l *loader, s section) {
			readSection(l, s, controlKeys, &l.cfg.Control, l.controlKeys)
		}},
	}
}

// sectionOf returns the kind of a section by its name, or nil.
func sectionOf(kinds []sectionKind, name string) *sectionKind {
	i := slices.IndexFunc(kinds, func(k sectionKind) bool { return hasName([]string{k.name}, name) })
	if i < 0 {
		return nil
	}
	return &kinds[i]
}

func (k *sectionKind) keyNames() []string {
	names := make([]string, len(k.keys))
	for i, key := range k.keys {
		names[i] = key.name
	}
	return names
}
