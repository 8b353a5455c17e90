package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/urfave/cli/v2"

	"culvert.dev/culvert/internal/config"
)

func configFlag() cli.Flag {
	return &cli.StringFlag{
		Name: "config", Aliases: []string{"c"}, EnvVars: []string{"CULVERT_CONFIG"}, TakesFile: true,
		Usage: "configuration `FILE` (default: $XDG_CONFIG_HOME/culvert/culvert.conf, then /etc/culvert/culvert.conf)",
	}
}

func stateFlag() cli.Flag {
	return &cli.StringFlag{
		Name: "state", EnvVars: []string{"CULVERT_STATE"}, TakesFile: true,
		Usage: "state `DIR` (default: $STATE_DIRECTORY, then $XDG_STATE_HOME/culvert, or as root /var/lib/culvert)",
	}
}

func socketFlag() cli.Flag {
	return &cli.StringFlag{
		Name: "socket", EnvVars: []string{"CULVERT_SOCKET"}, TakesFile: true,
		Usage: "control `SOCKET` of the node (default: as the configuration says)",
	}
}

// places is what decides where files lie.
type places struct {
	getenv   func(string) string
	etc      string
	varLib   string
	root     bool
	writable func(dir string) bool
}

func hostPlaces() places {
	return places{
		getenv:   os.Getenv,
		etc:      "/etc",
		varLib:   "/var/lib",
		root:     os.Geteuid() == 0,
		writable: writable,
	}
}

// under returns the folder of an XDG variable, or its default below the home folder; "" where neither is set. The XDG
// base directory specification has relative paths ignored.
func (p places) under(variable, fallback string) string {
	if dir := p.getenv(variable); filepath.IsAbs(dir) {
		return dir
	}
	if home := p.getenv("HOME"); filepath.IsAbs(home) && fallback != "" {
		return filepath.Join(home, fallback)
	}
	return ""
}

// configs lists where a configuration is looked for; a new one goes to the first. Without a home folder that is the state
// folder, which may be named.
func (p places) configs(state string) []string {
	var list []string
	if dir := p.under("XDG_CONFIG_HOME", ".config"); dir != "" {
		list = append(list, filepath.Join(dir, "culvert", "culvert.conf"))
	} else if state, err := p.state(state); err == nil {
		list = append(list, filepath.Join(state, "culvert.conf"))
	}
	return append(list, filepath.Join(p.etc, "culvert", "culvert.conf"))
}

// noConfigError says that no configuration was found; its text tells how to make one.
type noConfigError struct{ tried []string }

func (e *noConfigError) Error() string {
	return fmt.Sprintf("no configuration found (looked for %s): culvert init writes one, -c FILE names another",
		strings.Join(e.tried, " and "))
}

// config returns the configuration to read: the one named, else the first that exists, else a *noConfigError.
func (p places) config(named, state string) (string, error) {
	if named != "" {
		return named, nil
	}
	tried := p.configs(state)
	for _, file := range tried {
		if _, err := os.Stat(file); !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, syscall.ENOTDIR) {
			return file, nil // one that cannot be read is reported by reading it
		}
	}
	return "", &noConfigError{tried}
}

// newConfig returns where a configuration is to be written.
func (p places) newConfig(named, state string) (string, error) {
	if named != "" {
		return named, nil
	}
	if list := p.configs(state); len(list) > 1 {
		return list[0], nil
	}
	return "", errors.New("no place for a configuration: HOME is not set; name one with -c FILE or CULVERT_CONFIG")
}

// state returns the state folder, which need not exist.
func (p places) state(named string) (string, error) {
	if named != "" {
		return named, nil
	}
	if first, _, _ := strings.Cut(p.getenv("STATE_DIRECTORY"), ":"); first != "" { // systemd gives a list
		return first, nil
	}
	if p.getenv("XDG_STATE_HOME") == "" && p.root {
		// Root of a user namespace often cannot write there.
		if dir := filepath.Join(p.varLib, "culvert"); p.writable(dir) || p.writable(p.varLib) {
			return dir, nil
		}
	}
	if dir := p.under("XDG_STATE_HOME", ".local/state"); dir != "" {
		return filepath.Join(dir, "culvert"), nil
	}
	return "", errors.New("no state folder: HOME is not set; name one with --state DIR or CULVERT_STATE")
}

// socket returns the control socket of the node that cfg describes.
func (p places) socket(named string, cfg *config.Config, state string) (string, error) {
	socket := named
	if socket == "" {
		socket = cfg.Control.Socket
	}
	if dir := p.getenv("XDG_RUNTIME_DIR"); socket == "" && filepath.IsAbs(dir) {
		socket = filepath.Join(dir, "culvert", cfg.Interface.Name+".sock")
	}
	if socket == "" {
		socket = filepath.Join(state, "control.sock")
	}
	const longest = 107 // sun_path of unix(7) less its final zero
	if len(socket) > longest {
		return "", fmt.Errorf("control socket %s: the path is longer than %d bytes; name a shorter one with --socket", socket, longest)
	}
	return socket, nil
}

// running lists the sockets of nodes in the default places.
func (p places) running(state string) []string {
	var list []string
	if dir := p.getenv("XDG_RUNTIME_DIR"); filepath.IsAbs(dir) {
		list, _ = filepath.Glob(filepath.Join(dir, "culvert", "*.sock")) // no fault but a malformed pattern
	}
	if file := filepath.Join(state, "control.sock"); state != "" && isSocket(file) {
		list = append(list, file)
	}
	return list
}

func isSocket(file string) bool {
	info, err := os.Stat(file)
	return err == nil && info.Mode()&fs.ModeSocket != 0
}

// found is where a command's configuration comes from.
type found struct {
	file    string // "": none, the environment holds it all
	state   string // "": nowhere to be found, which only matters to commands that write to it
	sources config.Sources
}

// findConfig follows a command's options and the environment. Where there is no file and none was named, variables may stand for it;
// else the error is a *noConfigError.
func findConfig(c *cli.Context) (at found, err error) {
	p := hostPlaces()
	at.sources.Environ = withoutOptions(os.Environ())
	if at.sources.Extra, err = extras(c); err != nil {
		return at, err
	}
	at.file, err = p.config(c.String("config"), c.String("state"))
	var none *noConfigError
	if errors.As(err, &none) && config.HasEnvironment(at.sources.Environ) {
		at.file, err = "", nil
	}
	at.state, _ = p.state(c.String("state"))
	return at, err
}

// withoutOptions returns the variables that are not those of an option of some command.
func withoutOptions(environ []string) []string {
	options := map[string]bool{}
	eachFlag(newApp().Commands, func(f cli.DocGenerationFlag) {
		for _, name := range f.GetEnvVars() {
			options[name] = true
		}
	})
	return slices.DeleteFunc(environ, func(pair string) bool {
		name, _, _ := strings.Cut(pair, "=")
		return options[name]
	})
}

// eachFlag calls do with the options of all the commands and of those below them.
func eachFlag(commands []*cli.Command, do func(cli.DocGenerationFlag)) {
	for _, command := range commands {
		for _, f := range command.Flags {
			if doc, ok := f.(cli.DocGenerationFlag); ok {
				do(doc)
			}
		}
		eachFlag(command.Subcommands, do)
	}
}

// load reads the configuration with the peers of the state folder.
func (at found) load() (*config.Config, error) {
	return config.Load(at.file, config.Options{State: at.state, Sources: at.sources})
}

// loadConfig finds and reads a command's configuration.
func loadConfig(c *cli.Context) (cfg *config.Config, state string, err error) {
	at, err := findConfig(c)
	if err != nil {
		return nil, "", err
	}
	cfg, err = at.load()
	if errors.Is(err, fs.ErrNotExist) {
		err = fmt.Errorf("%w; culvert init -c %s writes one", err, at.file)
	}
	return cfg, at.state, err
}

var errNoNode = errors.New("no running node found: culvert up starts one, --socket names one")

// clientSocket finds the node that a client command talks to: by --socket, by the configuration, else the only one
// running.
func clientSocket(c *cli.Context) (string, error) {
	p := hostPlaces()
	if named := c.String("socket"); named != "" {
		return p.socket(named, nil, "")
	}
	state, _ := p.state(c.String("state")) // without one there is one place less to look at
	cfg, _, err := loadConfig(c)
	var faults config.Errors
	switch {
	case errors.As(err, &faults):
		return p.faultySocket(c, state, err)
	case err == nil:
		socket, err := p.socket("", cfg, state)
		if err != nil || isSocket(socket) || c.String("config") != "" {
			return socket, err
		}
	case c.String("config") != "":
		return "", err
	}
	return p.onlySocket(state)
}

// faultySocket finds the node whose configuration has faults, which does not keep a running one from being looked at: where what can
// be made out of it says, else the only one running, as a fault may hide the socket's name.
func (p places) faultySocket(c *cli.Context, state string, faults error) (string, error) {
	at, err := findConfig(c)
	if err != nil {
		return "", err
	}
	place, err := config.LoadPlace(at.file, config.Options{State: at.state, Sources: at.sources})
	if err != nil {
		return "", err
	}
	cfg := &config.Config{Interface: config.Interface{Name: place.Name}, Control: config.Control{Socket: place.Socket}}
	if socket, err := p.socket("", cfg, state); err == nil && isSocket(socket) {
		return socket, nil
	}
	socket, err := p.onlySocket(state)
	named := c.String("config") != ""
	switch {
	case err != nil && named:
		return "", faults
	case err == nil && named:
		fmt.Fprintf(c.App.ErrWriter, "culvert: warning: %s has faults, so that its node is a guess: the one at %s; culvert check tells them\n", nameOf(at.file), socket)
	}
	return socket, err
}

// onlySocket finds the only node that runs in the default places.
func (p places) onlySocket(state string) (string, error) {
	switch list := p.running(state); len(list) {
	case 0:
		return "", errNoNode
	case 1:
		return list[0], nil
	default:
		return "", fmt.Errorf("several nodes are running, name one with --socket: %s", strings.Join(list, ", "))
	}
}
