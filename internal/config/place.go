package config

// Place is what a configuration says of where its running node, or relay, is found.
type Place struct {
	Name   string // of the node; the default where no valid one is given
	Socket string // as Control.Socket
}

// LoadPlace reads where a node is found out of a configuration that Load may find faults in: what else it says does not matter to
// who looks for the node. Such a configuration may also hide a name or socket, so that the place is a guess then. Only a file that
// cannot be read at all is an error.
func LoadPlace(file string, o Options) (Place, error) {
	l := newLoader(o, readFile)
	if err := l.read(file); err != nil {
		return Place{}, err
	}
	l.applyDefaults()
	return Place{l.cfg.Interface.Name, l.cfg.Control.Socket}, nil
}

// LoadRelayPlace is LoadPlace for the configuration of a relay.
func LoadRelayPlace(file string, o Options) (Place, error) {
	l := newRelayLoader(o, readFile)
	if err := l.readRelayConfig(file); err != nil {
		return Place{}, err
	}
	l.relayDefaults()
	return Place{l.relay.server.Name, l.relay.control.Socket}, nil
}
