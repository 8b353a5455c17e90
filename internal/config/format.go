package config

// A format is the vocabulary of one kind of file: it says where a word belongs that stands in the wrong place.
type format struct {
	sections []string // that may stand in the file
	home     func(key string) (section string)
	foreign  func(section, key string) (hint string) // what a section, or a key of it, is in a file of another kind; "": nothing known
	wgQuick  bool                                    // files of other programs are this kind too
}

// nodeFormat is that of culvert.conf.
func nodeFormat() *format {
	f := &format{wgQuick: true}
	var homes []home
	for _, k := range nodeSections() {
		f.sections = append(f.sections, k.name)
		homes = append(homes, home{k.name, k.keyNames()})
	}
	// Of sections that have a key of one name, the usual one comes first.
	f.home = homeIn(append([]home{{"Peer", keyNames(peerKeys)}}, homes...))
	f.foreign = foreignIn("belongs in the configuration of culvert relay, not in a node's", []home{
		{"Relay", keyNames(relayServerKeys)}, {"STUN", keyNames(relaySTUNKeys)}, {"WGSTUN", keyNames(relayWGSTUNKeys)},
	})
	return f
}

// relayFormat is that of relay.conf.
func relayFormat() *format {
	return &format{
		sections: []string{"Relay", "STUN", "WGSTUN", "Control"},
		home: homeIn([]home{
			{"Relay", keyNames(relayServerKeys)}, {"STUN", keyNames(relaySTUNKeys)}, {"WGSTUN", keyNames(relayWGSTUNKeys)},
			{"Control", keyNames(relayControlKeys)},
		}),
		foreign: foreignIn("belongs in the configuration of a node, not in that of culvert relay", []home{
			{"Interface", nil}, {"Peer", nil}, {"Filter", nil}, {"Exit", nil}, {"Netmap", nil}, {"Upstream", nil}, {"Traversal", nil},
			{"SOCKS5", nil}, {"HTTP", nil}, {"Forward", nil}, {"Publish", nil},
			{"Relay", keyNames(relayKeys)}, {"STUN", keyNames(stunKeys)}, {"WGSTUN", keyNames(wgstunKeys)}, {"Control", keyNames(controlKeys)},
		}),
	}
}

// home is a section and its keys.
type home struct {
	section string
	keys    []string
}

// homeIn returns a function that finds the first section that has a key, "" where none has.
func homeIn(list []home) func(key string) string {
	return func(key string) string {
		for _, h := range list {
			if hasName(h.keys, key) {
				return h.section
			}
		}
		return ""
	}
}

// foreignIn returns a function that knows the sections of another kind of file, and what to say of them.
func foreignIn(hint string, list []home) func(section, key string) string {
	return func(section, key string) string {
		for _, h := range list {
			if hasName([]string{h.section}, section) && (key == "" || hasName(h.keys, key)) {
				return hint
			}
		}
		return ""
	}
}
