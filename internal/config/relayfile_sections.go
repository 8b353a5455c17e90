package config

// relaySections lists the sections of relay.conf.
func relaySections() []sectionKind {
	return []sectionKind{
		{"Relay", true, false, keyInfos(relayServerKeys), func(l *loader, s section) {
			readSection(l, s, relayServerKeys, &l.relay, l.relay.serverKeys)
		}},
		{"STUN", true, false, keyInfos(relaySTUNKeys), func(l *loader, s section) {
			readSection(l, s, relaySTUNKeys, &l.relay, l.relay.stunKeys)
		}},
		{"WGSTUN", true, false, keyInfos(relayWGSTUNKeys), func(l *loader, s section) {
			readSection(l, s, relayWGSTUNKeys, &l.relay, l.relay.wgstunKeys)
		}},
		{"Control", true, false, keyInfos(relayControlKeys), func(l *loader, s section) {
			readSection(l, s, relayControlKeys, &l.relay, l.relay.controlKeys)
		}},
	}
}

func relayEnvNames() envNames { return envNames{prefix: RelayEnvPrefix, plain: "Relay"} }

// newRelayLoader is newLoader for the configuration of a relay.
func newRelayLoader(o Options, readFile func(string) (*content, error)) *loader {
	l := newLoader(o, readFile)
	l.format, l.kinds, l.names = relayFormat(), relaySections(), relayEnvNames()
	r := &l.relay
	r.serverKeys, r.stunKeys, r.wgstunKeys, r.controlKeys = map[string]int{}, map[string]int{}, map[string]int{}, map[string]int{}
	return l
}
