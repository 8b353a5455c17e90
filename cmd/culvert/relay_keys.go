package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/urfave/cli/v2"

	"culvert.dev/culvert/internal/config"
	"culvert.dev/culvert/internal/control"
	"culvert.dev/culvert/internal/wgkey"
	"culvert.dev/culvert/node/relayd"
)

func relayAllowCommand() *cli.Command {
	return &cli.Command{
		Name:               "allow",
		Usage:              "admit a node's key to the relay",
		ArgsUsage:          "KEY [NAME]",
		Description:        "Writes the key to the allow file, which a running relay reads at once. The name is for people.",
		Flags:              []cli.Flag{relayConfigFlag(), stateFlag(), relaySocketFlag()},
		CustomHelpTemplate: cli.CommandHelpTemplate + example("culvert relay allow xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg= laptop"),
		Action:             runRelayAllow,
	}
}

func relayDenyCommand() *cli.Command {
	return &cli.Command{
		Name:               "deny",
		Usage:              "take a node's key off the allow file, and disconnect it",
		ArgsUsage:          "KEY|NAME",
		Flags:              []cli.Flag{relayConfigFlag(), stateFlag(), relaySocketFlag()},
		CustomHelpTemplate: cli.CommandHelpTemplate + example("culvert relay deny laptop"),
		Action:             runRelayDeny,
	}
}

func relayListCommand() *cli.Command {
	return &cli.Command{
		Name:               "list",
		Usage:              "list the keys that the relay admits, and whether they are connected",
		Flags:              []cli.Flag{jsonFlag(), relayConfigFlag(), stateFlag(), relaySocketFlag()},
		CustomHelpTemplate: cli.CommandHelpTemplate + example("culvert relay list --json"),
		Action:             runRelayList,
	}
}

func parseKey(text string) (wgkey.Public, error) {
	key, err := wgkey.ParsePublic(text)
	if err == nil && key.IsZero() {
		err = errors.New("the key is all zero")
	}
	return key, err
}

func runRelayAllow(c *cli.Context) error {
	args, err := arguments(c, "KEY", "[NAME]")
	if err != nil {
		return err
	}
	key, err := parseKey(args[0])
	if err != nil {
		return usagef("KEY: %v", err)
	}
	at, err := findRelay(c)
	if err != nil {
		return err
	}
	file := at.conf.Server.AllowFile
	changed, err := config.AddAllowed(file, key, args[1])
	if err != nil {
		return err
	}
	what := "is in " + file
	if !changed {
		what = "was in " + file + " already"
	}
	return at.tell(c, fmt.Sprintf("%s %s", cmp.Or(args[1], key.String()), what))
}

func runRelayDeny(c *cli.Context) error {
	args, err := arguments(c, "KEY|NAME")
	if err != nil {
		return err
	}
	at, err := findRelay(c)
	if err != nil {
		return err
	}
	list, err := at.allowed()
	if err != nil {
		return err
	}
	key, err := chooseKey(args[0], list)
	if err != nil {
		return err
	}
	file := at.conf.Server.AllowFile
	removed, err := config.RemoveAllowed(file, key)
	if err != nil {
		return err
	}
	for _, a := range at.conf.Server.Allow {
		if a.Key == key {
			if strings.HasPrefix(a.File, config.RelayEnvPrefix) { // a file of such a name is one with a strange name
				return fmt.Errorf("%s still allows %s: take it out of that variable too, and start the relay again", a.File, args[0])
			}
			return fmt.Errorf("%s:%d still allows %s: remove that line too, and reload the relay", a.File, a.Line, args[0])
		}
	}
	if !removed {
		return fmt.Errorf("%s is not in %s", args[0], file)
	}
	return at.tell(c, fmt.Sprintf("%s is out of %s", args[0], file))
}

// chooseKey reads a key, or finds the one that has a name.
func chooseKey(text string, list []config.Allowed) (wgkey.Public, error) {
	if key, err := parseKey(text); err == nil {
		return key, nil
	}
	var found wgkey.Public
	var names []string
	for _, a := range list {
		if names = append(names, a.Name); a.Name == "" || !strings.EqualFold(a.Name, text) {
			continue
		}
		if !found.IsZero() && found != a.Key {
			return found, fmt.Errorf("several keys are named %q; give the key: culvert relay list shows them", text)
		}
		found = a.Key
	}
	if !found.IsZero() {
		return found, nil
	}
	if near := config.Nearest(text, names); near != "" {
		return found, fmt.Errorf("no allowed key is named %q; did you mean %s?", text, near)
	}
	return found, fmt.Errorf("%q is neither a public key nor the name of an allowed one", text)
}

// allowed lists the keys of the configuration and of the allow file, which need not exist.
func (at relayPlace) allowed() ([]config.Allowed, error) {
	more, err := config.ParseAllowed(at.conf.Server.AllowFile)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	return slices.Concat(at.conf.Server.Allow, more), nil
}

// tell has the running relay, if there is one, take the allow file, and says what has become of the change.
func (at relayPlace) tell(c *cli.Context, done string) error {
	client, err := at.client(c.String("socket"))
	if err != nil {
		return err
	}
	var none *control.NotRunningError
	switch err := client.Reload(c.Context); {
	case errors.As(err, &none):
		done += "; no relay is running"
	case err != nil:
		return fmt.Errorf("%s, but the running relay did not take it: %w", done, err)
	default:
		done += ", and the running relay knows"
	}
	_, err = fmt.Fprintf(c.App.ErrWriter, "culvert: %s\n", done)
	return err
}

// listedKey is one element of relay list --json.
type listedKey struct {
	Name      string       `json:"name"`
	PublicKey wgkey.Public `json:"public_key"`
	File      string       `json:"file"`
	Line      int          `json:"line"`
	Connected *bool        `json:"connected,omitempty"` // absent: no relay is running
}

func runRelayList(c *cli.Context) error {
	if _, err := arguments(c); err != nil {
		return err
	}
	at, err := findRelay(c)
	if err != nil {
		return err
	}
	allowed, err := at.allowed()
	if err != nil {
		return err
	}
	here, running := at.connected(c.Context, c.String("socket"))
	list := make([]listedKey, 0, len(allowed))
	for _, a := range allowed {
		k := listedKey{Name: a.Name, PublicKey: a.Key, File: a.File, Line: a.Line}
		if running {
			is := here[a.Key]
			k.Connected = &is
		}
		list = append(list, k)
	}
	if c.Bool("json") {
		return printJSON(c.App.Writer, list)
	}
	if at.conf.Server.Open {
		fmt.Fprintln(c.App.ErrWriter, "culvert: the relay is open: every key is admitted")
	}
	return printKeys(c, list)
}

func printKeys(c *cli.Context, list []listedKey) error {
	if len(list) == 0 {
		_, err := fmt.Fprintln(c.App.ErrWriter, "culvert: no key is allowed yet: culvert relay allow KEY [NAME]")
		return err
	}
	w := tabwriter.NewWriter(c.App.Writer, 0, 8, 2, ' ', 0)
	fmt.Fprintln(w, "NAME\tPUBLIC KEY\tCONNECTED\tFILE")
	for _, k := range list {
		connected := "?" // no relay is running
		switch {
		case k.Connected != nil && *k.Connected:
			connected = "yes"
		case k.Connected != nil:
			connected = "no"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", cmp.Or(k.Name, "-"), k.PublicKey, connected, config.Position(k.File, k.Line))
	}
	return w.Flush()
}

// connected asks the running relay who is there.
func (at relayPlace) connected(ctx context.Context, named string) (here map[wgkey.Public]bool, running bool) {
	client, err := at.client(named)
	if err != nil {
		return nil, false
	}
	var s relayd.Status
	if err := client.Status(ctx, &s); err != nil {
		return nil, false
	}
	here = make(map[wgkey.Public]bool, len(s.Clients))
	for _, client := range s.Clients {
		here[client.Key] = true
	}
	return here, true
}
