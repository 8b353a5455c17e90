package main

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/urfave/cli/v2"

	"culvert.dev/culvert/internal/config"
	"culvert.dev/culvert/internal/control"
)

func relayConfigFlag() cli.Flag {
	return &cli.StringFlag{
		Name: "config", Aliases: []string{"c"}, EnvVars: []string{"CULVERT_CONFIG"}, TakesFile: true,
		Usage: "configuration `FILE` (default: $XDG_CONFIG_HOME/culvert/relay.conf, then /etc/culvert/relay.conf, else none)",
	}
}

func relaySocketFlag() cli.Flag {
	return &cli.StringFlag{
		Name: "socket", EnvVars: []string{"CULVERT_SOCKET"}, TakesFile: true,
		Usage: "control `SOCKET` of the relay (default: as the configuration says)",
	}
}

const relaySocketDir = "culvert-relay" // below $XDG_RUNTIME_DIR; apart from nodes' sockets, which are found by looking

// relayPlace is a relay as the command line and the environment name it: its configuration and where its files are.
type relayPlace struct {
	places places
	file   string              // "": none, the environment and the defaults hold it all
	conf   *config.RelayConfig // nil: it has errors
	state  string
}

// relayOptions is where a relay's configuration is read beyond its file.
func relayOptions(state string) config.Options {
	return config.Options{State: state, Sources: config.Sources{Environ: os.Environ()}}
}

// findRelay reads the relay's configuration; without one it is all defaults.
func findRelay(c *cli.Context) (relayPlace, error) {
	at := relayPlace{places: hostPlaces()}
	var err error
	if at.state, err = at.places.state(c.String("state")); err != nil {
		return at, err
	}
	at.file = at.places.relayConfig(c.String("config"), at.state)
	at.conf, err = config.LoadRelay(at.file, relayOptions(at.state))
	return at, err
}

// relayConfig returns the configuration to read: the one named, else the first that exists, else "".
func (p places) relayConfig(named, state string) string {
	if named != "" {
		return named
	}
	for _, file := range p.configs(state) {
		file = filepath.Join(filepath.Dir(file), "relay.conf")
		if _, err := os.Stat(file); err == nil || errors.Is(err, fs.ErrPermission) { // what cannot be read is reported by reading it
			return file
		}
	}
	return ""
}

// newSocket returns where a relay that starts listens for commands.
func (at relayPlace) newSocket(named string) (string, error) {
	return at.socket(cmp.Or(named, at.conf.Control.Socket), at.conf.Server.Name)
}

// socket returns the socket of a relay whose configuration has this one, or "", and this name.
func (at relayPlace) socket(socket, name string) (string, error) {
	if dir := at.places.getenv("XDG_RUNTIME_DIR"); socket == "" && filepath.IsAbs(dir) {
		socket = filepath.Join(dir, relaySocketDir, name+".sock")
	}
	if socket == "" {
		socket = at.stateSocket()
	}
	const longest = 107 // sun_path of unix(7) less its final zero
	if len(socket) > longest {
		return "", fmt.Errorf("control socket %s: the path is longer than %d bytes; name a shorter one with --socket", socket, longest)
	}
	return socket, nil
}

func (at relayPlace) stateSocket() string { return filepath.Join(at.state, "relay.sock") }

// client returns a client of the running relay. One that was started in another session lies in the state folder.
func (at relayPlace) client(named string) (*control.Client, error) {
	socket, err := at.newSocket(named)
	if err != nil {
		return nil, err
	}
	if named == "" && !isSocket(socket) && isSocket(at.stateSocket()) {
		socket = at.stateSocket()
	}
	return control.NewClient(socket), nil
}

// relayClient returns a client of the relay that the command line means. Where a socket is named, the configuration does not
// matter.
func relayClient(c *cli.Context) (*control.Client, error) {
	if named := c.String("socket"); named != "" {
		return control.NewClient(named), nil
	}
	at, err := findRelay(c)
	if err == nil {
		return at.client("")
	}
	if socket := at.anySocket(); socket != "" { // who wants to look at a relay need not have its configuration in order
		return control.NewClient(socket), nil
	}
	return nil, err
}

// anySocket finds the socket of a relay whose configuration has faults: "" if there is none, or more than one to choose from.
func (at relayPlace) anySocket() string {
	if place, err := config.LoadRelayPlace(at.file, relayOptions(at.state)); err == nil {
		if socket, err := at.socket(place.Socket, place.Name); err == nil && isSocket(socket) {
			return socket
		}
	}
	if socket := at.stateSocket(); at.state != "" && isSocket(socket) {
		return socket
	}
	dir := at.places.getenv("XDG_RUNTIME_DIR")
	if !filepath.IsAbs(dir) {
		return ""
	}
	list, _ := filepath.Glob(filepath.Join(dir, relaySocketDir, "*.sock")) // the pattern is a good one
	list = slices.DeleteFunc(list, func(file string) bool { return !isSocket(file) })
	if len(list) != 1 {
		return ""
	}
	return list[0]
}

// aboutRelay says what the absence of a relay means to the user.
func aboutRelay(err error) error {
	var none *control.NotRunningError
	if errors.As(err, &none) {
		return errors.New("no relay is running here: culvert relay starts one, --socket names one")
	}
	return err
}
