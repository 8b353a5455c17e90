//go:build linux

package main

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"culvert.dev/culvert/internal/lab"
)

// slotHelp is the part of --help that says how to add an exit.
const slotHelp = `
Another exit is a command that runs in the foreground until it is killed, as an ordinary user without any privilege (-exit) or
as root of its network namespace (-exit-root). It must listen for WireGuard on UDP port @PORT@, know one peer, and carry what
that peer sends to where the host's routes lead. The command is one of sh(1). In it these are replaced:

  @PRIVATE_KEY@      the exit's key, base64            @PORT@      its UDP port
  @PUBLIC_KEY@       its public key                    @MTU@       of the tunnel
  @ADDRESS4@         its addresses in the tunnel,      @OUTSIDE@   the network device that leads to the internet
  @ADDRESS6@           without prefix length           @DIR@       an empty directory, writable for the command
  @CLIENT_KEY@       the peer's public key             @CULVERT@   the culvert binary of this tree
  @CLIENT_ADDRESS4@  the peer's addresses in the       @WIREGUARD_GO@   the stock wireguard-go binary
  @CLIENT_ADDRESS6@    tunnel
  @FILE:PATH@        the path of a copy, in @DIR@, of the file PATH, in which the same are replaced

CPU time and memory are those of all processes in the exit's network namespace. bench/compare/testdata has examples that
work: a second culvert, and the reference as a script, which is how a column is added that needs root.

  go run ./bench/compare -exit 'again=exec @CULVERT@ up -c @FILE:bench/compare/testdata/culvert.conf@ --state @DIR@/state'
  go run ./bench/compare -exit-root 'script=exec sh @FILE:bench/compare/testdata/stock.sh@'
`

// slot is an exit that the user has given as a command.
type slot struct {
	Name    string `json:"name"`
	Command string `json:"command"`
	Root    bool   `json:"root"`
}

// slots is a flag that may be given several times.
type slots struct {
	list *[]slot
	root bool
}

func (s slots) String() string { return "" }

var slotName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]*$`)

func (s slots) Set(text string) error {
	name, command, found := strings.Cut(text, "=")
	if !found || !slotName.MatchString(name) || strings.TrimSpace(command) == "" {
		return fmt.Errorf("%q is not NAME=COMMAND", text)
	}
	taken := func(other slot) bool { return other.Name == name }
	if name == culvert || name == reference || slices.ContainsFunc(*s.list, taken) {
		return fmt.Errorf("there is an exit %q already", name)
	}
	added := slot{Name: name, Command: command, Root: s.root}
	if err := added.check(); err != nil { // before anything is built
		return err
	}
	*s.list = append(*s.list, added)
	return nil
}

// settings are what an exit needs to know, by placeholder.
type settings map[string]string

var settingNames = []string{"PRIVATE_KEY", "PUBLIC_KEY", "CLIENT_KEY", "ADDRESS4", "ADDRESS6", "CLIENT_ADDRESS4", "CLIENT_ADDRESS6", "PORT", "MTU",
	"OUTSIDE", "CULVERT", "WIREGUARD_GO"}

func settingsOf(c lab.ExitConfig) settings {
	client := c.Peers[0]
	return settings{
		"PRIVATE_KEY": c.Key.Reveal(), "PUBLIC_KEY": c.Key.Public().String(), "CLIENT_KEY": client.Key.String(),
		"ADDRESS4": lab.ExitMesh[0], "ADDRESS6": lab.ExitMesh[1],
		"CLIENT_ADDRESS4": lab.ClientMesh[0], "CLIENT_ADDRESS6": lab.ClientMesh[1],
		"PORT": strconv.Itoa(c.Port), "MTU": strconv.Itoa(mtu), "OUTSIDE": c.Outside[0],
		"CULVERT": lab.Culvert.Path(), "WIREGUARD_GO": lab.WireGuardGo.Path(),
	}
}

var placeholder = regexp.MustCompile(`@([A-Z][A-Z0-9_]*)(?::([^@\s]+))?@`)

// replace puts the settings into a text. File is called for the path of each @FILE:PATH@.
func (s settings) replace(text string, file func(path string) (string, error)) (out string, err error) {
	out = placeholder.ReplaceAllStringFunc(text, func(match string) string {
		m := placeholder.FindStringSubmatch(match)
		value, known := s[m[1]]
		switch {
		case m[1] == "FILE" && m[2] != "" && file != nil:
			v, e := file(m[2])
			if e != nil && err == nil {
				err = e
			}
			return v
		case known && m[2] == "":
			return value
		case err == nil:
			err = fmt.Errorf("there is no placeholder %s here", match)
		}
		return match
	})
	return out, err
}

// check finds what is wrong with a command and the files that it names, without running it.
func (s slot) check() error {
	trial := settings{"DIR": "/"}
	for _, name := range settingNames {
		trial[name] = "x"
	}
	_, err := trial.replace(s.Command, func(path string) (string, error) {
		text, err := os.ReadFile(path)
		if err == nil {
			if _, err = trial.replace(string(text), nil); err != nil {
				err = fmt.Errorf("%s: %w", path, err)
			}
		}
		return path, err
	})
	return err
}

// start runs the command in the node and waits until its WireGuard port is bound.
func (s slot) start(tb lab.TB, node *lab.Node, c lab.ExitConfig) *lab.Process {
	tb.Helper()
	dir := lab.UnprivilegedDir(tb)
	set := settingsOf(c)
	set["DIR"] = dir
	command, err := set.replace(s.Command, func(path string) (string, error) {
		text, err := os.ReadFile(path)
		if err != nil {
			return "", err
		}
		filled, err := set.replace(string(text), nil)
		if err != nil {
			return "", fmt.Errorf("%s: %w", path, err)
		}
		return copyFor(dir, filepath.Base(path), filled)
	})
	if err != nil {
		tb.Fatalf("exit %s: %v", s.Name, err)
	}
	start := node.StartUnprivileged
	if s.Root {
		start = node.Start
	}
	p := start(tb, []string{"HOME=" + dir, "TMPDIR=" + dir}, "sh", "-c", command)
	lab.WaitFor(tb, 30*time.Second, fmt.Sprintf("exit %s to bind UDP port %d", s.Name, c.Port), func() bool {
		if !p.Alive() && !node.Bound("udp", c.Port) { // a command that goes into the background ends first
			tb.Fatalf("exit %s: the command ended at once:\n%s", s.Name, p.Log())
		}
		return node.Bound("udp", c.Port)
	})
	return p
}

// copyFor writes a file that the command's user can read, and change.
func copyFor(dir, base, text string) (path string, err error) {
	path = filepath.Join(dir, base)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		return "", err
	}
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		return "", err
	}
	return path, os.Chown(path, int(st.Uid), int(st.Gid))
}
